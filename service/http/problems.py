"""Errors as `application/problem+json` documents (RFC 9457). Of what the caller sent they repeat only the path."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from service.errors import Forbidden, ServiceError, Unauthorized, status_of, status_title
from service.http.fields import FieldError
from service.http.schemas.problems import Problem

MEDIA_TYPE = "application/problem+json"
REQUEST_ID = "automr.request_id"  # keys of the ASGI scope
KEY_ID = "automr.key_id"

_to_json = json.JSONEncoder(allow_nan=False).encode  # `json.dumps` with options makes an encoder at each call

_ADVICE = {  # for what the framework refuses, which says no more than the name of the status
    404: "There is no such route; /docs shows all of them. An id with a slash is percent-encoded: a%2Fb.",
    405: "The route does not take this method; the header Allow names those that it takes, and /docs explains them.",
}
_INTERNAL = "Something went wrong on our side; the request id finds it in the logs."


def problem(
    scope: Scope,
    *,
    status: int,
    title: str,
    detail: str,
    type: str = "about:blank",
    headers: Mapping[str, str] | None = None,
    errors: Sequence[FieldError] = (),
    extensions: Mapping[str, Any] | None = None,
) -> Response:
    document = Problem(
        type=type,
        title=title,
        status=status,
        detail=detail,
        instance=str(scope.get("path", ""))[:512],
        request_id=scope.get(REQUEST_ID, ""),
        errors=list(errors) or None,
    )
    body = document.model_dump(exclude_none=True) | dict(extensions or {})
    return Response(_to_json(body), status, dict(headers or {}), MEDIA_TYPE)


def from_service_error(scope: Scope, error: ServiceError) -> Response:
    status = status_of(error)
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, Forbidden):  # RFC 6750, section 3.1
        headers["WWW-Authenticate"] = f'Bearer error="insufficient_scope", scope="{error.scope}"'
    return problem(
        scope,
        status=status,
        title=error.title,
        detail=_INTERNAL if status == 500 else str(error) or error.title,
        type=f"urn:automr:problem:{slug(error)}",
        headers=headers,
        extensions=error.extensions(),
    )


def from_http_exception(scope: Scope, error: HTTPException) -> Response:
    title = status_title(error.status_code)
    told = str(error.detail or title)
    detail = _ADVICE.get(error.status_code, told) if told == title else told
    return problem(scope, status=error.status_code, title=title, detail=detail, headers=error.headers)


def from_field_errors(scope: Scope, errors: Sequence[FieldError]) -> Response:
    first, more = errors[0], len(errors) - 1
    detail = f"{first.field}: {first.message}" + (f" (and {more} more)" if more else "")
    type = "urn:automr:problem:invalid-request"
    return problem(scope, status=422, title="Invalid request", detail=detail, type=type, errors=errors)


def internal(scope: Scope) -> Response:
    return problem(scope, status=500, title=status_title(500), detail=_INTERNAL)


def slug(error: ServiceError) -> str:
    """UnknownItem -> unknown-item"""
    return _slug(type(error).__name__)


@cache
def _slug(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()
