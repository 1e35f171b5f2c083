"""The JSON bodies of answers with recommendations: their items, memory and reasoning."""

from typing import Literal

from pydantic import Field

from service.http.fields import ShownUserId
from service.http.schemas.base import ResponseSchema


class Reason(ResponseSchema):
    """`voice`: language_model, popularity, near, follow, linear, alike or return; a bundle may have others."""

    voice: str = Field(description="which voice gives the item most")
    share: float = Field(description="of what all voices give to this item, the part of this voice")
    item_id: str | None = Field(description="item of the event behind the voice; null when there is none")
    event_id: str | None = Field(description="that event; null also for an item of `recent`")


class Move(ResponseSchema):
    """A rule moved the item within the list of candidates."""

    rule: Literal["boosts", "rotation", "diversity", "distinct", "caps", "exploration", "pins"] = Field(
        description="which rule"
    )
    from_rank: int | None = Field(description="its rank before; null when the rule brought the item into the list")
    to_rank: int = Field(
        description="its rank after; explored items and pins are placed last, and other ranks do not count them"
    )


class RecommendedItem(ResponseSchema):
    rank: int = Field(description="1, 2, 3, …")
    item_id: str = Field(description="the item")
    title: str = Field(description="its title")
    score: float | None = Field(
        description="log-probability of the title when generated, score of the ranking when found; otherwise null"
    )
    source: Literal["generated", "grounded", "popular", "found", "trending", "latest"] = Field(
        description="generated: the model wrote its title; grounded: its title is near the best generated one; "
        "popular: the model did not answer, or its list was not full; found: the ranking of a query chose it; "
        "trending, latest: the model did not answer, and users choose it more than usual these days, or it is new",
        examples=["generated", "trending"],
    )
    distance: float | None = Field(
        default=None, description="L2 distance to the nearest generated title; null unless generated or grounded"
    )
    reason: Reason | None = Field(default=None, description="null when it is not known, or `explain` is false")
    moves: list[Move] = Field(
        default=[],
        description="what the rules of the request did to its place, in their order; empty without `explain`",
        examples=[[{"rule": "boosts", "from_rank": 7, "to_rank": 1}]],
    )
    explored: bool = Field(
        default=False, description="true: exploration put it there, because little is known of it", examples=[False]
    )


class MemoryElement(ResponseSchema):
    event_id: str = Field(description="the stored event")
    item_id: str = Field(description="its item")
    title: str | None = Field(description="title of the item today; null when the catalogue does not know it")
    timestamp: int = Field(description="Unix time of the event, seconds")
    weight: float | None = Field(
        default=None,
        description="the retriever's probability; null when the state was not used, and in GET /users/{user_id}",
    )
    share: float | None = Field(
        default=None,
        description="the event's part in the mixture of voices; null without voices, and in GET /users/{user_id}",
    )


class WordsEntry(ResponseSchema):
    """An entry of local memory: what the service remembers of the user in words."""

    id: str = Field(description="id of the entry, derived from its content")
    level: Literal["record", "pattern", "profile"] = Field(
        description="record: one event; pattern: the choices for one query or attribute; profile: all of the user"
    )
    scenario: str = Field(description="a query of the user, or an attribute of items; empty for the profile")
    text: str = Field(description="the memory in words")
    event_ids: list[str] = Field(description="its newest events, newest first")
    count: int = Field(description="all its events")
    first: int = Field(description="Unix time of its oldest event, seconds")
    last: int = Field(description="Unix time of its newest event, seconds")


class WordsAspect(ResponseSchema):
    """What matters to people who ask so, learned from the queries of many."""

    name: str = Field(description="short name")
    scenario: str = Field(description="the kind of query for which it was learned")
    description: str = Field(description="what matters, in words")
    num_users: int = Field(description="users from whose queries it was learned")
    entries: list[str] = Field(description="ids of the entries that the aspect fetched from memory")


class WordsReasoning(ResponseSchema):
    level: Literal["lexical", "off", "retrieve", "full"] = Field(description="how far the answer went")
    aspects: list[WordsAspect] = Field(description="what matters to people who ask so")
    fetched: list[WordsEntry] = Field(description="entries that the query and its aspects fetched from memory")
    used: list[str] = Field(description="ids of the entries that count in the ranking, most useful first")
    profile: str | None = Field(description="the ideal item in words; null unless `reasoning` is full")


class ModelName(ResponseSchema):
    bundle: str = Field(description="name of the served bundle")
    space: str = Field(description="id of the language model whose memory states are compatible")


class Warned(ResponseSchema):
    field: str = Field(description="part of the request, as in an error", examples=["candidates.3"])
    message: str = Field(description="what is odd about it")


class RecommendResponse(ResponseSchema):
    recommendation_id: str = Field(description="a random id of this answer")
    user_id: ShownUserId | None = Field(description="as in the request")
    items: list[RecommendedItem] = Field(description="at most `k` items, best first")
    memory: list[MemoryElement] = Field(
        description="the older stored events that count in this answer, most important first"
    )
    reasoning: WordsReasoning | None = Field(description="with `query` and `explain`; otherwise null")
    fallback: (
        Literal[
            "cold_start",
            "memory_unavailable",
            "deadline",
            "engine_error",
            "no_second_round",
            "no_reasoning",
            "lexical_only",
        ]
        | None
    ) = Field(
        description="why something is missing: cold_start (no known item of this user: popular, trending and new "
        "items), memory_unavailable (the store does not answer: `recent` alone is used), deadline, engine_error (the "
        "model was too slow or failed: popular, trending and new items), no_second_round, no_reasoning, lexical_only "
        "(too little time to reason again, to reason at all, for anything but the words of the query); null when "
        "nothing is missing"
    )
    warnings: list[Warned] = Field(
        default=[],
        description="parts of the request that have no effect or are probably a mistake: `candidates` that the "
        "catalogue does not have, attributes in `filter` that no item has, values of another type",
        examples=[[{"field": "filter.colour", "message": "no item has this attribute; did you mean `color`?"}]],
    )
    model: ModelName = Field(description="what answered")
    variant: str | None = Field(
        default=None,
        description="which variant answered: `default`, or the experiment and the variant in it",
        examples=["spring/no-memory"],
    )
    timings_ms: dict[str, float] = Field(description="step → milliseconds")
    next_cursor: str | None = Field(
        default=None, description="with `paged`: the `cursor` of the next page, for 30 minutes; null on the last one"
    )


class UsersResponse(ResponseSchema):
    recommendations: list[RecommendResponse] = Field(description="one for each user, in the order of `users`")
