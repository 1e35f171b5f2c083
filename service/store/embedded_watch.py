"""Runs one server and outlives nobody: `embedded_watch.py PARENT SOCKET_DIR LOCK_FD -- COMMAND...`.

Standard input is a pipe from the service. One byte on it says that the server answered: from then on a server
that dies is started again. Its end, or the death of PARENT (a forked child of which may hold the pipe open),
stops the server. The server itself is killed when this process dies. A process of its own, rather than a flag
set in the service, because Linux ties that flag to the *thread* that started the child. Only the standard
library; imports nothing of ours.
"""

import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1
STOP_AFTER_S = 30.0
POLL_S = 0.2


def spawn(command: Sequence[str], lock_fd: int) -> int:
    """The server inherits the lock: the directory stays taken exactly as long as a server lives."""
    pid = os.fork()
    if pid == 0:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.execv(command[0], list(command))
    os.pwrite(lock_fd, b"%-10d\n" % pid, 0)  # of fixed width, so a reader never sees half of it
    return pid


def has_ended(pid: int) -> bool:
    return os.waitpid(pid, os.WNOHANG)[0] == pid


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_AFTER_S
    while not has_ended(pid):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def watch(parent: int, lock_fd: int, command: Sequence[str]) -> int:
    pid, is_ready = spawn(command, lock_fd), False
    while True:
        is_told = bool(select.select([0], [], [], POLL_S)[0])
        word = os.read(0, 1) if is_told else b""
        is_ready = is_ready or bool(word)
        if (is_told and not word) or os.getppid() != parent:
            stop(pid)
            return 0
        if has_ended(pid):
            if not is_ready:
                return 1
            pid = spawn(command, lock_fd)


def main(argv: Sequence[str] | None = None) -> int:
    parent, socket_dir, lock_fd, _, *command = sys.argv[1:] if argv is None else argv
    try:
        return watch(int(parent), int(lock_fd), command)
    finally:
        for name in os.listdir(socket_dir):
            os.unlink(os.path.join(socket_dir, name))
        os.rmdir(socket_dir)


if __name__ == "__main__":
    sys.exit(main())
