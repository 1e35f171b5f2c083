"""Ends the process by force when its end takes too long. Works whatever hangs: the event loop, a thread, the log."""

import faulthandler
import math
import signal


def end_within(seconds: float) -> None:
    """After that time the stacks of all threads are printed on stderr, and the exit code is 1.

    Call it from the main thread. Nothing that was acknowledged is lost: every write is safe against a kill.
    """
    faulthandler.dump_traceback_later(seconds, exit=True)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(math.ceil(seconds) + 1)  # when stderr takes nothing in, the stacks cannot be printed
