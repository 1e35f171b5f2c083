"""What `doctor` says of the store: is it reached, does it keep what it has acknowledged, is its clock right?

Each function returns a finding, or raises an error whose text is the finding. On a cluster every server is looked at.
"""

import time
from collections.abc import Mapping
from typing import Any

from service.errors import StartupError, StoreUnavailable
from service.settings import Settings
from service.store import keys
from service.store.client import MemoryStore
from service.store.deadletters import DeadLetters
from service.store.servers import rights

MOST_OFF_S = 30  # between this clock and that of the store


# The type of each key that all users share. One of a wrong type stops more than one user.
SHARED: Mapping[str, str] = {
    **dict.fromkeys((keys.ENCODE, keys.RECEIPTS), "stream"),
    **dict.fromkeys((keys.WAITING, keys.QUEUED, keys.DEAD, keys.ITEM_KEYS[0], keys.DAYS, keys.TOTALS), "hash"),
    **dict.fromkeys((keys.BUNDLES_FILL, keys.KEY_RECORDS, keys.KEYS_USED, keys.SEALED_WITH), "hash"),
    **dict.fromkeys((keys.ITEM_KEYS[1], keys.EXPLORED_ITEMS, keys.UNSETTLED, keys.ERASING), "zset"),
    **dict.fromkeys((keys.ITEM_KEYS[2], keys.EXPERIMENTS, keys.EVENT_TYPES, keys.EVENTS_COUNTED), "string"),
    **dict.fromkeys((keys.BUNDLES, keys.KEYS_VERSION, keys.SECRET), "string"),
}


async def examine_store(settings: Settings, store: MemoryStore) -> str:
    """Raises StartupError for what the service could not work with, and StoreUnavailable."""
    await store.ping()
    found = zip(SHARED, await store.run([("TYPE", key) for key in SHARED]), strict=True)
    if wrong := [key for key, kind in found if kind.decode() not in (SHARED[key], "none")]:
        raise StartupError(f"another program has written {', '.join(wrong)}: remove what is of a wrong type")
    if problem := await store.sealing.problem():
        raise StartupError(f"records of users cannot be read: {problem}")
    backlog, num_dead = await store.backlog(), await DeadLetters(store.run, is_cluster=store.is_cluster).count()
    return f"{settings.store_shown} answers and takes writes, encode queue {backlog}, dead letters {num_dead}"


async def examine_durability(settings: Settings, store: MemoryStore) -> str:
    """Raises StartupError for a server that may lose what it has acknowledged."""
    servers, synced = await store.node_names(), set[str]()
    for name in servers:
        try:
            facts = {**await _info(store, name, "persistence"), **await _info(store, name, "memory")}
        except StoreUnavailable:
            return "cannot be told: the store does not allow INFO"
        if not facts.get("aof_enabled"):
            raise StartupError(
                f"the store{_named(name)} has no append-only file, so a crash loses acknowledged events: set its"
                " option `appendonly yes`"
            )
        if (policy := str(facts.get("maxmemory_policy", "noeviction"))) != "noeviction":
            raise StartupError(
                f"the store{_named(name)} throws events away when it is full ({policy}): set its option"
                " `maxmemory-policy noeviction`"
            )
        synced.add(await _synced(store, name))
    found = f"{len(servers)} server{'s' * (len(servers) != 1)} with an append-only file and no eviction"
    late = ", ".join(sorted(synced - {"always", ""}))
    return f"{found}, but appendfsync {late}: a loss of power loses the last events" if late else found


async def _synced(store: MemoryStore, name: str) -> str:
    """The server's `appendfsync`, "" where it does not tell."""
    try:
        found = await store.ask_node(name, "CONFIG", "GET", "appendfsync")
    except StoreUnavailable:
        return ""
    value = next(iter(found.values())) if isinstance(found, dict) else found[1]
    return value.decode() if isinstance(value, bytes) else str(value)


async def examine_rights(settings: Settings, store: MemoryStore) -> str:
    """Raises StartupError for what only some settings need, and the user of the store may not do."""
    needed = [] if settings.durability == "stored" else rights.DURABILITY
    if lacks := await store.lacking_rights(needed):
        raise StartupError(f"the store does not allow its user {lacks}, which AUTOMR_DURABILITY needs")
    if lacks := await store.lacking_rights(rights.FILES):
        return f"all that is needed, but not {lacks}: deleted bytes stay in its files, see Erasure"
    return "all that is needed"


async def examine_promise(settings: Settings, store: MemoryStore) -> str:
    """Raises NotDurable where writes are not as durable as the setting says, for example without replicas."""
    await store.check_durability(settings.durability)
    return f"changes are {settings.durability} when they are acknowledged"


async def examine_clock(store: MemoryStore) -> str:
    """Raises StartupError where times of this machine and of the store cannot be compared."""
    furthest_s = 0.0
    for name in await store.node_names():
        seconds, micros = await store.ask_node(name, "TIME")
        off_s = time.time() - int(seconds) - int(micros) / 1e6
        furthest_s = max(furthest_s, abs(off_s))
    if furthest_s > MOST_OFF_S:
        raise StartupError(
            f"the clocks of this machine and of the store differ by {furthest_s:.0f} s: keys, tokens and deletions"
            " would end at wrong times"
        )
    return f"at most {furthest_s:.1f} s from that of the store"


async def _info(store: MemoryStore, name: str, section: str) -> Mapping[str, Any]:
    facts: Mapping[str, Any] = await store.ask_node(name, "INFO", section)
    return facts


def _named(name: str) -> str:
    return f" {name}" if name else ""
