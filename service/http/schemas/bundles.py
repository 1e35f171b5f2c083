"""The JSON bodies of the routes of bundles."""

from typing import Annotated, Literal

from pydantic import Field

from service.http.fields import Schema
from service.http.schemas.base import ResponseSchema

BundleName = Annotated[
    str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", examples=["books-2026-05"])
]


class BundleToLoad(Schema):
    directory: str = Field(
        min_length=1,
        max_length=256,
        description="of the bundle, relative to AUTOMR_BUNDLES_DIR",
        examples=["books-2026-05"],
    )
    name: BundleName | None = Field(default=None, description="how to call it from now on; null: as its directory")
    precision: Literal["bundle", "bfloat16", "int8"] = Field(
        default="bundle", description="arithmetic on a CPU: that of the bundle, or the faster bfloat16 or int8"
    )


class BundleFill(ResponseSchema):
    """How far the memory of a bundle is filled."""

    users: int = Field(description="users looked at", examples=[1200])
    total: int = Field(description="users in the store when the filling began", examples=[5000])
    states: int = Field(description="states that were made", examples=[33000])
    is_done: bool = Field(description="true when all users have been looked at")


class LoadedBundle(ResponseSchema):
    name: str = Field(description="`configured` is the one of AUTOMR_BUNDLE", examples=["books-2026-05"])
    status: Literal["loading", "filling", "ready", "active", "failed"] = Field(
        description="in the process that answers this request. filling: it could answer, but its memory is not complete"
    )
    directory: str = Field(description="where it is", examples=["books-2026-05"])
    precision: str = Field(description="arithmetic", examples=["bundle"])
    bundle: str | None = Field(description="name in its manifest, as in answers; null until it is open")
    space: str | None = Field(description="space of its states; bundles with the same space share memory")
    num_items: int | None = Field(description="items of its catalogue when it was made")
    created_at: str | None = Field(description="when it was made, RFC 3339")
    fill: BundleFill = Field(description="how far its memory is filled, by any process")
    problem: str | None = Field(description="why it could not be loaded")


class BundlesPage(ResponseSchema):
    active: str = Field(description="name of the bundle that answers; a replica follows within seconds")
    previous: str | None = Field(description="name of the bundle that a rollback activates")
    bundles: list[LoadedBundle] = Field(description="all bundles that are loaded or loading, the configured one first")
