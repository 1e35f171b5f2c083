r"""The key table: every key of AutoMR in Redis, and the functions that build key names. Knows no client.

    key                               type    holds                                        bound
    automr:{<uid>}:events             HASH    event_id -> JSON item_id, timestamp, type,   number of events;
                                              value, query                                 source of truth
    automr:{<uid>}:order              ZSET    "<tie_key>:<event_id>" by timestamp: events  number of events
                                              that are interest (see `sorting.py`)
    automr:{<uid>}:against            ZSET    the same, of events with a negative weight   number of events
    automr:{<uid>}:aside              ZSET    the same, of all other events                number of events
    automr:{<uid>}:seen               STRING  `item_digest` and time, 12 bytes each        number of events
    automr:{<uid>}:order:old          ZSET    what is to be sorted anew, in steps; also    number of events
                                              of against and aside (see `sorting.py`)
    automr:{<uid>}:facts              HASH    table and revision of the sets, state of     items that were taken back
                                              `seen`; "!<tie_key>" -> place of the last
                                              event that took it back; the wrapped data
                                              key of sealed records
    automr:events                     STRING  JSON: number and table of event types        one
    automr:events:counted             STRING  name of the table by which all were counted  one
    automr:events:counting            STRING  who counts them again, for 30 s              one
    automr:{<uid>}:states:<space>     HASH    sha1(event_id)[:20] -> state record, bytes   newest `keep` events
    automr:{<uid>}:spaces             SET     spaces that have keys of this user           bundles served
    automr:{<uid>}:shown              LIST    id, a space, JSON of a list that was shown   newest 20, for a day
                                              (see `shown.py`)
    automr:{+shown:<id>}:shown        LIST    the same for an anonymous session            one, for a day
    automr:{<uid>}:pages              HASH    "<expires>:<id>" -> list whose pages may be  newest 20, half an hour
                                              asked for, bytes (see `pages.py`)
    automr:{+pages:<id>}:pages        HASH    the same for an anonymous session            one, half an hour
    automr:{<uid>}:retrieval:<space>  STRING  written by earlier versions; only deleted    one per space
    automr:encode                     STREAM  {user}, consumer group "encoders"            users not yet encoded
    automr:dead                       HASH    user -> JSON reason and time: users who     users who cannot be
                                              cannot be encoded, see `deadletters.py`      encoded, at most 10,000
    automr:{automr:encode}:waiting    HASH    user -> number of its entries in the stream  users not yet encoded
    automr:{automr:encode}:queued     HASH    user -> id of its entry that no worker has   users not yet encoded
                                              begun
    automr:items                      HASH    item_id -> JSON, the catalogue overlay       items changed since the
                                                                                           bundle was built
    {automr:items}:changes            ZSET    item_id by the version of its record; in     as above
                                              the slot of automr:items (see `overlay.py`)
    {automr:items}:version            STRING  the last version                             one
    automr:bundles                    STRING  JSON: bundles that are loaded, which answers one
    automr:bundles:fill               HASH    name -> JSON: how far its memory is filled   bundles that are loaded
    automr:bundles:fill:<name>        STRING  who fills it, for 30 s                       bundles that are loaded
    automr:{<uid>}:outcomes           HASH    event_id -> JSON: an event that names an     not counted yet
                                              answer (see `feedback/outcomes.py`)
    automr:{+outcomes}:totals         HASH    variant, kind -> number of events            variants
    automr:{+outcomes}:explored       ZSET    item_id by how often exploration showed it   items that were explored
    automr:{+outcomes}:explored:<n>   ZSET    item_id by when exploration had shown it n   such items, for each n that
                                              times and ended (see `feedback/explored.py`) AUTOMR_EXPLORED_TIMES had
    automr:{+outcomes}:waiting        ZSET    users with outcomes, by time                 users not counted yet
    automr:{+outcomes}:counted:<day>  SET     digests of events that were counted          events of a day, 3 days
    automr:experiments                STRING  JSON: the experiment that runs               one
    automr:{+keys}:records            HASH    key id -> JSON: an API key, hashed (see        keys
                                              `identity/stored.py`)
    automr:{+keys}:version            STRING  number of changes of these keys              one
    automr:{+keys}:used               HASH    key id -> when it was used last              keys
    automr:{+rate:<name>}:window      HASH    number and counts of a window of a rate      keys with a rate; two
                                              (see `identity/limits.py`)                   windows
    automr:sealed                     HASH    id -> check of the master keys with which    master keys
                                              records are sealed (see `sealing/`)
    automr:probe                      STRING  empty: written to see whether writes work    one
    automr:{+<slot>}:probe            STRING  empty: the last write before WAIT, for a     one for each slot, a minute
                                              minute (see `durability.py`)
    automr:{+<slot>}:gone:<hash>      STRING  second in which the user was deleted, see     users deleted, for days
                                              `erasure/tombstones.py`
    automr:{+<slot>}:gone:<hash>:doomed:<n>   sets and hashes of a deleted user that had    until they are empty
                                              very many elements (see `large/doomed.py`)
    automr:{+erasure}:users           ZSET    users whose deletion is not finished, by when  such users
                                              it goes on (see `erasure/deletions.py`)
    automr:{+erasure}:receipts        STREAM  what each deletion removed; no user id         newest 10,000
    automr:{+erasure}:secret          STRING  key of the hashes of tombstones                one
    automr:{+erasure}:files:<fact>    STRING  times of deletions and of rewritten files      four
    automr:{+live}:of:<uid>           STRING  cells: what the user adds to the live counts 21 bytes for each; at most
                                              (see `counts.py`)                            1,100 cells
    automr:{+live}:day:<day>          HASH    digests of two items, 16 bytes -> number     cells of all users
                                              of users
    automr:{+live}:days               HASH    day -> number of changes of its counts       newest `KEPT_DAYS`

The user id of a user of a tenant is "<tenant>\x1f<id>" everywhere behind the HTTP interface (see
`identity/tenants.py`). So every key of such a user begins with the tenant, and no code meets two users as one.

Shown lists, pages, tombstones, leases, and what is or was to be counted expire. <uid> is percent-quoted, so every user
id gives a valid key. The braces make it the hash tag, so all keys of a user are in one slot of Redis Cluster. Live
counts and outcomes are in other slots; no user has a tag with "+" or ":", because these are quoted.
"""

