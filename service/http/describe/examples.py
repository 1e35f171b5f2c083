"""An example of each body of the API, for the OpenAPI document. Schemas inside a body get their part of its example."""

from collections.abc import Mapping
from typing import Any

_USER, _ITEM, _EVENT = "reader-2", "uncle-bramble-3-the-frosted-scarecrow", "2beaef9353123e3c4ad51cd1e5cc6ea7"
_TITLE = "Uncle Bramble 3: The Frosted Scarecrow"
_OLD_ITEM, _OLD_TITLE = "uncle-bramble-1-the-prize-wheelbarrow", "Uncle Bramble 1: The Prize Wheelbarrow"
_TIME = 1_760_000_000
_TEA: Mapping[str, Any] = {
    "title": "Green Tea",
    "attributes": {"theme": "kitchen", "tags": ["drink", "gift"], "organic": True},
    "hidden": False,
    "available_from": None,
    "available_until": None,
}
_INTERACTION: Mapping[str, Any] = {
    "event_id": "order-17-1",
    "user_id": _USER,
    "item_id": _ITEM,
    "timestamp": _TIME,
    "type": "purchase",
    "value": 4.5,
    "query": "the next of the series my sister liked",
}
_KEY: Mapping[str, Any] = {
    "id": "key_5f0c2ab19d3e",
    "name": "shop backend",
    "scopes": ["recommend", "ingest"],
    "tenant": "shop-a",
    "rate_limit": "100/second; 1000000/month",
    "created_at": _TIME,
    "expires_at": _TIME + 31_536_000,
    "last_used_at": _TIME + 60,
    "secrets": [{"prefix": "amr_9Jw2", "expires_at": None}],
}
_EVENT_TYPES: Mapping[str, Any] = {
    "view": {"weight": 0.25, "window": True, "memory": True, "popularity": True, "neighbors": True, "seen_s": 0},
    "rating": {
        "weight": 0.5,
        "cancels": False,
        "by_value": [
            {
                "at_least": 1.0,
                "at_most": 2.0,
                "weight": -1.0,
                "window": False,
                "memory": False,
                "popularity": False,
                "neighbors": False,
                "cancels": True,
            }
        ],
    },
}
_MEMORY = {"event_id": _EVENT, "item_id": _OLD_ITEM, "title": _OLD_TITLE, "timestamp": 1_718_511_463}
_ENTRY = {
    "id": "record-8d2fcf93c9b5",
    "level": "record",
    "scenario": "a present for my sister",
    "text": "Bistro Lune 1: The Runaway Recipe (asked for: a present for my sister)",
    "event_ids": [_EVENT],
    "count": 1,
    "first": _TIME,
    "last": _TIME,
}
_DELETED = {
    "events": 15,
    "states": 15,
    "keys": 3,
    "lists": 2,
    "pages": 0,
    "outcomes": 0,
    "live_counts": 9,
    "requests": 1,
    "dead_letters": 0,
    "shredded": False,
}
_ASPECT = {
    "name": "series",
    "scenario": "the next of a series",
    "description": "the volume after the last one",
    "num_users": 42,
    "entries": [_ENTRY["id"]],
}

_WANTED: Mapping[str, Any] = {
    "k": 10,
    "exclude_seen": True,
    "explain": True,
    "candidates": [_ITEM, _OLD_ITEM],
    "filter": {"theme": ["garden", "kitchen"], "volume": 3},
    "exclude": ["a-body-of-work"],
    "deadline_ms": 1000,
    "query": "the next of the series my sister liked",
    "reasoning": "retrieve",
    "timestamp": _TIME,
    "boosts": [{"filter": {"theme": "kitchen"}, "factor": 3.0}],
    "caps": [{"attribute": "series", "at_most": 1}],
    "diversity": 0.2,
    "rotation": {"rate": 0.5, "time_s": 3600},
}

EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "RecommendRequest": {
        **_WANTED,
        "user_id": _USER,
        "recent": [{"item_id": _OLD_ITEM, "timestamp": _TIME}],
        "pins": [{"item_id": "green-tea", "position": 2}],
        "paged": True,
    },
    "UsersRequest": {**_WANTED, "users": [_USER, "reader-1"], "distinct": True},
    "RecommendResponse": {
        "recommendation_id": "fbd9053df1def2fb64c52c11f6ae32e4",
        "user_id": _USER,
        "items": [
            {
                "rank": 1,
                "item_id": _ITEM,
                "title": _TITLE,
                "score": -3.2393,
                "source": "generated",
                "distance": 0.0,
                "reason": {"voice": "follow", "share": 0.61, "item_id": _OLD_ITEM, "event_id": _EVENT},
                "moves": [{"rule": "boosts", "from_rank": 7, "to_rank": 1}],
            }
        ],
        "memory": [{**_MEMORY, "weight": 0.4493, "share": 0.12}],
        "reasoning": {
            "level": "retrieve",
            "aspects": [_ASPECT],
            "fetched": [_ENTRY],
            "used": [_ENTRY["id"]],
            "profile": None,
        },
        "fallback": None,
        "warnings": [{"field": "candidates.3", "message": "the catalogue does not know this item"}],
        "model": {"bundle": "demo", "space": "71591e8845c4"},
        "timings_ms": {"memory": 1.092, "queue": 0.952, "encode": 0.348, "generate": 6.337, "total": 9.762},
        "next_cursor": "WyJyZWFkZXItMiIsImZiZDkwNTNkIiwxLDE3NjAwMDE4MDBd",
    },
    "Interaction": _INTERACTION,
    "InteractionsRequest": {"interactions": [_INTERACTION], "wait": "durable"},
    "InteractionsResponse": {
        "results": [{"index": 0, "event_id": "order-17-1", "status": "accepted", "reason": None}],
    },
    "UserPage": {
        "user_id": _USER,
        "counts": {"events": 15, "states": 15},
        "recent": [
            {
                "event_id": "order-17-1",
                "item_id": _ITEM,
                "title": _TITLE,
                "timestamp": _TIME,
                "type": "purchase",
                "value": 4.5,
                "query": None,
                "session_id": "visit-71",
                "context": {"device": "phone", "position": 3},
            }
        ],
        "memory": [{**_MEMORY, "weight": None, "share": None}],
        "next_cursor": None,
    },
    "UserMemory": {"user_id": _USER, "memory": [_ENTRY]},
    "ForgottenUser": {
        **_DELETED,
        "user_id": _USER,
        "receipt_id": "6f1c0a52d0bd4f0f9c86e63b0e6d0c11",
        "deleted_at": _TIME,
        "erased_by": _TIME + 3600,
    },
    "DeletionsPage": {
        "deletions": [
            {
                **_DELETED,
                "receipt_id": "6f1c0a52d0bd4f0f9c86e63b0e6d0c11",
                "deleted_at": _TIME,
                "is_erased": True,
            }
        ],
        "next_cursor": "1760000000123-0",
    },
    "TypeRule": _EVENT_TYPES["view"] | {"cancels": False, "by_value": []},
    "ValueRule": _EVENT_TYPES["rating"]["by_value"][0] | {"seen_s": None},
    "CorrectedEvent": {"user_id": _USER, "event_id": "order-17-1", "status": "replaced"},
    "EventTypes": {"types": _EVENT_TYPES, "other": {"weight": 0.0, "popularity": False, "neighbors": False}},
    "EventSettings": {
        "number": 1,
        "is_counted": True,
        "types": _EVENT_TYPES,
        "other": {"weight": 0.0, "popularity": False, "neighbors": False},
    },
    "ForgottenEvent": {"user_id": _USER, "event_id": "order-17-1", "forgotten": True},
    "ItemBody": _TEA,
    "ItemPatch": {**_TEA, "hidden": True},
    "Item": {"item_id": "green-tea", **_TEA, "added_at": 1_760_000_000},
    "ItemsRequest": {"items": [{"item_id": "green-tea", **_TEA}]},
    "NewItem": {"item_id": "green-tea", **_TEA},
    "ItemsResponse": {
        "items": [{"item_id": "green-tea", **_TEA}],
        "results": [{"index": 0, "item_id": "green-tea", "status": "accepted", "reason": None}],
    },
    "DeletedItem": {"item_id": "green-tea", "deleted": True},
    "ItemsPage": {"items": [{"item_id": "green-tea", **_TEA}], "next_cursor": "NTA6ZGVtbw"},
    "RelatedItems": {
        "item_id": _OLD_ITEM,
        "related": [{"item_id": _ITEM, "title": _TITLE, "source": "follow", "score": 0.21, "distance": None}],
    },
    "RankedItems": {"items": [{"rank": 1, "item_id": _ITEM, "title": _TITLE, "score": 94.0}]},
    "UsersPage": {"users": [{"user_id": _USER, "events": 15}], "next_cursor": "0-1536"},
    "Neighbors": {
        "item_id": _OLD_ITEM,
        "neighbors": [{"item_id": "a-year-of-small-weeds", "title": "A Year of Small Weeds", "distance": 0.339}],
    },
    "BundleToLoad": {"directory": "books-2026-05", "name": "books", "precision": "int8"},
    "BundlesPage": {
        "active": "configured",
        "previous": "books",
        "bundles": [
            {
                "name": "books",
                "status": "ready",
                "directory": "books-2026-05",
                "precision": "int8",
                "bundle": "books",
                "space": "71591e8845c4",
                "num_items": 300,
                "created_at": "2026-05-01T00:00:00Z",
                "fill": {"users": 5000, "total": 5000, "states": 33000, "is_done": True},
                "problem": None,
            }
        ],
    },
    "CreatedKey": {**_KEY, "key": "amr_9Jw2yv1kQ4m0x7cT3bHqLZpUeRn8sDfGaWiXoVhKtYM"},
    "KeysPage": {"keys": [_KEY]},
    "ModelInfo": {
        "bundle": "demo",
        "space": "71591e8845c4",
        "format": 4,
        "vocabulary": "titles",
        "split_layer": 2,
        "recent_length": 10,
        "max_memory": 100,
        "num_items": 300,
        "items_waiting": 0,
        "loaded_at": "2026-01-01T00:00:00+00:00",
    },
    "Health": {"status": "ok"},
    "Readiness": {"status": "ok", "items_waiting": 0},
    "Problem": {
        "type": "urn:automr:problem:invalid-request",
        "title": "Invalid request",
        "status": 422,
        "detail": "k: Input should be less than or equal to 100",
        "instance": "/recommend",
        "request_id": "6f1c0a52d0bd4f0f9c86e63b0e6d0c11",
        "errors": [{"field": "k", "message": "Input should be less than or equal to 100"}],
        "results": [{"index": 0, "event_id": None, "status": "rejected", "reason": "item_id: Field required"}],
    },
}
