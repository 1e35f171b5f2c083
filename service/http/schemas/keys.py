"""The JSON bodies of the routes of keys."""

import time
from typing import Annotated

from pydantic import AfterValidator, Field

from service.http.fields import Schema
from service.http.schemas.base import ResponseSchema
from service.identity import rates
from service.identity.keyring import DAY_S, MOST_OVERLAP_S
from service.identity.scopes import Scope
from service.identity.tokens import TENANT

_KEY = "amr_9Jw2yv1kQ4m0x7cT3bHqLZpUeRn8sDfGaWiXoVhKtYM"


TENANT_OR_NONE = f"^({TENANT.pattern})?$"


def _visible(name: str) -> str:
    if not name.isprintable() or not name.strip():
        raise ValueError("must be printable text")
    return name


def _limits(text: str) -> str:
    rates.parse(text)
    return text


def _future(expires_at: int) -> int:
    if expires_at <= time.time():
        raise ValueError("must lie in the future")
    return expires_at


KeyId = Annotated[str, Field(pattern=r"^key_[0-9a-f]{12}$", examples=["key_5f0c2ab19d3e"])]
Name = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_visible)]


class KeyToCreate(Schema):
    name: Name = Field(description="who has it, for people", examples=["shop backend"])
    scopes: list[Scope] = Field(
        min_length=1, max_length=6, description="what the key may do", examples=[["recommend", "ingest"]]
    )
    tenant: str = Field(
        default="",
        pattern=TENANT_OR_NONE,
        description="whose users the key may see; empty: the users without a tenant",
        examples=["shop-a"],
    )
    rate_limit: Annotated[str, AfterValidator(_limits)] = Field(
        default="",
        max_length=200,
        description="requests that the key may send; empty: as AUTOMR_RATE_LIMIT says",
        examples=["100/second; 1000000/month"],
    )
    expires_at: Annotated[int, AfterValidator(_future)] | None = Field(
        default=None,
        le=1 << 40,
        description="Unix time from which the key is refused; null: never",
        examples=[4_000_000_000],
    )


class KeyToRotate(Schema):
    overlap_s: int = Field(
        default=DAY_S,
        ge=0,
        le=MOST_OVERLAP_S,
        description="seconds for which the keys before it go on working",
        examples=[3600],
    )


class KeySecret(ResponseSchema):
    prefix: str = Field(description="the first characters of the key, for recognition", examples=["amr_9Jw2"])
    expires_at: int | None = Field(description="Unix time from which it is refused, because a newer one replaces it")


class Key(ResponseSchema):
    id: str = Field(description="names the key in logs and routes", examples=["key_5f0c2ab19d3e"])
    name: str = Field(description="who has it", examples=["shop backend"])
    scopes: list[Scope] = Field(description="what it may do", examples=[["recommend", "ingest"]])
    tenant: str = Field(description="whose users it sees; empty: the users without a tenant", examples=["shop-a"])
    rate_limit: str = Field(description="requests that it may send; empty: as AUTOMR_RATE_LIMIT says")
    created_at: int = Field(description="Unix time", examples=[1_760_000_000])
    expires_at: int | None = Field(description="Unix time from which the key is refused; null: never")
    last_used_at: int | None = Field(
        description="Unix time, to about two minutes; null: never used", examples=[1_760_000_040]
    )
    secrets: list[KeySecret] = Field(description="the newest first; several while a key is being rotated")


class KeysPage(ResponseSchema):
    keys: list[Key] = Field(description="all keys of the store, the oldest first; those of the settings are not listed")


class CreatedKey(Key):
    key: str = Field(description="the key itself: it is shown this once, keep it", examples=[_KEY])


class RevokedKey(ResponseSchema):
    id: str = Field(description="of the key", examples=["key_5f0c2ab19d3e"])
    revoked: bool = Field(description="always true", examples=[True])
