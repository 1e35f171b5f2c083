"""Tokens of an issuer: claims are checked, no algorithm is taken for another, keys rotate, scopes and tenants count."""

import asyncio
import base64
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from service.errors import NotReady, SettingsError, Unauthorized
from service.identity.algorithms import ALGORITHMS
from service.identity.issuer import IssuerKeys
from service.identity.keys import hashed
from service.identity.principal import Principal
from service.identity.tokens import Expired, Issuer, Tokens, is_token
from service.settings import Settings

ISSUER, AUDIENCE = "https://login.example", "automr"
SECRET = b"a-secret-of-thirty-two-bytes-or-more"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
CURVE = ec.generate_private_key(ec.SECP256R1())
EDWARDS = ed25519.Ed25519PrivateKey.generate()
SIGNERS: dict[str, Any] = {"RS256": RSA, "ES256": CURVE, "EdDSA": EDWARDS, "HS256": SECRET}


def document(**more: Any) -> dict[str, Any]:
    from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

    keys = [
        RSAAlgorithm.to_jwk(RSA.public_key(), as_dict=True) | {"kid": "RS256"},
        ECAlgorithm.to_jwk(CURVE.public_key(), as_dict=True) | {"kid": "ES256"},
        OKPAlgorithm.to_jwk(EDWARDS.public_key(), as_dict=True) | {"kid": "EdDSA"},
        {"kty": "oct", "k": base64.urlsafe_b64encode(SECRET).decode(), "kid": "HS256"},
    ]
    return {"keys": [each for each in keys if not more.get("only") or each["kid"] in more["only"]]}


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    made = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "exp": now + 60, "iat": now, "scope": "recommend other users"}
    return {name: value for name, value in (made | changes).items() if value is not None}


def signed(algorithm: str = "RS256", *, key: Any = None, kid: Any = None, **changes: Any) -> str:
    headers = {"kid": kid or algorithm} if kid != "" else {}
    return jwt.encode(claims(**changes), key or SIGNERS[algorithm], algorithm, headers=headers)


@asynccontextmanager
async def tokens(path: Path, *, content: Any = None, **issuer: Any) -> AsyncIterator[Tokens]:
    (path / "keys.json").write_text(json.dumps(document() if content is None else content))
    keys = IssuerKeys(str(path / "keys.json"))
    await keys.start()
    try:
        yield Tokens(Issuer(ISSUER, AUDIENCE, tuple(issuer.pop("algorithms", ALGORITHMS)), **issuer), keys)
    finally:
        await keys.stop()


async def who(opened: Tokens, token: str) -> Principal:
    return await opened.principal(token, hashed(token))


async def is_refused(opened: Tokens, token: str) -> bool:
    try:
        await who(opened, token)
    except Unauthorized:
        return True
    return False


@pytest.mark.parametrize("algorithm", SIGNERS)
async def test_a_good_token_has_the_scopes_it_lists(algorithm: str, tmp_path: Path) -> None:
    async with tokens(tmp_path) as opened:
        for _ in range(2):  # the second time it is remembered
            found = await who(opened, signed(algorithm))
            assert found.scopes == {"recommend", "users"} and found.tenant == ""
            assert found.key_id.startswith("jwt_") and "ada" not in found.key_id
        assert (await who(opened, signed(algorithm, scope=["ingest"]))).scopes == {"ingest"}
        assert (await who(opened, signed(algorithm, scope=None))).scopes == frozenset()


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://other.example"},
        {"iss": None},
        {"aud": "other"},
        {"aud": None},
        {"aud": ["other"]},
        {"exp": None},
        {"exp": "soon"},
        {"nbf": time.time() + 3600},
        {"iat": time.time() + 3600},
        {"sub": 7},
    ],
)
async def test_wrong_claims_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    async with tokens(tmp_path) as opened:
        header = {"alg": "RS256", "kid": "RS256", "typ": "JWT"}
        assert await is_refused(opened, by_hand(header, claims(**changes), rs256))


