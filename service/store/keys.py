"""The key table: every key that AutoMR writes, and the commands that append to it. Knows no client.

    key                               type    holds                                        bound
    automr:{<uid>}:events             HASH    event_id -> JSON item_id, timestamp, type,   the user's log,
                                              value                                        source of truth
    automr:{<uid>}:order              ZSET    "<tie_key>:<event_id>" by timestamp          as events
    automr:{<uid>}:seen               STRING  8 bytes for the item of each event           as events
    automr:{<uid>}:states:<space>     HASH    sha1(event_id)[:20] -> state record, bytes   newest `keep`
    automr:{<uid>}:spaces             SET     spaces with states or a retrieval            bundles served
    automr:{<uid>}:retrieval:<space>  STRING  JSON event_id -> weight, the last retrieval  one per space
    automr:encode                     STREAM  {user}, group "encoders"                     until encoded
    automr:items                      HASH    item_id -> JSON, catalogue overlay           items changed since
                                                                                           the bundle's making
    automr:items:version              STRING  counter of overlay changes                   one

No key expires. <uid> is percent-quoted, so any id is a safe key, and braced, so all keys of a user share a slot of
Redis Cluster.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from model_store.text.history import tie_key
from service.errors import BadRequest
from service.store import scripts
from service.store.events import Event, UserStates, encode_event, encode_text, item_digest

ENCODE, GROUP = "automr:encode", "encoders"
ITEMS, ITEMS_VERSION = "automr:items", "automr:items:version"
USER_KEYS = ("events", "order", "seen", "spaces")

Command = tuple[Any, ...]


def user_prefix(user_id: str) -> str:
    if not user_id:  # "{}" is no hash tag: the keys of such a user would scatter over a cluster
        raise BadRequest("user_id must not be empty")
    return f"automr:{{{quote(user_id, safe='', errors='surrogatepass')}}}:"


def user_keys(user_id: str, space: str | None = None) -> list[str]:
    """In the order the scripts take them."""
    names = USER_KEYS if space is None else (*USER_KEYS, f"states:{space}", f"retrieval:{space}")
    prefix = user_prefix(user_id)
    return [prefix + name for name in names]


def order_member(event: Event) -> bytes:
    return encode_text(f"{tie_key(event.user_id, event.item_id)}:{event.event_id}")


def append_command(events: Sequence[Event]) -> Command:
    keys = user_keys(events[0].user_id)[:3]
    args: list[Any] = []
    for event in events:
        identity, digest = encode_text(event.event_id), item_digest(event.item_id)
        args += (identity, encode_event(event), event.timestamp, order_member(event), digest)
    return script_command(scripts.APPEND, keys, *args)


def save_states_command(states: UserStates, space: str, limit: int) -> Command:
    keep = max(states.keep, 1)
    args: list[Any] = [keep, space, max(limit, keep)]
    for event_id, record in states.records.items():
        args += (encode_text(event_id), record)
    return script_command(scripts.SAVE_STATES, user_keys(states.user_id, space), *args)


def save_retrieval_command(user_id: str, space: str, weights: Mapping[str, float]) -> Command:
    body = encode_text(json.dumps(dict(weights)))
    return script_command(scripts.SAVE_RETRIEVAL, user_keys(user_id, space), space, body)


def encode_commands(user_ids: Iterable[str]) -> list[Command]:
    return [("XADD", ENCODE, "*", "user", encode_text(user_id)) for user_id in user_ids]


def script_command(script: scripts.Script, keys: Sequence[str], *args: Any) -> Command:
    return ("EVALSHA", script.sha, len(keys), *keys, *args)
