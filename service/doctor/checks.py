"""Checks a set-up before it serves, for `python -m service doctor`: one `Check` for each part.

Starts the model and the embedded store for a moment, and asks the issuer of tokens. Changes nothing but a key that
expires. A check fails where the service would not work, or where the set-up is not safe.
"""

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass

from service.doctor.access import examine_issuer, examine_keys, examine_rates
from service.doctor.store import examine_clock, examine_durability, examine_promise, examine_rights, examine_store
from service.engine.engine import Engine
from service.errors import ServiceError
from service.metrics import Metrics
from service.resources import open_store, open_view
from service.server import bound_socket
from service.settings import Settings
from service.store.client import MemoryStore


@dataclass(frozen=True)
class Check:
    name: str
    is_ok: bool
    finding: str


async def examine(settings: Settings) -> list[Check]:
    """Runs every check, also after one has failed."""
    checks = [await _checked("bundle", _bundle(settings))]
    try:
        async with open_store(settings) as store:
            checks += await _with_store(settings, store)
    except ServiceError as error:  # it cannot be opened at all
        checks.append(Check("store", False, str(error)))
        checks.append(await _checked("keys", examine_keys(settings, None)))
    checks.append(await _checked("port", _port(settings)))
    if settings.jwt_issuer:
        checks.append(await _checked("issuer", examine_issuer(settings)))
    return checks


async def _with_store(settings: Settings, store: MemoryStore) -> list[Check]:
    reached = await _checked("store", examine_store(settings, store))
    if not reached.is_ok:
        return [reached, await _checked("keys", examine_keys(settings, None))]
    return [
        reached,
        await _checked("rights", examine_rights(settings, store)),
        await _checked("files", examine_durability(settings, store)),
        await _checked("durable", examine_promise(settings, store)),
        await _checked("clock", examine_clock(store)),
        await _checked("keys", examine_keys(settings, store)),
        await _checked("rates", examine_rates(settings, store)),
    ]


def table(checks: Sequence[Check]) -> str:
    return "\n".join(f"{'ok  ' if each.is_ok else 'FAIL'}  {each.name:8}{each.finding}" for each in checks)


async def _checked(name: str, finding: Awaitable[str]) -> Check:
    try:
        return Check(name, True, await finding)
    except Exception as error:  # any failure is shown in the table
        return Check(name, False, str(error) or type(error).__name__)


async def _bundle(settings: Settings) -> str:
    """Starts the process of the model, which opens the whole bundle and answers a first request."""
    view = open_view(settings)
    engine = Engine(view, settings, Metrics())
    await engine.start()
    await engine.stop(0)
    return f"{view.manifest.name} at {settings.bundle}, space {view.manifest.space}"


async def _port(settings: Settings) -> str:
    bound_socket(settings.host, settings.port).close()
    return f"{settings.host}:{settings.port} is free"
