"""What a history is: the order of its events, the identity of an event, the text of a title, windows over it.

Training and serving must agree on all of these, or the memory built online would differ from a backfill. Pure functions
over strings; knows neither tokens nor tensors.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

_BLANK = re.compile(r"\s+")
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # they shape letters and emoji
_SOFT_HYPHEN = "\u00ad"


def tie_key(user_id: str, item_id: str) -> str:
    """Orders events of equal time: a hash, because source files often sort ties by item id, which leaks the target."""
    return hashlib.blake2b(f"{user_id}|{item_id}".encode(errors="surrogatepass"), digest_size=8).hexdigest()


def derived_event_id(user_id: str, item_id: str, timestamp: int, type: str) -> str:
    """The identity of an event whose sender gave none: the same facts are the same event."""
    facts = "\x1f".join((user_id, item_id, str(timestamp), type))
    return hashlib.blake2b(facts.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def clean_title(text: str) -> str:
    """One line of visible text: newlines end a title in the prompt, so none may stand inside it. May return ""."""
    if text.isascii() and text.isprintable() and "  " not in text and text == text.strip():
        return text  # as most are: a catalogue has millions, and the rest of this looks at each character
    composed = unicodedata.normalize("NFC", text.replace(_SOFT_HYPHEN, ""))
    visible = (" " if _is_invisible(char) else char for char in composed)
    return _BLANK.sub(" ", "".join(visible)).strip(f" {_JOINERS}")


def _is_invisible(char: str) -> bool:
    return unicodedata.category(char) in _INVISIBLE and char not in _JOINERS


def window_fingerprint(titles: Sequence[str]) -> bytes:
    """8 bytes that change when the text of a window does: a stored state with another fingerprint is stale."""
    return hashlib.blake2b("\n".join(titles).encode(), digest_size=8).digest()


def window_ending_at(history: Sequence[T], position: int, recent_length: int) -> Sequence[T]:
    """The last `recent_length` elements up to and including `position`: h_m of the paper."""
    return history[max(0, position + 1 - recent_length) : position + 1]


def window_fingerprints(history: Sequence[str], first: int, recent_length: int) -> list[bytes]:
    """`window_fingerprint` of the windows that end at `first`, `first` + 1, … up to the end of the history."""
    return [
        window_fingerprint(window_ending_at(history, position, recent_length))
        for position in range(first, len(history))
    ]
