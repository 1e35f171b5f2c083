"""What `doctor` says of who may call: keys of the settings and of the store, the issuer of tokens, rates.

Each function returns a finding, or raises StartupError whose text is the finding. No key and no name of a key is shown.
"""

import time
from collections.abc import Sequence

from service.errors import StartupError
from service.identity.issuer import IssuerKeys
from service.identity.keys import LEAST_LENGTH, num_short, read_entry, refuse_insecure_bind
from service.identity.limits import Limits
from service.identity.principal import Principal
from service.identity.stored import KeyRecord, KeyStore
from service.settings import Settings, variable
from service.store.client import MemoryStore

_TRIED_RATE = "1000/second"


async def examine_keys(settings: Settings, store: MemoryStore | None) -> str:
    """`store` None: it is not reached, and only the keys of the settings are looked at."""
    entries = settings.plain_api_keys
    refuse_insecure_bind(
        settings.host,
        has_keys=settings.asks_for_keys,
        allow_anonymous=settings.allow_anonymous,
        entries=entries,
    )
    if number := num_short(entries):
        problem = f"{number} of {len(entries)} keys have fewer than {LEAST_LENGTH} characters"
        raise StartupError(f"{problem}; `python -m service keys` makes long ones")
    listed, records = 0, list[KeyRecord]()
    if store is not None:
        keys = KeyStore(store.run)
        listed, records = await keys.count(), list((await keys.read())[1].values())
    if not settings.asks_for_keys:
        if listed:
            ask = f"set {variable('require_keys')}=true"
            raise StartupError(f"the store has {listed} keys, but the server asks nobody for one: {ask}")
        return "none: everyone who can reach the address may call"
    if unreadable := listed - len(records):
        raise StartupError(f"{unreadable} keys of the store cannot be read and are refused: revoke and make them again")
    usable = [each for each in records if _is_usable(each, time.time())]
    if store is not None and not entries and not usable and not settings.jwt_issuer:
        make = "python -m service keys create --name root --scopes admin"
        raise StartupError(f"no key is accepted, so nobody can call: `{make}`")
    found = [f"{len(entries)} in the settings", _of_store(store, len(usable), len(records) - len(usable))]
    return ", ".join([*found, _of_admins(entries, usable)])


async def examine_issuer(settings: Settings) -> str:
    """Asks the issuer for its keys, once."""
    keys = IssuerKeys(settings.jwt_keys)
    await keys.start()
    await keys.stop()
    if not keys.number:
        raise StartupError(f"the keys at {settings.jwt_keys} cannot be read: {keys.problem}")
    allowed = set(settings.jwt_algorithms)
    if not keys.algorithms & allowed:
        raise StartupError(
            f"no token would be accepted: the keys of the issuer sign by {_listed(keys.algorithms)}, and"
            f" {variable('jwt_algorithms')} allows {_listed(allowed)}"
        )
    if abs(keys.clock_off_s) > max(settings.jwt_leeway_s, 1):
        raise StartupError(
            f"the clock of this machine is {keys.clock_off_s:+.0f} s from that of the issuer, and"
            f" {variable('jwt_leeway_s')} allows {settings.jwt_leeway_s:g} s: tokens would be refused"
        )
    return f"{settings.jwt_issuer}: {keys.num_keys} keys, for {_listed(keys.algorithms & allowed)}"


async def examine_rates(settings: Settings, store: MemoryStore) -> str:
    """Counts a request in the store, under a name that no key has."""
    standings, _ = await Limits(store.run).count(Principal("doctor", rate_limit=_TRIED_RATE))
    if not standings:
        raise StartupError("the store does not count requests, so no rate would be kept: see its log")
    own = sum(bool(each.rate_limit) for each in (await KeyStore(store.run).read())[1].values())
    if not settings.rate_limit and not own:
        return f"none are set, so one key may send any number of requests: see {variable('rate_limit')}"
    return f"{settings.rate_limit or 'none'} for every key, {own} keys have their own; the store counts them"


def _is_usable(record: KeyRecord, now: float) -> bool:
    ends = [min(record.expires_at or now + 1, each.expires_at or now + 1) for each in record.secrets]
    return any(end > now for end in ends)


def _of_store(store: MemoryStore | None, num_usable: int, num_expired: int) -> str:
    if store is None:
        return "those of the store are not known"
    return f"{num_usable} in the store" + (f" and {num_expired} that have expired: revoke them" if num_expired else "")


def _of_admins(entries: Sequence[str], usable: Sequence[KeyRecord]) -> str:
    number = sum("admin" in read_entry(each).scopes for each in entries)
    number += sum("admin" in each.scopes for each in usable)
    return f"{number} with the scope admin" + ("" if number else ": keys can be made by the command line alone")


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))
