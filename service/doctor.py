"""Checks a set-up before it serves: bundle, store, port, keys. Starts the model and the embedded store for a moment."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from service.errors import StartupError
from service.identity.keys import LEAST_LENGTH, num_short, refuse_insecure_bind
from service.settings import Settings


@dataclass(frozen=True)
class Check:
    name: str
    is_ok: bool
    finding: str


async def examine(settings: Settings) -> list[Check]:
    """Runs every check, also after one has failed."""
    checks: dict[str, Callable[[Settings], Awaitable[str]]] = {
        "bundle": _bundle,
        "store": _store,
        "port": _port,
        "keys": _keys,
    }
    return [await _checked(name, check, settings) for name, check in checks.items()]


def table(checks: Sequence[Check]) -> str:
    return "\n".join(f"{'ok  ' if each.is_ok else 'FAIL'}  {each.name:8}{each.finding}" for each in checks)


async def _checked(name: str, check: Callable[[Settings], Awaitable[str]], settings: Settings) -> Check:
    try:
        return Check(name, True, await check(settings))
    except Exception as error:  # any failure is shown in the table
        return Check(name, False, str(error) or type(error).__name__)


async def _bundle(settings: Settings) -> str:
    """Starts the process of the model, which opens the whole bundle and answers a first request."""
    from service.engine.engine import Engine
    from service.metrics import Metrics
    from service.resources import open_view

    view = open_view(settings)
    engine = Engine(view, settings, Metrics())
    await engine.start()
    await engine.stop(0)
    return f"{view.manifest.name} at {settings.bundle}, space {view.manifest.space}"


async def _store(settings: Settings) -> str:
    from service.resources import open_store
    from service.store.deadletters import DeadLetters

    async with open_store(settings) as store:
        await store.ping()
        backlog, num_dead = await store.backlog(), await DeadLetters(store.run, is_cluster=store.is_cluster).count()
    return f"{settings.store_shown} answers and takes writes, encode queue {backlog}, dead letters {num_dead}"


async def _port(settings: Settings) -> str:
    from service.server import bound_socket

    bound_socket(settings.host, settings.port).close()
    return f"{settings.host}:{settings.port} is free"


async def _keys(settings: Settings) -> str:
    entries = settings.plain_api_keys
    refuse_insecure_bind(
        settings.host,
        has_keys=settings.asks_for_keys,
        allow_anonymous=settings.allow_anonymous,
        entries=entries,
    )
    if number := num_short(entries):
        problem = f"{number} of {len(entries)} keys have fewer than {LEAST_LENGTH} characters"
        raise StartupError(f"{problem}; `python -m service keys` makes long ones")
    if not settings.asks_for_keys:
        return "none: everyone who can reach the address may call"
    return f"{len(entries)} in the settings; those of the store count, too"
