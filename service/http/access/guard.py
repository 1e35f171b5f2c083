"""ASGI middleware that asks who the caller is: without a valid key only probes and pages answer."""

from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ServiceError
from service.http.middleware import count_rejection
from service.http.problems import KEY_ID, from_service_error
from service.identity.gate import Gate
from service.identity.principal import caller
from service.identity.scopes import is_open
from service.metrics import Metrics


class RequireKey:
    """Sets `caller` for the request. Routes that are added later need a key too."""

    def __init__(self, app: ASGIApp, *, gate: Gate, metrics: Metrics) -> None:
        self.app, self.gate, self.metrics = app, gate, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or not self.gate.is_closed or is_open(scope["path"]):
            await self.app(scope, receive, send)
            return
        address = (scope.get("client") or ("",))[0]
        try:
            principal = await self.gate.principal(scope["headers"], address)
        except ServiceError as refusal:
            await self._refuse(refusal, scope, receive, send)
            return
        scope[KEY_ID] = principal.key_id
        token = caller.set(principal)
        try:
            await self.app(scope, receive, send)
        finally:
            caller.reset(token)

    async def _refuse(self, refusal: ServiceError, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            count_rejection(self.metrics, refusal)
            await from_service_error(scope, refusal)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})
