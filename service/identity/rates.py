"""Rates as text, such as `100/second; 1000000/month`: `parse` gives the limits of the library `limits`."""

from functools import lru_cache

from limits import RateLimitItem, parse_many

MOST_LIMITS = 3


@lru_cache(maxsize=1024)
def parse(text: str) -> tuple[RateLimitItem, ...]:
    """The limits of a text, none for "". Raises ValueError."""
    if not text.strip():
        return ()
    try:
        found = tuple(parse_many(text))
    except ValueError:
        raise ValueError("must be limits such as 100/second or 100/second; 1000000/month") from None
    if len(found) > MOST_LIMITS or any(not 0 < each.amount < 1 << 40 for each in found):
        raise ValueError(f"must be at most {MOST_LIMITS} limits of at least one request")
    return found
