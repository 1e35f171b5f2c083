"""Parts of a request that have no effect or are probably a mistake: the answer names them and is given all the same.

In: parts of a valid request and the catalogue. Out: `Warned`, a field and what is odd about it. Knows no HTTP.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
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
from service.usecases.ranking.rules import Rules

MOST_NAMED = 20  # unknown items of one list


class Warned(NamedTuple):
    """`field` as in an error, such as `candidates.3`. `message` does not repeat values."""

    field: str
    message: str


_NO_OPERATOR = (
    "; if an operator was meant, it is one of and, or, not, eq, ne, lt, lte, gt, gte, range, in, exists, starts_with"
)
NOT_DIVERSE = Warned("diversity", "not applied: the vectors of the items could not be read in time")


def of_candidates(candidates: Sequence[str], catalogue: Catalogue) -> list[Warned]:
    return _of_items("candidates", candidates, catalogue)


def of_recent(item_ids: Sequence[str], catalogue: Catalogue) -> list[Warned]:
    return _of_items("recent", item_ids, catalogue)


def _of_items(field: str, item_ids: Sequence[str], catalogue: Catalogue) -> list[Warned]:
    """Names the first unknown items by their place, and counts the others."""
    unknown = [place for place, item_id in enumerate(item_ids) if item_id not in catalogue.rows]
    named = [Warned(f"{field}.{place}", "the catalogue has no such item") for place in unknown[:MOST_NAMED]]
    if len(unknown) > len(named):
        named.append(Warned(field, f"{len(unknown) - len(named)} more are not in the catalogue"))
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


def of_rules(rules: Rules, catalogue: Catalogue, user_id: str | None, shown: Collection[str]) -> list[Warned]:
    """Rules without effect: names that no item has, pins that are not `shown`, what was shown lately is not known."""
    found = [
        each
        for place, boost in enumerate(rules.boosts)
        for each in of_filter(boost.condition, catalogue, f"boosts.{place}.filter")
    ]
    for place, pin in enumerate(rules.pins):
        if pin.item_id not in shown:
            is_known = pin.item_id in catalogue.rows
            message = "this item may not be shown to this user now" if is_known else "the catalogue has no such item"
            found.append(Warned(f"pins.{place}.item_id", message))
    for place, cap in enumerate(rules.caps):
        if cap.attribute not in OWN_NAMES:
            odd = of_attribute(cap.attribute, (), catalogue.attributes)
            found += [Warned(f"caps.{place}.attribute", message) for message in odd]
    if rules.rotation is not None and user_id is None:
        found.append(Warned("rotation", "has no effect without `user_id`"))
    elif rules.rotation is not None and rules.shown_at is None:
        found.append(Warned("rotation", "not applied: what was shown lately cannot be read now"))
    return found


def of_attribute(name: str, wanted: Iterable[Kind], known: Attributes) -> Iterator[str]:
    """What is odd about comparing the attribute `name` with values of the types `wanted`."""
    kinds = known.kinds(name)
    if not kinds:
        nearest = known.nearest(name)
        hint = _NO_OPERATOR if name == "op" else f"; did you mean `{nearest}`?" if nearest else ""
        yield f"no item has this attribute{hint}"
        return
    others = dict.fromkeys(kind for kind in wanted if kind not in kinds)
    for kind in islice(others, 3):
        yield f"a {kind} is asked for, but the values of this attribute are of type {' or '.join(kinds)}"
