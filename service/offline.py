"""Programs beside the server: an encode worker of its own, and a backfill of all users."""

import asyncio
import signal

from service.ingest import Worker, backfill
from service.metrics import Metrics
from service.resources import open_kernel
from service.settings import Settings


async def run_worker(settings: Settings) -> None:
    """Until SIGTERM or Ctrl-C; entries it had not finished go to the next worker."""
    metrics = Metrics()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with open_kernel(settings, metrics) as kernel:
        work = asyncio.create_task(Worker(kernel.bundle, kernel.engine, kernel.store, metrics).run())
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


async def run_backfill(settings: Settings) -> dict[str, int]:
    """Counts of users and of states that were made."""
    metrics = Metrics()
    async with open_kernel(settings, metrics) as kernel:
        return await backfill(Worker(kernel.bundle, kernel.engine, kernel.store, metrics))
