"""The class of all routes of the API: a route answers callers who have its scope, and no others."""

from typing import Any

from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from service.errors import Forbidden
from service.identity import scopes
from service.identity.principal import caller


class ScopedRoute(APIRoute):
    """Refuses before the body is read. Raises LookupError when it is made and `service.identity.scopes` lacks it."""

    def __init__(self, path: str, *args: Any, **options: Any) -> None:
        super().__init__(path, *args, **options)
        self._methods = frozenset(self.methods or ())
        (self.needed,) = {scopes.scope_of(method, self.path) for method in self._methods}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A method that the route does not have is refused by the framework.
        if self.needed is not None and scope["method"] in self._methods and self.needed not in caller.get().scopes:
            raise Forbidden(self.needed)
        await super().handle(scope, receive, send)
