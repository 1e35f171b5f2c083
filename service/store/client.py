"""`MemoryStore`: the client of Redis. It reads and writes the keys of the table in `keys.py`.

Takes and gives the values of `events.py`. State records and catalogue items are opaque here: bytes and JSON objects.
Every change of a user's keys is one atomic Lua script (`lua/`). After an error, every method may simply be called
again. A user stays small while its states are a listpack: `hash-max-listpack-value` of the server should exceed the
record size (see `embedded/server.py`). Knows neither torch nor HTTP.

Errors: `StoreUnavailable` when the server does not answer or refuses a command; `StoreCorrupt` when a key has a wrong
type.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import structlog

from model_store.event_types import EventTypes
from service.errors import BadRequest
from service.store import overlay
from service.store.connection import StoreConnection
from service.store.counts import COUNT, KEPT_DAYS, Counts, decode_counts, decode_days
from service.store.durability import Durability
from service.store.erasure.leftovers import remove_leftovers
from service.store.erasure.tombstones import Tombstones
from service.store.events import (
    Appended,
    Deleted,
    Event,
    Recalled,
    Remembered,
    Replaced,
    Saved,
    UserCounts,
    UserStates,
    decode_event,
    decode_events,
    decode_text,
    encode_text,
    make_cursor,
    read_cursor,
)
from service.store.feedback.outcomes import attributions, markings
from service.store.keys import (
    ALL_EVENTS,
    DAY_PREFIX,
    DAYS,
    ENCODE,
    GROUP,
    ITEM_KEYS,
    QUEUE_KEYS,
    QUEUED,
    WAITING,
    count_keys,
    facts_key,
    user_keys,
    user_of,
    user_prefix,
)
from service.store.large.doomed import LARGE, drain
from service.store.large.seen import NOTHING, SeenStore
from service.store.lua import queue, scripts
from service.store.lua.sorting import sorting_of
from service.store.overlay import NewRecord, StoredItem
from service.store.requests import (
    Command,
    append_arguments,
    append_command,
    appended_of,
    decode_recalled,
    encoding_command,
    eval_command,
    recall_command,
    save_states_command,
    stored_arguments,
    warn_of_unreadable,
)
from service.store.sealing.records import PLAIN
from service.store.sealing.sealing import Sealing

log = structlog.get_logger("service.store.client")

CLAIM_AFTER_MS = 30_000  # an entry that its worker did not renew for so long goes to another worker
CONSUMER_IDLE_MS = 3_600_000  # a worker without entries that did not ask for so long has left


class MemoryStore(StoreConnection):
    """The methods for each kind of key. One per process and event loop; they may run concurrently."""

    types = EventTypes()  # by which events are sorted
    _sorting = sorting_of(types, 0)
    durability: Durability = "stored"  # of writes of events and deletions that ask for none

    def __init__(self, client: Any, *, timeout_s: float) -> None:
        super().__init__(client, timeout_s=timeout_s)
        self.tombstones = Tombstones(self.run)
        self.sealing = Sealing(self.run)
        self._seen = SeenStore(self.run)

    def use_event_types(self, types: EventTypes, number: int) -> None:
        """From now on events are sorted by this table; one with a higher number is newer (see `lua/sorting.py`)."""
        self.types, self._sorting = types, sorting_of(types, number)

    # ---- events of a user

    async def append(
        self, events: Sequence[Event], *, with_outcomes: bool = True, durability: Durability | None = None
    ) -> list[Appended]:
        """Stores events. Where the user has an event with this id, that one is kept: `duplicate`, or `conflict` if it
        differs. `with_outcomes`: an event that names an answer counts for it (see `feedback/outcomes.py`).

        Asks for the encoding of users with new events, in the same step. A cluster needs two steps: there, duplicates
        ask as well, so that a retry repairs a crash between them.
        Events of a user who was deleted are `deleted` unless they are newer (see `erasure/tombstones.py`).
        """
        by_user: dict[str, list[int]] = {}
        for position, event in enumerate(events):
            by_user.setdefault(event.user_id, []).append(position)
        gone = {user_id: await self.tombstones.key(user_id) for user_id in by_user}
        records = await self.sealing.for_writing(by_user)
        outcomes = attributions(events, gone) if with_outcomes else []  # before the events are stored
        make = partial(append_command, self._sorting, types=self.types, with_request=not self.is_cluster)
        appends = [make(gone[user], records[user], [events[i] for i in places]) for user, places in by_user.items()]
        marked = events if with_outcomes else []
        durability = durability or self.durability
        if self.is_cluster:  # the queue may be on another node, and events must be stored before it names their user
            answers = await self.write(outcomes + appends, durability)
            taken = [user for user, found in zip(by_user, answers[len(outcomes) :], strict=True) if set(found) != {-1}]
            requests = [encoding_command(taken)] if taken else []
            requests += markings([event for event in marked if event.user_id in taken], is_cluster=True)
            await self.write(requests, durability)
        else:
            marks = markings(marked, is_cluster=False)
            answers = await self.write(outcomes + appends + marks, durability)
            answers = answers[: len(outcomes) + len(appends)]
        answers = answers[len(outcomes) :]
        appended = appended_of(events, by_user, answers, records)
        if left := [place for place in range(len(events)) if place not in appended]:
            self.sealing.changed({events[place].user_id for place in left})  # their data key is another one
            again = await self.append([events[i] for i in left], with_outcomes=False, durability=durability)
            appended |= dict(zip(left, again, strict=True))
        return [appended[place] for place in range(len(events))]

    async def replace(self, event: Event) -> Replaced:
        """Stores the event in the place of the one with its id, if there is one, in one step.

        States of windows that contained that one become stale. Asks for encoding, also if nothing changes: so a retry
        repairs a crash between the two writes.
        """
        keys = [*user_keys(event.user_id), await self.tombstones.key(event.user_id)]
        answer = await self._change(scripts.REPLACE, keys, event.user_id, event.event_id, event)
        answers: tuple[Replaced, ...] = ("unchanged", "created", "replaced", "deleted")
        if answers[answer] != "deleted":
            await self.write([encoding_command([event.user_id])], self.durability)
        return answers[answer]

    async def recall(self, user_id: str, space: str, limit: int) -> list[Remembered]:
        """The newest `limit` events, oldest first, with their state records. One round trip, O(limit)."""
        (recalled,) = await self.recall_many([user_id], space, limit)
        return recalled.events

    async def recall_and_seen(self, user_id: str, space: str, limit: int, *, num_states: int | None = None) -> Recalled:
        """The newest `limit` events, what counts as seen, and the newest events against items. One round trip, more
        for a user of very many events.

        Only the newest `num_states` events come with their records (None: all); older ones with None.
        """
        make = partial(recall_command, user_id, space, limit, num_states=num_states, with_seen=True)
        known, seen = self._seen.known, None
        while seen is None:
            (answer,) = await self.run_on(lambda: [make(self._sorting, seen_from=known.get(user_id, NOTHING).state)])
            has_few = len(answer[4]) == 1 and user_id not in known
            seen = answer[4][0] or b"" if has_few else await self._seen.whole(user_id, answer[4])
        answer[4] = [seen]
        return decode_recalled(user_id, answer, self.sealing)

    async def recall_many(self, user_ids: Sequence[str], space: str, limit: int) -> list[Recalled]:
        """The newest `limit` events of each user, in the given order. One round trip; `seen` is left empty."""
        answers = await self.run_on(lambda: [recall_command(each, space, limit, self._sorting) for each in user_ids])
        recalled = []
        for user_id, answer in zip(user_ids, answers, strict=True):
            await asyncio.sleep(0)  # decoding many users takes long: let other tasks run in between
            recalled.append(decode_recalled(user_id, answer, self.sealing))
        return recalled

    async def events(self, user_id: str, *, before: str | None = None, limit: int) -> tuple[list[Event], str | None]:
        """A page of events, newest first, and the cursor of the next page (None after the last).

        Events that are added or deleted between two pages neither repeat nor hide others.
        """
        if limit <= 0:
            raise BadRequest("limit must be positive")
        place = read_cursor(before) if before is not None else (b"", b"")
        members, bodies, score, wrapped = await self._script(scripts.PAGE, user_keys(user_id), limit, *place)
        ids = [member[17:] for member in members[:limit]]
        bodies = self.sealing.of(user_id, wrapped).open_bodies(ids, bodies[: len(ids)])
        page = [event for event in decode_events(user_id, ids, bodies) if event is not None]
        warn_of_unreadable(len(ids) - len(page), len(ids))
        return page, make_cursor(score, members[limit - 1]) if len(members) > limit else None

    async def counts(self, user_id: str, space: str) -> UserCounts:
        prefix = user_prefix(user_id)
        sizes = await self.run([("HLEN", prefix + "events"), ("HLEN", f"{prefix}states:{space}")])
        return UserCounts(*sizes)

    async def forget_user(self, user_id: str) -> Deleted:
        """Deletes every key of the user, of all spaces, and leaves a tombstone, atomically; then what is elsewhere.

        After the first step nothing of the user is read any more. A call that failed is to be repeated.
        """
        prefix, tombstone = user_prefix(user_id), await self.tombstones.key(user_id)
        doomed = tombstone + ":doomed:"
        args = prefix, self.tombstones.kept_s, doomed, LARGE
        command = eval_command(scripts.FORGET_USER, [*user_keys(user_id), tombstone], *args)
        ((events, states, num_keys, has_more, *others, at, shredded),) = await self.write([command], self.durability)
        self._seen.forget(user_id)
        await drain(self.run, doomed)
        if has_more:
            num_keys += await self._unlink_all(prefix)
        lists, pages, outcomes = others
        elsewhere = await self.forget_elsewhere(user_id)
        return Deleted(events, states, num_keys, lists, pages, outcomes, *elsewhere, at, shredded)

    async def forget_elsewhere(self, user_id: str) -> tuple[int, int, int]:
        """Takes a user without events out of places that users share: numbers of live counts, of entries of the encode
        queue, and of dead letters.
        """
        (counted,) = await self.count({user_id: b""})
        return counted, *await remove_leftovers(self.run, user_id)

    async def _unlink_all(self, prefix: str) -> int:
        """Deletes every key that begins so, by a search through all keys of the store. Returns their number."""
        with self._translated_errors():
            keys = [key async for key in self._client.scan_iter(match=f"{prefix}*", count=1000)]
        return sum(await self.run([("UNLINK", key) for key in keys])) if keys else 0

    async def forget_event(self, user_id: str, event_id: str) -> bool:
        """Deletes an event and its states. False if it is unknown.

        States of windows that contained the event become stale, so the caller asks for encoding afterwards.
        """
        return bool(await self._change(scripts.FORGET_EVENT, user_keys(user_id), user_id, event_id))

    async def _change(
        self, script: str, keys: Sequence[str], user_id: str, event_id: str, new: Event | None = None
    ) -> int:
        """Tells the script what is stored under the id, and what is to be; again if that has changed meanwhile."""
        name = encode_text(event_id)
        while True:
            body, wrapped = await self.run([("HGET", keys[0], name), ("HGET", facts_key(user_id), "key")])
            (opened,) = self.sealing.of(user_id, wrapped).open_bodies([name], [body])
            stored = decode_event(user_id, name, opened)
            args: list[Any] = [*self._sorting, user_prefix(user_id), name, *stored_arguments(stored, body)]
            if new is not None:
                records = (await self.sealing.for_writing([user_id]))[user_id]
                text = body if stored == new and body is not None else records.body(new, self.types)
                args[3:4] = append_arguments(new, text)
                args += [records.wrapped, int(records.is_new)]
            answer = int((await self.write([eval_command(script, keys, *args)], self.durability))[0])
            if answer >= 0:
                return answer

    async def users(self) -> AsyncIterator[str]:
        """Ids of the users with events, by SCAN: an id may come twice; users who come or go meanwhile may be missed."""
        with self._translated_errors():
            async for key in self._client.scan_iter(match=ALL_EVENTS, count=1000, _type="hash"):
                yield user_of(key)

    # ---- states of a user

    async def save_states(self, space: str, states: Sequence[UserStates], limit: int) -> list[Saved]:
        """Saves the records whose event is still among the newest `keep` of its user; deletes those of older events.

        `limit` is that of the `recall_many` from whose events the states were computed. One round trip.
        """
        records = await self.sealing.for_writing([each.user_id for each in states])
        commands = []
        for each in states:
            own = records[each.user_id]
            commands.append(save_states_command(each, space, limit, PLAIN if own.is_new else own))
        return [Saved(*answer) for answer in await self._keep(commands)]

    async def _keep(self, commands: Sequence[Command]) -> list[Any]:
        """Writes what a worker made before it takes the user from the encode queue.

        A replica takes the writes of its primary in their order, so it has no state less than an acknowledged entry
        asks for. On a cluster the queue may be on another node: then replicas confirm the writes first. Where a shard
        has no replica at the moment, users wait for this no longer than half of a time limit.
        """
        must_wait = self.is_cluster and self.durability == "replicated"
        return (await self.try_to_write(commands, "replicated" if must_wait else "stored"))[0]

    # ---- live counts, see `counts.py`

    async def count(self, records: Mapping[str, bytes]) -> list[int]:
        """Replaces what each user adds to the live counts; returns how many counts of each have changed.

        The events may change meanwhile: when a count has changed, compare `log_digests` with what the record was made
        from, and count again if they differ. So the last one who counts a user has seen the newest events.
        """
        args = DAY_PREFIX, KEPT_DAYS
        return await self._keep(
            [eval_command(COUNT, self._count_keys(user_id), *args, body) for user_id, body in records.items()]
        )

    def _count_keys(self, user_id: str) -> list[str]:
        return count_keys(user_id) + ([] if self.is_cluster else user_keys(user_id)[:1])

    async def log_digests(self, user_ids: Sequence[str], limit: int) -> list[bytes]:
        """`Recalled.log_digest` of each user."""
        return await self.run([eval_command(scripts.DIGEST, user_keys(user_id), limit) for user_id in user_ids])

    async def counted_days(self) -> dict[int, int]:
        """Day → number of changes of its counts."""
        return decode_days(await self._call("HGETALL", DAYS))

    async def counts_of(self, day: int) -> Counts:
        return decode_counts(await self._call("HGETALL", f"{DAY_PREFIX}{day}"))

    # ---- the encode queue: every entry is delivered at least once

    async def request_encoding(self, user_ids: Iterable[str], *, only_with_events: bool = False) -> None:
        """`only_with_events`: not for users who were deleted meanwhile, where the store can tell in the same step."""
        users = list(user_ids)
        if users:
            await self.run([encoding_command(users, only_with_events=only_with_events and not self.is_cluster)])

    async def next_encodings(
        self, consumer: str, *, count: int, block_ms: int, unfinished: bool = False
    ) -> list[tuple[str, str]]:
        """(entry id, user id) of at most `count` entries, which `consumer` owns from then on; may be empty.

        Entries that their consumer has not renewed for `CLAIM_AFTER_MS` come first; with `unfinished`, those that
        `consumer` owns already. Waits up to `block_ms` for new ones, but at most half of the client's timeout.
        """
        entries = await self._script(queue.UNFINISHED, [ENCODE], GROUP, consumer, count) if unfinished else ()
        entries = entries or await self._script(queue.CLAIM, [ENCODE], GROUP, consumer, CLAIM_AFTER_MS, count)
        if not entries:
            block = min(max(block_ms, 1), int(self._timeout_s * 500))
            options = ("COUNT", count, "BLOCK", block, "STREAMS", ENCODE, ">")
            found = await self._call("XREADGROUP", "GROUP", GROUP, consumer, *options)
            entries = [(entry, fields.get(b"user")) for _, batch in found or () for entry, fields in batch]
        await self.encoded([entry.decode() for entry, user in entries if not user])  # not written by AutoMR
        begun = [(entry, user) for entry, user in entries if user]
        if begun:  # before the events are read: events from now on make another entry
            await self._script(queue.BEGUN, [QUEUED], *(part for entry, user in begun for part in (user, entry)))
        return [(entry.decode(), decode_text(user)) for entry, user in begun]

    async def renew_encodings(self, consumer: str, entry_ids: Sequence[str]) -> int:
        """Keeps these entries of `consumer` for another `CLAIM_AFTER_MS`; returns how many it still owns.

        Does not touch entries that are gone or that another consumer has claimed.
        """
        if not entry_ids:
            return 0
        return int(await self._script(queue.RENEW, [ENCODE], GROUP, consumer, *entry_ids))

    async def encoded(self, entry_ids: Sequence[str]) -> None:
        """Acknowledges entries and removes them from the queue."""
        if entry_ids:
            await self._script(queue.ENCODED, QUEUE_KEYS, GROUP, *entry_ids)

    async def backlog(self) -> int:
        """Number of users with entries in the queue, including those that workers own."""
        return min(await self.run([("HLEN", WAITING), ("XLEN", ENCODE)]))

    async def backlog_age_s(self) -> float:
        """Age of the oldest entry by the server's clock; 0 for an empty queue."""
        return int(await self._script(queue.BACKLOG_AGE, [ENCODE])) / 1000

    async def num_workers(self) -> int:
        """Workers that asked for entries, or renewed theirs, within the last `CLAIM_AFTER_MS`."""
        return int(await self._script(queue.CONSUMERS, [ENCODE], GROUP, CLAIM_AFTER_MS))

    async def remove_idle_consumers(self) -> int:
        """Removes workers that left long ago and own no entry from the queue's group; returns their number."""
        return int(await self._script(queue.REMOVE_IDLE, [ENCODE], GROUP, CONSUMER_IDLE_MS))

    # ---- the catalogue overlay

    async def put_items(self, records: Sequence[NewRecord], *, loaded: int) -> int | None:
        """The last new version. None, and nothing is written, if a record is based on one that is no longer the last:
        its item has changed since the version `loaded`.
        """
        if not records:
            return loaded
        args: list[Any] = [loaded]
        for each in records:
            args += (encode_text(each.item_id), each.record, int(each.is_based_on_last))
        version = await self._script(overlay.PUT, ITEM_KEYS, *args)
        return None if version is None else int(version)

    async def changed_items(self, after: int, limit: int = overlay.MOST_AT_ONCE) -> list[StoredItem]:
        """The records that changed after the version `after`, at most `limit`, in the order of their versions."""
        answer = await self._script(overlay.CHANGES, ITEM_KEYS, after, limit)
        return [
            StoredItem(decode_text(item_id), int(version), record or b"")
            for item_id, version, record in zip(*answer, strict=True)
        ]
