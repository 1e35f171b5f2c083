"""Random requests with every option that a caller may have, and what is wrong with their answers.

`Shop` is what a caller knows: the items, what each user had, and what each was shown. It checks an answer by plain
rules of its own, so it can check a service that it reaches over HTTP only.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import floor, log
from typing import Any

from service.store.shown import MOST_LISTS

Attributes = Mapping[str, Any]

_COMPARE = {
    "lt": lambda one, other: one < other, "lte": lambda one, other: one <= other,
    "gt": lambda one, other: one > other, "gte": lambda one, other: one >= other,
}  # fmt: skip


def values_of(attributes: Attributes, name: str) -> list[Any]:
    found = attributes.get(name)
    return [each for each in (found if isinstance(found, list) else [found]) if isinstance(each, str | int | float)]


def passes(wanted: Mapping[str, Any], attributes: Attributes) -> bool:
    """What docs/integrate.md says of filters. `attributes` has `item_id` and `title` as well."""
    op = wanted.get("op")
    if op is None:
        return all(_has(attributes, name, each if isinstance(each, list) else [each]) for name, each in wanted.items())
    if op in ("and", "or"):
        return (all if op == "and" else any)(passes(each, attributes) for each in wanted["filters"])
    if op == "not":
        return not passes(wanted["filter"], attributes)
    name = wanted["attribute"]
    values = values_of(attributes, name)
    if op in ("eq", "ne", "in"):
        has = _has(attributes, name, wanted["values"] if op == "in" else [wanted["value"]])
        return has != (op == "ne")
    if op == "exists":
        return bool(values)
    if op == "starts_with":
        return any(isinstance(value, str) and value.startswith(wanted["text"]) for value in values)
    bounds = {kind: wanted[kind] for kind in _COMPARE if kind in wanted} if op == "range" else {op: wanted["value"]}
    return any(
        all(_kind(value) == _kind(bound) and _COMPARE[kind](value, bound) for kind, bound in bounds.items())
        for value in values
        if not isinstance(value, bool)
    )


def _kind(value: Any) -> type:
    return float if isinstance(value, int | float) and not isinstance(value, bool) else type(value)


def _has(attributes: Attributes, name: str, wanted: Sequence[Any]) -> bool:
    return any(
        value == each and _kind(value) == _kind(each) for value in values_of(attributes, name) for each in wanted
    )


@dataclass
class Shop:
    """`items`: id → attributes, with `item_id` and `title`. `seen`: user → ids. `shown`: user → ids of each answer."""

    items: dict[str, dict[str, Any]]
    seen: dict[str, set[str]]
    shown: dict[str, list[list[str]]] = field(default_factory=dict)

    # ---- requests

    def some_filter(self, dice: random.Random, depth: int = 2) -> dict[str, Any]:
        kind = dice.choice(["short", "eq", "in", "range", "compare", "exists", "starts", "and", "or", "not"])
        if kind in ("and", "or") and depth:
            return {"op": kind, "filters": [self.some_filter(dice, depth - 1) for _ in range(dice.randint(1, 3))]}
        if kind == "not" and depth:
            return {"op": "not", "filter": self.some_filter(dice, depth - 1)}
        attributes = self.items[dice.choice(sorted(self.items))]
        name = dice.choice(sorted(attributes))
        value = (values_of(attributes, name) or ["none"])[0]
        if kind == "eq":
            return {"op": dice.choice(["eq", "ne"]), "attribute": name, "value": value}
        if kind == "in":
            return {"op": "in", "attribute": name, "values": [value, "nothing", 3]}
        if kind == "range" and not isinstance(value, bool):
            return {"op": "range", "attribute": name, dice.choice(["gt", "gte"]): value}
        if kind == "compare" and not isinstance(value, bool):
            return {"op": dice.choice(sorted(_COMPARE)), "attribute": name, "value": value}
        if kind == "exists":
            return {"op": "exists", "attribute": name}
        if kind == "starts":
            return {"op": "starts_with", "attribute": "title", "text": attributes["title"][: dice.randint(1, 3)]}
        return {name: [value, "nothing"]}

    def some_options(self, dice: random.Random) -> dict[str, Any]:
        """What one user and several may ask."""
        names = [name for name in sorted(next(iter(self.items.values()))) if name not in ("item_id", "title")]
        optional: dict[str, Any] = {
            "filter": self.some_filter(dice),
            "exclude": dice.choices([*sorted(self.items), "unknown"], k=dice.randint(1, 6)),
            "boosts": [
                {"filter": self.some_filter(dice, 1), dice.choice(["factor", "add"]): dice.choice([0.1, 2.0, 9.0])}
                for _ in range(dice.randint(1, 3))
            ],
            "caps": [
                {"attribute": dice.choice([*names, "missing"]), "at_most": dice.randint(1, 3)}
                for _ in range(dice.randint(1, 2))
            ],
            "diversity": dice.choice([0.2, 0.7, 1.0]),
            "rotation": {"rate": dice.choice([0.3, 1.0, 1.0])},
            "exclude_seen": dice.random() < 0.7,
            "exploration": {"share": dice.choice([0.1, 0.5]), "max_events": dice.choice([0, 3, 1000])},
        }
        options = {name: value for name, value in optional.items() if dice.random() < 0.4}
        return {"k": dice.randint(1, 12), "deadline_ms": 60_000, **options}

    def some_request(self, dice: random.Random) -> dict[str, Any]:
        request = self.some_options(dice)
        positions = dice.sample(range(1, request["k"] + 1), k=min(request["k"], dice.randint(1, 3)))
        pinned = dice.sample([*sorted(self.items), "unknown"], k=len(positions))
        optional = {
            "user_id": dice.choice([*sorted(self.seen), "stranger"]),
            "candidates": dice.choices([*sorted(self.items), "unknown"], k=dice.randint(5, 40)),
            "pins": [{"item_id": each, "position": place} for each, place in zip(pinned, positions, strict=True)],
            "recent": [{"item_id": each} for each in dice.choices(sorted(self.items), k=dice.randint(1, 3))],
        }
        shares = {"user_id": 0.8, "candidates": 0.2, "pins": 0.4, "recent": 0.3}
        return request | {name: value for name, value in optional.items() if dice.random() < shares[name]}

    # ---- answers

    def allowed(self, request: Mapping[str, Any], has_returns: bool) -> set[str]:
        seen = self.seen.get(request.get("user_id") or "", set()) | {
            each["item_id"] for each in request.get("recent", [])
        }
        hides_seen = request.get("exclude_seen", not has_returns)
        return {
            item_id
            for item_id, attributes in self.items.items()
            if item_id in request.get("candidates", self.items)
            and item_id not in request.get("exclude", ())
            and passes(request.get("filter", {}), attributes)
            and not (hides_seen and item_id in seen)
        }

    def violations(
        self,
        request: Mapping[str, Any],
        answer: Mapping[str, Any],
        *,
        has_returns: bool,
        taken: frozenset[str] = frozenset(),
    ) -> list[str]:
        """`taken`: items of other users, with `distinct`."""
        ids = [item["item_id"] for item in answer["items"]]
        allowed, k = self.allowed(request, has_returns), request["k"]
        pins = {pin["position"]: pin["item_id"] for pin in request.get("pins", []) if pin["item_id"] in allowed}
        found = [
            (len(set(ids)) == len(ids) <= k, "repeats an item, or has more than k"),
            ([item["rank"] for item in answer["items"]] == list(range(1, len(ids) + 1)), "ranks"),
            (set(ids) <= allowed, f"shows what may not be shown: {set(ids) - allowed}"),
            (not set(ids) & taken, "shows an item of another user"),
            (all(each in ids for each in pins.values()), "lacks a pin"),
            (self._pins_stand(ids, pins), "a pin is misplaced"),
            (answer["fallback"] in (None, "cold_start"), f"fallback {answer['fallback']}"),
        ]
        wrong = [text for holds, text in found if not holds]
        wrong += self._caps(request, ids, set(pins.values()), allowed - taken)
        wrong += self._order(request, answer["items"], set(pins.values()))
        wrong += self._moves(request, answer["items"])
        wrong += self._explored(request, answer["items"])
        wrong += self._warnings(request, answer, allowed)
        return wrong

    def _pins_stand(self, ids: Sequence[str], pins: Mapping[int, str]) -> bool:
        return all(
            ids.index(each) + 1 == place for place, each in pins.items() if each in ids and len(ids) >= max(pins)
        )

    def _caps(self, request: Mapping[str, Any], ids: Sequence[str], pinned: set[str], allowed: set[str]) -> list[str]:
        wrong, full = [], set()
        for cap in request.get("caps", []):
            name, most = cap["attribute"], cap["at_most"]
            counts = Counter(key for each in ids for key in self._keys(each, name))
            own = Counter(key for each in pinned for key in self._keys(each, name))
            wrong += [f"cap of {key}" for key, count in counts.items() if count > max(most, own[key])]
            full |= {(name, key) for key, count in counts.items() if count >= most}
        if len(ids) < request["k"]:
            names = [cap["attribute"] for cap in request.get("caps", [])]
            fitting = [
                each
                for each in allowed - set(ids)
                if not any((name, key) in full for name in names for key in self._keys(each, name))
            ]
            wrong += [f"{len(fitting)} items are missing"] if fitting else []
        return wrong

    def _keys(self, item_id: str, name: str) -> set[tuple[type, Any]]:
        return {(_kind(value), value) for value in values_of(self.items[item_id], name)}

    def _order(self, request: Mapping[str, Any], items: Sequence[Mapping[str, Any]], pinned: set[str]) -> list[str]:
        """Boosts and rotation where no other rule orders: sums that fall, and what was shown comes last."""
        if request.get("diversity") or len(request.get("caps", [])):
            return []
        placed = pinned | {item["item_id"] for item in items if item["explored"]}
        rows = [item for item in items if item["item_id"] not in placed and item["score"] is not None]
        shown = {each for ids in self.shown.get(request.get("user_id") or "", []) for each in ids}
        if "rotation" in request and shown:
            is_old = [item["item_id"] in shown for item in rows]
            return (
                ["what was shown is not last"] if request["rotation"]["rate"] == 1 and is_old != sorted(is_old) else []
            )
        sums = [item["score"] + self.added(request, item["item_id"]) for item in rows]
        falls = all(one >= other - 0.001 for one, other in pairwise(sums))
        return [] if falls else ["boosted scores do not fall"]

    def added(self, request: Mapping[str, Any], item_id: str) -> float:
        return sum(
            (boost["add"] if "add" in boost else log(boost["factor"]))
            for boost in request.get("boosts", [])
            if passes(boost["filter"], self.items[item_id])
        )

    def _moves(self, request: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> list[str]:
        """The last move of an item ends at its rank, and a rule that was not asked for moves nothing."""
        wrong = []
        for item in items:
            rules = [move["rule"] for move in item["moves"]]
            asked = [
                name
                for name in ("boosts", "rotation", "diversity", "distinct", "caps", "exploration", "pins")
                if request.get(name)
            ]
            if rules != [name for name in asked if name in rules]:
                wrong.append(f"moves by {rules}")
            if any(move["from_rank"] == move["to_rank"] for move in item["moves"]):
                wrong.append("a move that moves nothing")
            if item["moves"] and "pins" not in request and "distinct" not in request:
                wrong += ["moves end elsewhere"] if item["moves"][-1]["to_rank"] != item["rank"] else []
        return wrong

    def _explored(self, request: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> list[str]:
        """At most one place more than the share, and each such item says so."""
        explored = [item for item in items if item["explored"]]
        share = request.get("exploration", {"share": 0})["share"]
        wrong = ["too much is explored"] if len(explored) > floor(share * request["k"]) + (share > 0) else []
        is_told = all("exploration" in [move["rule"] for move in item["moves"]] for item in explored)
        return wrong if is_told else [*wrong, "an explored item does not say so"]

    def _warnings(self, request: Mapping[str, Any], answer: Mapping[str, Any], allowed: set[str]) -> list[str]:
        named = {each["field"] for each in answer["warnings"]}
        expected = {
            f"pins.{place}.item_id"
            for place, pin in enumerate(request.get("pins", []))
            if pin["item_id"] not in allowed
        }
        if "rotation" in request and "user_id" not in request:
            expected.add("rotation")
        expected |= {
            f"caps.{place}.attribute"
            for place, cap in enumerate(request.get("caps", []))
            if cap["attribute"] == "missing"
        }
        return [] if expected <= named else [f"warnings lack {expected - named}"]

    def remember(self, user_id: str | None, answer: Mapping[str, Any]) -> None:
        """The service keeps the newest `MOST_LISTS` lists of a user."""
        ids = [item["item_id"] for item in answer["items"]]
        if user_id is not None and ids:
            self.shown[user_id] = [*self.shown.get(user_id, []), ids][-MOST_LISTS:]
