"""Builds the ASGI application: routes, middleware, exception handlers, and the lifespan that opens the resources.

`create_app` has no side effect. The resources are opened in the lifespan; if that fails, what is open is closed.
"""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from service.auth import Keys, refuse_insecure_bind
from service.errors import ServiceError, status_of
from service.http import problems
from service.http.fields import field_errors
from service.http.middleware import AccessLog, BodyLimit, RequireKey, count_rejection
from service.http.routes import bundles, interactions, items, model, ops, recommend, users
from service.http.schemas import Problem
from service.metrics import Metrics
from service.resources import Resources, open_resources
from service.settings import Settings

log = structlog.get_logger("service.app")

ResourcesFactory = Callable[[Settings, Metrics], AbstractAsyncContextManager[Resources]]

DESCRIPTION = "Recommendations from a language model with a memory of each user."
_PROBLEM = {"content": {problems.MEDIA_TYPE: {"schema": Problem.model_json_schema()}}}
_ERRORS = {
    "4XX": "400 unreadable, 401 no valid key, 404 unknown, 413 too large, 422 a field is wrong, 429 overloaded: retry",
    "5XX": "500 internal error, 503 not ready or store unavailable: retry, 504 the deadline has passed",
}


def create_app(settings: Settings, resources_factory: ResourcesFactory = open_resources) -> FastAPI:
    """Raises InsecureBind when anyone could reach the service without an API key."""
    has_keys = bool(settings.api_keys)
    refuse_insecure_bind(settings.host, has_keys=has_keys, allow_anonymous=settings.allow_anonymous)
    metrics = Metrics()
    app = FastAPI(
        title="AutoMR",
        description=DESCRIPTION,
        lifespan=_lifespan(settings, metrics, resources_factory),
        middleware=[
            Middleware(AccessLog, metrics=metrics),
            Middleware(RequireKey, keys=Keys(settings.plain_api_keys), metrics=metrics),
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
        responses={status: {"description": text, **_PROBLEM} for status, text in _ERRORS.items()},
        generate_unique_id_function=_operation_id,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # else it looks for exporters at each request
    )
    app.state.metrics = metrics
    app.state.is_draining = False
    for module in (recommend, interactions, users, items, bundles, model, ops):
        app.include_router(module.router)
    return app


def begin_drain(app: FastAPI) -> None:
    """Makes /readyz answer 503; requests in progress continue."""
    app.state.is_draining = True
    app.state.metrics.ready.set(0)


def _lifespan(
    settings: Settings, metrics: Metrics, factory: ResourcesFactory
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        started = time.monotonic()
        async with factory(settings, metrics) as app.state.resources:
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
    return problems.from_http_exception(request.scope, error)


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    # The first part of a location is body, path or query; the name of the field suffices.
    named = [{**each, "loc": each["loc"][1:] or each["loc"]} for each in error.errors()]
    return problems.from_field_errors(request.scope, field_errors(named))
