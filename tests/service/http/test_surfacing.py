"""A new item surfaces where it belongs right after `PUT`, over HTTP, with models that have learned something.

`library`: a language model that writes titles, trained here for some seconds: readers of a series go on with the next
volume. `shop`: item tokens and voices, see `tests/service/shop.py`.
"""

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from httpx2 import AsyncClient
from redis.asyncio import Redis
from transformers import PreTrainedModel

from model_store.manifest import GenerationSpec
from service.store.embedded.server import EmbeddedServer
from tests import conftest
from tests.conftest import make_tokenizer, write_bundle
from tests.service.real import NOW, open_app
from tests.service.shop import SHELF, TITLES, TOYS, voices_that_follow_the_mixture, voices_that_trust_behaviour

NAMES, NUM_VOLUMES = ("Ada", "Bob", "Cyd", "Eve"), 3
SERIES = [[f"{name} {volume}" for volume in range(1, NUM_VOLUMES + 1)] for name in NAMES]
OTHERS = ["Fog", "Hay", "Ink", "Jam", "Kit", "Log", "Mud", "Nut"]
BOOKS = [title for volumes in SERIES for title in volumes] + OTHERS
LONG = " and the very long tale of a lost garden gnome in winter"
_STEPS = 120


def window(rng: random.Random) -> list[str]:
    """Other books, then one or two volumes of a series, the next one, and another book."""
    first = rng.randrange(NUM_VOLUMES - 1)
    read = rng.choice(SERIES)[first : first + rng.choice((2, 3))]
    return [*rng.choices(OTHERS, k=4 - len(read)), *read, rng.choice(OTHERS)][-4:]


def teach(model: PreTrainedModel) -> PreTrainedModel:
    """Next tokens of windows as prompts have them."""
    tokenizer, rng = make_tokenizer(conftest.TITLES), random.Random(0)
    plain: dict[str, Any] = {"add_special_tokens": False}

    def tokens(titles: list[str]) -> list[int]:
        texts = ["Chosen:\n", *(part for title in titles for part in (title, "\n"))]
        return [0, *(token for text in texts for token in tokenizer.encode(text, **plain))]

    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3)
    model.train()
    for step in range(_STEPS):
        rows = [tokens(window(rng)[-rng.choice((2, 3, 4)) :]) for _ in range(16)]
        longest = max(map(len, rows))
        inputs = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        labels = torch.tensor([row + [-100] * (longest - len(row)) for row in rows])
        optimizer.param_groups[0]["lr"] = 8e-3 * (1 - step / _STEPS)
        model(input_ids=inputs, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def library_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("library") / "library"
    make = conftest.make_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conftest, "make_model", lambda *args, **kwargs: teach(make(*args, **kwargs)))
        write_bundle(path, titles=BOOKS, recent_length=4, generation=GenerationSpec(num_beams=10))
    return path


@pytest.fixture
async def library(library_path: Path, valkey: EmbeddedServer, raw: Redis) -> AsyncIterator[AsyncClient]:
    async with open_app(library_path, valkey.url) as (_, client):
        yield client


def item(title: str) -> str:
    return f"i{BOOKS.index(title)}"


async def listed(client: AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    answer = await client.post("/recommend", json={"k": 10} | fields)
    assert answer.status_code == 200 and answer.json()["fallback"] is None, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


async def put(client: AsyncClient, item_id: str, title: str) -> None:
    assert (await client.put(f"/items/{item_id}", json={"title": title})).status_code == 200


def rank(items: list[dict[str, Any]], item_id: str) -> int:
    ids = [each["item_id"] for each in items]
    return ids.index(item_id) + 1 if item_id in ids else 99


@pytest.mark.parametrize("volumes", SERIES, ids=NAMES)
async def test_readers_of_a_series_are_shown_its_new_volume(library: AsyncClient, volumes: list[str]) -> None:
    events = [
        {"user_id": user, "item_id": item(title), "timestamp": NOW + number}
        for user, read in (("all", volumes), ("two", volumes[1:]), ("last", [OTHERS[0], volumes[-1]]))
        for number, title in enumerate(read)
    ]
    body = {"interactions": [*events, {"user_id": "x", "item_id": item("Fog"), "timestamp": NOW}], "wait": "visible"}
    assert (await library.post("/interactions", json=body)).status_code == 200
    await put(library, "new", f"{volumes[0][:-1]}{NUM_VOLUMES + 1}")
    for user in ("all", "two", "last"):
        found = await listed(library, user_id=user)
        assert rank(found, "new") <= 3, f"reader {user}: {[each['title'] for each in found]}"
    assert rank(await listed(library, user_id="x"), "new") > 3, "it is shown to those who do not know the series"
    session = await listed(library, recent=[{"item_id": item(volumes[0])}], exclude_seen=True)
    assert rank(session, item(volumes[1])) < rank(session, "new"), "the next volume comes before the new one"


async def test_the_score_of_a_new_title_does_not_fall_with_its_length(library: AsyncClient) -> None:
    scores = []
    for title in ("Ada 4", f"Ada 4{LONG}", f"Ada 4{2 * LONG}"):
        await put(library, "new", title)
        found = await listed(library, recent=[{"item_id": item(volume)} for volume in SERIES[0]])
        scores.append(next(each["score"] for each in found if each["item_id"] == "new"))
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-3)


async def test_a_title_with_the_words_of_another_surfaces_after_it(
    tmp_path: Path, valkey: EmbeddedServer, raw: Redis
) -> None:
    write_bundle(tmp_path / "shop", vocabulary="items", titles=TITLES, voices=voices_that_follow_the_mixture())
    async with open_app(tmp_path / "shop", valkey.url) as (_, client):
        await put(client, "daisy", "JUMBO BAG PURPLE DAISY")
        await put(client, "long", f"JUMBO BAG PURPLE DAISY{LONG}")
        for recent in ([TOYS], ["i30", TOYS], ["i4", "i12", TOYS]):
            found = await listed(client, recent=[{"item_id": each} for each in recent])
            assert rank(found, "daisy") <= 10, f"after {recent}: {[each['title'] for each in found]}"
            assert rank(found, "long") <= 10, "a long title is not found"
        assert rank(await listed(client, recent=[{"item_id": "i9"}], k=3), "daisy") == 99


async def test_a_new_item_is_expected_to_do_as_those_with_the_nearest_titles(
    tmp_path: Path, valkey: EmbeddedServer, raw: Redis
) -> None:
    """Where the ranking trusts what users do, of which there is nothing yet."""
    write_bundle(tmp_path / "shop", vocabulary="items", titles=SHELF, voices=voices_that_trust_behaviour())
    async with open_app(tmp_path / "shop", valkey.url, live_half_life_days=30) as (_, client):
        await put(client, "daisy", "JUMBO BAG PURPLE DAISY")
        await put(client, "other", "Something Else Entirely")
        for recent in (["i0"], ["i3"], ["i25", "i0"]):
            found = await listed(client, recent=[{"item_id": each} for each in recent])
            assert rank(found, "daisy") <= 10, f"after {recent}: {[each['title'] for each in found]}"
            assert rank(found, "other") > rank(found, "daisy")
        assert rank(await listed(client, recent=[{"item_id": "i20"}]), "daisy") > 3, "it is shown after plates"
