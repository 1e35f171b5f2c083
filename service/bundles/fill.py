"""Fills the memory of a bundle that is loaded but does not answer yet, while another one answers.

A backfill in small rounds, with pauses in between, so that it takes a part of the processor only. One process fills, of
all that have the bundle; when it ends or is killed, another one goes on from the beginning, where states that are there
cost a read only. Knows no HTTP.
"""

import asyncio
import os
import secrets
import socket
import time
from dataclasses import replace

import structlog

from service.errors import StoreCorrupt, Unavailable
from service.logs import RepeatedWarnings
from service.store.bundles import BundleStore, Fill
from service.usecases.encode import Worker, user_rounds

log = structlog.get_logger("service.bundles.fill")
repeated = RepeatedWarnings(log)

_SHARE = 0.3  # of the time in which this process fills
_USERS_PER_ROUND = 4
_TRY_AGAIN_S = 2.0
_TELL_EVERY_S = 1.0


async def fill(name: str, worker: Worker, store: BundleStore) -> None:
    """Returns when the memory of all users is filled, by this process or another one."""
    owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    while True:
        try:
            if (await store.fills()).get(name, Fill()).is_done:
                return
            if await store.lease_fill(name, owner):
                await _fill(name, owner, worker, store)
                log.info("memory filled", bundle=name)
                return
        except (Unavailable, StoreCorrupt):
            repeated.warning("store or model unavailable: filling the memory of a bundle waits", bundle=name)
        await asyncio.sleep(_TRY_AGAIN_S)


async def _fill(name: str, owner: str, worker: Worker, store: BundleStore) -> None:
    progress, told_at = Fill(total=len({user async for user in worker.store.users()})), 0.0
    await store.save_fill(name, progress)
    async for user_ids in user_rounds(worker.store.users(), _USERS_PER_ROUND):
        began = time.monotonic()
        num_states = await worker.reconcile(user_ids)
        took_s = time.monotonic() - began
        progress = replace(progress, users=progress.users + len(user_ids), states=progress.states + num_states)
        if time.monotonic() - told_at > _TELL_EVERY_S:
            told_at = time.monotonic()
            await store.save_fill(name, progress)
            await store.lease_fill(name, owner)
        await asyncio.sleep(took_s * (1 - _SHARE) / _SHARE)
    await store.save_fill(name, replace(progress, is_done=True))
