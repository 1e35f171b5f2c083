"""Why the store does not serve: in words for callers and operators, and as a short name for the log.

Takes an exception of the Redis client. Compares names of classes and beginnings of messages, so it knows no client.
"""

import re
import ssl
from collections.abc import Iterator
from typing import NamedTuple


class Reason(NamedTuple):
    """`name` is one of a small closed set. `words` complete the sentence "The memory store ..."."""

    name: str
    words: str


WRONG_PASSWORD = Reason("wrong password", "refuses the user or the password of AUTOMR_STORE")
NO_RIGHTS = Reason("no rights", "does not allow its user a command that is needed")
NO_COMMAND = Reason("no command", "does not have a command that is needed, or hides it (a managed store)")
FULL = Reason("full", "is full: its maxmemory is reached")
DISK = Reason("disk", "cannot write to its disk")
READ_ONLY = Reason("read-only", "is a read-only replica; AUTOMR_STORE must name the primary")
LOADING = Reason("loading", "is loading its data")
TLS = Reason("TLS", "cannot be reached over TLS: its certificate or protocol does not fit")
UNKNOWN_CA = Reason("unknown CA", "has a certificate of a CA that is not trusted: AUTOMR_STORE_CA names those that are")
WRONG_NAME = Reason("wrong name", "has a certificate for another name than that in AUTOMR_STORE")
EXPIRED = Reason("expired", "has a certificate that is not valid at this time")
NO_CERTIFICATE = Reason("client certificate", "does not accept the certificate of the service: see AUTOMR_STORE_CERT")
NO_PRIMARY = Reason("no primary", "is a cluster in which no primary has some of the keys at the moment (a failover)")
MOVING = Reason("slot moves", "is moving some of the keys to another node of the cluster, and serves them after that")
NO_REPLICAS = Reason("no replicas", "has fewer replicas than its min-replicas-to-write asks for")
SLOW = Reason("slow", "did not answer in time")
AWAY = Reason("away", "cannot be reached")

_BY_CLASS = {
    "AuthenticationError": WRONG_PASSWORD,
    "AuthenticationWrongNumberOfArgsError": WRONG_PASSWORD,
    "NoPermissionError": NO_RIGHTS,
    "OutOfMemoryError": FULL,
    "ReadOnlyError": READ_ONLY,
    "AskError": MOVING,
    "TryAgainError": MOVING,
    "BusyLoadingError": LOADING,
    "ClusterDownError": NO_PRIMARY,
    "SlotNotCoveredError": NO_PRIMARY,
    "TimeoutError": SLOW,
}
_BY_CODE = {
    "WRONGPASS": WRONG_PASSWORD,
    "NOAUTH": WRONG_PASSWORD,
    "NOPERM": NO_RIGHTS,
    "OOM": FULL,
    "MISCONF": DISK,
    "READONLY": READ_ONLY,
    "LOADING": LOADING,
    "NOREPLICAS": NO_REPLICAS,
}

# Errors of a command, alone or in a script, about a stored value that has not the form that the command needs.
_DAMAGED = re.compile(r"^WRONGTYPE |user_script|not an integer|not a (valid )?float|not a number|overflow|out of range")
_REFUSED = re.compile(r"permissions to run the '([^']+)' command")
_BY_VERIFY_CODE = {9: EXPIRED, 10: EXPIRED, 62: WRONG_NAME, 64: WRONG_NAME}  # of OpenSSL


def reply_of(error: BaseException) -> str:
    """The server's words; in a pipeline the client's text begins with the command."""
    return str(error).rpartition(" caused error: ")[2].lstrip("('\"")


def reason_of(error: BaseException) -> Reason:
    found = [reason for each in _chain(error) if (reason := _reason_of_one(each))]
    return found[-1] if found else AWAY  # the innermost says most


def is_about_data(error: BaseException) -> bool:
    """Whether the server answered that what is stored under a key has a wrong type or form."""
    reply = reply_of(error)
    is_plain = (
        type(error).__name__ == "ResponseError" and "Script attempted" not in reply and "not allowed" not in reply
    )
    return is_plain and _reason_of_one(error) is None and _DAMAGED.search(reply) is not None


def words_for(error: BaseException) -> str:
    """The words of the reason; where rights are missing, with the command or the keys as an ACL names them."""
    reason = reason_of(error)
    if reason is not NO_RIGHTS:
        return reason.words
    found = next(filter(None, (_REFUSED.search(str(each)) for each in _chain(error))), None)
    return f"does not allow its user {'~automr:*' if found is None else '+' + found[1].lower()}"


def _reason_of_one(error: BaseException) -> Reason | None:
    if isinstance(error, ssl.SSLCertVerificationError):
        return _BY_VERIFY_CODE.get(error.verify_code, UNKNOWN_CA)
    if isinstance(error, ssl.SSLError):
        is_about_ours = "ALERT" in (error.reason or "") and any(word in error.reason for word in ("CERTIFICATE", "_CA"))
        return NO_CERTIFICATE if is_about_ours else TLS
    reply = reply_of(error)
    if reply.startswith("ACL failure in script"):
        return NO_RIGHTS
    if reply.removeprefix("ERR ").lower().startswith(("unknown command", "unknown redis command")):
        return NO_COMMAND
    named = (_BY_CLASS[name] for kind in type(error).__mro__ if (name := kind.__name__) in _BY_CLASS)
    return _BY_CODE.get(reply.partition(" ")[0]) or next(named, None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
