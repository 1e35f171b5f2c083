"""Lists that were shown to users, kept for a short time: which items, when, and which variant chose them.

The lists of a user are one Redis list, newest first, in the slot of the user, so they are deleted with the user. The
list of an anonymous session has a key of its own, because only its recommendation id names it. An element is the
recommendation id, a space, and JSON: a script finds a list by its beginning. Knows no client but `MemoryStore.run`.
"""

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from service.store.erasure.tombstones import Tombstones
from service.store.events import decode_text, encode_text, read_json
from service.store.feedback.explored import shown_command
from service.store.feedback.outcomes import EXPLORED, LISTS
from service.store.keys import TOTALS, anonymous_key, tenant_of, user_keys, user_prefix
from service.store.lua.scripts import MAY_KEEP

MOST_LISTS = 20  # of a user; older ones are dropped

# KEYS: lists, events, tombstone of the user (only lists for an anonymous session); ARGV: list, most lists, seconds to
# keep them, when the list was made  ->  nothing
_SAVE = (
    MAY_KEEP
    + """
if KEYS[2] and not may_keep(KEYS[3], KEYS[2], ARGV[4]) then return end
redis.call('LPUSH', KEYS[1], ARGV[1])
redis.call('LTRIM', KEYS[1], 0, ARGV[2] - 1)
redis.call('EXPIRE', KEYS[1], ARGV[3])
"""
)

Run = Callable[[Sequence[tuple[Any, ...]]], Awaitable[list[Any]]]


class ShownList(NamedTuple):
    """One answer. `time`: Unix seconds. `user_id` None: an anonymous session, of a caller of `tenant` ("" for none,
    and where there is a user). `item_ids`: in the order of ranks.

    `explored`: those of them that exploration put there. `num_explored`: how many of these have not been counted; a
    later page has the items of those before it as well. It is not kept.
    """

    recommendation_id: str
    user_id: str | None
    item_ids: tuple[str, ...]
    variant: str
    bundle: str
    time: int
    tenant: str = ""
    explored: tuple[str, ...] = ()
    num_explored: int = 0

    @property
    def newly_explored(self) -> tuple[str, ...]:
        """The items of `explored` that have not been counted: the last ones."""
        return self.explored[len(self.explored) - self.num_explored :]


class ShownStore:
    """`run` is `MemoryStore.run`; its errors come through. Lists older than `kept_s` seconds are not returned.

    `most_explored`: times that exploration shows an item; 0: without end.
    """

    def __init__(self, run: Run, tombstones: Tombstones, *, kept_s: int, most_explored: int = 0) -> None:
        self._run, self._tombstones, self.kept_s = run, tombstones, kept_s
        self._most_explored = most_explored

    async def save(self, lists: Sequence[ShownList]) -> None:
        """One round trip. Also counts the lists of each variant, and how often exploration showed each item; a repeated
        call counts them again.
        """
        commands: list[tuple[Any, ...]] = []
        for each in lists:
            keys = [_key_of(each)]
            if each.user_id is not None:
                keys += user_keys(each.user_id)[0], await self._tombstones.key(each.user_id)
            args = _encode(each), MOST_LISTS, self.kept_s, each.time
            commands.append(("EVAL", _SAVE, len(keys), *keys, *args))
        numbers = Counter(f"{each.variant}|{LISTS}" for each in lists)
        for each in lists:
            if each.num_explored:
                numbers[f"{each.variant}|{EXPLORED}"] += each.num_explored
        commands += [("HINCRBY", TOTALS, total, number) for total, number in numbers.items()]
        shown = Counter(item_id for each in lists for item_id in each.newly_explored)
        if shown:
            commands.append(shown_command(shown, self._most_explored))
        await self._run(commands)

    async def recent(self, user_id: str, *, now: int) -> list[ShownList]:
        """The newest lists of the user, newest first, at most `MOST_LISTS`. One round trip."""
        return await self._lists(user_id, _key_of_user(user_id), now)

    async def get(self, recommendation_id: str, user_id: str | None, *, now: int) -> ShownList | None:
        """The list with this id: one of the user's, or that of an anonymous session of the user's tenant. None if
        unknown or too old.
        """
        tenant = tenant_of(user_id or "")
        sessions = await self._lists(None, anonymous_key(recommendation_id, tenant), now)
        found = [each._replace(tenant=tenant) for each in sessions]
        if user_id is not None:
            found += await self.recent(user_id, now=now)
        return next((each for each in found if each.recommendation_id == recommendation_id), None)

    async def _lists(self, user_id: str | None, key: str, now: int) -> list[ShownList]:
        (elements,) = await self._run([("LRANGE", key, 0, MOST_LISTS - 1)])
        lists = [_decode(user_id, element) for element in elements]
        return [each for each in lists if each is not None and each.time > now - self.kept_s]


def _key_of_user(user_id: str) -> str:
    return user_prefix(user_id) + "shown"


def _key_of(shown: ShownList) -> str:
    if shown.user_id is None:
        return anonymous_key(shown.recommendation_id, shown.tenant)
    return _key_of_user(shown.user_id)


def _encode(shown: ShownList) -> bytes:
    facts: dict[str, Any] = {
        "items": shown.item_ids,
        "variant": shown.variant,
        "bundle": shown.bundle,
        "time": shown.time,
    }
    if shown.explored:
        facts["explored"] = shown.explored
    return encode_text(f"{shown.recommendation_id} {json.dumps(facts, ensure_ascii=False, separators=(',', ':'))}")


def _decode(user_id: str | None, element: bytes) -> ShownList | None:
    """None for bytes that are no list of ours."""
    recommendation_id, _, body = element.partition(b" ")
    facts = read_json(body)
    items, time, explored = facts.get("items"), facts.get("time"), facts.get("explored")
    if not isinstance(items, list) or not isinstance(time, int):
        return None
    variant, bundle = str(facts.get("variant", "")), str(facts.get("bundle", ""))
    return ShownList(
        decode_text(recommendation_id),
        user_id,
        tuple(map(str, items)),
        variant,
        bundle,
        time,
        explored=tuple(map(str, explored if isinstance(explored, list) else ())),
    )
