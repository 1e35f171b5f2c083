"""ASGI middleware that asks who the caller is: without a valid key only probes and pages answer."""

from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ServiceError, WrongHost
from service.http.middleware import count_rejection
from service.http.problems import KEY_ID, from_service_error
from service.identity.authenticator import Authenticator
from service.identity.keys import presented_key
from service.identity.limits import headers_of
from service.identity.principal import caller, lane, lane_of
from service.identity.scopes import PROBES, is_open
from service.metrics import Metrics

Headers = list[tuple[bytes, bytes]]


class RequireKey:
    """Sets `caller` for the request, and counts it for the rate of the key. A new route needs a key, too."""

    def __init__(self, app: ASGIApp, *, authenticator: Authenticator, metrics: Metrics) -> None:
        self.app, self.authenticator, self.metrics = app, authenticator, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or not self.authenticator.asks_for_keys or is_open(scope["path"]):
            await self.app(scope, receive, send)
            return
        address = (scope.get("client") or ("",))[0]
        headers: Headers = []
        try:
            principal = await self.authenticator.principal(scope["headers"], address)
            scope[KEY_ID] = principal.key_id
            if principal.rate_limit and self.authenticator.limits is not None:
                standings, refusal = await self.authenticator.limits.count(principal)
                headers = headers_of(standings)
                if refusal is not None:
                    raise refusal
        except ServiceError as refusal:
            await refuse(refusal, scope, receive, _with_headers(send, headers), metrics=self.metrics)
            return
        # Each request has a task of its own, so nobody else sees these.
        caller.set(principal)
        lane.set(lane_of(presented_key(scope["headers"])))
        await self.app(scope, receive, _with_headers(send, headers))


class TrustedHosts:
    """Refuses requests for other hosts, such as those of a page whose name was made to lead here (DNS rebinding).

    Probes are answered nevertheless, because they come with an address instead of a name. `*.example.org` stands for
    all names below `example.org`.
    """

    def __init__(self, app: ASGIApp, *, hosts: Sequence[str], metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics
        self._names = frozenset(host for host in hosts if not host.startswith("*"))
        self._endings = tuple(host[1:] for host in hosts if host.startswith("*"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in PROBES or self._is_trusted(scope):
            await self.app(scope, receive, send)
        else:
            refusal = WrongHost("This server does not answer for the host that the request names.")
            await refuse(refusal, scope, receive, send, metrics=self.metrics)

    def _is_trusted(self, scope: Scope) -> bool:
        named = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(named) != 1:
            return False
        host = named[0].lower()
        name = host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
        return name in self._names or name.endswith(self._endings)


async def refuse(refusal: ServiceError, scope: Scope, receive: Receive, send: Send, *, metrics: Metrics) -> None:
    if scope["type"] == "http":
        count_rejection(metrics, refusal)
        await from_service_error(scope, refusal)(scope, receive, send)
    else:
        await send({"type": "websocket.close", "code": 1008})


def _with_headers(send: Send, headers: Headers) -> Send:
    if not headers:
        return send

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *headers]}
        await send(message)

    return send_with_headers
