"""Histories: the order and identity of events, the visible text of titles, and windows over a history.

Training and serving use the same functions; otherwise memory that is built online would differ from memory that is
rebuilt from the log. Pure functions over strings.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

_BLANK = re.compile(r"\s+")
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}  # Unicode categories
_JOINERS = "\u200c\u200d"  # zero-width (non-)joiners; letters and emoji need them
_SOFT_HYPHEN = "\u00ad"


def tie_key(user_id: str, item_id: str) -> str:
    """The order of events with equal timestamps. A hash: the order of source files often depends on the target item."""
    return hashlib.blake2b(f"{user_id}|{item_id}".encode(errors="surrogatepass"), digest_size=8).hexdigest()


def derived_event_id(user_id: str, item_id: str, timestamp: int, type: str) -> str:
    """The id of an event that was sent without one. Equal facts give equal ids."""
    facts = "\x1f".join((user_id, item_id, str(timestamp), type))
    return hashlib.blake2b(facts.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def clean_title(text: str) -> str:
    """`text` as one line of visible characters; "" if nothing is visible. A newline would end the title in a prompt."""
    if text.isascii() and text.isprintable() and "  " not in text and text == text.strip():
        return text  # most titles; the rest of this function looks at each character
    composed = unicodedata.normalize("NFC", text.replace(_SOFT_HYPHEN, ""))
    visible = (" " if _is_invisible(char) else char for char in composed)
    return _BLANK.sub(" ", "".join(visible)).strip(f" {_JOINERS}")


def _is_invisible(char: str) -> bool:
    return unicodedata.category(char) in _INVISIBLE and char not in _JOINERS


def window_ending_at(history: Sequence[T], position: int, recent_length: int) -> Sequence[T]:
    """The last `recent_length` elements up to and including `position` (h_m in the paper)."""
    return history[max(0, position + 1 - recent_length) : position + 1]
