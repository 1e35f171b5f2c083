"""Uvicorn's server with another end, in which no request is lost.

The first signal (SIGTERM, SIGHUP, Ctrl-C) starts it:

1. `on_stop` ends readiness. For `lame_duck_s` new connections are still accepted, because balancers need that time to
   see that the server is not ready. Each answer says `Connection: close`, so that callers leave their connections.
   Ctrl-C skips this: nobody balances to a terminal.
2. New connections are no longer accepted. Requests that have come are finished.
3. `stop_s` after the signal the process has ended: if something hangs, it is ended by force, and the stacks of its
   threads are printed on stderr.

A second signal skips the waiting. The exit code is 0, and 1 after an end by force.
"""

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType

import structlog
import uvicorn

from service.ending import end_within

log = structlog.get_logger("service.server")

CONNECTION_CLOSE = (b"connection", b"close")

_SETTLE_S = 0.5  # a connection that was accepted just before the end may send its request until then
_CLOSING_S = 5.0  # of `stop_s`, at most a quarter of it, kept for closing model and store after the last request


class Server(uvicorn.Server):
    """`on_ready` gets the address as a URL, once requests are accepted."""

    def __init__(
        self, config: uvicorn.Config, *, on_stop: Callable[[], None], lame_duck_s: float = 0.0, stop_s: float = 20.0
    ) -> None:
        super().__init__(config)
        self.on_stop = on_stop
        self.on_ready: Callable[[str], Awaitable[None]] | None = None
        self._lame_duck_s, self._stop_s = lame_duck_s, stop_s
        self._signalled_at: float | None = None
        self._closes_at = float("inf")

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self.on_ready and sockets:
            host, port = sockets[0].getsockname()[:2]
            await self.on_ready(f"http://{_bracketed(host)}:{port}")

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGHUP too, unless it is ignored (nohup): its default would end the process without a word."""
        with super().capture_signals():
            before = signal.getsignal(signal.SIGHUP)
            if before is not signal.SIG_IGN:
                signal.signal(signal.SIGHUP, self.handle_exit)
            try:
                yield
            finally:
                signal.signal(signal.SIGHUP, before)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        is_first = self._signalled_at is None
        if is_first:
            end_within(self._stop_s)
            now = self._signalled_at = time.monotonic()
            self._closes_at = now if sig == signal.SIGINT else now + self._lame_duck_s
            self.on_stop()
            self.config.encoded_headers.append(CONNECTION_CLOSE)
            self.server_state.default_headers.append(CONNECTION_CLOSE)  # requests in work share this list
        else:
            self.force_exit = self.should_exit = True
        # Last, because the signal may have interrupted the writing of another line.
        log.info("stopping", signal=signal.Signals(sig).name, forced=not is_first, within_s=self._stop_s)

    async def on_tick(self, counter: int) -> bool:
        self.should_exit = self.should_exit or time.monotonic() >= self._closes_at
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        if not self.force_exit:
            await asyncio.sleep(_SETTLE_S)
        signalled_at = self._signalled_at if self._signalled_at is not None else time.monotonic()
        left = signalled_at + self._stop_s - min(_CLOSING_S, self._stop_s / 4) - time.monotonic()
        self.config.timeout_graceful_shutdown = max(0, round(left))
        await super().shutdown(sockets)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
