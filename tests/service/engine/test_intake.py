"""The model takes in changed items in the order of their rows, whatever happens; until then requests are answered."""

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_store.catalogue.catalogue import Catalogue
from model_store.catalogue.items import Item
from service.engine import intake as module
from service.engine.engine import Engine
from service.engine.intake import Intake
from service.errors import ModelFailed, ModelUnavailable
from service.store.embedded.server import EmbeddedServer
from tests.conftest import BOTH_VOCABULARIES, TITLES, small_voices, write_bundle
from tests.service.real import Service, ask, history, interaction, open_service

NUM_TRAINED = 3
steps = st.lists(
    st.tuples(st.just("change"), st.lists(st.integers(0, 7), min_size=1, max_size=4))
    | st.tuples(st.sampled_from(["fail", "away", "die", "wait"]), st.none()),
    max_size=12,
)


class FakeModel:
    """Knows titles by row, and refuses a row that does not follow those that it knows."""

    def __init__(self, view: SimpleNamespace) -> None:
        self.view, self.faults = view, list[Exception]()
        self.open()

    def open(self) -> None:
        self.titles = [item.title for item in self.view.catalogue.items.base]

    async def put(self, items: Sequence[tuple[int, Item]]) -> None:
        await asyncio.sleep(0)
        if self.faults:
            raise self.faults.pop()
        for row, item in items:
            assert row <= len(self.titles), f"row {row} came when only {len(self.titles)} were known"
            self.titles[row : row + 1] = [item.title]


async def play(plan: Sequence[tuple[str, list[int] | None]]) -> None:
    view = SimpleNamespace(catalogue=Catalogue([Item(f"i{row}", f"trained {row}") for row in range(NUM_TRAINED)]))
    model, num_filled = FakeModel(view), 0

    async def was_filled() -> None:
        nonlocal num_filled
        num_filled += 1

    intake = Intake(view, model.put, was_filled)  # type: ignore[arg-type]
    intake.begin_again()
    intake.start()
    for number, (kind, names) in enumerate(plan):
        if kind == "change":
            items = [Item(f"i{name}", f"title {number}") for name in dict.fromkeys(names or ())]
            view.catalogue = view.catalogue.with_items(items)
            intake.add(view.catalogue.rows[item.item_id] for item in items)
        elif kind == "die":
            model.open()
            intake.begin_again()
        elif kind == "wait":
            await asyncio.sleep(0.001)
        else:
            model.faults.append(ModelFailed("once") if kind == "fail" else ModelUnavailable("once"))
    for _ in range(10):
        with contextlib.suppress(ModelFailed):
            await intake.taken_in(range(len(view.catalogue)))
        if not len(intake) and num_filled:
            break
        await asyncio.sleep(0.002)
    await intake.stop()
    assert len(intake) == 0 and num_filled >= 1
    expected = [item.title for item in view.catalogue.items]
    wrong = [row for row, pair in enumerate(zip(model.titles, expected, strict=True)) if pair[0] != pair[1]]
    assert len(wrong) <= sum(kind == "fail" for kind, _ in plan), "the model has old titles"
    for row in wrong:
        assert row < NUM_TRAINED or model.titles[row] == f"item {row}", "no stand-in has the row of a refused item"


@settings(max_examples=60, deadline=None)
@given(plan=steps)
def test_the_model_knows_all_items_in_the_end_in_the_order_of_their_rows(
    plan: list[tuple[str, list[int] | None]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_TRY_AGAIN_S", 0.0)
        patch.setattr(module, "_AT_ONCE", 3)
        asyncio.run(play(plan))


async def shown(service: Service, **fields: object) -> set[str]:
    request = {"k": 100, "recent": [{"item_id": "i1"}], "exclude_seen": False} | fields
    return {item.item_id for item in (await ask(service, **request)).items}


class Gate:
    """Holds back what the model shall take in."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_open, put = asyncio.Event(), Engine._put_items

        async def gated(engine: Engine, items: Sequence[tuple[int, Item]]) -> None:
            await self.is_open.wait()
            await put(engine, items)

        monkeypatch.setattr(module, "FAR_BEHIND", 5)
        monkeypatch.setattr(Engine, "_put_items", gated)


@BOTH_VOCABULARIES
async def test_a_service_with_many_new_items_answers_before_its_model_knows_them(
    service: Service, bundle_path: Path, valkey: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.items.put_many([Item(f"new{number}", f"Number {number}") for number in range(70)])
    await service.items.patch("i3", {"hidden": True})
    expected = await shown(service, k=100)
    gate = Gate(monkeypatch)
    async with open_service(bundle_path, valkey.url) as other:
        assert len(other.engine.intake) == 70
        trained = {f"i{row}" for row in range(len(TITLES))} - {"i3"}
        assert await shown(other) - {f"new{number}" for number in range(70)} == trained, "an item was shown hidden"
        assert (await other.submit([interaction(1, item_id="new60")], "durable"))[0].status == "accepted"
        assert await shown(other, user_id="u", recent=[{"item_id": "new69"}]) >= trained
        await other.items.put(Item("late", "A late one"))
        assert (await other.items.neighbors("late", 3)) == [] and len(other.engine.intake) == 71
        gate.is_open.set()
        async with asyncio.timeout(20):
            while len(other.engine.intake):
                await asyncio.sleep(0.01)
        assert await shown(other, k=100) == expected | {"late"}
        assert [item.item_id for item in other.bundle.catalogue.items] == [
            item.item_id for item in other.view.catalogue.items
        ], "server and model have items at different rows"


async def test_events_of_items_that_the_model_does_not_know_yet_do_not_vote(
    tmp_path: Path, valkey: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, raw: object
) -> None:
    write_bundle(tmp_path / "voiced", vocabulary="items", voices=small_voices(len(TITLES)))
    async with open_service(tmp_path / "voiced", valkey.url, live_half_life_days=30) as service:
        await service.items.put_many([Item(f"new{number}", f"Number {number}") for number in range(9)])
        await service.submit([*history(12), *(interaction(20 + n, item_id=f"new{n}") for n in range(3))], "visible")
        await service.live_counts.catch_up()
        gate = Gate(monkeypatch)
        async with open_service(tmp_path / "voiced", valkey.url, live_half_life_days=30) as other:
            await other.live_counts.catch_up()
            answer = await ask(other, user_id="u", k=5)
            assert answer.fallback is None and answer.items
            reasons = [item.reason for item in answer.items if item.reason is not None]
            assert reasons and all(reason.item_id is None or reason.item_id.startswith("i") for reason in reasons)
            gate.is_open.set()
            async with asyncio.timeout(20):
                while len(other.engine.intake):
                    await asyncio.sleep(0.01)
            expected = (await ask(service, user_id="u", k=5)).items
            async with asyncio.timeout(10):  # counts come last
                while (await ask(other, user_id="u", k=5)).items != expected:
                    await asyncio.sleep(0.05)
            allowed = np.ones(len(other.view.catalogue), dtype=bool)
            assert await other.engine.similar(len(TITLES), 3, allowed)
