"""New items are recommended where they belong: by their words at once, by what users do with them soon after."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from model_store.catalogue.conditions import equal_to
from model_store.catalogue.items import Item
from service.store.counts import SECONDS_PER_DAY, Counts, cell, record
from service.store.embedded.server import EmbeddedServer
from service.store.events import item_digest
from service.store.keys import user_keys
from service.usecases.browsing.rankings import Rankings
from service.usecases.live import decayed, trends
from service.usecases.ranking.requests import Recommendation
from tests.conftest import BOTH_VOCABULARIES, write_bundle
from tests.service.real import NOW, Service, ask, interaction, open_service
from tests.service.shop import LAMP, TITLES, TOYS, voices_that_follow_the_mixture
from training.data.dataset import clean_dataset
from training.data.meaning import meaning_of

DAY = SECONDS_PER_DAY


@pytest.fixture(scope="module")
def shop_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shop") / "tiny"
    write_bundle(path, vocabulary="items", titles=TITLES, voices=voices_that_follow_the_mixture())
    return path


@pytest.fixture
async def shop(shop_path: Path, valkey: EmbeddedServer, raw: Redis) -> AsyncIterator[Service]:
    async with open_service(shop_path, valkey.url, live_half_life_days=30) as opened:
        yield opened


async def buy(service: Service, user: str, *items: str, day: int = 0) -> None:
    await service.submit(
        [
            interaction(number, user, item_id=item, event_id=f"{user}{item}{day}", timestamp=NOW + day * DAY + number)
            for number, item in enumerate(items)
        ],
        "durable",
    )
    await service.work_off()
    await service.live_counts.catch_up()


async def after(service: Service, *items: str, k: int = 10) -> Recommendation:
    answer = await ask(service, k=k, recent=[{"item_id": item} for item in items], timestamp=NOW + 9 * DAY)
    assert answer.fallback is None
    return answer


def ids(answer: Recommendation) -> list[str]:
    return [item.item_id for item in answer.items]


def voice(answer: Recommendation, item_id: str) -> str:
    return next(item.reason.voice for item in answer.items if item.item_id == item_id and item.reason)


# ---- words


async def test_a_new_title_is_recommended_after_titles_that_share_its_words(shop: Service) -> None:
    before = ids(await after(shop, TOYS))
    await shop.items.put(Item("daisy", "JUMBO BAG PURPLE DAISY"))
    answer = await after(shop, TOYS)
    assert "daisy" in ids(answer)[:3] and voice(answer, "daisy") == "alike"
    reason = answer.items[ids(answer).index("daisy")].reason
    assert reason is not None and reason.item_id == TOYS
    other = await after(shop, "daisy")
    assert ids(other)[0] == TOYS and voice(other, TOYS) == "alike", "and they after it"
    assert "daisy" not in ids(await after(shop, LAMP, k=3))
    assert [item for item in ids(answer) if item != "daisy"] == before[:9], "others keep their order"


async def test_a_replica_and_a_restart_know_the_new_title(
    shop: Service, shop_path: Path, valkey: EmbeddedServer
) -> None:
    await shop.items.put_many([Item("daisy", "JUMBO BAG PURPLE DAISY"), Item("rose", "JUMBO BAG ROSE")])
    await buy(shop, "u", LAMP, "rose")
    async with open_service(shop_path, valkey.url, live_half_life_days=30) as other:
        await other.live_counts.catch_up()
        for items in ([TOYS], ["daisy"], ["rose"], [LAMP]):
            one, two = await after(shop, *items), await after(other, *items)
            assert ids(one) == ids(two) and [item.reason for item in one.items] == [item.reason for item in two.items]


# ---- what goes together


async def test_a_new_item_is_recommended_after_what_it_was_bought_with(shop: Service) -> None:
    await shop.items.put(Item("fresh", "Something Else Entirely"))
    assert "fresh" not in ids(await after(shop, LAMP))[:3]
    for number in range(5):
        await buy(shop, f"user{number}", LAMP, "fresh")
    answer = await after(shop, LAMP)
    assert "fresh" in ids(answer)[:3] and voice(answer, "fresh") == "near"
    answer = await after(shop, "fresh")
    assert ids(answer)[0] == LAMP and voice(answer, LAMP) == "near"
    assert voice(await after(shop, "i30", k=50), "fresh") != "near", "it was not bought with this one"
    for number in range(5):
        await shop.users.forget(f"user{number}")
    await shop.live_counts.catch_up()
    assert voice(await after(shop, LAMP, k=50), "fresh") != "near", "counts of users who left are gone"


async def test_counts_reach_an_item_that_is_known_later(shop: Service, shop_path: Path, valkey: EmbeddedServer) -> None:
    async with open_service(shop_path, valkey.url, live_half_life_days=30) as other:
        await shop.items.put(Item("fresh", "Something Else Entirely"))
        await buy(shop, "u", LAMP, "fresh")
        await other.live_counts.catch_up()
        await other.items.catch_up()
        await other.live_counts.catch_up()
        assert ids(await after(other, LAMP)) == ids(await after(shop, LAMP))


async def test_the_model_has_its_counts_again_after_it_died(shop: Service) -> None:
    await shop.items.put(Item("fresh", "Something Else Entirely"))
    for number in range(5):
        await buy(shop, f"user{number}", LAMP, "fresh")
    expected = await after(shop, LAMP)
    first = shop.engine._running()
    await first.stop(5)
    while not shop.engine.is_ready or shop.engine._running() is first:
        await asyncio.sleep(0.05)
    async with asyncio.timeout(10):  # it answers before it knows all items and counts
        while ids(await after(shop, LAMP)) != ids(expected):
            await asyncio.sleep(0.05)


# ---- popularity


@BOTH_VOCABULARIES
async def test_popular_items_follow_live_events(
    make_bundle: Callable[..., Path], valkey: EmbeddedServer, raw: Redis
) -> None:
    async with open_service(make_bundle(), valkey.url, live_half_life_days=30) as service:
        await service.items.put(Item("fresh", "Something Else Entirely"))
        assert ids(await ask(service, k=2)) == ["i0", "i1"], "the most popular in training: 20 and 19 events"
        for number in range(21):
            await buy(service, f"user{number}", "fresh", *(["i1"] if number < 3 else []))
        answer = await ask(service, k=3)
        assert answer.fallback == "cold_start" and ids(answer) == ["i1", "fresh", "i0"]
        assert service.model.bundle.catalogue.most_popular(np.ones(21, dtype=bool), 3) == [1, 20, 0]
        await service.items.put(Item("newer", "Newer"))
        assert ids(await ask(service, k=50))[5] == "newer", "the sixth of ten places is of what is new"
        assert service.view.catalogue.by_popularity[-1] == service.view.catalogue.rows["newer"]


@BOTH_VOCABULARIES
async def test_a_cold_user_and_the_lists_follow_2000_buyers(
    make_bundle: Callable[..., Path], valkey: EmbeddedServer, raw: Redis
) -> None:
    async with open_service(make_bundle(), valkey.url, live_half_life_days=30) as service:
        await service.items.put(Item("fresh", "Something Else Entirely", attributes={"kind": "new"}))
        day = NOW // SECONDS_PER_DAY
        digests = [item_digest("fresh"), item_digest("i9")]
        cells = {f"user{n}": [cell(day, digests[0], digests[0])] for n in range(2000)}
        for number in range(600):  # i9 has been chosen for weeks
            cells[f"old{number}"] = [cell(day - number % 20, digests[1], digests[1])]
        records = [(user, record({each: 1.0 for each in own if each})) for user, own in cells.items()]
        commands = [("HSET", user_keys(user)[0], "e", b"{}") for user in cells]  # who has no event is not counted
        await service.store.run(commands)
        for start in range(0, len(records), 100):
            await service.store.count(dict(records[start : start + 100]))
        await service.live_counts.catch_up()
        answer = await ask(service, k=3)
        assert answer.fallback == "cold_start" and ids(answer)[:2] == ["fresh", "i9"]
        assert {item.source for item in answer.items} == {"popular"}, "what is popular and trends is there once"
        rankings = Rankings(service.view, service.live_counts)
        popular = await rankings.of("popular", 2, None)
        assert [each.item_id for each in popular] == ["fresh", "i9"] and popular[0].score == 2000
        (first, *rest) = await rankings.of("trending", 10, None)
        assert first.item_id == "fresh" and first.score > 20 and "i9" not in {each.item_id for each in rest[:1]}
        assert [each.item_id for each in await rankings.of("latest", 10, None)] == ["fresh"]
        assert [each.item_id for each in await rankings.of("popular", 10, equal_to("kind", ["new"]))] == ["fresh"]
        await service.items.patch("fresh", {"hidden": True})
        assert not await rankings.of("latest", 10, None)


async def test_popular_and_trending_items_are_those_with_the_largest_weights(shop: Service) -> None:
    """Twelve looks at one item count as three purchases of another; dislikes count nothing, and take nothing."""
    events = [interaction(n, f"looker{n}", item_id="i1", type="view") for n in range(12)]
    events += [interaction(n, f"buyer{n}", item_id="i2", type="purchase") for n in range(6)]
    events += [interaction(n, f"hater{n}", item_id="i3", type="dislike") for n in range(9)]
    await shop.submit(events, "visible")
    await shop.work_off()
    await shop.live_counts.catch_up()
    rankings = Rankings(shop.view, shop.live_counts)
    for name in ("popular", "trending"):
        found = [each.item_id for each in await rankings.of(name, 30, None)]
        assert found.index("i2") < found.index("i1"), f"views count as purchases in {name}"
    live = shop.view.catalogue.popularity_of(np.arange(4)) - shop.view.catalogue.popularity[:4]
    assert live.tolist() == [0, 3, 6, 0]


async def test_live_counts_are_the_popularity_that_training_counts(shop: Service) -> None:
    kinds = ["view", "purchase", "cart", "skip", "impression", "rating", "play", "interaction"]
    events = [
        interaction(n, f"u{n % 9}", item_id=f"i{n % 11}", type=kinds[n % 8], value=float(1 + n % 5), timestamp=NOW + n)
        for n in range(88)
    ]
    await shop.submit(events, "visible")
    await shop.work_off()
    await shop.live_counts.catch_up()
    frame = pl.DataFrame(events).with_columns(rating="value").drop("value")
    items = pl.DataFrame({"item_id": [f"i{n}" for n in range(11)], "title": TITLES[:11]})
    cleaned, _ = clean_dataset("same", frame, items)
    taken_back = {
        (each["user_id"], each["item_id"]) for each in events if each["type"] == "rating" and each["value"] < 3
    }
    meaning = meaning_of(cleaned.interactions, shop.view.event_types)
    assert meaning is not None
    counted: dict[str, float] = {}
    for row in meaning.interest.filter("is_popular").unique(["user_id", "item_id", "weight"]).iter_rows(named=True):
        if (row["user_id"], row["item_id"]) not in taken_back:
            counted[row["item_id"]] = counted.get(row["item_id"], 0.0) + row["weight"]
    live = shop.view.catalogue.popularity_of(np.arange(11)) - shop.view.catalogue.popularity[:11]
    assert {f"i{row}": value for row, value in enumerate(live.tolist()) if value} == counted


async def test_the_latest_items_are_those_that_came_last(shop: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(("a", "b", "c")):
        monkeypatch.setattr("service.usecases.items.time.time", lambda n=number: NOW + n)
        await shop.items.put(Item(name, f"Title {name}"))
    await shop.items.put(Item("a", "Another title"))
    await shop.items.patch("b", {"attributes": {"x": 1}})
    rankings = Rankings(shop.view, shop.live_counts)
    assert [(each.item_id, each.score) for each in await rankings.of("latest", 2, None)] == [
        ("c", NOW + 2), ("b", NOW + 1),
    ]  # fmt: skip
    assert (await shop.items.get("a")).added_at == NOW, "an item that is replaced came when it came first"


def test_what_is_chosen_as_always_does_not_trend() -> None:
    flat, rising = np.array([[1, 1]], dtype=np.uint64), np.array([[2, 2]], dtype=np.uint64)
    days = {day: Counts(flat, np.array([10.0])) for day in range(20_000, 20_030)}
    days[20_029] = Counts(np.concatenate([flat, rising]), np.array([10.0, 10.0]))
    found = trends(days)
    assert found.pairs.tolist() == [[2, 2]] and found.counts[0] > 3
    assert not len(trends({}).pairs)


async def test_an_event_counts_half_after_a_half_life(shop: Service) -> None:
    await buy(shop, "u", "i1", "i2")
    await buy(shop, "v", "i2", day=30)
    live = shop.view.catalogue.popularity_of(np.arange(4)) - shop.view.catalogue.popularity[:4]
    np.testing.assert_allclose(live, [0, 0.5, 1.5, 0])


@given(
    st.lists(st.tuples(st.integers(19_000, 19_200), st.integers(0, 3), st.integers(0, 3)), max_size=30),
    st.sampled_from([1.0, 30.0]),
)
def test_sums_of_days_are_sums_of_events_and_halve_together(
    events: list[tuple[int, int, int]], half_life: float
) -> None:
    days = {
        day: Counts(
            np.array([pair[1:] for pair in events if pair[0] == day], dtype=np.uint64),
            np.ones(sum(pair[0] == day for pair in events)),
        )
        for day in {event[0] for event in events}
    }
    pairs, counts = decayed(days, half_life)
    newest = max(days, default=0)
    expected: dict[tuple[int, int], float] = {}
    for day, one, other in events:
        expected[one, other] = expected.get((one, other), 0) + 0.5 ** ((newest - day) / half_life)
    assert dict(zip(map(tuple, pairs.tolist()), counts.tolist(), strict=True)) == pytest.approx(expected)
    later = decayed({**days, newest + round(half_life): Counts(np.zeros((0, 2), np.uint64), np.zeros(0))}, half_life)
    np.testing.assert_allclose(later.counts, counts / 2)


async def test_half_life_0_neither_counts_nor_looks(shop_path: Path, valkey: EmbeddedServer, raw: Redis) -> None:
    async with open_service(shop_path, valkey.url, live_half_life_days=0) as service:
        await service.submit([interaction(1)], "visible")
        await service.work_off()
        assert await service.store.counted_days() == {} and not service.live_counts.following.is_running


async def test_the_age_of_the_counts_is_shown(shop: Service) -> None:
    await shop.live_counts.catch_up()
    assert shop.metric("live_counts_age_seconds") < 1
    shop.live_counts._looked_at -= 100
    assert shop.metric("live_counts_age_seconds") >= 100
