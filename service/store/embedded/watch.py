"""Program that runs a server for the service, and stops it when the service ends.

    watch.py PARENT SOCKET_DIR LOCK_FD -- COMMAND...

Its standard input is a pipe from the service. The server is stopped when the pipe is closed or when the process PARENT
is gone (a forked child of PARENT may keep the pipe open). If the server ends by itself, so does this program; the
service starts both again. If this program is killed, the kernel kills the server (PR_SET_PDEATHSIG). The service cannot
set that signal itself, because Linux sends it when the *thread* that started the server ends, not the process. Uses
only the standard library.
"""

import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1
STOP_AFTER_S = 3.0  # an acknowledged write is on disk, so a kill loses nothing
POLL_S = 0.2


def spawn(command: Sequence[str], lock_fd: int) -> int:
    """Process id of a new server. It inherits the lock, so the directory is locked as long as a server runs."""
    pid = os.fork()
    if pid == 0:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.execv(command[0], list(command))
    os.pwrite(lock_fd, b"%-10d\n" % pid, 0)  # fixed width: a new pid overwrites all of the old one
    return pid


def has_ended(pid: int) -> bool:
    return os.waitpid(pid, os.WNOHANG)[0] == pid


def stop(pid: int) -> None:
    """Asks the server to shut down; kills it after `STOP_AFTER_S`. Returns when it has ended."""
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_AFTER_S
    while not has_ended(pid):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def watch(parent: int, lock_fd: int, command: Sequence[str]) -> int:
    """Exit code: 1 if the server ended by itself, 0 after a stop."""
    pid = spawn(command, lock_fd)
    while not has_ended(pid):
        has_input = bool(select.select([0], [], [], POLL_S)[0])
        if has_input or os.getppid() != parent:  # the service writes nothing: this is the end of the pipe
            stop(pid)
            return 0
    return 1


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
