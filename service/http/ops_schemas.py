"""The JSON answers about the service itself, and the error document."""

from typing import Literal

from pydantic import BaseModel, Field

from service.http.fields import FieldError
from service.http.schemas import InteractionResult, ResponseSchema


class ModelInfo(ResponseSchema):
    bundle: str = Field(description="name of the served bundle")
    space: str = Field(description="id of the language model whose memory states are compatible")
    format: int = Field(description="version of the format of the bundle")
    vocabulary: Literal["titles", "items"] = Field(description="how the model reads a title: as text, or as one token")
    split_layer: int = Field(description="L, the layer whose states are stored as memory")
    recent_length: int = Field(description="K, interactions in a prompt")
    max_memory: int = Field(description="M, memory elements of a user")
    num_items: int = Field(description="items of the catalogue")
    items_waiting: int = Field(
        description="changed items whose titles the model has yet to read: new ones among them are not recommended yet"
    )
    loaded_at: str = Field(description="RFC 3339 time in UTC")


class Health(ResponseSchema):
    status: Literal["ok"] = Field(description="always ok; otherwise the answer is an error")


class Readiness(Health):
    items_waiting: int = Field(
        description="changed items whose titles the model has yet to read: new ones among them are not recommended yet"
    )


class Compaction(ResponseSchema):
    status: Literal["done", "running", "no_files", "not_allowed"] = Field(
        description="done: the files hold nothing of what was deleted before the call. running: ask again. no_files:"
        " the store keeps none. not_allowed: the store refuses BGREWRITEAOF or BGSAVE to this user, or hides it (a"
        " managed store): its provider says when deleted bytes leave its files",
        examples=["done"],
    )
    nodes: int = Field(description="servers that wrote their files anew", examples=[1])
    replicas: int = Field(
        description="replicas that were not asked, because this service does not know their addresses: run"
        " BGREWRITEAOF and BGSAVE there",
        examples=[0],
    )
    unfinished: int = Field(
        description="deletions that are looked at again within a minute: call this once more after that", examples=[0]
    )


class Problem(BaseModel):
    """An error (RFC 9457). Some errors have further members."""

    type: str = Field(description="urn:automr:problem:NAME, or about:blank")
    title: str = Field(description="the kind of error, the same text each time")
    status: int = Field(description="the HTTP status")
    detail: str = Field(description="what is wrong, and what to do")
    instance: str = Field(description="path of the request")
    request_id: str = Field(description="finds the request in the logs")
    errors: list[FieldError] | None = Field(default=None, description="with 422: the wrong fields")
    results: list[InteractionResult] | None = Field(
        default=None, description="when every interaction was rejected: why, one for each"
    )
