"""What can go wrong in the service, and with which status it leaves.

    ServiceError
    ├── BadRequest                    the request cannot be understood
    │   └── AllRejected               no element of a batch was acceptable; carries the result of each
    ├── Unauthorized                  no key, or a wrong one
    ├── NotFound
    │   ├── UnknownItem
    │   └── UnknownUser
    ├── PayloadTooLarge               body over the cap
    ├── ClientGone                    the caller hung up; nobody reads the answer
    ├── Overloaded(retry_after_s)     a queue is full: try later
    ├── Unavailable
    │   ├── NotReady                  still loading or warming up
    │   ├── Draining                  shutting down
    │   ├── StoreUnavailable          the memory store does not answer
    │   └── ModelUnavailable          the process of the model is starting, or has ended
    ├── ModelFailed                   the model could not compute a job
    ├── StoreCorrupt                  a key of the memory store has a value of the wrong type
    ├── DeadlineExceeded              the time the caller gave is over
    └── StartupError                  the operator has to change something; never met by a request
        ├── SettingsError(problems)   wrong environment or flags, all mistakes at once
        ├── InsecureBind              would be open to the network without keys
        └── StoreInUse                another process owns the embedded store's directory

Everyone in the service raises these. The one place that knows their HTTP status is `STATUS`.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any


class ServiceError(Exception):
    """Its text is shown to callers: no internals, no user text."""

    title: str = "Service error"
    retry_after_s: float | None = None

    def extensions(self) -> Mapping[str, Any]:
        """Further members of the problem document."""
        return {}


class BadRequest(ServiceError):
    title = "Bad request"


class AllRejected(BadRequest):
    title = "Every interaction was rejected"

    def __init__(self, results: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(f"None of the {len(results)} interactions was accepted; `results` has the reasons.")
        self.results = list(results)

    def extensions(self) -> Mapping[str, Any]:
        return {"results": self.results}


class Unauthorized(ServiceError):
    title = "Unauthorized"


class NotFound(ServiceError):
    title = "Not found"


class UnknownItem(NotFound):
    title = "Unknown item"


class UnknownUser(NotFound):
    title = "Unknown user"


class PayloadTooLarge(ServiceError):
    title = "Payload too large"


class ClientGone(ServiceError):
    title = "Client closed the request"


class Overloaded(ServiceError):
    title = "Overloaded"

    def __init__(self, detail: str = "The queue is full.", *, retry_after_s: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class Unavailable(ServiceError):
    title = "Unavailable"
    retry_after_s = 1.0


class NotReady(Unavailable):
    title = "Not ready"
    retry_after_s = 5.0


class Draining(Unavailable):
    title = "Shutting down"


class StoreUnavailable(Unavailable):
    title = "Memory store unavailable"


class StoreCorrupt(ServiceError):
    title = "Memory store corrupt"


class ModelUnavailable(Unavailable):
    title = "Model unavailable"


class ModelFailed(ServiceError):
    title = "Model failed"


class DeadlineExceeded(ServiceError):
    title = "Deadline exceeded"


class StartupError(ServiceError):
    title = "Cannot start"


class SettingsError(StartupError):
    """Every mistake in the settings, one line each."""

    title = "Invalid settings"

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = list(problems)


class InsecureBind(StartupError):
    title = "Insecure bind"


class StoreInUse(StartupError):
    title = "Store in use"


CLIENT_CLOSED_REQUEST = 499  # nginx's number; HTTP has none for a caller who left

STATUS: Mapping[type[Exception], int] = {
    ServiceError: 500,
    BadRequest: 400,
    AllRejected: 422,
    Unauthorized: 401,
    NotFound: 404,
    PayloadTooLarge: 413,
    ClientGone: CLIENT_CLOSED_REQUEST,
    Overloaded: 429,
    Unavailable: 503,
    StoreCorrupt: 500,
    DeadlineExceeded: 504,
    StartupError: 500,
}


def status_of(error: BaseException) -> int:
    """The nearest entry of STATUS along the class's ancestors; 500 for anything foreign."""
    return next((STATUS[base] for base in type(error).__mro__ if base in STATUS), 500)


def status_title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
