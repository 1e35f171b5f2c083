"""The users of the store in steps, each of which looks at a bounded number of keys. On a cluster, node after node.

Knows no client but `MemoryStore.run` and `scan_node`.
"""

from collections.abc import Sequence

from service.errors import BadRequest
from service.store.client import MemoryStore
from service.store.keys import user_of, user_prefix, users_with


async def scan_users(
    store: MemoryStore, prefix: str, cursor: str | None, num_keys: int
) -> tuple[list[str], str | None]:
    """Users whose ids begin so, among about `num_keys` keys, and where to go on (None at the end).

    An id may come twice, and a user who comes or goes meanwhile may be missed. Raises `BadRequest` for a text that is
    not a cursor of this function.
    """
    node, place = _read(cursor)
    options = ("MATCH", users_with(prefix), "COUNT", num_keys, "TYPE", "hash")
    place, keys, num_nodes = await store.scan_node(node, place, *options)
    node += place == 0
    return [user_of(key) for key in keys], f"{node}-{place}" if node < num_nodes else None


async def event_counts(store: MemoryStore, user_ids: Sequence[str]) -> list[int]:
    """How many events each user has. One round trip."""
    return await store.run([("HLEN", user_prefix(user_id) + "events") for user_id in user_ids])


def _read(cursor: str | None) -> tuple[int, int]:
    """Number of the node, and place there."""
    if cursor is None:
        return 0, 0
    node, _, place = cursor.partition("-")
    if not (node.isdecimal() and place.isdecimal()) or len(cursor) > 32:
        raise BadRequest("The cursor was not made by this service.")
    return int(node), int(place)
