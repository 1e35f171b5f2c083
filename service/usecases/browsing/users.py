"""Pages of the users of the store, by the beginning of their ids. Knows no HTTP."""

from typing import NamedTuple

from service.store.client import MemoryStore
from service.store.keys import tenant_of
from service.store.scan import event_counts, scan_users

_MOST_STEPS = 20  # of the store in one call; each looks at about `_KEYS_A_STEP` keys
_KEYS_A_STEP = 1000


class ListedUser(NamedTuple):
    user_id: str
    events: int


class UsersPage(NamedTuple):
    users: list[ListedUser]
    next_cursor: str | None


class UserList:
    def __init__(self, store: MemoryStore) -> None:
        self.store = store

    async def page(self, prefix: str, limit: int, cursor: str | None) -> UsersPage:
        """At most `limit` users, or those of one bucket of the store, in no order. A page may be short and have a next.

        Users of the tenant that the prefix names; without one, users without a tenant. A user who is there all the time
        is on some page, perhaps on two. Raises BadRequest for a foreign cursor.
        """
        tenant = tenant_of(prefix)
        found: dict[str, None] = {}
        place, num_keys = cursor, _KEYS_A_STEP
        for _ in range(_MOST_STEPS):
            user_ids, after = await scan_users(self.store, prefix, place, num_keys)
            more = found | dict.fromkeys(user_id for user_id in user_ids if tenant_of(user_id) == tenant)
            if len(more) > limit and num_keys > 1:  # too many: from the same place again, in smaller steps
                num_keys = max(1, num_keys // 8)
                continue
            if len(more) > limit and found:
                break
            found, place = more, after
            if place is None or len(found) >= limit:
                break
        numbers = await event_counts(self.store, list(found))
        listed = [ListedUser(*pair) for pair in zip(found, numbers, strict=True)]
        return UsersPage([user for user in listed if user.events], place)
