"""How durable a write is when it is acknowledged. Knows no client.

`stored`: as the store is set up (`appendfsync`). `fsync`: the store has written it to its disk (WAITAOF, Redis 7.2 or
Valkey 7.2). `replicated`: so many replicas have it in memory (WAIT), so it survives the loss of the primary if one of
them takes over. WAIT follows the writes on their connection, in the same round trip.
"""

from typing import Any, Literal

from service.errors import NotDurable

Durability = Literal["stored", "fsync", "replicated"]


def wait_command(durability: Durability, num_replicas: int, timeout_ms: int) -> tuple[Any, ...]:
    """`timeout_ms`: shorter than the time limit of a call, so that the answer says what was reached."""
    if durability == "fsync":
        return ("WAITAOF", 1, 0, timeout_ms)
    return ("WAIT", num_replicas, timeout_ms)


def lacks_wait(reply: str) -> bool:
    """Whether the store cannot promise it: WAITAOF is unknown to it, or it has no append-only file."""
    return "WAITAOF" in reply or "unknown command" in reply


def check(durability: Durability, num_replicas: int, confirmed: Any) -> None:
    """Raises NotDurable if the answer of the command is less than what was asked for."""
    found, wanted = (confirmed[0], 1) if durability == "fsync" else (confirmed, num_replicas)
    if int(found) < wanted:
        lack = "its disk did not confirm it" if durability == "fsync" else f"{found} of {wanted} replicas confirmed it"
        raise NotDurable(f"The store has what was sent, but {lack} in time. Send it again: nothing counts twice.")
