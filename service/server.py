"""Runs the application under uvicorn and shows a banner when ready. How it ends: `http/stopping.py`.

The port is bound before the bundle is loaded, so that a busy port is reported at once.
"""

import asyncio
import json
import shlex
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI

from service.app import ResourcesFactory, begin_drain, create_app
from service.commands import import_file
from service.errors import ServiceError, SettingsError, StartupError
from service.garbage import leave_out_what_is_open
from service.http.connections import ConnectionLimits, raise_file_limit
from service.http.protocol import SheddingProtocol, counting
from service.http.stopping import Server
from service.identity.authenticator import Authenticator
from service.identity.keys import presented_key
from service.identity.principal import lane_of
from service.metrics import Metrics
from service.resources import Resources, open_resources
from service.settings import Settings
from service.store.keys import tenant_of
from service.usecases.ranking.requests import Request

log = structlog.get_logger("service.server")

# uvloop accepts one connection of each listening socket in a turn of the event loop. Under load a turn takes 30 ms, and
# a connection that waits to be accepted is neither answered nor refused.
_NUM_LISTENERS = 16
_USERS_LOOKED_AT = 50  # for an example of a query


def serve(
    settings: Settings,
    *,
    import_path: Path | None = None,
    with_banner: bool = False,
    show_page: Callable[[str], object] | None = None,
    resources_factory: ResourcesFactory = open_resources,
) -> int:
    """Blocks until the process is told to stop. Raises the error that prevented the start.

    `with_banner` shows example commands when the server is ready. Then `show_page` is called with its address, in a
    thread of its own.
    """
    if import_path is not None and not import_path.is_file():
        raise SettingsError([f"--import: there is no file {import_path}"])
    app = create_app(settings, _importing(resources_factory, import_path))
    metrics: Metrics = app.state.metrics
    limits = ConnectionLimits(
        metrics, most=settings.max_connections, receive_s=settings.receive_timeout_s, max_files=raise_file_limit()
    )
    protocol = partial(SheddingProtocol, shed=partial(_sheds, app), count=counting(metrics), limits=limits)
    config = uvicorn.Config(
        app,
        lifespan="off",  # run here: uvicorn would log the error of a failed start and exit
        log_config=None,
        access_log=False,
        http=protocol,  # type: ignore[arg-type]
        ws="none",
        server_header=False,
        forwarded_allow_ips=list(settings.trusted_proxies) or ["127.0.0.1"],
        timeout_keep_alive=settings.keep_alive_s,
    )
    server = Server(config, on_stop=lambda: begin_drain(app), lame_duck_s=settings.lame_duck_s, stop_s=settings.drain_s)
    if with_banner:
        server.on_ready = lambda address: _show_banner(app.state.resources, address, show_page)

    async def run(listener: socket.socket) -> None:
        async with app.router.lifespan_context(app):
            await asyncio.to_thread(app.openapi)  # a first request for it would stop the others for a third of a second
            leave_out_what_is_open()
            watching = limits.watched(server.server_state.connections)
            watching.start()
            try:
                await server.serve(sockets=[listener, *(listener.dup() for _ in range(_NUM_LISTENERS - 1))])
            finally:
                await watching.stop()

    runner = asyncio.Runner(loop_factory=config.get_loop_factory())
    with bound_socket(settings.host, settings.port) as listener, runner:
        runner.run(run(listener))
    return 0


def _sheds(app: FastAPI, headers: list[tuple[bytes, bytes]]) -> bool:
    resources: Resources = app.state.resources
    authenticator: Authenticator = app.state.authenticator
    lane = lane_of(presented_key(headers)) if authenticator.asks_for_keys else 0
    return resources.current().engine.admission.sheds(lane)


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket bound to the address. Raises StartupError, in one line, when that fails."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        reason = error.strerror or error
        advice = "choose another with --port or --host"
        raise StartupError(f"cannot listen on {host}:{port}: {reason}; {advice}") from None
    return listener


async def banner(resources: Resources, address: str) -> str:
    """Example commands, ready to paste."""
    user_id = await _some_user(resources)
    key = " -H 'X-API-Key: YOUR_KEY'" if resources.settings.api_keys else ""
    post = f"curl -s{key} -H 'Content-Type: application/json' {address}"
    event = {
        "user_id": user_id,
        "item_id": await _some_item(resources, user_id),
        "timestamp": int(time.time()),
    }
    recommend, interactions = _quoted({"user_id": user_id, "k": 5}), _quoted({"interactions": [event]})
    question = await _some_question(resources)
    asked = f"  {post}/recommend -d {_quoted(question)}\n" if question else ""
    return f"""
AutoMR answers at {address}   (open it in a browser)
  bundle {resources.view.manifest.name} ({len(resources.view.catalogue)} items), store {resources.settings.store_shown}

  {post}/recommend -d {recommend}
{asked}  {post}/interactions -d {interactions}

  {address}/docs       every route, to try in the browser
  {address}/metrics    numbers for Prometheus
  Ctrl-C stops it.
"""


async def _show_banner(resources: Resources, address: str, show_page: Callable[[str], object] | None) -> None:
    print(await banner(resources, address), flush=True)
    if show_page is not None:
        threading.Thread(target=show_page, args=(address,), daemon=True).start()


async def _some_user(resources: Resources) -> str:
    try:
        async for user_id in resources.store.users():
            if not tenant_of(user_id):
                return user_id
    except ServiceError:
        log.warning("store unavailable: the banner has no example user")
    return "you"


async def _some_question(resources: Resources) -> dict[str, Any] | None:
    """What a stored user has asked before, as a request; None if nobody has, or the bundle has no words."""
    if resources.view.manifest.words is None:
        return None
    num_left = _USERS_LOOKED_AT
    with suppress(ServiceError):
        async for user_id in resources.store.users():
            if tenant_of(user_id):
                continue
            events, _ = await resources.store.events(user_id, limit=100)
            if asked := [event.query for event in events if event.query]:
                return {"user_id": user_id, "query": asked[0], "k": 5}
            if not (num_left := num_left - 1):
                break
    return None


async def _some_item(resources: Resources, user_id: str) -> str:
    try:
        answer = await resources.recommender.recommend(Request(user_id=user_id, k=1))
    except ServiceError:
        return "ITEM"
    return answer.items[0].item_id if answer.items else "ITEM"


def _quoted(body: dict[str, Any]) -> str:
    return shlex.quote(json.dumps(body, ensure_ascii=False))


def _importing(factory: ResourcesFactory, path: Path | None) -> ResourcesFactory:
    """Imports the file, if any, before the resources are handed out."""

    @asynccontextmanager
    async def opened(settings: Settings, metrics: Metrics) -> AsyncIterator[Resources]:
        async with factory(settings, metrics) as resources:
            if path is not None:
                await import_file(resources.ingest.submit, path)
            yield resources

    return opened
