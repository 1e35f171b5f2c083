"""Which callers the settings let in."""

from service.identity.authenticator import Authenticator
from service.identity.issuer import IssuerKeys
from service.identity.keys import Keys, refuse_insecure_bind
from service.identity.tokens import Issuer, Tokens
from service.settings import Settings


def authenticator_of(settings: Settings) -> Authenticator:
    """Raises InsecureBind when anyone could reach the service without an API key, or with one that is short."""
    refuse_insecure_bind(
        settings.host,
        has_keys=settings.asks_for_keys,
        allow_anonymous=settings.allow_anonymous,
        entries=settings.plain_api_keys,
    )
    return Authenticator(
        Keys(settings.plain_api_keys, rate_limit=settings.rate_limit),
        require_keys=settings.require_keys,
        rate_limit=settings.rate_limit,
        tokens=_tokens(settings),
    )


def _tokens(settings: Settings) -> Tokens | None:
    """None where tokens of an issuer are not accepted."""
    if not settings.jwt_issuer:
        return None
    issuer = Issuer(
        settings.jwt_issuer,
        settings.jwt_audience,
        settings.jwt_algorithms,
        leeway_s=settings.jwt_leeway_s,
        scopes_claim=settings.jwt_scopes_claim,
        tenant_claim=settings.jwt_tenant_claim,
        rate_limit=settings.rate_limit,
    )
    return Tokens(issuer, IssuerKeys(settings.jwt_keys))