def rs256(text: bytes) -> bytes:
    from jwt.algorithms import RSAAlgorithm

    return RSAAlgorithm(RSAAlgorithm.SHA256).sign(text, RSA)


def by_hand(header: dict[str, Any], body: dict[str, Any], sign: Any) -> str:
    """A token that the library would not make."""
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, body)]
    signature = base64.urlsafe_b64encode(sign(b".".join(parts))).rstrip(b"=")
    return b".".join([*parts, signature]).decode()


async def test_times_have_a_leeway_and_an_expired_token_is_told_apart(tmp_path: Path) -> None:
    async with tokens(tmp_path, leeway_s=30.0) as opened:
        assert (await who(opened, signed(exp=int(time.time()) - 20))).scopes
        with pytest.raises(Expired):
            await who(opened, signed(exp=int(time.time()) - 40))


async def test_a_remembered_token_ends_in_time_and_with_its_key(tmp_path: Path) -> None:
    now = [time.time()]
    async with tokens(tmp_path) as opened:
        opened._clock = lambda: now[0]
        token = signed()
        await who(opened, token)
        (tmp_path / "keys.json").write_text(json.dumps(document(only=["ES256"])))
        await opened.keys._ask()
        assert await is_refused(opened, token), "the key was taken back"
        (tmp_path / "keys.json").write_text(json.dumps(document()))
        await opened.keys._ask()
        await who(opened, token)
        now[0] += 91
        opened._remembered[hashed(token)] = (opened._remembered[hashed(token)][0], now[0] - 1)
        assert (await who(opened, token)).scopes, "verified anew; the library's clock says that it is good"


async def test_no_algorithm_is_taken_for_another(tmp_path: Path) -> None:
    public = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def hmac_with_the_public_key(text: bytes) -> bytes:
        import hashlib
        import hmac

        return hmac.digest(public, text, hashlib.sha256)

    async with tokens(tmp_path) as opened:
        good = signed()
        header, body, signature = good.split(".")
        for name in ("RS256", "HS256"):
            forged = by_hand({"alg": "HS256", "kid": name}, claims(), hmac_with_the_public_key)
            assert await is_refused(opened, forged), "the public key was used as a secret"
        for alg in ("none", "None", "", None, "HS256", "ES256", "RS1", 7, ["RS256"]):
            forged = by_hand({"alg": alg, "kid": "RS256"}, claims(), lambda text: b"")
            assert await is_refused(opened, forged), f"alg {alg!r}"
        assert await is_refused(opened, f"{header}.{body}.")
        assert await is_refused(opened, f"{header}.{body}.{signature[:-4]}AAAA")
        assert await is_refused(opened, signed(key=OTHER_RSA))
        assert await is_refused(opened, signed(kid="ES256"))
        assert await is_refused(opened, signed(kid="unknown"))
        assert await is_refused(opened, by_hand({"alg": "RS256", "kid": ["RS256"]}, claims(), rs256))
        assert await is_refused(opened, "eyJ" + "a" * 10_000 + ".b.c")
    async with tokens(tmp_path, algorithms=["ES256"]) as opened:
        assert await is_refused(opened, signed("RS256")) and not await is_refused(opened, signed("ES256"))


async def test_a_token_without_a_key_id_needs_a_single_key(tmp_path: Path) -> None:
    from jwt.algorithms import RSAAlgorithm

    async with tokens(tmp_path) as opened:
        assert (await who(opened, signed(kid=""))).scopes
    other = RSAAlgorithm.to_jwk(OTHER_RSA.public_key(), as_dict=True)
    async with tokens(tmp_path, content={"keys": [*document()["keys"], other]}) as opened:
        assert await is_refused(opened, signed(kid="")), "two keys could have signed it"


async def test_a_tenant_claim_is_needed_where_it_is_set(tmp_path: Path) -> None:
    async with tokens(tmp_path, tenant_claim="shop") as opened:
        found = await who(opened, signed(shop="shop-a", scope="recommend admin metrics catalogue"))
        assert found.tenant == "shop-a" and found.scopes == {"recommend"}
        for wrong in (None, "", "Shop", "a/b", "a" * 33, 7.5, ["shop-a"], "a\n"):
            assert await is_refused(opened, signed(shop=wrong)), wrong


