"""Everything that is kept in Redis: each user's events, their state records, the encode queue, the catalogue overlay.

Lives here: the client (`client.py`), the table of keys (`keys.py`), the Lua scripts (`scripts.py`), the values that the
client takes and gives with their byte forms (`events.py`), and a private server for a single machine (`embedded/`).
Does not live here: torch, HTTP, the contents of a state record (`model_store.memory.codec`), and decisions such as
which events are memory or whether a state is stale (`service.usecases`). May import `service.errors` and
`model_store.text.history`, nothing else of this repository.
"""
