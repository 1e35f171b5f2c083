"""The OpenAPI document of the application: FastAPI's, completed with what it does not know.

Added are the errors of each operation (problem documents), the headers of answers, the ways to send an API key, and an
example of each schema (see `examples.py`).
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from service import errors
from service.http.describe.examples import EXAMPLES
from service.http.problems import MEDIA_TYPE
from service.http.schemas.problems import Problem
from service.identity.scopes import MEANINGS, scope_of

API_VERSION = "0.1.0"
DESCRIPTION = (
    "Recommendations from a language model with a memory of each user. Errors are problem documents (RFC 9457)."
)
REF = "#/components/schemas/"
_EVERYWHERE = (429, 431, 500, 503)  # answers that any operation may give
_WITH_BODY = (400, 408, 413, 422)
_OF_PARTS = {"cursor", "filter"}  # parameters that are read beyond their type: 400 where that fails
_ABOUT_KEYS = (
    "`Authorization: Bearer KEY`, where the server asks for keys; KEY may be a token of its issuer. "
    "It needs the scope of the operation:\n\n"
    + "\n".join(f"- `{scope}`: {meaning}" for scope, meaning in MEANINGS.items())
)
_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": _ABOUT_KEYS},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "the same key in another header"},
}
_RATES = ["RateLimit-Policy", "RateLimit"]
_HEADERS = {
    "X-Request-ID": {
        "description": "id of the request in the logs: yours if you sent one",
        "schema": {"type": "string", "examples": ["6f1c0a52d0bd4f0f9c86e63b0e6d0c11"]},
    },
    "RateLimit-Policy": {
        "description": "where the key has a rate: its limits, `q` requests in `w` seconds",
        "schema": {"type": "string", "examples": ['"100-per-1s";q=100;w=1']},
    },
    "RateLimit": {
        "description": "how they stand: `r` requests are left, the next comes free after `t` seconds",
        "schema": {"type": "string", "examples": ['"100-per-1s";r=99;t=1']},
    },
    "Retry-After": {
        "description": "seconds to wait before trying again",
        "schema": {"type": "integer", "minimum": 1, "examples": [1]},
    },
}


def document(app: FastAPI) -> dict[str, Any]:
    """The document as JSON values, the same for every call."""
    made = get_openapi(title="AutoMR", version=API_VERSION, description=DESCRIPTION, routes=app.routes)
    schemas = made["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):  # FastAPI's own error report
        schemas.pop(unused, None)
    schemas.update(_problem_schemas())
    made["components"]["responses"] = {_name(status): _error(status) for status in sorted(_titles())}
    made["components"]["headers"] = _HEADERS
    made["components"]["securitySchemes"] = _SECURITY_SCHEMES
    for path, operations in made["paths"].items():
        for method, operation in operations.items():
            _complete(method.upper(), path, operation)
    of_models = {name: schema["examples"][0] for name, schema in schemas.items() if schema.get("examples")}
    for name, example in (of_models | dict(EXAMPLES)).items():
        _add_examples(schemas, name, example)
    for schema in schemas.values():
        _compose_example(schema)
    made["components"]["schemas"] = dict(sorted(schemas.items()))
    return made


def as_text(app: FastAPI) -> str:
    """The document as the repository keeps it, in docs/openapi.json."""
    return json.dumps(document(app), indent=1, ensure_ascii=False) + "\n"


def _complete(method: str, path: str, operation: dict[str, Any]) -> None:
    """Adds security and responses to an operation."""
    statuses = set(_EVERYWHERE)
    needed = scope_of(method, path)
    operation["security"] = [] if needed is None else [{"bearer": [needed]}, {"apiKey": [needed]}]
    if needed is not None:
        statuses |= {401, 403, 421}
    if "requestBody" in operation:
        statuses.update(_WITH_BODY)
    parameters = {parameter["name"] for parameter in operation.get("parameters", [])}
    statuses |= ({422} if parameters else set()) | ({400} if parameters & _OF_PARTS else set())
    if "{" in path:
        statuses.add(404)
    responses = operation["responses"]
    for status, response in responses.items():
        if int(status) >= 400:
            statuses.add(int(status))
        else:
            names = ["X-Request-ID", *([] if needed is None else _RATES)]
            response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
    refs = {str(status): {"$ref": f"#/components/responses/{_name(status)}"} for status in sorted(statuses)}
    operation["responses"] = {status: value for status, value in responses.items() if int(status) < 400} | refs


def _titles() -> Mapping[int, list[str]]:
    """Status → titles of the errors that callers can meet."""
    found: dict[int, list[str]] = defaultdict(list)
    for error in _all_errors(errors.ServiceError):
        # Errors of other modules are not for callers, and which of them exist depends on what is imported.
        if error.__module__ == errors.__name__ and not issubclass(error, errors.StartupError | errors.ClientGone):
            found[errors.status_of_kind(error)].append(error.title)
    found[422].append("Invalid request")
    return found


def _all_errors(kind: type[errors.ServiceError]) -> Iterator[type[errors.ServiceError]]:
    for error in kind.__subclasses__():
        yield error
        yield from _all_errors(error)


def _name(status: int) -> str:
    return f"Problem{status}"


def _error(status: int) -> dict[str, Any]:
    titles = ", ".join(dict.fromkeys(_titles()[status]))
    names = ["X-Request-ID", *(["Retry-After"] if status in (429, 503) else [])]
    names += _RATES if status == 429 else []
    return {
        "description": titles,
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names},
        "content": {MEDIA_TYPE: {"schema": {"$ref": f"{REF}Problem"}}},
    }


def _problem_schemas() -> dict[str, Any]:
    _, made = models_json_schema([(Problem, "serialization")], ref_template=REF + "{model}")
    return dict(made["$defs"])


def _add_examples(schemas: Mapping[str, Any], name: str, example: Mapping[str, Any]) -> None:
    """Gives a schema its example, each of its fields the value of the field, and so on with the schemas it contains.

    What has an example keeps it.
    """
    schema = schemas.get(name)
    if schema is None or "properties" not in schema:
        return
    schema.setdefault("examples", [example])
    for field, described in schema.get("properties", {}).items():
        if field not in example:
            continue
        inner = next(_references(described), None)
        value = example[field]
        if inner is None:
            described.setdefault("examples", [value])
        elif isinstance(value, dict):
            _add_examples(schemas, inner, value)
        elif isinstance(value, list) and value:
            _add_examples(schemas, inner, value[0])


def _compose_example(schema: dict[str, Any]) -> None:
    """The example of a schema without one, from those of its fields, if all have one."""
    fields = schema.get("properties", {})
    if fields and "examples" not in schema and all("examples" in described for described in fields.values()):
        schema["examples"] = [{name: described["examples"][0] for name, described in fields.items()}]


def _references(described: Any) -> Iterator[str]:
    """Names of schemas to which a field leads."""
    if isinstance(described, dict):
        if "$ref" in described:
            yield str(described["$ref"]).removeprefix(REF)
        described = list(described.values())
    if isinstance(described, list):
        for each in described:
            yield from _references(each)
