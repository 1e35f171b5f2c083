"""What a call can raise.

AutomrError
├── ConnectionFailed       no connection, or it broke before the answer, also after the retries
├── TimedOut               no answer within the time of this kind of call; it may have been carried out
└── Refused                the service answered with an error
    ├── Invalid            400, 408, 413, 422: the request is wrong; `errors` or `results` say where
    ├── Unauthorized       401
    ├── NotFound           404
    ├── Conflict           409
    ├── Overloaded         429, also after the retries
    ├── Unavailable        503, also after the retries
    └── Failed             500, 504, and every other status
"""

import json
from typing import Any, cast

import httpx

from automr.models import FieldError, InteractionResult, ItemResult, Problem


class AutomrError(Exception):
    """Base of all errors of a call."""


class ConnectionFailed(AutomrError):
    """There was no connection, or it broke."""


class TimedOut(AutomrError):
    """The answer did not come in time."""


class Refused(AutomrError):
    """An error of the service. `problem` is its document (RFC 9457), empty when something else answered."""

    def __init__(self, status: int, problem: Problem, text: str) -> None:
        super().__init__(f"{status} {text}")
        self.status = status
        self.problem = problem

    @property
    def kind(self) -> str:
        """Such as `unknown-item`; "" when the problem has no type of its own."""
        prefix, _, name = self.problem.get("type", "").rpartition(":")
        return name if prefix == "urn:automr:problem" else ""

    @property
    def request_id(self) -> str:
        """Finds the request in the service's logs."""
        return self.problem.get("request_id", "")

    @property
    def errors(self) -> list[FieldError]:
        """The wrong fields."""
        return self.problem.get("errors") or []

    @property
    def results(self) -> list[InteractionResult] | list[ItemResult]:
        """Why each interaction or item was rejected, when all were."""
        return self.problem.get("results") or []


class Invalid(Refused):
    """The request is wrong: repeating it does not help."""


class Unauthorized(Refused):
    """The key is missing or wrong."""


class NotFound(Refused):
    """The user or the item is unknown."""


class Conflict(Refused):
    """The state of the service does not allow the request."""


class Overloaded(Refused):
    """Too many requests: try later."""


class Unavailable(Refused):
    """The service or its store cannot answer now: try later."""


class Failed(Refused):
    """The service failed."""


_KINDS: dict[int, type[Refused]] = {
    **dict.fromkeys((400, 408, 413, 422), Invalid),
    401: Unauthorized,
    404: NotFound,
    409: Conflict,
    429: Overloaded,
    503: Unavailable,
}


def refusal(answer: httpx.Response) -> Refused:
    """The error for an answer whose body has been read."""
    problem = _problem(answer)
    text = f"{problem.get('title', answer.reason_phrase)}: {problem.get('detail', answer.text[:200])}"
    return _KINDS.get(answer.status_code, Failed)(answer.status_code, problem, text)


def failure(error: httpx.TransportError, what: str) -> AutomrError:
    """The error for a call, `what`, without an answer."""
    is_late = isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout)
    return (TimedOut if is_late else ConnectionFailed)(f"{what}: {error or type(error).__name__}")


def _problem(answer: httpx.Response) -> Problem:
    found: Any = None
    if answer.headers.get("content-type", "").startswith("application/problem+json"):
        try:
            found = json.loads(answer.content)
        except ValueError:
            found = None
    return cast(Problem, found if isinstance(found, dict) else {})
