"""The HTTP interface: the only room that knows requests, statuses, headers and JSON bodies.

Lives here: the endpoints (`routes/`), the JSON bodies (`schemas/`, `requests/`), the types of their values
(`fields.py`), the route class that reads and writes bodies (`body.py`), what endpoints take besides a body
(`dependencies.py`), middleware (`middleware.py`, `access/`), and errors as problem documents (`problems.py`). Does not
live here: decisions about recommendations, memory or the catalogue (`service.usecases`), who callers are
(`service.identity`), the list of errors and their statuses (`service.errors`), and the application itself
(`service.app`). May import `service.usecases`, `service.resources` (what is open), `service.errors`, `service.metrics`,
`service.identity`, `service.logs`, `service.settings`, and the plain values `service.store.events` and
`model_store.catalogue.items`; never torch, redis, `model_store.lm` or `model_store.bundle`.
"""
