"""Parts of a request that have no effect or are probably a mistake: the answer names them and is given all the same.

In: parts of a valid request and the catalogue. Out: `Warned`, a field and what is odd about it. Knows no HTTP.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from model_store.catalogue.attributes import Attributes, Kind
from model_store.catalogue.catalogue import Catalogue
from model_store.catalogue.conditions import (
    OWN_NAMES,
    Among,
    Between,
    Comparison,
    Condition,
    StartsWith,
    comparisons_in,
)

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


def of_filter(condition: Condition | None, catalogue: Catalogue, field: str = "filter") -> list[Warned]:
    """Names the attributes of a filter that no item has, and values of another type; each oddity once."""
    if condition is None:
        return []
    odd = [
        Warned(f"{field}.{leaf.name}", message)
        for leaf in comparisons_in(condition)
        if leaf.name not in OWN_NAMES
        for message in of_attribute(leaf.name, _kinds_in(leaf), catalogue.attributes)
    ]
    return list(dict.fromkeys(odd))


def _kinds_in(leaf: Comparison) -> list[Kind]:
    """The types of the values that an attribute is compared with."""
    if isinstance(leaf, Among):
        return [typed.kind for typed in leaf.values]
    return [leaf.kind] if isinstance(leaf, Between) else ["text"] if isinstance(leaf, StartsWith) else []


def of_attribute(name: str, wanted: Iterable[Kind], known: Attributes) -> Iterator[str]:
    """What is odd about comparing the attribute `name` with values of the types `wanted`."""
    kinds = known.kinds(name)
    if not kinds:
        nearest = known.nearest(name)
        yield "no item has this attribute" + (f"; did you mean `{nearest}`?" if nearest else "")
        return
    others = dict.fromkeys(kind for kind in wanted if kind not in kinds)
    for kind in islice(others, 3):
        yield f"a {kind} is asked for, but the values of this attribute are of type {' or '.join(kinds)}"
