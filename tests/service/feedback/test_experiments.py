"""Variants answer by a hash of the user, and what users do with their lists counts once, whatever is retried."""

import asyncio
import contextlib
import time
from collections import Counter
from typing import Any

import pytest
from httpx2 import AsyncClient
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from service.errors import BadRequest, StoreUnavailable
from service.feedback.experiments import Experiment, Shadow, Variant
from service.feedback.outcomes import Outcomes, outcome_of, rate
from service.store.client import MemoryStore
from service.store.events import Event
from service.store.feedback.outcomes import OutcomeStore
from service.store.shown import ShownList, ShownStore
from service.usecases.ranking.requests import Request
from tests.service.real import Service, history

NOW = int(time.time())
HALVES = Experiment("spring", "with", (Variant("with", 0.5), Variant("without", 0.5, memory=False)))


def event(number: int, user_id: str = "u", **fields: Any) -> Event:
    facts: dict[str, Any] = {"type": "click", "recommendation_id": "r1"}
    return Event(f"e{number}", user_id, "i1", NOW, **{**facts, **fields})


async def show(store: MemoryStore, *lists: ShownList) -> None:
    await ShownStore(store.run, store.tombstones, kept_s=3600).save(lists)


def shown(number: int = 1, user_id: str | None = "u", variant: str = "spring/a") -> ShownList:
    return ShownList(f"r{number}", user_id, ("i1", "i2"), variant, "tiny", NOW)


@pytest.fixture
def outcomes(store: MemoryStore) -> Outcomes:
    return Outcomes(OutcomeStore(store.run))


async def test_events_that_name_an_answer_count_for_its_variant(store: MemoryStore, outcomes: Outcomes) -> None:
    await show(store, shown(1), shown(2, variant="spring/b"))
    await store.append([
        event(1), event(2, type="impression"), event(3, type="purchase"), event(4, type="skip"),
        event(5, recommendation_id="r2"), event(6, recommendation_id=None), event(7),
    ])  # fmt: skip
    assert await outcomes.settle(["u"]) == 6
    found = {each.variant: each for each in (await outcomes.results()).variants}
    a, b = found["spring/a"], found["spring/b"]
    assert (a.lists, a.impressions, a.clicks, a.conversions, a.rejections) == (1, 1, 2, 1, 1)
    assert (a.clicked_lists, a.converted_lists, b.clicks, b.conversions) == (1, 1, 1, 0)
    assert a.click_rate is not None and a.click_rate.value == 1.0


async def test_an_answer_that_is_unknown_or_did_not_show_the_item_is_unattributed(
    store: MemoryStore, outcomes: Outcomes
) -> None:
    await show(store, shown(1), shown(2, "other"))
    await store.append([
        event(1, recommendation_id="nothing"), event(2, recommendation_id="r2"), event(3)._replace(item_id="i9")
    ])  # fmt: skip
    await outcomes.settle(["u"])
    results = await outcomes.results()
    assert results.unattributed == 3 and sum(each.clicks for each in results.variants) == 0


@pytest.mark.parametrize("user_id", ["u", None])
async def test_an_event_that_is_faster_than_its_list_counts_all_the_same(
    store: MemoryStore, outcomes: Outcomes, user_id: str | None
) -> None:
    """A list is written a moment after its answer; a page sends its impressions at once."""
    await store.append([event(1, type="impression"), event(2, recommendation_id="r2")])
    await outcomes.settle_waiting()
    assert await outcomes.store.totals() == {}, "what names a list that may still come was counted"
    await show(store, shown(1, user_id), shown(2, user_id)._replace(explored=("i1",)))
    await outcomes.settle_waiting()
    (found,) = (await outcomes.results()).variants
    assert (found.impressions, found.clicks, found.explored_clicks) == (1, 1, 1)
    assert await outcomes.store.users(9) == {}, "the user waits for ever"


