"""How durable a write is when it is acknowledged. Knows no client.

`stored`: as the store is set up (`appendfsync`). `fsync`: the store has written it to its disk (WAITAOF, Redis 7.2 or
Valkey 7.2). `replicated`: so many replicas have it in memory (WAIT), so it survives the loss of the primary if one of
them takes over. WAIT follows the writes on their connection, in the same round trip. On a cluster this is so for each
node that takes some of the writes (see `servers/cluster.py`).

WAIT counts for the last write of its connection. A retry that finds everything stored writes nothing, and the write
that stored it went over another connection. So there is always one more write before it, `mark_command`.
"""

from typing import Any, Literal

Durability = Literal["stored", "fsync", "replicated"]


def wait_command(durability: Durability, num_replicas: int, timeout_ms: int) -> tuple[Any, ...]:
    """`timeout_ms`: shorter than the time limit of a call, so that the answer says what was reached."""
    if durability == "fsync":
        return ("WAITAOF", 1, 0, timeout_ms)
    return ("WAIT", num_replicas, timeout_ms)


def mark_command(key: str) -> tuple[Any, ...]:
    """A write that changes nothing of anyone; what confirms it has confirmed all writes before it."""
    return ("SET", key, "", "EX", 60)


def lacks_wait(reply: str) -> bool:
    """Whether the store cannot promise it: WAITAOF is unknown to it, or it has no append-only file."""
    return "WAITAOF" in reply or "unknown command" in reply


def lack_of(durability: Durability, num_replicas: int, confirmed: Any) -> str | None:
    """What is said where the answer of the command is less than what was asked for; None where it is not."""
    found, wanted = (confirmed[0], 1) if durability == "fsync" else (confirmed, num_replicas)
    if int(found) >= wanted:
        return None
    lack = "its disk did not confirm it" if durability == "fsync" else f"{found} of {wanted} replicas confirmed it"
    return f"The store has what was sent, but {lack} in time. Send it again: nothing counts twice."
