"""The errors of the service, and the HTTP status of each.

    ServiceError
    ├── BadRequest                    the request cannot be understood
    │   ├── AllRejected               no element of a batch was acceptable; carries the result of each
    │   └── Rejected                  the event is not acceptable
    ├── Unauthorized                  no key, or a wrong one
    ├── Forbidden                     the key does not have the scope of the route
    ├── WrongHost                     the request is for another host
    ├── NotFound
    │   ├── UnknownItem
    │   ├── UnknownUser
    │   ├── UnknownBundle
    │   └── UnknownKey
    ├── BundleConflict                a bundle cannot be loaded or activated as things are
    ├── KeyConflict                   a key cannot be made as things are
    ├── UserDeleted                   the user was deleted, and what is to be stored is older
    ├── CursorExpired                 the list of a cursor is not kept any more
    ├── NoWords                       the served bundle cannot answer queries in words
    ├── PayloadTooLarge               the body is larger than the limit
    ├── HeadersTooLarge               the head of the request is
    ├── ClientGone                    the caller closed the connection
    ├── RequestTimeout                the request did not arrive whole in time
    ├── Overloaded(retry_after_s)     the answer would come too late: try later
    ├── LockedOut(retry_after_s)      too many wrong keys came from the caller's address
    ├── RateLimited(retry_after_s)    the key has used up its rate
    ├── Unavailable
    │   ├── NotReady                  loading or warming up
    │   ├── Draining                  shutting down
    │   ├── TooManyConnections
    │   ├── StoreUnavailable          the memory store does not answer
    │   │   └── NotDurable            the write is done, but not as durable as it was asked for
    │   └── ModelUnavailable          the process of the model is starting, or has ended
    ├── ModelFailed                   the model could not compute a job
    ├── StoreCorrupt                  a key of the memory store has a value of a wrong type or form
    │   └── RecordsSealed             records of a user are sealed with a master key that is not here
    ├── DeadlineExceeded              the time limit of the request has passed
    └── StartupError                  the operator has to change something; no request meets it
        ├── SettingsError(problems)   wrong environment or flags, all mistakes at once
        ├── InsecureBind              the network could reach the service without a key
        └── StoreInUse                another process owns the embedded store's directory

Every module raises these. `STATUS` is the only place that knows HTTP statuses.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any


class ServiceError(Exception):
    """Callers see its text, so it contains no internals and no text of users."""

    title: str = "Service error"
    retry_after_s: float | None = None

    def extensions(self) -> Mapping[str, Any]:
        """Further members of the problem document."""
        return {}


class BadRequest(ServiceError):
    title = "Bad request"


class AllRejected(BadRequest):
    title = "Every element was rejected"

    def __init__(self, results: Sequence[Mapping[str, Any]], name: str) -> None:
        """`name` of the elements, such as "items"."""
        super().__init__(f"None of the {len(results)} {name} was accepted; `results` has the reasons.")
        self.results = list(results)

    def extensions(self) -> Mapping[str, Any]:
        return {"results": self.results}


class Rejected(BadRequest):
    title = "Interaction rejected"


class Unauthorized(ServiceError):
    title = "Unauthorized"


class Forbidden(ServiceError):
    title = "Forbidden"

    def __init__(self, scope: str) -> None:
        super().__init__(f"This needs a key with the scope `{scope}`.")
        self.scope = scope

    def extensions(self) -> Mapping[str, Any]:
        return {"scope": self.scope}


class WrongHost(ServiceError):
    title = "Wrong host"


class NotFound(ServiceError):
    title = "Not found"


class UnknownItem(NotFound):
    title = "Unknown item"


class UnknownUser(NotFound):
    title = "Unknown user"


class UnknownBundle(NotFound):
    title = "Unknown bundle"


class UnknownKey(NotFound):
    title = "Unknown key"


class BundleConflict(ServiceError):
    title = "Bundle conflict"


class KeyConflict(ServiceError):
    title = "Key conflict"


class UserDeleted(ServiceError):
    title = "User was deleted"


class CursorExpired(ServiceError):
    title = "Cursor expired"


class NoWords(ServiceError):
    title = "No words in the bundle"


class PayloadTooLarge(ServiceError):
    title = "Payload too large"


class HeadersTooLarge(ServiceError):
    title = "Request header fields too large"


class ClientGone(ServiceError):
    title = "Client closed the request"


class RequestTimeout(ServiceError):
    title = "Request timeout"


class Overloaded(ServiceError):
    title = "Overloaded"

    def __init__(self, detail: str = "Too many requests are waiting.", *, retry_after_s: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class LockedOut(ServiceError):
    title = "Locked out"

    def __init__(self, detail: str, *, retry_after_s: float) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class RateLimited(ServiceError):
    title = "Rate limited"

    def __init__(self, detail: str, *, retry_after_s: float) -> None:
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


class TooManyConnections(Unavailable):
    title = "Too many connections"


class StoreUnavailable(Unavailable):
    title = "Memory store unavailable"


class NotDurable(StoreUnavailable):
    title = "Not as durable as asked"


class StoreCorrupt(ServiceError):
    title = "Memory store corrupt"


class RecordsSealed(StoreCorrupt):
    title = "Records are sealed"
    retry_after_s = 30.0


class ModelUnavailable(Unavailable):
    title = "Model unavailable"


class ModelFailed(ServiceError):
    title = "Model failed"


class DeadlineExceeded(ServiceError):
    title = "Deadline exceeded"


class StartupError(ServiceError):
    title = "Cannot start"


class SettingsError(StartupError):
    """All mistakes in the settings, one line each."""

    title = "Invalid settings"

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = list(problems)


class InsecureBind(StartupError):
    title = "Insecure bind"


class StoreInUse(StartupError):
    title = "Store in use"


CLIENT_CLOSED_REQUEST = 499  # as in nginx: HTTP has no status for a caller who left

STATUS: Mapping[type[Exception], int] = {
    ServiceError: 500,
    BadRequest: 400,
    AllRejected: 422,
    Rejected: 422,
    Unauthorized: 401,
    Forbidden: 403,
    WrongHost: 421,
    NotFound: 404,
    BundleConflict: 409,
    KeyConflict: 409,
    UserDeleted: 409,
    CursorExpired: 410,
    NoWords: 409,
    PayloadTooLarge: 413,
    HeadersTooLarge: 431,
    ClientGone: CLIENT_CLOSED_REQUEST,
    RequestTimeout: 408,
    Overloaded: 429,
    LockedOut: 429,
    RateLimited: 429,
    Unavailable: 503,
    StoreCorrupt: 500,
    RecordsSealed: 503,
    ModelFailed: 500,
    DeadlineExceeded: 504,
    StartupError: 500,
}


def status_of(error: BaseException) -> int:
    """The status of the class or of its nearest ancestor in STATUS; 500 for other exceptions."""
    return status_of_kind(type(error))


def status_of_kind(kind: type[BaseException]) -> int:
    return next((STATUS[base] for base in kind.__mro__ if base in STATUS), 500)


def status_title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
