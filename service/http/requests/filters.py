"""The language of filters as JSON: one schema for each operator, and the short form. Compiled into a `Condition`.

    {"kind": ["series", "standalone"]}                                             short: all of these attributes
    {"op": "and", "filters": [{"kind": "series"}, {"op": "gte", "attribute": "year", "value": 1990}]}

An object with a known `op` is an operator; any other object is the short form. Filters may be nested `MAX_DEPTH` deep
and have `MAX_PARTS` parts. Knows pydantic, but no HTTP.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    PlainValidator,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from model_store.catalogue.attributes import Kind
from model_store.catalogue.conditions import (
    Between,
    Bound,
    Condition,
    Every,
    Exists,
    Not,
    Some,
    StartsWith,
    equal_to,
)
from service.errors import BadRequest
from service.http.fields import Name, Scalar, Schema, Values, hidden, reason, scalar

MAX_DEPTH, MAX_PARTS = 8, 100
SHORT = hidden("short")  # the tag of the short form

Value = Annotated[Scalar, PlainValidator(scalar, json_schema_input_type=Scalar)]


def _ordered(value: Any) -> str | int | float:
    found = scalar(value)
    if isinstance(found, bool):
        raise ValueError("must be a number or text: true and false have no order")
    return found


Ordered = Annotated[str | int | float, PlainValidator(_ordered, json_schema_input_type=str | int | float)]
_NAMED = "name of an attribute; `item_id` and `title` are the item's own"
Attribute = Annotated[Name, Field(description=_NAMED, examples=["kind"])]


class EqualFilter(Schema):
    """The attribute has this value (`eq`), or does not have it (`ne`; so items without the attribute pass, too)."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"op": "eq", "attribute": "kind", "value": "series"}]})

    op: Literal["eq", "ne"]
    attribute: Attribute
    value: Value = Field(description="text, number, true or false", examples=["series"])

    def condition(self) -> Condition:
        equal = equal_to(self.attribute, [self.value])
        return equal if self.op == "eq" else Not(equal)


class CompareFilter(Schema):
    """The attribute has a value that is less (`lt`, `lte`) or greater (`gt`, `gte`): numbers by size, texts by their
    characters, so dates written as 2024-05-31 are in order.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [{"op": "gte", "attribute": "year", "value": 1990}]})

    op: Literal["lt", "lte", "gt", "gte"]
    attribute: Attribute
    value: Ordered = Field(description="a number or text; only values of the same type can pass", examples=[1990])

    def condition(self) -> Condition:
        bound = Bound(self.value, is_included=self.op in ("lte", "gte"))
        low, high = (bound, None) if self.op in ("gt", "gte") else (None, bound)
        return Between(self.attribute, _kind(self.value), low, high)


class RangeFilter(Schema):
    """The attribute has a value between two bounds; for a list attribute, one value must satisfy both."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"op": "range", "attribute": "price", "gte": 5, "lt": 10.5}]}
    )

    op: Literal["range"]
    attribute: Attribute
    gt: Ordered | None = Field(default=None, description="greater than this", examples=[None])
    gte: Ordered | None = Field(default=None, description="greater than or equal to this", examples=[5])
    lt: Ordered | None = Field(default=None, description="less than this", examples=[10.5])
    lte: Ordered | None = Field(default=None, description="less than or equal to this", examples=[None])

    @model_validator(mode="after")
    def _bounded(self) -> "RangeFilter":
        lows, highs = _given(self.gt, self.gte), _given(self.lt, self.lte)
        if len(lows) > 1 or len(highs) > 1:
            raise ValueError("must not have two bounds on one side")
        if not lows and not highs:
            raise ValueError("must have a bound: gt, gte, lt or lte")
        if len({_kind(bound) for bound in lows + highs}) > 1:
            raise ValueError("must have bounds of one type: numbers, or texts")
        return self

    def condition(self) -> Condition:
        low = _bound(self.gt, self.gte)
        high = _bound(self.lt, self.lte)
        return Between(self.attribute, _kind(next(bound.value for bound in (low, high) if bound)), low, high)


class InFilter(Schema):
    """The attribute has one of these values."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"op": "in", "attribute": "item_id", "values": ["i7", "i9"]}]}
    )

    op: Literal["in"]
    attribute: Attribute
    values: list[Value] = Field(
        min_length=1, max_length=1000, fail_fast=True, description="at most 1000", examples=[["a"]]
    )

    def condition(self) -> Condition:
        return equal_to(self.attribute, self.values)


class ExistsFilter(Schema):
    """The item has the attribute, with at least one text, number, true or false."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"op": "exists", "attribute": "series"}]})

    op: Literal["exists"]
    attribute: Attribute

    def condition(self) -> Condition:
        return Exists(self.attribute)


