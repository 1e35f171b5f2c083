"""Work that goes on beside the requests: how it ends."""

import asyncio


async def stopped(*tasks: "asyncio.Task[None]") -> None:
    """Cancels, and returns when all have ended; how they ended is nobody's business any more."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
