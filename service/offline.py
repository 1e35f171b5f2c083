"""Programs beside the server: an encode worker of its own, and a backfill of all users."""

import asyncio
import signal

from service.metrics import Metrics
from service.resources import open_kernel
from service.settings import Settings
from service.usecases.encode import backfill


async def run_worker(settings: Settings) -> None:
    """Until SIGTERM or Ctrl-C; entries it had not finished go to the next worker."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with open_kernel(settings, Metrics()) as kernel:
        work = asyncio.create_task(kernel.worker.run())
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


async def run_backfill(settings: Settings) -> dict[str, int]:
    """Counts of users and of states that were made."""
    async with open_kernel(settings, Metrics()) as kernel:
        return await backfill(kernel.worker)
