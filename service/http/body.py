"""JSON in and JSON out: the route class of every endpoint that takes a body.

FastAPI documents the body from the endpoint's signature; pydantic reads it here, straight from the bytes. FastAPI's own
way (bytes to dict to model, dependencies, the answer validated again) takes 0.06 ms longer for each request.

A body that cannot be read raises BadRequest (400); wrong fields, a missing body and another content type raise
RequestValidationError (422).
"""

import json
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar, get_type_hints

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError, create_model
from pydantic_core import from_json
from starlette.requests import ClientDisconnect

from service.errors import BadRequest, ClientGone, Overloaded
from service.http import problems
from service.http.access.routes import ScopedRoute
from service.http.dependencies import get_resources
from service.http.middleware import count_rejection
from service.resources import Resources

Model = TypeVar("Model", bound=BaseModel)

_NOT_JSON = "json_invalid"
_LARGE_BYTES = 1 << 14  # a smaller body has too few members to take long
_MOST_MEMBERS, _MOST_ELEMENTS = 64, 1000  # of an object and of a list; no schema allows more
_MOST_CONTAINERS = 30_000  # in a body
_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"')
_WAITS_BYTES = 1 << 16  # a larger body waits for its turn to be read: it may take tens of milliseconds

_Container = tuple[Any, str | int, Any]  # an object or a list, its name or place in the one around it, that one


class JsonRoute(ScopedRoute):
    """The route of an endpoint with the parameter `body` (a pydantic model).

    Its other parameters may be `request`, `resources` and parameters of the path; nothing else is filled in. It answers
    with a model, or with a Response when the status depends on what happened.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        kinds = get_type_hints(self.endpoint, include_extras=True)
        if "body" not in kinds:
            return super().get_route_handler()
        kinds.pop("return", None)
        model: type[BaseModel] = kinds.pop("body")
        takes_request, takes_resources = kinds.pop("request", None), kinds.pop("resources", None)
        path_fields: dict[str, Any] = {name: (kind, ...) for name, kind in kinds.items()}
        path_model: type[BaseModel] = create_model("PathParameters", **path_fields)
        status = self.status_code or 200

        async def handle(request: Request) -> Response:
            values = _path_parameters(path_model, request.path_params) if path_fields else {}
            values["body"] = await _parsed(model, await _json_bytes(request), request)
            if takes_request:
                values["request"] = request
            if takes_resources:
                values["resources"] = await get_resources(request)
            try:
                answer = await self.endpoint(**values)
            except Overloaded as error:  # thousands under overload: answered here, not through every layer
                count_rejection(request.app.state.metrics, error)
                return problems.from_service_error(request.scope, error)
            return answer if isinstance(answer, Response) else json_response(answer, status)

        return handle


async def _parsed(model: type[Model], body: bytes, request: Request) -> Model:
    """Large bodies are read in turns, so that a flood of them leaves most of the time to recommendations."""
    resources = getattr(request.app.state, "resources", None)
    if len(body) <= _WAITS_BYTES or not isinstance(resources, Resources):
        return parse_body(model, body)
    async with resources.current().ingest.reading.turn(len(body)):
        return parse_body(model, body)


def json_response(answer: BaseModel, status: int = 200) -> Response:
    """The model as JSON."""
    return Response(answer.model_dump_json(), status, media_type="application/json")


def parse_body(model: type[Model], body: bytes) -> Model:
    """Raises BadRequest or RequestValidationError."""
    if not body:
        raise _invalid("Field required")
    try:
        if len(body) > _LARGE_BYTES:
            return model.model_validate(_without_large_objects(body))
        return model.model_validate_json(body)
    except ValidationError as error:
        if error.error_count() > 1 or error.errors(include_url=False, include_context=False)[0]["type"] != _NOT_JSON:
            raise _wrong_fields("body", error) from None
    # Not JSON, or JSON that only Python's parser reads (a lone surrogate, UTF-16): the latter gets its field named.
    try:
        return model.model_validate(_loaded(body))
    except ValidationError as error:
        raise _wrong_fields("body", error) from None


def _without_large_objects(body: bytes) -> Any:
    """The body's JSON. Raises RequestValidationError when it has more members than any schema allows.

    Pydantic reports each unknown field, and 75,000 reports take half a second.
    """
    too_many = f"has more than {_MOST_CONTAINERS} objects and lists"
    if _num_brackets(body) > _MOST_CONTAINERS and _num_brackets(_TEXT.sub(b"", body)) > _MOST_CONTAINERS:
        raise _invalid(too_many)  # half a million empty lists take a quarter of a second to make and to forget
    try:
        parsed = from_json(body)
    except ValueError:
        parsed = _loaded(body)
    containers: list[_Container] = [(parsed, "", None)]
    for container in containers:  # grows meanwhile
        value = container[0]
        is_object = isinstance(value, dict)
        most = _MOST_MEMBERS if is_object else _MOST_ELEMENTS
        if isinstance(value, dict | list) and len(value) > most:
            raise _invalid(f"has {len(value)} members; at most {most} are allowed", _location(container))
        members = value.items() if is_object else enumerate(value) if isinstance(value, list) else ()
        containers += [(each, name, container) for name, each in members if isinstance(each, dict | list)]
        if len(containers) > _MOST_CONTAINERS:
            raise _invalid(too_many)
    return parsed


def _num_brackets(body: bytes) -> int:
    """Pairs of them at most."""
    return min(body.count(b"[") + body.count(b"{"), body.count(b"]") + body.count(b"}"))


def _location(container: _Container) -> list[str | int]:
    found: list[str | int] = []
    while container[2] is not None:
        found.append(container[1])
        container = container[2]
    return found[::-1]


def _loaded(body: bytes) -> Any:
    try:
        return json.loads(body)
    except json.JSONDecodeError as error:
        raise BadRequest(f"The body is not valid JSON: {error.msg} at character {error.pos}.") from None
    except UnicodeDecodeError:
        raise BadRequest("The body is not valid JSON: it is not UTF-8.") from None
    except (ValueError, RecursionError):
        raise BadRequest("The body is not valid JSON: a number is too long, or it is nested too deeply.") from None


async def _json_bytes(request: Request) -> bytes:
    """The whole body. Raises PayloadTooLarge through `middleware.BodyLimit`, ClientGone when the caller hangs up."""
    try:
        body = await request.body()
    except ClientDisconnect:
        raise ClientGone("The caller closed the connection.") from None
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = content_type == "application/json" or (
        content_type.startswith("application/") and content_type.endswith("+json")
    )
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
        raise _invalid("send it without Content-Encoding: compressed bodies are not read")
    if not is_json:
        raise _invalid("send a JSON object with Content-Type: application/json")
    return body


def _path_parameters(model: type[BaseModel], given: Mapping[str, str]) -> dict[str, Any]:
    try:
        return dict(model.model_validate(given))
    except ValidationError as error:
        raise _wrong_fields("path", error) from None


def _wrong_fields(place: str, error: ValidationError) -> RequestValidationError:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return RequestValidationError([{**each, "loc": (place, *each["loc"])} for each in found])


def _invalid(message: str, location: Sequence[str | int] = ()) -> RequestValidationError:
    return RequestValidationError([{"type": "value_error", "loc": ("body", *location), "msg": message}])
