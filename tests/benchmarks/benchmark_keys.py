"""Microseconds that the check of keys adds to a request: the guard around an application that does nothing.

PYTHONPATH=. python tests/benchmarks/benchmark_keys.py
"""

import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from service import logs
from service.http.access.guard import RequireKey
from service.identity.authenticator import Authenticator
from service.identity.issuer import IssuerKeys
from service.identity.keyring import NewKey
from service.identity.keys import Keys, new_key
from service.identity.tokens import Issuer, Tokens
from service.metrics import Metrics
from service.store.client import MemoryStore
from service.store.embedded.server import EmbeddedServer

NUM_REQUESTS, NUM_ROUNDS, NUM_KEYS = 5000, 5, 200
SIGNER = rsa.generate_private_key(public_exponent=65537, key_size=2048)


async def nothing(scope: Any, receive: Any, send: Any) -> None: ...


def token(number: int) -> str:
    claims = {"iss": "i", "aud": "a", "exp": time.time() + 600, "scope": "recommend", "jti": str(number)}
    return jwt.encode(claims, SIGNER, "RS256")


async def shown(name: str, authenticator: Authenticator, keys: list[str]) -> None:
    """The median over rounds, of the mean time of a request."""
    guard = RequireKey(nothing, authenticator=authenticator, metrics=Metrics())
    usual = [(b"host", b"x"), (b"user-agent", b"x"), (b"accept", b"*/*"), (b"content-type", b"application/json")]
    scope = {"type": "http", "path": "/recommend", "method": "POST", "client": ("10.0.0.1", 1)}
    times = []
    for number in range(NUM_ROUNDS):
        sent = keys[number::NUM_ROUNDS] if len(keys) > 1 else keys * NUM_REQUESTS
        scopes = [{**scope, "headers": [*usual, (b"authorization", b"Bearer " + key.encode())]} for key in sent]
        began = time.perf_counter()
        for each in scopes:
            await guard(each, None, None)  # type: ignore[arg-type]
        times.append((time.perf_counter() - began) / len(scopes))
    print(f"{name:28}{1e6 * statistics.median(times):7.1f} us")


async def main() -> None:
    with tempfile.TemporaryDirectory() as name, EmbeddedServer(Path(name) / "store") as server:
        jwks = Path(name) / "jwks.json"
        jwks.write_text(json.dumps({"keys": [RSAAlgorithm.to_jwk(SIGNER.public_key(), as_dict=True)]}))
        store = await MemoryStore.connect(server.url)
        key, line = new_key()
        tokens = Tokens(Issuer("i", "a", ("RS256",)), IssuerKeys(str(jwks)))
        authenticator = Authenticator(Keys([line, *(new_key()[1] for _ in range(4))]), tokens=tokens)
        async with authenticator.opened(store.run):
            assert authenticator.keyring is not None
            made = [await authenticator.keyring.create(NewKey("x", ("recommend",))) for _ in range(NUM_KEYS)]
            limited, _ = await authenticator.keyring.create(NewKey("x", ("recommend",), rate_limit="100000/second"))
            await shown("no keys are asked for", Authenticator(Keys()), ["x"])
            await shown("one of 5 in the settings", authenticator, [key])
            await shown(f"one of {NUM_KEYS} in the store", authenticator, [made[0][0]])
            await shown("the same with a rate", authenticator, [limited])
            await shown("a token seen before", authenticator, [token(0)])
            await shown("a new token (RS256)", authenticator, [token(number) for number in range(1, 501)])
        await store.close()


if __name__ == "__main__":
    logs.configure(level="warning")
    asyncio.run(main())