async def test_a_list_that_never_comes_is_waited_for_a_moment_only(
    store: MemoryStore, outcomes: Outcomes, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.append([event(1, recommendation_id="nothing")])
    await outcomes.settle_waiting()
    assert (await outcomes.results()).unattributed == 0
    monkeypatch.setattr("service.feedback.outcomes._LIST_COMES_S", -1)
    await outcomes.settle_waiting()
    assert (await outcomes.results()).unattributed == 1 and await outcomes.store.users(9) == {}


async def test_users_whose_lists_do_not_come_keep_nobody_else_waiting(
    store: MemoryStore, outcomes: Outcomes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.feedback.outcomes._USERS_AT_ONCE", 2)
    await store.append([event(n, f"early {n}", recommendation_id="nothing") for n in range(5)])
    await show(store, shown(1))
    await store.append([event(9)])
    async with asyncio.timeout(10):
        await outcomes.settle_waiting()
    assert (await outcomes.store.totals())["spring/a|click"] == 1
    assert set(await outcomes.store.users(9)) == {f"early {n}" for n in range(5)}


async def test_the_list_of_an_anonymous_session_counts_for_who_names_it(store: MemoryStore, outcomes: Outcomes) -> None:
    await show(store, shown(1, None, "default"))
    await store.append([event(1)])
    await outcomes.settle(["u"])
    results = await outcomes.results()
    assert results.unattributed == 0 and results.variants[0].clicks == 1


async def test_the_list_of_an_anonymous_session_counts_for_users_of_its_tenant_alone(
    store: MemoryStore, outcomes: Outcomes
) -> None:
    users = ["u", "shop-a\x1fu", "shop-b\x1fu"]
    await show(store, shown(1, None, "of-a")._replace(tenant="shop-a"), shown(2, None, "of-none"))
    await store.append([event(number, user) for number, user in enumerate(users)])
    await store.append([event(number + 9, user, recommendation_id="r2") for number, user in enumerate(users)])
    await outcomes.settle(users)
    results = await outcomes.results()
    assert {each.variant: each.clicks for each in results.variants} == {"of-a": 1, "of-none": 1}
    assert results.unattributed == 4, "a tenant counts events for a list of another one"


@examples(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sends=st.lists(st.tuples(st.integers(0, 5), st.sampled_from("uv")), min_size=1, max_size=12),
    dies_after=st.lists(st.integers(0, 5), max_size=3),
)
async def test_each_event_counts_once_whatever_is_resent_or_killed(
    store: MemoryStore, sends: list[tuple[int, str]], dies_after: list[int]
) -> None:
    """A worker that is killed between two calls of the store, and events that are sent again."""
    await store.run([("FLUSHALL",)])
    await show(store, shown(1, "u"), shown(1, "v"))
    for number, user_id in sends:
        await store.append([event(number, user_id)])
        if dies_after:
            await killed_after(store, dies_after[0])
    for calls in dies_after:
        await killed_after(store, calls)
    outcomes = Outcomes(OutcomeStore(store.run))
    await outcomes.settle_waiting()
    totals = await outcomes.store.totals()
    assert totals["spring/a|click"] == len(set(sends))
    assert totals["spring/a|click|lists"] == len({user for _, user in sends})
    assert await outcomes.settle(["u", "v"]) == 0


async def killed_after(store: MemoryStore, calls: int) -> None:
    left = calls

    async def run(commands: Any) -> list[Any]:
        nonlocal left
        left -= 1
        if left < 0:
            raise StoreUnavailable("killed")
        return await store.run(commands)

    with contextlib.suppress(StoreUnavailable):
        await Outcomes(OutcomeStore(run)).settle_waiting()


async def test_a_deleted_user_leaves_no_outcome(store: MemoryStore, outcomes: Outcomes) -> None:
    await show(store, shown(1))
    await store.append([event(1)])
    await store.forget_user("u")
    assert await outcomes.settle(["u"]) == 0
    assert await store.run([("KEYS", "automr:{u}*")]) == [[]]


async def test_servers_count_what_events_say(service: Service) -> None:
    await service.submit(history(5), "visible")
    answer = await service.answers.recommend(Request(user_id="u", k=3))
    item = answer.items[0].item_id
    clicked = {"user_id": "u", "item_id": item, "timestamp": NOW, "type": "click"}
    await service.submit([{**clicked, "recommendation_id": answer.recommendation_id}], "durable")
    async with asyncio.timeout(10):
        while await service.experiments.outcomes.store.users(1):
            await service.experiments.outcomes.settle_waiting()
            await asyncio.sleep(0.01)
    (default,) = (await service.experiments.outcomes.results()).variants
    assert (default.variant, default.lists, default.clicks) == ("default", 1, 1)


def name_of(experiment: Experiment, user_id: str) -> str:
    variant = experiment.variant_of(user_id)
    assert variant is not None
    return variant.name


def test_users_are_divided_by_the_shares_and_keep_their_variant() -> None:
    experiment = Experiment("e", "a", (Variant("a", 0.7), Variant("b", 0.2), Variant("c", 0.1)))
    found = Counter(name_of(experiment, f"user {n}") for n in range(5000))
    assert abs(found["a"] - 3500) < 150 and abs(found["b"] - 1000) < 120 and abs(found["c"] - 500) < 90
    for n in range(100):
        assert experiment.variant_of(f"user {n}") == experiment.variant_of(f"user {n}")
    grown = Experiment("e", "a", (Variant("a", 0.8), Variant("b", 0.1), Variant("c", 0.1)))
    assert all(name_of(grown, f"{n}") == "a" for n in range(999) if name_of(experiment, f"{n}") == "a"), (
        "a larger share took users away"
    )


@pytest.mark.parametrize(
    "wrong",
    [
        Experiment("e", "a", (Variant("a", 0.5), Variant("b", 0.4))),
        Experiment("e", "a", (Variant("a", 0.5), Variant("a", 0.5))),
        Experiment("e", "z", (Variant("a", 1.0),)),
    ],
)
def test_an_experiment_that_is_not_sound_is_refused(wrong: Experiment) -> None:
    with pytest.raises(BadRequest):
        wrong.check()


async def test_the_variant_answers_and_is_named(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    users = [f"user {number}" for number in range(12)]
    for number, user_id in enumerate(users):
        await service.submit(history(9 + number, user_id), "visible")
    await service.experiments.put(HALVES)
    numbers: dict[str, set[int]] = {}
    ask = service.engine.recommend

    async def spy(titles: list[str], memory: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(len(memory))
        return await ask(titles, memory, *args, **kwargs)

    monkeypatch.setattr(service.engine, "recommend", spy)
    for user_id in users:
        asked: list[int] = []
        answer = await service.answers.recommend(Request(user_id=user_id, k=3, deadline_ms=30_000))
        assert answer.variant == f"spring/{name_of(HALVES, user_id)}"
        numbers.setdefault(answer.variant, set()).update(asked)
    assert min(numbers["spring/with"]) > 0 and numbers["spring/without"] == {0}
    anonymous = await service.answers.recommend(Request(k=3))
    assert anonymous.variant == "default"


async def test_the_popular_arm_is_no_fallback_and_a_missing_bundle_is_the_default(service: Service) -> None:
    await service.submit(history(9), "visible")
    await service.experiments.put(Experiment("e", "a", (Variant("a", 1.0, arm="popular"),)))
    answer = await service.answers.recommend(Request(user_id="u", k=3))
    assert answer.fallback is None and {item.source for item in answer.items} == {"popular"}
    await service.experiments.put(Experiment("e", "a", (Variant("a", 1.0, bundle="not loaded"),)))
    assert (await service.answers.recommend(Request(user_id="u", k=3))).variant == "default"


async def test_a_shadow_is_compared_and_not_shown(service: Service) -> None:
    await service.submit(history(9), "visible")
    shadow = Shadow(Variant("shadow", arm="popular"), 1.0)
    await service.experiments.put(Experiment("e", "a", (Variant("a", 1.0),), shadow))
    answer = await service.answers.recommend(Request(user_id="u", k=3, deadline_ms=30_000))
    async with asyncio.timeout(10):
        while not service.metric("shadows_total", result="compared"):
            await asyncio.sleep(0.01)
    assert answer.items[0].source == "generated"
    assert service.metric("shadow_overlap_count") == 1
    assert len(await service.shown.recent("u")) == 1, "the shadow was remembered as shown"


async def test_the_routes_put_show_and_refuse(bundle_path: Any, valkey: Any, raw: Any) -> None:
    from tests.service.real import open_app

    body = {
        "name": "spring", "control": "with", "shadow": {"share": 0.1, "arm": "popular"},
        "variants": [{"name": "with", "share": 0.5}, {"name": "without", "share": 0.5, "memory": False}],
    }  # fmt: skip
    async with open_app(bundle_path, valkey.url) as (_, client), open_app(bundle_path, valkey.url) as (_, other):
        await put(client, body, 200)
        shown_body = (await client.get("/experiments")).json()["experiment"]
        assert shown_body["variants"][1]["memory"] is False and shown_body["shadow"]["arm"] == "popular"
        answer = (await client.post("/recommend", json={"user_id": "u", "k": 2})).json()
        assert answer["variant"].startswith("spring/")
        await put(client, {**body, "control": "nobody"}, 400)
        await put(client, {**body, "variants": [{"name": "with", "share": 2}]}, 422)
        async with asyncio.timeout(10):
            while (await other.get("/experiments")).json()["experiment"] != shown_body:
                await asyncio.sleep(0.1)
        await put(client, None, 200)
        assert (await client.post("/recommend", json={"user_id": "u", "k": 2})).json()["variant"] == "default"


async def put(client: AsyncClient, experiment: Any, status: int) -> None:
    answer = await client.put("/experiments", json={"experiment": experiment})
    assert answer.status_code == status, answer.text


def test_the_rate_has_an_interval() -> None:
    assert rate(0, 0) is None
    found = rate(10, 100)
    assert found is not None and 0.05 < found.low < 0.1 < found.high < 0.18
    assert rate(120, 100) is not None
    assert [outcome_of(kind) for kind in ("Impression", "view", "purchase", "dislike")] == [
        "impression", "click", "conversion", "rejection",
    ]  # fmt: skip