async def test_weak_and_foreign_keys_are_not_used(tmp_path: Path) -> None:
    from jwt.algorithms import RSAAlgorithm

    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    short = {"kty": "oct", "k": base64.urlsafe_b64encode(b"short").decode(), "kid": "HS256"}
    odd = [{"kty": "RSA"}, {"kty": "new"}, {"kty": "RSA", "n": "AQ", "e": "AQ", "kid": "x"}, "text", {"kty": ["oct"]}]
    listed = [RSAAlgorithm.to_jwk(weak.public_key(), as_dict=True) | {"kid": "weak"}, short, *odd]
    encrypting = RSAAlgorithm.to_jwk(OTHER_RSA.public_key(), as_dict=True) | {"kid": "enc", "use": "enc"}
    async with tokens(tmp_path, content={"keys": [*listed, encrypting, *document()["keys"][:1]]}) as opened:
        assert len(opened.keys._keys) == 1 and (await who(opened, signed())).scopes
        assert await is_refused(opened, signed(key=OTHER_RSA, kid="enc"))


async def test_a_file_that_cannot_be_read_keeps_the_keys_before_it(tmp_path: Path) -> None:
    async with tokens(tmp_path) as opened:
        for content in ("", "{}", '{"keys": []}', "[" * 10_000, "\x00"):
            (tmp_path / "keys.json").write_text(content)
            await opened.keys._ask()
            assert (await who(opened, signed(jti=content[:3]))).scopes
    async with tokens(tmp_path, content={}) as opened:
        with pytest.raises(NotReady):
            await who(opened, signed())


async def test_a_url_is_asked_again_for_an_unknown_key_but_seldom() -> None:
    now, asked, answers = [0.0], [], [document(only=["ES256"])]

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return answers[-1] if isinstance(answers[-1], httpx.Response) else httpx.Response(200, json=answers[-1])

    keys = IssuerKeys("https://login.example/jwks", transport=httpx.MockTransport(answer), clock=lambda: now[0])
    await keys.start()
    opened = Tokens(Issuer(ISSUER, AUDIENCE, ALGORITHMS), keys)
    try:
        assert (await who(opened, signed("ES256"))).scopes
        answers.append(document())
        assert await is_refused(opened, signed()), "asked again at once: invented key ids would cost the issuer much"
        now[0] += 31
        found = await asyncio.gather(*(who(opened, signed(jti=str(number))) for number in range(20)))
        assert len(found) == 20 and len(asked) == 2, "a rotated key works with its first token, by one question"
        now[0] += 31
        assert await is_refused(opened, signed("HS256")), "a secret from a URL is no secret"
        for wrong in (httpx.Response(302, headers={"location": "http://10.0.0.1"}), httpx.Response(500), {"keys": 7}):
            answers.append(wrong)  # type: ignore[arg-type]
            now[0] += 31
            assert await is_refused(opened, signed(kid=os.urandom(4).hex()))
            assert (await who(opened, signed(jti=str(now)))).scopes
        assert {*asked} == {"https://login.example/jwks"}
    finally:
        await keys.stop()


def test_a_key_of_ours_is_no_token() -> None:
    assert is_token(signed()) and not is_token("amr_abc.def.ghi") and not is_token("eyJ.a")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"jwt_issuer": "x"}, "AUTOMR_JWT_AUDIENCE, AUTOMR_JWT_KEYS"),
        ({"jwt_issuer": "x", "jwt_audience": "y", "jwt_keys": "http://login.example"}, "https"),
        ({"jwt_issuer": "x", "jwt_audience": "y", "jwt_keys": "https://a.b", "jwt_algorithms": "HS256"}, "file"),
        ({"jwt_algorithms": "none"}, "must be some of"),
    ],
)
def test_settings_of_an_issuer_are_whole_and_safe(given: dict[str, str], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        Settings.from_env({}, **given)
