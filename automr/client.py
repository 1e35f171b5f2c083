"""What a program imports: the two clients, which have the same methods, and how they wait, repeat and fail."""

from automr.asynchronous import AsyncClient
from automr.calls import Timeouts
from automr.errors import AutomrError, ConnectionFailed, Refused, TimedOut
from automr.retries import Retries
from automr.synchronous import Client

__all__ = ["AsyncClient", "AutomrError", "Client", "ConnectionFailed", "Refused", "Retries", "TimedOut", "Timeouts"]
