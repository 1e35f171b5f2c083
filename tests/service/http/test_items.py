"""The bodies of /items: an element that is wrong costs itself only, and a patch merges attributes."""

from typing import Any

import pytest
from httpx2 import AsyncClient

from tests.service.standins import shell

GOOD = {"item_id": "a", "title": "A"}


async def post(client: AsyncClient, *items: Any) -> Any:
    return await client.post("/items", json={"items": items})


async def test_a_wrong_element_sinks_no_other() -> None:
    bad: list[Any] = [
        {"item_id": "b"}, {"item_id": "c", "title": "C", "colour": "red"}, 7, None, {**GOOD, "available_from": "soon"},
        {**GOOD, "attributes": {"x": {"deep": 1}}}, {**GOOD, "available_from": 9, "available_until": 9},
        {**GOOD, **{f"x{number}": 1 for number in range(50)}},
    ]  # fmt: skip
    async with shell() as app:
        answer = await post(app.client, *bad, GOOD)
        assert answer.status_code == 200
        results = answer.json()["results"]
        assert [each["status"] for each in results] == ["rejected"] * len(bad) + ["accepted"]
        assert [each["index"] for each in results] == list(range(len(bad) + 1))
        assert "title" in results[0]["reason"] and "colour" in results[1]["reason"]
        assert all(each["reason"] and each["item_id"] is None for each in results[:-1])
        assert [item["item_id"] for item in answer.json()["items"]] == ["a"] == list(app.items.known)


async def test_when_every_element_is_wrong_the_answer_has_the_same_results() -> None:
    async with shell() as app:
        answer = await post(app.client, {"item_id": "b"}, 7)
        assert answer.status_code == 422
        assert [each["status"] for each in answer.json()["results"]] == ["rejected", "rejected"]
        assert not app.items.known


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"attributes": {"x": None, "y": [1, "a"]}}, 200), ({"attributes": {"x": {"deep": 1}}}, 422),
        ({"attributes": None}, 422), ({"attributes": {}}, 200), ({}, 422),
    ],
)  # fmt: skip
async def test_null_removes_an_attribute_in_a_patch_only(body: dict[str, Any], status: int) -> None:
    async with shell() as app:
        await post(app.client, GOOD)
        assert (await app.client.patch("/items/a", json=body)).status_code == status
        put = await app.client.put("/items/a", json={"title": "A", "attributes": {"x": None}})
        assert put.status_code == 422, "an item has no attribute null"
