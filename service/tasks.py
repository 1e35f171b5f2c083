"""Work that goes on beside the requests: how it ends."""

import asyncio

_PATIENCE_S = 1.0


async def stopped(*tasks: "asyncio.Task[None]") -> None:
    """Cancels, and returns when all have ended; how they ended is nobody's business any more."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        # Again after a while: a cancellation that meets a timeout of the store's client can get lost.
        _, pending = await asyncio.wait(pending, timeout=_PATIENCE_S)
    await asyncio.gather(*tasks, return_exceptions=True)
