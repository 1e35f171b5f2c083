"""Starts the process of the model and talks to it over a socket pair. Needs no torch.

The model has its own process, and so its own interpreter lock: many requests do not slow the model, and a batch does
not slow the server. The process ends when the socket closes, so it cannot outlive the server.
"""

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec
import structlog

from service.engine.messages import LENGTH, Batch, Broken, Frames, Message, ModelOptions, Ready, encoder, to_server
from service.errors import ModelUnavailable, StartupError

log = structlog.get_logger("service.engine")

_RECEIVE_BYTES = 1 << 20
_MAX_UNSENT_BYTES = 1 << 28
_ROOT = Path(__file__).resolve().parents[2]  # where the packages are


class Child(Protocol):
    """What is needed of a `subprocess.Popen`."""

    def wait(self, timeout: float | None = None) -> int: ...
    def kill(self) -> None: ...


Spawn = Callable[[socket.socket, ModelOptions], Child]


def spawn(connection: socket.socket, options: ModelOptions) -> Child:
    """Runs the module with the code of this package, in a session of its own: Ctrl-C reaches only the server."""
    descriptor = connection.fileno()
    command = [sys.executable, "-m", "service.engine.model", str(descriptor), msgspec.json.encode(options).decode()]
    return subprocess.Popen(command, pass_fds=[descriptor], cwd=_ROOT, stdin=subprocess.DEVNULL, start_new_session=True)


class ModelProcess:
    """One running process. For the event loop that started it."""

    def __init__(
        self, child: Child, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ready: Ready, frames: Frames
    ) -> None:
        self._child, self._reader, self._writer, self._frames = child, reader, writer, frames
        self.ready = ready

    @classmethod
    async def start(cls, options: ModelOptions, spawn: Spawn = spawn) -> "ModelProcess":
        """Returns when the model is warm. Raises StartupError when it cannot serve."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                child = spawn(theirs, options)
            except BaseException:
                ours.close()
                raise
        writer = None
        try:
            reader, writer = await asyncio.open_connection(sock=ours)
            return await cls._greeted(child, reader, writer)
        except BaseException:  # also when the start is cancelled: no process may be left
            (writer or ours).close()
            child.kill()
            child.wait()
            raise

    @classmethod
    async def _greeted(cls, child: Child, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> "ModelProcess":
        frames = Frames()
        while data := await reader.read(_RECEIVE_BYTES):
            for body in frames.feed(data):
                message = to_server.decode(body)
                if isinstance(message, Ready):
                    return cls(child, reader, writer, message, frames)
                if isinstance(message, Broken):
                    raise StartupError(message.reason)
        raise StartupError("the process of the model ended while it was starting; its log says why")

    def send(self, message: Message) -> None:
        """Does not wait. Raises ModelUnavailable when the process has ended or reads nothing."""
        if self._writer.is_closing():
            raise ModelUnavailable("The process of the model has ended.")
        if self._writer.transport.get_write_buffer_size() > _MAX_UNSENT_BYTES:
            raise ModelUnavailable("The process of the model does not read what it is sent.")
        body = encoder.encode(message)
        self._writer.writelines((LENGTH.pack(len(body)), body))

    async def batches(self, on_batch: Callable[[Batch], None]) -> None:
        """Calls `on_batch` for each batch of results; returns when the process has closed the connection."""
        with contextlib.suppress(ConnectionError):
            while data := await self._reader.read(_RECEIVE_BYTES):
                for body in self._frames.feed(data):
                    message = to_server.decode(body)
                    if isinstance(message, Batch):
                        on_batch(message)

    async def stop(self, timeout_s: float) -> None:
        """Closes the connection, waits for the end of the process, and kills it after `timeout_s`."""
        self._writer.close()
        try:
            await asyncio.to_thread(self._child.wait, timeout_s)
        except subprocess.TimeoutExpired:
            log.warning("the process of the model did not end in time and is killed")
            self.kill()
            await asyncio.to_thread(self._child.wait)
        except asyncio.CancelledError:
            self.kill()
            self._child.wait()  # no process may be left
            raise

    def kill(self) -> None:
        self._child.kill()
