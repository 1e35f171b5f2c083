"""Makes `synchronous.py` from `asynchronous.py`:  python automr/unasync.py

One file is written, and the other one differs from it in these words only.
"""

import re
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_WORDS = {
    r"async def": "def",
    r"async for": "for",
    r"async with": "with",
    r"await ": "",
    r"asyncio\.sleep": "time.sleep",
    r"import asyncio": "import time",
    r"httpx\.AsyncBaseTransport": "httpx.BaseTransport",
    r"AsyncClient": "Client",
    r"AsyncIterator": "Iterator",
    r"__aenter__": "__enter__",
    r"__aexit__": "__exit__",
    r"aclose": "close",
    r"aread": "read",
    r"aiter_lines": "iter_lines",
    r"Safe for many tasks": "Safe for many threads",
}
_HEAD = (
    '"""The client for programs without asyncio. Made from `asynchronous.py` by `unasync.py`: change that file."""\n'
)


def synchronous() -> str:
    text = (_HERE / "asynchronous.py").read_text(encoding="utf-8")
    for found, written in _WORDS.items():
        text = re.sub(found, written, text)
    return _HEAD + text.partition("\n")[2]


def main() -> None:
    (_HERE / "synchronous.py").write_text(synchronous(), encoding="utf-8")


if __name__ == "__main__":
    main()