from binascii import crc_hqx
from functools import cache
from urllib.parse import quote, unquote

from service.errors import BadRequest

ENCODE, GROUP = "automr:encode", "encoders"
DEAD = "automr:dead"
ITEM_KEYS = ["automr:items", "{automr:items}:changes", "{automr:items}:version"]
# The hash tag is the name of the stream: all are in one slot.
WAITING, QUEUED = "automr:{automr:encode}:waiting", "automr:{automr:encode}:queued"
QUEUE_KEYS = [ENCODE, WAITING, QUEUED]
DAYS, DAY_PREFIX = "automr:{+live}:days", "automr:{+live}:day:"
TOTALS, COUNTED_PREFIX = "automr:{+outcomes}:totals", "automr:{+outcomes}:counted:"
EXPLORED_ITEMS = "automr:{+outcomes}:explored"
UNSETTLED, EXPERIMENTS = "automr:{+outcomes}:waiting", "automr:experiments"
EVENT_TYPES, EVENTS_COUNTED, EVENTS_COUNTING = "automr:events", "automr:events:counted", "automr:events:counting"
BUNDLES, BUNDLES_FILL = "automr:bundles", "automr:bundles:fill"
PROBE = "automr:probe"
SEALED_WITH = "automr:sealed"
KEY_RECORDS, KEYS_VERSION, KEYS_USED = "automr:{+keys}:records", "automr:{+keys}:version", "automr:{+keys}:used"
ERASING, RECEIPTS = "automr:{+erasure}:users", "automr:{+erasure}:receipts"
SECRET, FILES_PREFIX = "automr:{+erasure}:secret", "automr:{+erasure}:files:"
NUM_SLOTS = 16_384  # of Redis Cluster
TENANT_END = "\x1f"  # no user id of a caller has a control character
USER_KEYS = ("events", "order", "seen", "spaces", "against", "aside", "facts")
ALL_EVENTS = "automr:{*}:events"  # a pattern for SCAN


def user_prefix(user_id: str) -> str:
    """Start of every key of this user. Raises `BadRequest` for an empty id: "{}" is no hash tag."""
    if not user_id:
        raise BadRequest("user_id must not be empty")
    return f"automr:{{{_quoted(user_id)}}}:"


def tenant_of(user_id: str) -> str:
    """The tenant of a user, "" for a user without one."""
    return user_id.partition(TENANT_END)[0] if TENANT_END in user_id else ""


def users_with(prefix: str) -> str:
    """A pattern for SCAN: the events of users whose ids begin so. Quoted ids have none of its special characters."""
    return f"automr:{{{_quoted(prefix)}*}}:events"


def count_keys(user_id: str) -> list[str]:
    """KEYS of COUNT: what the user adds to the live counts, and the days."""
    return [f"automr:{{+live}}:of:{_quoted(user_id)}", DAYS]


def rate_key(name: str) -> str:
    """Key of the requests that are counted under this name."""
    return f"automr:{{+rate:{_quoted(name)}}}:window"


def anonymous_key(recommendation_id: str, tenant: str = "") -> str:
    """Key of the list that an anonymous session was shown, by a caller of this tenant ("" for none)."""
    name = f"{tenant}{TENANT_END}{recommendation_id}" if tenant else recommendation_id
    return f"automr:{{+shown:{_quoted(name)}}}:shown"


def anonymous_pages_key(recommendation_id: str) -> str:
    """Key of the list of an anonymous session whose pages may be asked for."""
    return f"automr:{{+pages:{_quoted(recommendation_id)}}}:pages"


def _quoted(user_id: str) -> str:
    return quote(user_id, safe="", errors="surrogatepass")


def user_of(events_key: bytes) -> str:
    """The user id in a key that `ALL_EVENTS` matches."""
    quoted = events_key.removeprefix(b"automr:{").removesuffix(b"}:events")
    return unquote(quoted.decode("ascii", "replace"), errors="surrogatepass")


def user_keys(user_id: str, space: str | None = None) -> list[str]:
    """KEYS[1] to KEYS[7] of the scripts (see USER_KEYS); with a space also KEYS[8], its states."""
    prefix = user_prefix(user_id)
    keys = [prefix + name for name in USER_KEYS]
    return keys if space is None else [*keys, f"{prefix}states:{space}"]


def facts_key(user_id: str) -> str:
    return user_prefix(user_id) + "facts"


def gone_key(user_id: str, digest: str) -> str:
    """Key of a tombstone: in the slot of the user's keys, so that a script may read it, but without the user's id."""
    return f"automr:{{{slot_tags()[_slot(_quoted(user_id))]}}}:gone:{digest}"


@cache
def slot_tags() -> dict[int, str]:
    """A short hash tag for each slot; takes about 0.2 s once."""
    tags: dict[int, str] = {}
    number = 0
    while len(tags) < NUM_SLOTS:
        tags.setdefault(_slot(tag := f"+{number}"), tag)
        number += 1
    return tags


def _slot(tag: str) -> int:
    return crc_hqx(tag.encode(), 0) % NUM_SLOTS
