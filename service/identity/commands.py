"""python -m service keys create | list | rotate | revoke: in the store, or through a running server.

The first key of a store is made here, because the routes of keys need one. An embedded store belongs to its server, so
while that runs, name it by `--url`.
"""

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Any

from service.errors import SettingsError
from service.identity import rates
from service.identity.keyring import DAY_S, Keyring, NewKey, shown
from service.identity.scopes import SCOPES
from service.identity.stored import Run
from service.identity.tokens import TENANT

Opened = Callable[[], AbstractAsyncContextManager[Run]]
Ask = Callable[..., dict[str, Any]]


def add_arguments(parser: argparse.ArgumentParser, add_flags: Callable[[argparse.ArgumentParser], None]) -> None:
    actions = parser.add_subparsers(dest="action", required=False, metavar="ACTION")
    texts = {
        "create": "make a key and store its hash",
        "list": "the keys of the store",
        "rotate": "a new key in the place of one, which goes on for a while",
        "revoke": "end a key",
    }
    for name, text in texts.items():
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("--url", help="of a running server, instead of its store")
        action.add_argument("--key", help="API key for --url, with the scope admin")
        add_flags(action)
        if name in ("rotate", "revoke"):
            action.add_argument("id", metavar="ID")
        if name == "rotate":
            action.add_argument("--overlap-s", type=int, default=DAY_S, help="the old key works so long (%(default)s)")
        if name == "create":
            action.add_argument("--name", required=True, help="who has it")
            action.add_argument("--scopes", required=True, help=f"some of {','.join(SCOPES)}, separated by commas")
            action.add_argument("--tenant", default="", help="whose users the key may see")
            action.add_argument("--rate-limit", default="", help="such as 100/second; 1000000/month")
            action.add_argument("--days", type=float, help="until it expires (default: never)")


def run(args: argparse.Namespace, ask: Ask, opened: Opened) -> str:
    """The table of keys, or a new key. `ask` sends to a server, `opened` opens the store."""
    if args.url:
        return _by_server(args, ask)

    async def by_store() -> str:
        async with opened() as send:
            return await _ACTIONS[args.action](Keyring(send), args)

    return asyncio.run(by_store())


def _by_server(args: argparse.Namespace, ask: Ask) -> str:
    if args.action == "list":
        return table(ask("GET", "/keys")["keys"])
    if args.action == "rotate":
        return _made(ask("POST", f"/keys/{args.id}:rotate", {"overlap_s": args.overlap_s}))
    if args.action == "revoke":
        return f"revoked {ask('DELETE', f'/keys/{args.id}')['id']}"
    return _made(ask("POST", "/keys", _wanted(args)))


async def _create(keyring: Keyring, args: argparse.Namespace) -> str:
    key, record = await keyring.create(NewKey(**_wanted(args)))
    return _made({"key": key, **shown(record)})


async def _list(keyring: Keyring, args: argparse.Namespace) -> str:
    return table([shown(*each) for each in await keyring.listed()])


async def _rotate(keyring: Keyring, args: argparse.Namespace) -> str:
    key, record = await keyring.rotate(args.id, overlap_s=args.overlap_s)
    return _made({"key": key, **shown(record)})


async def _revoke(keyring: Keyring, args: argparse.Namespace) -> str:
    await keyring.revoke(args.id)
    return f"revoked {args.id}"


_ACTIONS: Mapping[str, Callable[[Keyring, argparse.Namespace], Awaitable[str]]] = {
    "create": _create,
    "list": _list,
    "rotate": _rotate,
    "revoke": _revoke,
}


def _wanted(args: argparse.Namespace) -> dict[str, Any]:
    names = [name.strip() for name in args.scopes.split(",") if name.strip()]
    if wrong := [name for name in names if name not in SCOPES]:
        raise SettingsError([f"--scopes: there is no scope {wrong[0]}; known are {', '.join(SCOPES)}"])
    expires_at = None if args.days is None else round(time.time() + DAY_S * args.days)
    if args.tenant and not TENANT.fullmatch(args.tenant):
        raise SettingsError(["--tenant: up to 32 small letters, digits and hyphens"])
    try:
        rates.parse(args.rate_limit)
    except ValueError as error:
        raise SettingsError([f"--rate-limit: {error}"]) from None
    return {
        "name": args.name,
        "scopes": names,
        "tenant": args.tenant,
        "rate_limit": args.rate_limit,
        "expires_at": expires_at,
    }


def _made(made: Mapping[str, Any]) -> str:
    return f"key     {made['key']}\nid      {made['id']}\nThe key is shown this once: give it to the caller."


def table(keys: Sequence[Mapping[str, Any]]) -> str:
    rows = [("id", "name", "tenant", "scopes", "begins", "created", "expires", "last used")]
    for each in keys:
        begins = ",".join(secret["prefix"] for secret in each["secrets"])
        times = (_day(each[name]) for name in ("created_at", "expires_at", "last_used_at"))
        rows.append((each["id"], each["name"], each["tenant"] or "-", "+".join(each["scopes"]), begins, *times))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _day(time: int | None) -> str:
    return "-" if time is None else datetime.fromtimestamp(time, UTC).isoformat(timespec="minutes")
