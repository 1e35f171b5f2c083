"""The messages between the server and the process of the model, and their frames on the socket.

A frame is the length of its body (4 bytes, big endian) and the body: one message in msgpack. Nothing is unpickled.
Times are seconds of `time.monotonic()`, which all processes of a machine share. Arrays travel as little-endian bytes.
"""

import struct
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from model_store.answers import Ranked, Reason

LENGTH = struct.Struct(">I")
FEW_ITEMS = 8  # a put of more of them waits in the background lane


class Message(msgspec.Struct, array_like=True, tag=True, gc=False):
    """Base of all messages."""


# ---- from the server


class ModelOptions(msgspec.Struct):
    """What to open and how; JSON in the arguments of the process. `threads` 0 = all cores, or one for a small model."""

    bundle: str
    device: str
    precision: Literal["bundle", "bfloat16", "int8"]
    threads: int
    max_batch: int
    max_batch_tokens: int
    window_cache_mib: int
    log_level: str
    log_format: str
    otlp_endpoint: str = ""  # of a collector of traces


class Asked(Message, kw_only=True):
    """A job. `traceparent`: its span is below this one, as in the header of W3C; empty outside a recorded trace."""

    traceparent: str = ""


class Recommend(Asked):
    """`titles`: the recent window, oldest first. `memory`: (M, D) float16. `allowed`: (N,) bits by catalogue row.

    `past_rows`, `past_times`, `now`, `past_weights`, `against` and `voices`: see `model_store.answers.PastRows`; no
    rows where the bundle has no voices. `caller`: see `batching.Job`.
    """

    id: int
    titles: list[str]
    memory: bytes
    allowed: bytes
    num_items: int
    num_results: int
    deadline: float
    past_rows: list[int]
    past_times: list[int]
    now: int
    past_weights: list[float] = []
    against: list[tuple[int, float]] = []
    voices: dict[str, float] = {}
    caller: int = 0


class Encode(Asked):
    """The state of one window of titles."""

    id: int
    titles: list[str]


class ChangedItem(Message):
    """An item that is new or changed since the bundle was built, and its row in the catalogue of the server.

    A `catalogue.items.Item` without attributes.
    """

    row: int
    item_id: str
    title: str
    popularity: int
    hidden: bool
    available_from: int | None
    available_until: int | None


class ReadTitles(Asked):
    """The vectors of titles, for the `PutItems` that follows: two short jobs, between which requests are answered."""

    id: int
    titles: list[str]


class PutItems(Asked):
    """`vectors`: (n, D) float32 of the titles of `items`; empty if the model has yet to read them."""

    id: int
    items: list[ChangedItem]
    vectors: bytes = b""


class CountItems(Asked):
    """The fields of `model_store.answers.RowCounts`, which replace the live counts: int64 and float64."""

    id: int
    rows: bytes
    counts: bytes
    pairs: bytes
    pair_counts: bytes


class FindSimilar(Asked):
    """The `num_results` allowed items whose title vectors are nearest to that of `row`."""

    id: int
    row: int
    num_results: int
    allowed: bytes
    num_items: int
    caller: int = 0


class FindRelated(Asked):
    """The `num_results` allowed items that go together with `row`, by what users did."""

    id: int
    row: int
    num_results: int
    allowed: bytes
    num_items: int
    caller: int = 0


class ReadVectors(Asked):
    """The title vectors of catalogue rows."""

    id: int
    rows: list[int]


WordsLevel = Literal["lexical", "off", "retrieve", "full"]  # how far a query in words is answered


class AskWords(Asked):
    """A query in words. `rows`, `times` and `queries` are those of the user's events, oldest first; "" for no query.

    `caller`: see `batching.Job`.
    """

    id: int
    query: str
    reasoning: Literal["off", "retrieve", "full"]
    num_results: int
    now: int
    deadline: float
    rows: list[int]
    times: list[int]
    queries: list[str]
    allowed: bytes
    num_items: int
    caller: int = 0


class ReadMemory(Asked):
    """The local memory in words of a user with these events, as in `AskWords`."""

    id: int
    rows: list[int]
    times: list[int]
    queries: list[str]
    caller: int = 0


class Cancel(Message):
    """The caller of job `id` left."""

    id: int


Work = (
    Recommend
    | Encode
    | ReadTitles
    | PutItems
    | CountItems
    | FindSimilar
    | FindRelated
    | ReadVectors
    | AskWords
    | ReadMemory
)

