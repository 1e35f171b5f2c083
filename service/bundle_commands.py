"""python -m service bundles list | load | activate | rollback | unload: the routes of /bundles on the command line.

And keygen | sign | verify: signatures of bundles on this machine.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any

from model_store import signature
from model_store.files import read_manifest, verify_files
from service.errors import SettingsError
from service.remote import Remote, RemoteError

_LOOK_EVERY_S = 1.0


def run(args: argparse.Namespace) -> str:
    """The table of the bundles after the action."""
    remote = Remote(args.url, args.key)
    if args.action == "list":
        return table(remote.ask("GET", "/bundles"))
    if args.action == "rollback":
        return table(remote.ask("POST", "/bundles:rollback"))
    if args.action == "unload":
        return table(remote.ask("DELETE", f"/bundles/{args.bundle}"))
    if args.action == "activate":
        return table(remote.ask("POST", f"/bundles/{args.bundle}:activate", force=str(args.force).lower()))
    body = {"directory": args.bundle, "precision": args.precision} | ({"name": args.name} if args.name else {})
    name = args.name or args.bundle.strip("/").replace("/", "-")
    return table(_when_loaded(remote, remote.ask("POST", "/bundles", body), name))


def run_signing(args: argparse.Namespace, trusted: Sequence[str]) -> str:
    """What was done. Raises SettingsError and BundleError."""
    try:
        if args.action == "keygen":
            return f"{signature.new_key(args.path)}\nThe private key is in {args.path}: keep it away from servers."
        if args.action == "sign":
            return f"{args.path} is signed by {signature.sign(args.path, args.key_file)}"
        if not args.public and not trusted:
            raise SettingsError(["verify: name a public key by --public or AUTOMR_BUNDLE_KEYS"])
        signer = signature.verify(args.path, [args.public] if args.public else trusted)
        verify_files(args.path, read_manifest(args.path))
        return f"{args.path} is whole and signed by {signer}"
    except (ValueError, OSError) as error:
        raise SettingsError([f"{args.action}: {error}"]) from None


def _when_loaded(remote: Remote, listing: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Waits until the bundle could answer with its memory. Raises RemoteError when it cannot be loaded."""
    while True:
        entry = next((each for each in listing["bundles"] if each["name"] == name), None)
        if entry is None:
            raise RemoteError(f"{name} was unloaded meanwhile")
        if entry["status"] == "failed":
            raise RemoteError(f"{name} cannot be loaded: {entry['problem']}")
        if entry["status"] in ("ready", "active"):
            return listing
        filled = entry["fill"]
        print(f"{name}: {entry['status']}, {filled['users']} of {filled['total']} users", flush=True)
        time.sleep(_LOOK_EVERY_S)
        listing = remote.ask("GET", "/bundles")


def table(listing: Mapping[str, Any]) -> str:
    rows = [("name", "status", "bundle", "space", "memory")]
    for each in listing["bundles"]:
        filled = each["fill"]
        memory = "filled" if filled["is_done"] else f"{filled['users']}/{filled['total']} users"
        rows.append((each["name"], each["status"], each["bundle"] or "", each["space"] or "", memory))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, f"a rollback activates: {listing['previous'] or 'nothing'}"])
