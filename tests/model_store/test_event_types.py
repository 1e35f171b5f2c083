"""The table of event types that is in force where a bundle has none is the one that the documents show."""

import re
from pathlib import Path

from model_store.event_types import DAY_S, EventTypes

INTEGRATE = Path(__file__).resolve().parents[2] / "docs/integrate.md"
SEEN_S = {"for ever": None, "for a day": DAY_S, "no": 0}


def test_the_defaults_are_those_of_the_documents() -> None:
    text = INTEGRATE.read_text(encoding="utf-8")
    rows = text.partition("| type | weight | interest | seen | |\n")[2].partition("\n\n")[0].splitlines()[1:]
    table, told = EventTypes(), set[str]()
    for row in rows:
        kinds, weight, interest, seen, note = (cell.strip() for cell in row.strip("|").split("|"))
        names = [*re.findall(r"`(\w+)`", kinds), *(["a word of ours"] if "every other type" in kinds else [])]
        for name in names:
            rule = table.rule(name, None)
            assert rule.weight == float(weight.partition(";")[0].replace("−", "-")), name
            assert rule.is_interest == (interest != "no"), name
            assert rule.seen_s == SEEN_S[seen], name
            assert rule.cancels == ("takes back" in note), name
        told.update(names)
    assert told - {"a word of ours"} == set(table.types), "a type is not in the documents"


def test_a_rating_means_what_its_value_says() -> None:
    found = [EventTypes().rule("rating", value) for value in (1.0, 2.0, 2.5, 3.9, 4.0, 5.0)]
    assert [rule.weight for rule in found] == [-1, -1, 0.5, 0.5, 1, 1]
    assert [rule.is_interest for rule in found] == [False, False, True, True, True, True]
    assert [rule.cancels for rule in found] == [True, True, False, False, False, False], "up to 2 it is a dislike"