# ---- from the model


class Ready(Message):
    """The bundle is open and warm."""

    device: str
    threads: int
    bundle: str  # see `model_store.files.identity_of`


class Broken(Message):
    """The bundle cannot be served: `reason` is for the operator."""

    reason: str


class Recommended(Message):
    """The fields of `model_store.answers.Answer`; `weights` (M,) and `event_shares` (n,): float32."""

    id: int
    items: list[Ranked]
    chosen: list[int]
    weights: bytes
    null_weight: float
    timings_s: dict[str, float]
    reasons: list[Reason | None]
    event_shares: bytes


class Encoded(Message):
    """`state`: (D,) float16."""

    id: int
    state: bytes


class ItemsPut(Message):
    id: int


class ItemsCounted(Message):
    id: int


class SimilarFound(Message):
    id: int
    rows: list[int]
    distances: list[float]


class RelatedFound(Message):
    """The columns of `model_store.related.Related`."""

    id: int
    rows: list[int]
    scores: list[float]
    tables: list[Literal["near", "follow", "together"]]


class VectorsRead(Message):
    """`vectors`: (n, D) float32."""

    id: int
    vectors: bytes


class MemoryEntry(msgspec.Struct, array_like=True, gc=False):
    """A `model_store.words.memory.Entry`; `events`: places of its newest events, newest first."""

    id: str
    level: Literal["record", "pattern", "profile"]
    scenario: str
    text: str
    events: list[int]
    count: int
    t_first: int
    t_last: int


class FetchedAspect(msgspec.Struct, array_like=True, gc=False):
    """A `model_store.words.aspects.Aspect`, and the ids of the entries that it fetched."""

    name: str
    scenario: str
    description: str
    num_users: int
    entries: list[str]


class WordsAnswered(Message):
    """`level`: how far the answer went. `fetched`: entries of local memory; `used`: ids of those that were chosen."""

    id: int
    rows: list[int]
    scores: list[float]
    level: WordsLevel
    aspects: list[FetchedAspect]
    fetched: list[MemoryEntry]
    used: list[str]
    profile: str | None
    timings_s: dict[str, float]


class MemoryRead(Message):
    id: int
    entries: list[MemoryEntry]


class Expired(Message):
    """The deadline of the job passed, or would have passed, before its answer."""

    id: int


class Failed(Message):
    """The job raised. `reason` goes to the log, not to callers."""

    id: int
    reason: str


Result = (
    Recommended
    | Encoded
    | ItemsPut
    | ItemsCounted
    | SimilarFound
    | RelatedFound
    | VectorsRead
    | WordsAnswered
    | MemoryRead
    | Expired
    | Failed
)


class Batch(Message):
    """The results of one batch, and of jobs that were dropped when it was formed.

    `seconds`: from the end of the last batch, or from the arrival of the first job if that was later.
    """

    kind: str
    num_jobs: int
    seconds: float
    results: list[Result]
    cache_hits: int
    cache_misses: int
    cache_bytes: int


ToModel = Work | Cancel
ToServer = Ready | Broken | Batch

encoder = msgspec.msgpack.Encoder()
to_model = msgspec.msgpack.Decoder(ToModel)
to_server = msgspec.msgpack.Decoder(ToServer)


def frame(message: Message) -> bytes:
    body = encoder.encode(message)
    return LENGTH.pack(len(body)) + body


class Frames:
    """Cuts a stream of bytes into the bodies of frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies that are complete now, in order."""
        self._buffer += data
        bodies, start = [], 0
        while len(self._buffer) - start >= LENGTH.size:
            stop = start + LENGTH.size + LENGTH.unpack_from(self._buffer, start)[0]
            if stop > len(self._buffer):
                break
            bodies.append(bytes(self._buffer[start + LENGTH.size : stop]))
            start = stop
        del self._buffer[:start]
        return bodies


def unpack_rows(bits: bytes, num_items: int, num_known: int) -> NDArray[np.bool_]:
    """(num_known,) bool from bits of `np.packbits`, which the sender made for `num_items` rows.

    False for rows that the sender did not know. Rows that the receiver does not know are left out.
    """
    allowed, count = np.zeros(num_known, dtype=bool), min(num_items, num_known)
    allowed[:count] = np.unpackbits(np.frombuffer(bits, dtype=np.uint8), count=count).astype(bool)
    return allowed
