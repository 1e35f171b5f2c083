"""Several bundles in one process: one answers, others are loaded beside it, and one call switches between them.

Lives here: what is loaded and which bundle answers (`bundles.py`), and the filling of the memory of a bundle that does
not answer yet (`fill.py`). Does not live here: how a bundle is opened (`service.resources` passes that in), HTTP, keys
of Redis. May import `service.engine`, `service.store`, `service.usecases`, `service.errors`, `service.logs`,
`service.metrics` and `service.settings`.
"""