class StartsWithFilter(Schema):
    """The attribute has a text that begins so; capital letters count."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"op": "starts_with", "attribute": "title", "text": "Uncle"}]}
    )

    op: Literal["starts_with"]
    attribute: Attribute
    text: str = Field(min_length=1, max_length=256, description="the beginning", examples=["Uncle"])

    def condition(self) -> Condition:
        return StartsWith(self.attribute, self.text)


class JoinFilter(Schema):
    """All of the filters hold (`and`), or at least one (`or`)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"op": "or", "filters": [{"kind": "series"}, {"op": "exists", "attribute": "author"}]}]
        }
    )

    op: Literal["and", "or"]
    filters: list["Filter"] = Field(min_length=1, max_length=50, fail_fast=True, description="at most 50")

    def condition(self) -> Condition:
        parts = tuple(condition_of(each) for each in self.filters)
        return Every(parts) if self.op == "and" else Some(parts)


class NotFilter(Schema):
    """The filter does not hold."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"op": "not", "filter": {"kind": "series"}}]})

    op: Literal["not"]
    filter: "Filter" = Field(description="what must not hold")

    def condition(self) -> Condition:
        return Not(condition_of(self.filter))


ShortFilter = Annotated[
    dict[Name, Values],
    Field(
        max_length=20,
        description="the short form: attribute -> its value, or a list of allowed values; all of them must hold",
        examples=[{"kind": ["series", "standalone"], "year": 2024}],
    ),
]

OPERATORS: dict[str, str] = {
    op: hidden(tag)
    for tag, operators in {
        "eq": ("eq", "ne"),
        "compare": ("lt", "lte", "gt", "gte"),
        "range": ("range",),
        "in": ("in",),
        "exists": ("exists",),
        "starts_with": ("starts_with",),
        "join": ("and", "or"),
        "not": ("not",),
    }.items()
    for op in operators
}


def _form(value: Any) -> str:
    op = value.get("op") if isinstance(value, dict) else getattr(value, "op", None)
    return OPERATORS.get(op, SHORT) if isinstance(op, str) else SHORT


class _AnyOf:
    """Documents the forms as `anyOf`: in a schema, the short form describes operators as well."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        found = handler(core)
        return {"anyOf": found.pop("oneOf"), **found}


Filter = Annotated[
    Annotated[EqualFilter, Tag(hidden("eq"))]
    | Annotated[CompareFilter, Tag(hidden("compare"))]
    | Annotated[RangeFilter, Tag(hidden("range"))]
    | Annotated[InFilter, Tag(hidden("in"))]
    | Annotated[ExistsFilter, Tag(hidden("exists"))]
    | Annotated[StartsWithFilter, Tag(hidden("starts_with"))]
    | Annotated[JoinFilter, Tag(hidden("join"))]
    | Annotated[NotFilter, Tag(hidden("not"))]
    | Annotated[ShortFilter, Tag(SHORT)],
    Discriminator(_form),
    _AnyOf(),
]


def _bounded(found: Any) -> Any:
    """Raises ValueError for a filter that is too deep or has too many parts."""
    waiting, num_parts = [(found, 1)], 0
    while waiting:
        part, depth = waiting.pop()
        num_parts += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"must be nested at most {MAX_DEPTH} deep")
        if num_parts > MAX_PARTS:
            raise ValueError(f"must have at most {MAX_PARTS} parts")
        if isinstance(part, JoinFilter):
            waiting += [(each, depth + 1) for each in part.filters]
        elif isinstance(part, NotFilter):
            waiting.append((part.filter, depth + 1))
    return found


WholeFilter = Annotated[Filter, AfterValidator(_bounded)]


def condition_of(found: Any) -> Condition:
    """The condition that a filter describes."""
    if not isinstance(found, dict):
        condition: Condition = found.condition()
        return condition
    parts = [equal_to(name, wanted if isinstance(wanted, list) else [wanted]) for name, wanted in found.items()]
    return parts[0] if len(parts) == 1 else Every(tuple(parts))


_whole: TypeAdapter[Any] = TypeAdapter(WholeFilter)


def condition_of_text(text: str) -> Condition:
    """The condition of a filter as JSON text. Raises BadRequest."""
    try:
        return condition_of(_whole.validate_json(text, strict=True))
    except ValidationError as error:
        raise BadRequest(f"filter: {reason(error)}") from None


def _kind(value: Any) -> Kind:
    return "text" if isinstance(value, str) else "number"


def _given(*bounds: Any) -> list[Any]:
    return [bound for bound in bounds if bound is not None]


def _bound(outside: Any, inside: Any) -> Bound | None:
    if outside is not None:
        return Bound(outside, is_included=False)
    return None if inside is None else Bound(inside, is_included=True)
