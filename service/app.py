"""Builds the ASGI application: routes, middleware, exception handlers, and the lifespan that opens the resources.

`create_app` has no side effect. The resources are opened in the lifespan; if that fails, what is open is closed.
"""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache, partial

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from service.errors import ServiceError, status_of
from service.http import problems
from service.http.access.authentication import authenticator_of
from service.http.access.guard import RequireKey, TrustedHosts
from service.http.describe import openapi
from service.http.fields import field_errors
from service.http.middleware import AccessLog, BodyLimit, count_rejection, route_of
from service.http.routes import (
    bundles,
    erasure,
    event_types,
    experiments,
    interactions,
    items,
    keys,
    lists,
    merge,
    model,
    ops,
    page,
    recommend,
    users,
)
from service.identity.authenticator import Authenticator
from service.metrics import Metrics
from service.resources import Resources, open_resources
from service.settings import Settings
from service.tracing.traces import Traces

log = structlog.get_logger("service.app")

_CORS_HEADERS = ("X-API-Key", "X-Request-ID", "traceparent", "tracestate")  # of requests, beside the usual ones
_CORS_ANSWERS = ("X-Request-ID", "Retry-After", "RateLimit", "RateLimit-Policy")

# In the order in which the document of the API lists them.
_ROUTES = (
    recommend, interactions, event_types, users, erasure, merge, items, lists, bundles, experiments, keys, model, ops,
    page,
)  # fmt: skip

ResourcesFactory = Callable[[Settings, Metrics], AbstractAsyncContextManager[Resources]]


def create_app(settings: Settings, resources_factory: ResourcesFactory = open_resources) -> FastAPI:
    """Raises InsecureBind when anyone could reach the service without an API key, or with one that is short."""
    authenticator, metrics = authenticator_of(settings), Metrics()
    traces = Traces(settings.otlp_endpoint, ratio=settings.trace_ratio)
    app = FastAPI(
        lifespan=_lifespan(settings, metrics, authenticator, traces, resources_factory),
        middleware=[
            Middleware(AccessLog, metrics=metrics, traces=traces if settings.otlp_endpoint else None),
            *_hosts(settings, metrics),
            *_cors(settings),
            Middleware(RequireKey, authenticator=authenticator, metrics=metrics),
            Middleware(
                BodyLimit,
                max_body_bytes=settings.max_body_bytes,
                max_bodies_bytes=settings.max_bodies_bytes,
                metrics=metrics,
            ),
        ],
        exception_handlers={
            ServiceError: _on_service_error,
            HTTPException: _on_http_exception,
            RequestValidationError: _on_invalid_request,
        },
        generate_unique_id_function=_operation_id,
        redirect_slashes=False,
        docs_url=None,  # FastAPI's page loads its script from a CDN; ours is in routes/page.py
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # else it looks for exporters at each request
    )
    app.openapi = cache(partial(openapi.document, app))  # type: ignore[method-assign]
    app.state.metrics, app.state.authenticator = metrics, authenticator
    app.state.is_draining = False
    for module in _ROUTES:
        app.include_router(module.router)
    return app


def _hosts(settings: Settings, metrics: Metrics) -> list[Middleware]:
    return [Middleware(TrustedHosts, hosts=settings.trusted_hosts, metrics=metrics)] if settings.trusted_hosts else []


def _cors(settings: Settings) -> list[Middleware]:
    """Before the check of keys, because a browser asks for permission without the key."""
    if not settings.cors_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "PUT", "PATCH", "DELETE"),
            allow_headers=("Authorization", "Content-Type", *_CORS_HEADERS),
            expose_headers=_CORS_ANSWERS,
            max_age=3600,
        )
    ]


def begin_drain(app: FastAPI) -> None:
    """Makes /readyz answer 503; requests in progress continue."""
    app.state.is_draining = True
    app.state.metrics.ready.set(0)


def _lifespan(
    settings: Settings, metrics: Metrics, authenticator: Authenticator, traces: Traces, factory: ResourcesFactory
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        started = time.monotonic()
        with traces.opened():
            async with (
                factory(settings, metrics) as app.state.resources,
                authenticator.opened(app.state.resources.store.run),
            ):
                metrics.warmup_seconds.set(time.monotonic() - started)
                metrics.ready.set(1)
                try:
                    yield
                finally:
                    begin_drain(app)

    return lifespan


def _operation_id(route: APIRoute) -> str:
    return route.name


async def _on_service_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ServiceError):
        raise error
    if status_of(error) == 500:
        log.error("service error", exc_info=error)
    count_rejection(request.app.state.metrics, error)
    return problems.from_service_error(request.scope, error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == 405:
        error.headers = {"Allow": ", ".join(_allowed_methods(request))}
    return problems.from_http_exception(request.scope, error)


def _allowed_methods(request: Request) -> list[str]:
    """All methods of the path; the framework names those of its first route. The document lacks pages and files."""
    documented = request.app.openapi()["paths"].get(route_of(request.scope), {"get": None})
    return sorted(method.upper() for method in documented)


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    # The first part of a location is body, path or query; the name of the field suffices.
    named = [{**each, "loc": each["loc"][1:] or each["loc"]} for each in error.errors()]
    return problems.from_field_errors(request.scope, field_errors(named))
