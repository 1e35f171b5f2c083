"""An answer names the parts of the request that have no effect."""

from pathlib import Path

from redis.asyncio import Redis

from model_store.catalogue.catalogue import Catalogue
from model_store.catalogue.items import Item
from service.http.requests.bodies import RecommendRequest
from service.http.requests.filters import OPERATORS, condition_of
from service.store.embedded.server import EmbeddedServer
from service.usecases.warned import MOST_NAMED, of_candidates, of_filter
from tests.conftest import BOTH_VOCABULARIES
from tests.service.real import Service, ask, open_app

CATALOGUE = Catalogue(
    [
        Item("a", "A", attributes={"color": "red", "stock": 3, "new": True}),
        Item("b", "B", attributes={"color": ["blue", "red"], "size": [1, "L"]}),
    ]
)


def test_unknown_attributes_and_types_that_do_not_fit_are_named() -> None:
    warned = {
        "colour": "red", "color": "green", "new": 1, "stock": ["3", 4], "size": 9, "zzz": True,
    }  # fmt: skip
    assert {each.field: each.message for each in of_filter(condition_of(warned), CATALOGUE)} == {
        "filter.colour": "no item has this attribute; did you mean `color`?",
        "filter.new": "a number is asked for, but the values of this attribute are of type boolean",
        "filter.stock": "a text is asked for, but the values of this attribute are of type number",
        "filter.zzz": "no item has this attribute",
    }


def test_an_operator_that_does_not_exist_is_told_from_an_attribute() -> None:
    """It is read as the short form, in which `op` is an attribute; the operators that are named are all there are."""
    (odd, _) = of_filter(condition_of({"op": "between", "attribute": "stock"}), CATALOGUE)
    assert odd.field == "filter.op"
    named = odd.message.partition("one of ")[2].split(", ")
    assert set(named) == set(OPERATORS)


def test_every_operator_names_what_it_compares_once() -> None:
    """An attribute that is missing may be what `exists` asks for, but it may as well be misspelt."""
    odd = {"op": "exists", "attribute": "colour"}
    body = {"op": "or", "filters": [
        {"op": "gt", "attribute": "stock", "value": "3"}, {"op": "range", "attribute": "color", "lt": 4},
        {"op": "starts_with", "attribute": "new", "text": "t"}, odd, {"op": "not", "filter": odd},
        {"op": "starts_with", "attribute": "title", "text": "t"}, {"op": "in", "attribute": "size", "values": [1, "L"]},
    ]}  # fmt: skip
    condition = condition_of(RecommendRequest.model_validate({"filter": body}).filter)
    assert [each.field for each in of_filter(condition, CATALOGUE, "boosts.0.filter")] == [
        f"boosts.0.filter.{name}" for name in ("stock", "color", "new", "colour")
    ]


def test_the_registry_follows_changes_of_items() -> None:
    changed = CATALOGUE.with_items([Item("a", "A", attributes={"stock": "many"}), Item("c", "C", attributes={"x": 1})])
    assert changed.attributes.names() == ["color", "size", "stock", "x"]
    assert changed.attributes.kinds("stock") == {"text": 1}
    assert changed.attributes.kinds("color") == {"text": 2}, "only those of the second item are left"
    again = changed.with_items([Item("c", "C")])
    assert "x" not in again.attributes and "x" in changed.attributes


def test_unknown_candidates_are_named_by_their_place_and_many_are_counted() -> None:
    assert of_candidates(["a", "?", "b", "!"], CATALOGUE) == [
        ("candidates.1", "the catalogue has no such item"),
        ("candidates.3", "the catalogue has no such item"),
    ]
    many = of_candidates(["?"] * 1000, CATALOGUE)
    assert len(many) == MOST_NAMED + 1 and many[-1].message == f"{1000 - MOST_NAMED} more are not in the catalogue"


async def test_an_answer_warns_over_http(bundle_path: Path, valkey: EmbeddedServer, raw: Redis) -> None:
    async with open_app(bundle_path, valkey.url) as (_, client):
        recent = [{"item_id": "i2"}, {"item_id": "gone"}]
        body = {"candidates": ["i1", "nowhere"], "filter": {"evenn": True}, "recent": recent}
        warnings = (await client.post("/recommend", json=body)).json()["warnings"]
        assert warnings == [
            {"field": "candidates.1", "message": "the catalogue has no such item"},
            {"field": "recent.1", "message": "the catalogue has no such item"},
            {"field": "filter.evenn", "message": "no item has this attribute; did you mean `even`?"},
        ]


@BOTH_VOCABULARIES
async def test_an_answer_warns(service: Service) -> None:
    answer = await ask(service, candidates=["i1", "nowhere"], filter={"evenn": True})
    assert [each.field for each in answer.warnings] == ["candidates.1", "filter.evenn"]
    assert not (await ask(service, filter={"even": True})).warnings
