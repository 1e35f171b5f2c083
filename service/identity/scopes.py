"""What a key may do: its scopes, and the scope that each route needs. The one table of both.

A route that is missing here stops the start (see `service.http.access.routes`), so no route is open by mistake.
"""

from collections.abc import Mapping
from typing import Literal, get_args

Scope = Literal["recommend", "ingest", "catalogue", "users", "admin", "metrics"]

SCOPES: tuple[Scope, ...] = get_args(Scope)
ALL: frozenset[Scope] = frozenset(SCOPES)

MEANINGS: Mapping[Scope, str] = {
    "recommend": "ask for recommendations and lists of items",
    "ingest": "send events",
    "catalogue": "read and change items",
    "users": "read, correct, merge and delete users",
    "admin": "bundles, experiments, event types, keys, receipts of deletions and the files of the store",
    "metrics": "read metrics",
}
# What these allow concerns all tenants, so a key of one tenant cannot have them.
OF_ALL_TENANTS: frozenset[Scope] = frozenset({"catalogue", "admin", "metrics"})

PROBES = frozenset({"/livez", "/readyz", "/startupz"})
# The pages and the API's description hold nothing of the shop; what they show comes from routes that need a key.
PAGES = frozenset({"/", "/docs", "/openapi.json"})
_STATIC = "/static/"

# Method and path of each route that needs a key -> its scope.
SCOPE_OF: Mapping[tuple[str, str], Scope] = {
    ("POST", "/recommend"): "recommend",
    ("POST", "/recommend/users"): "recommend",
    ("GET", "/items/{item_id}/neighbors"): "recommend",
    ("GET", "/items/{item_id}/related"): "recommend",
    ("GET", "/popular"): "recommend",
    ("GET", "/trending"): "recommend",
    ("GET", "/latest"): "recommend",
    ("GET", "/model"): "recommend",
    ("POST", "/interactions"): "ingest",
    ("GET", "/items"): "catalogue",
    ("POST", "/items"): "catalogue",
    ("GET", "/items/{item_id}"): "catalogue",
    ("PUT", "/items/{item_id}"): "catalogue",
    ("PATCH", "/items/{item_id}"): "catalogue",
    ("DELETE", "/items/{item_id}"): "catalogue",
    ("GET", "/users"): "users",
    ("GET", "/users/{user_id}"): "users",
    ("DELETE", "/users/{user_id}"): "users",
    ("GET", "/users/{user_id}/export"): "users",
    ("GET", "/users/{user_id}/memory"): "users",
    ("PUT", "/users/{user_id}/interactions/{event_id}"): "users",
    ("DELETE", "/users/{user_id}/interactions/{event_id}"): "users",
    ("POST", "/users/{user_id}:merge"): "users",
    ("GET", "/bundles"): "admin",
    ("POST", "/bundles"): "admin",
    ("POST", "/bundles:rollback"): "admin",
    ("POST", "/store:compact"): "admin",
    ("GET", "/deletions"): "admin",
    ("POST", "/users/{user_id}:recreate"): "users",
    ("POST", "/bundles/{name}:activate"): "admin",
    ("DELETE", "/bundles/{name}"): "admin",
    ("GET", "/experiments"): "admin",
    ("PUT", "/experiments"): "admin",
    ("GET", "/settings/events"): "admin",
    ("PUT", "/settings/events"): "admin",
    ("GET", "/keys"): "admin",
    ("POST", "/keys"): "admin",
    ("POST", "/keys/{id}:rotate"): "admin",
    ("DELETE", "/keys/{id}"): "admin",
    ("GET", "/metrics"): "metrics",
}


def is_open(path: str) -> bool:
    """Whether the path answers without a key. `path`: percent-encoded, as it was sent, or the template of a route."""
    return path in PROBES or path in PAGES or (path.startswith(_STATIC) and "/" not in path.removeprefix(_STATIC))


def scope_of(method: str, path: str) -> Scope | None:
    """The scope that a route needs, None where it needs no key. Raises LookupError for a route that is not listed."""
    if is_open(path):
        return None
    if (method, path) not in SCOPE_OF:
        raise LookupError(f"{method} {path} has no scope: name it in service/identity/scopes.py")
    return SCOPE_OF[method, path]
