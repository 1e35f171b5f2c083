"""The JSON answers about the service itself."""

from typing import Literal

from pydantic import Field

from service.http.schemas.base import ResponseSchema


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
