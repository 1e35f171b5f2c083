"""Ends tasks and the process for certain, even if something hangs.

`cancel_and_wait`  cancels until the tasks have ended: a cancellation that coincides with a timeout of the store's
                   client can get lost, and whoever waits for the task then waits for ever
`end_within`       ends the process by force: the event loop, a thread or the log may hang
"""

import asyncio
import faulthandler
import math
import signal
from typing import Any

_CANCEL_AGAIN_S = 1.0


async def cancel_and_wait(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel tasks, wait for them, ignore their results."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_CANCEL_AGAIN_S)
    await asyncio.gather(*tasks, return_exceptions=True)


def end_within(seconds: float) -> None:
    """After that time the stacks of all threads are printed on stderr, and the exit code is 1.

    Call it from the main thread. Nothing that was acknowledged is lost: every write is safe against a kill.
    """
    faulthandler.dump_traceback_later(seconds, exit=True)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(math.ceil(seconds) + 1)  # when stderr takes nothing in, the stacks cannot be printed
