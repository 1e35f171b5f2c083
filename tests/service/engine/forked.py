"""The process of the model, forked from one that has imported torch: it starts in tenths of a second, not in seconds.

`fork` stands in for `service.engine.process.spawn`. What runs in the process is the same; how the service starts it is
tested where servers are real (`tests/test_end_to_end.py`).
"""

import multiprocessing
import socket
import subprocess
from multiprocessing.context import ForkServerProcess

import msgspec

from service.engine import model
from service.engine.messages import ModelOptions

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload([__name__])


class ForkedModel:
    """What tests need of a `subprocess.Popen`."""

    def __init__(self, process: ForkServerProcess) -> None:
        assert process.pid is not None
        self._process, self.pid = process, process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("model", timeout or 0.0)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()


def fork(connection: socket.socket, options: ModelOptions) -> ForkedModel:
    process = _forks.Process(target=_run, args=(connection, msgspec.json.encode(options).decode()), daemon=True)
    process.start()
    return ForkedModel(process)


def _run(connection: socket.socket, options: str) -> None:
    raise SystemExit(model.main([str(connection.detach()), options]))
