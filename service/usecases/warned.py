"""Parts of a request that have no effect or are probably a mistake: the answer names them and is given all the same.

In: parts of a valid request and the catalogue. Out: `Warned`, a field and what is odd about it. Knows no HTTP.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from model_store.catalogue.attributes import Attributes, kind_of
from model_store.catalogue.catalogue import Catalogue

MOST_NAMED = 20  # candidates


class Warned(NamedTuple):
    """`field` as in an error, such as `candidates.3`. `message` does not repeat values."""

    field: str
    message: str


def of_candidates(candidates: Sequence[str], catalogue: Catalogue) -> list[Warned]:
    """Names the first unknown candidates by their place, and counts the others."""
    unknown = [place for place, item_id in enumerate(candidates) if item_id not in catalogue.rows]
    named = [Warned(f"candidates.{place}", "the catalogue has no such item") for place in unknown[:MOST_NAMED]]
    if len(unknown) > len(named):
        named.append(Warned("candidates", f"{len(unknown) - len(named)} more are not in the catalogue"))
    return named


def of_filter(attributes: Mapping[str, Any], catalogue: Catalogue) -> list[Warned]:
    """`attributes`: name → wanted value, or list of values."""
    return [
        Warned(f"filter.{name}", message)
        for name, wanted in attributes.items()
        for message in of_attribute(name, wanted if isinstance(wanted, list) else [wanted], catalogue.attributes)
    ]


def of_attribute(name: str, values: Iterable[Any], known: Attributes) -> Iterator[str]:
    """What is odd about comparing the attribute `name` with `values`."""
    kinds = known.kinds(name)
    if not kinds:
        nearest = known.nearest(name)
        yield "no item has this attribute" + (f"; did you mean `{nearest}`?" if nearest else "")
        return
    others = dict.fromkeys(kind for kind in map(kind_of, values) if kind is not None and kind not in kinds)
    for kind in islice(others, 3):
        yield f"a {kind} is asked for, but the values of this attribute are of type {' or '.join(kinds)}"
