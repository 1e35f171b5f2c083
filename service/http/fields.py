"""The types of values in requests, and error reports that name a wrong value but never repeat it.

Knows pydantic, but no HTTP.
"""

import json
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from model_store.text.history import clean_title
from service.identity.tenants import of_tenant, without_tenant

MAX_FUTURE_S = 300  # the clock of a caller may be ahead of ours by this much
_MILLISECONDS_FROM = 100_000_000_000  # as seconds it is in the year 5138, so larger numbers are milliseconds

_REASONS = 5  # of one element
_HIDDEN = "\x00"

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # the categories Cc, Zl and Zp of Unicode
_SURROGATE = re.compile("[\ud800-\udfff]")

Scalar = str | int | float | bool
MAX_CONTEXT_BYTES = 2048


def _visible(text: str) -> str:
    if _CONTROL.search(text):
        raise ValueError("must not contain control characters or line breaks")
    if not text.strip():
        raise ValueError("must contain a visible character")
    return text


def _plausible_time(timestamp: int) -> int:
    if timestamp > time.time() + MAX_FUTURE_S:
        hint = ": seconds are expected, this looks like milliseconds" if timestamp >= _MILLISECONDS_FROM else ""
        raise ValueError(f"lies more than {MAX_FUTURE_S} s in the future{hint}")
    return timestamp


def scalar(value: Any) -> Scalar:
    is_text = isinstance(value, str) and len(value) <= 4096 and not _has_surrogates(value)
    is_number = isinstance(value, bool | int | float) and abs(value) < 2**63 and math.isfinite(value)
    if not (is_text or is_number):
        raise ValueError("must be text of up to 4096 characters, a finite number, true or false")
    return value


def _has_surrogates(text: str) -> bool:
    return _SURROGATE.search(text) is not None


def _clean_title(text: str) -> str:
    title = clean_title(text)
    if not title:
        raise ValueError("must contain a visible character")
    return title


def _clean_query(text: str) -> str:
    query = clean_title(text)  # the same rule: one line of visible characters
    if not query:
        raise ValueError("must contain a visible character")
    return query


def _scalar_or_list(value: Any) -> Scalar | list[Scalar]:
    if not isinstance(value, list):
        return scalar(value)
    if len(value) > 100:
        raise ValueError("must list at most 100 values")
    return [scalar(element) for element in value]


def _small(context: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
    if len(json.dumps(context, ensure_ascii=False).encode()) > MAX_CONTEXT_BYTES:
        raise ValueError(f"must be at most {MAX_CONTEXT_BYTES} bytes of JSON")
    return context


ItemId = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_visible)]
# In a request the id as the caller knows the user; with the tenant of the caller from then on.
UserId = Annotated[ItemId, AfterValidator(of_tenant)]
ShownUserId = Annotated[str, AfterValidator(without_tenant)]  # in answers
EventId = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_visible)]
RecommendationId = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\x21-\x7e]+$")]
EventType = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_visible)]
Title = Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_clean_title)]
Query = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_clean_query)]
Timestamp = Annotated[int, Field(ge=0, description="Unix time, seconds"), AfterValidator(_plausible_time)]
Name = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_visible)]
SessionId = EventId
Value = Annotated[Scalar, PlainValidator(scalar, json_schema_input_type=Scalar)]
Context = Annotated[dict[Name, Value], Field(max_length=50), AfterValidator(_small)]
Values = Annotated[Scalar | list[Scalar], PlainValidator(_scalar_or_list, json_schema_input_type=Scalar | list[Scalar])]
ValuesOrNull = Annotated[
    Scalar | list[Scalar] | None,
    PlainValidator(
        lambda value: None if value is None else _scalar_or_list(value),
        json_schema_input_type=Scalar | list[Scalar] | None,
    ),
]


class Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


class FieldError(Schema):
    model_config = ConfigDict(from_attributes=True)  # warnings of an answer have the same form

    field: str = Field(description="path of the field in the body, such as `recent.0.item_id`")
    message: str = Field(description="what is wrong with it")


def hidden(tag: str) -> str:
    """The tag of a form that a value may have, which names of fields leave out."""
    return _HIDDEN + tag


def field_name(location: Sequence[str | int]) -> str:
    """Such as `interactions.3.timestamp`. Short printable ASCII: the caller chooses the names of unknown fields."""
    shown = (str(part) for part in location if not str(part).startswith(_HIDDEN))
    parts = (part.encode("ascii", "backslashreplace").decode()[:64] for part in shown)
    return "".join(char if char.isprintable() else "?" for char in ".".join(parts))[:200]


def field_errors(errors: Iterable[Mapping[str, Any]], limit: int = 50) -> list[FieldError]:
    """At most `limit` errors of pydantic, without the values that caused them."""
    listed = list(errors)[:limit]
    return [FieldError(field=field_name(error["loc"]), message=_message(error)) for error in listed]


def _message(error: Mapping[str, Any]) -> str:
    if error["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return "Input should be a JSON object"
    return str(error["msg"]).removeprefix("Value error, ")


def unknown_fields(names: Iterable[str]) -> str:
    """Why an element with these fields is refused. Faster than pydantic, which reports each of them."""
    shown = (field_name([name]) for name in islice(names, _REASONS))
    return "; ".join(f"{name}: Extra inputs are not permitted" for name in shown)


def reason(error: ValidationError) -> str:
    """Why an element was refused, in one line."""
    found = field_errors(error.errors(include_url=False, include_input=False), limit=_REASONS)
    return "; ".join(f"{each.field}: {each.message}" if each.field else each.message for each in found)
