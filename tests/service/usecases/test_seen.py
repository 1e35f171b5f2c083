"""The rows of what a user has had are those that a plain look-up of ids gives."""

import random

import numpy as np
import pytest

from model_store.bundle import Bundle
from model_store.catalogue.items import Item
from service.store.events import SEEN_FOR_EVER, item_digest
from service.usecases.seen import SeenRows

NAMES = [*(f"i{row}" for row in range(20)), "unknown", "", "ünï✓", "lone \ud800"]


def packed(names: list[str], until: int = SEEN_FOR_EVER) -> bytes:
    return b"".join(item_digest(name) + until.to_bytes(4, "little") for name in names)


@pytest.mark.parametrize("num_cached", [0, 4096], ids=["large catalogue", "small catalogue"])
@pytest.mark.parametrize("seed", range(5))
def test_rows_are_those_of_a_plain_look_up(
    bundle: Bundle, seed: int, num_cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.usecases.seen._NUM_CACHED", num_cached)
    catalogue, dice = bundle.catalogue, random.Random(seed)
    seen_rows = SeenRows(catalogue)
    for count in (0, 1, 7, 300):
        names = dice.choices(NAMES, k=count)
        rows = seen_rows.of(packed(names), catalogue, 5)
        assert set(rows.tolist()) == {catalogue.rows[name] for name in names if name in catalogue.rows}


def test_items_that_came_later_are_found(bundle: Bundle) -> None:
    catalogue = bundle.catalogue
    seen_rows = SeenRows(catalogue)
    for number in range(5):
        grown = catalogue.with_items([Item(f"late {number} {each}", f"Late {number} {each}") for each in range(3)])
        names = [*(item.item_id for item in grown.items), "unknown"]
        rows = seen_rows.of(packed(names[::-1]), grown, 5)
        np.testing.assert_array_equal(np.sort(rows), np.arange(len(grown)))
        catalogue = grown


def test_bytes_of_others_are_nobodys_item(bundle: Bundle) -> None:
    seen_rows = SeenRows(bundle.catalogue)
    for foreign in (b"", b"\xff", b"\0" * 8, b"\xff" * 8, b"short and long", bytes(range(256))):
        assert not len(seen_rows.of(foreign, bundle.catalogue, 5))
    rows = seen_rows.of(packed(["i3"]) + b"torn", bundle.catalogue, 5)
    assert rows.tolist() == [bundle.catalogue.rows["i3"]], "a torn end hides nothing"


def test_an_item_is_seen_until_its_time_has_come(bundle: Bundle) -> None:
    seen = packed(["i1"], 100) + packed(["i2"])
    found = [set(SeenRows(bundle.catalogue).of(seen, bundle.catalogue, now).tolist()) for now in (99, 100, 2**40)]
    rows = bundle.catalogue.rows
    assert found == [{rows["i1"], rows["i2"]}, {rows["i2"]}, {rows["i2"]}]
