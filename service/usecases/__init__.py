"""What the service does: one module for each use case, with plain objects in and out.

`recommend` answers a request, `ingest` takes events in, `encode` keeps the states of memory right, `items` changes the
catalogue, `users` shows and deletes what is stored about a user. They share `timeline` (which events are recent, which
are memory), `seen` (which items a user has had) and `repair` (asks for missing states). No module here knows HTTP or
torch. May import `service.engine`, `service.store`, `service.errors`, `service.logs`, `service.metrics` and the parts
of `model_store` that need no torch.
"""
