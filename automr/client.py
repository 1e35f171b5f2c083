"""`Client` and `AsyncClient`. They have the same methods, one for each operation of the API."""

from automr.asynchronous import AsyncClient
from automr.synchronous import Client

__all__ = ["AsyncClient", "Client"]
