"""Answers requests with an open bundle: HTTP, queues, the memory store. Never imports `training`.

`__main__` is the command line, `app` builds the ASGI application, `recommender` is the use case on one page,
`engine` owns the one torch thread, `memory` is the store, `batching` the torch-free queue policy.
"""
