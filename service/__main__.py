"""The command line: python -m service COMMAND; `--help` lists the commands.

Flags win over AUTOMR_* variables. Wrong settings and failed starts end with one line each on stderr and exit code 2.
"""

import argparse
import asyncio
import json
import os
import sys
import webbrowser
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from pydantic import SecretStr

from model_store.errors import ModelStoreError
from service import logs
from service.errors import ServiceError, SettingsError
from service.identity import commands as key_commands
from service.identity.keys import new_key
from service.identity.stored import Run
from service.settings import Settings, variable

FLAGS = ("bundle", "store", "host", "port", "allow_anonymous", "device", "threads", "log_level", "log_format")


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = args.command
    try:
        return command(args)
    except KeyboardInterrupt:
        return 0
    except SettingsError as error:
        return _give_up(*error.problems)
    except (ServiceError, ModelStoreError) as error:
        return _give_up(str(error))


def _give_up(*problems: str) -> int:
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 2


def _settings(args: argparse.Namespace) -> Settings:
    settings = Settings.from_env(os.environ, **{name: getattr(args, name, None) for name in FLAGS})
    logs.configure(level=settings.log_level, format=settings.log_format)
    return settings


def _serve(args: argparse.Namespace) -> int:
    from service.server import serve

    with_banner, show_page = args.banner or args.open or sys.stdout.isatty(), open_on_desktop if args.open else None
    return serve(_settings(args), import_path=args.import_path, with_banner=with_banner, show_page=show_page)


def open_on_desktop(address: str) -> None:
    """A browser for terminals is not asked: it would take over the one of the server."""
    has_desktop = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
    if sys.platform in ("darwin", "win32") or has_desktop:
        with suppress(webbrowser.Error):
            browser = webbrowser.get()
            if os.environ.get("BROWSER") or type(browser) is not webbrowser.GenericBrowser:
                browser.open(address)


def _worker(args: argparse.Namespace) -> int:
    from service.commands import run_worker

    asyncio.run(run_worker(_settings(args)))
    return 0


def _backfill(args: argparse.Namespace) -> int:
    from service.commands import run_backfill

    print(json.dumps(asyncio.run(run_backfill(_settings(args)))))
    return 0


def _export(args: argparse.Namespace) -> int:
    from service.commands import run_export

    print(json.dumps(asyncio.run(run_export(_settings(args), args.out))["stats"]))
    return 0


def _import(args: argparse.Namespace) -> int:
    from service.commands import run_import

    if not args.file.is_file():
        raise SettingsError([f"import: there is no file {args.file}"])
    asyncio.run(run_import(_settings(args), args.file, args.rejected))
    return 0


def _bundles(args: argparse.Namespace) -> int:
    from service.bundle_commands import run, run_signing

    print(run_signing(args, _settings(args).bundle_keys) if hasattr(args, "path") else run(args))
    return 0


def _deadletters(args: argparse.Namespace) -> int:
    from service.commands import run_deadletters

    for line in asyncio.run(run_deadletters(_settings(args), args.action)):
        print(line)
    return 0


def _prune(args: argparse.Namespace) -> int:
    from service.commands import run_prune

    if args.days is None and args.most is None:
        raise SettingsError(["prune: --days or --most is missing; they say which events are kept"])
    if (args.days is not None and not 0 < args.days < 36_500) or (args.most is not None and args.most < 1):
        raise SettingsError(["prune: --days must be above 0 and below 36,500, --most at least 1"])
    found = run_prune(_settings(args), days=args.days, most=args.most, is_trial=args.dry_run)
    print(json.dumps(asyncio.run(found)))
    return 0


def _compact(args: argparse.Namespace) -> int:
    from service.commands import run_compact

    done = asyncio.run(run_compact(_settings(args)))
    print(json.dumps(done))
    return 0 if done["status"] in ("done", "no_files") else 1


def _seal(args: argparse.Namespace) -> int:
    from service.commands import run_seal

    print(json.dumps(asyncio.run(run_seal(_settings(args)))))
    return 0


def _keys(args: argparse.Namespace) -> int:
    if args.action is not None:
        return _stored_keys(args)
    key, line = new_key()
    print(f"key     {key}\nadmit   {line}")
    hint = f"Give the key to the caller; put the second text into {variable('api_keys')} (comma-separated)."
    print(hint, file=sys.stderr)
    return 0


def _stored_keys(args: argparse.Namespace) -> int:
    from service.remote import Remote
    from service.resources import open_store

    @asynccontextmanager
    async def opened() -> AsyncIterator[Run]:
        async with open_store(_settings(args)) as store:
            yield store.run

    print(key_commands.run(args, Remote(args.url or "", args.key).ask, opened))
    return 0


def _openapi(args: argparse.Namespace) -> int:
    from service.app import create_app
    from service.http.describe import openapi

    sys.stdout.write(openapi.as_text(create_app(Settings.from_env({}))))
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from service.doctor import checks

    found = asyncio.run(checks.examine(_settings(args)))
    print(checks.table(found))
    return 0 if all(check.is_ok for check in found) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service", epilog=_variables(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = _command(commands, "serve", _serve, "answer requests")
    _add_flags(serve, "bundle", "store", "host", "port", "device", "threads")
    serve.add_argument("--allow-anonymous", action="store_true", default=None, help=_help("allow_anonymous"))
    import_help = "store these interactions first; repeating it changes nothing"
    serve.add_argument("--import", dest="import_path", type=Path, metavar="FILE", help=import_help)
    serve.add_argument("--banner", action="store_true", help="print example commands even if stdout is no terminal")
    serve.add_argument(
        "--open", action="store_true", help="show the page in the browser of this desktop, if there is one"
    )
    worker = _command(commands, "worker", _worker, "encode memory for servers that do not do so")
    backfill = _command(commands, "backfill", _backfill, "encode the memory of every user for this bundle")
    export = _command(commands, "export", _export, "write all live events and items as a data set for training")
    export.add_argument("--out", type=Path, required=True, metavar="DATASET", help="a new directory, or that of a run")
    import_ = _command(commands, "import", _import, "store a file of interactions")
    import_.add_argument("file", type=Path, metavar="FILE", help="JSON lines or CSV, also as .gz, or Parquet")
    rejected_help = "write all refused lines to this file, with reasons; without it, to FILE.rejected.jsonl"
    import_.add_argument("--rejected", type=Path, metavar="FILE", help=rejected_help)
    for offline in (worker, backfill, export, import_):
        _add_flags(offline, "bundle", "store", "device", "threads")
    _add_bundles(_command(commands, "bundles", _bundles, "switch the bundle of a running server"))
    text = "users who could not be encoded: list them, encode them again, or drop the list"
    dead = _command(commands, "deadletters", _deadletters, text)
    dead.add_argument("action", choices=("list", "replay", "drop"), nargs="?", default="list", help="default: list")
    _add_flags(dead, "store")
    text = "API keys: without an action, make one for the settings; with one, those of the store"
    key_commands.add_arguments(_command(commands, "keys", _keys, text), lambda parser: _add_flags(parser, "store"))
    text = "delete events that are too old, or too many for one user"
    prune = _command(commands, "prune", _prune, text)
    prune.add_argument("--days", type=float, metavar="DAYS", help="events whose time is longer ago are deleted")
    prune.add_argument("--most", type=int, metavar="N", help="of each user, only the newest N events are kept")
    prune.add_argument("--dry-run", action="store_true", help="count them, and delete nothing")
    _add_flags(prune, "store")
    text = "have the store rewrite its files, so that no byte of deleted users is left in them"
    _add_flags(_command(commands, "compact", _compact, text), "store")
    text = "encrypt all records of users with the first master key, so that older keys are no longer needed"
    _add_flags(_command(commands, "seal", _seal, text), "store")
    _command(commands, "openapi", _openapi, "print the OpenAPI document (docs/openapi.json)")
    doctor_ = _command(commands, "doctor", _doctor, "check a set-up")
    _add_flags(doctor_, "bundle", "store", "host", "port", "device")
    doctor_.add_argument("--allow-anonymous", action="store_true", default=None, help=_help("allow_anonymous"))
    return parser


def _add_bundles(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    texts = {
        "list": "what is loaded, and which bundle answers",
        "load": "load a bundle beside it and fill its memory",
        "activate": "switch to a loaded bundle",
        "rollback": "switch back to the bundle before",
        "unload": "close a bundle that does not answer",
    }
    signing = {
        "keygen": "make a key that signs bundles: writes the private one, prints the public one",
        "sign": "check a bundle and sign it",
        "verify": "check the signature and all files of a bundle",
    }
    for name, text in signing.items():
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("path", type=Path, metavar="FILE" if name == "keygen" else "DIRECTORY")
        if name == "sign":
            action.add_argument("--key-file", type=Path, required=True, help="private key, as keygen writes it")
        if name == "verify":
            action.add_argument("--public", help=f"public key (default: those of {variable('bundle_keys')})")
    for name, text in texts.items():
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("--url", default="http://127.0.0.1:8000", help="of a running server (default %(default)s)")
        action.add_argument("--key", help="API key, where the server asks for one")
        if name in ("load", "activate", "unload"):
            action.add_argument("bundle", metavar="DIRECTORY" if name == "load" else "NAME")
        if name == "load":
            action.add_argument("--name", help="how to call it (default: as its directory)")
            action.add_argument("--precision", choices=("bundle", "bfloat16", "int8"), default="bundle")
        if name == "activate":
            action.add_argument("--force", action="store_true", help="also while its memory is not filled")


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(command=run)
    return parser


def _add_flags(parser: argparse.ArgumentParser, *names: str) -> None:
    for name in (*names, "log_level", "log_format"):
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, default=None, metavar=name.upper(), help=_help(name))


def _help(name: str) -> str:
    field = Settings.model_fields[name]
    return f"{field.description} ({variable(name)}, default {_default(name)})".replace("%", "%%")


def _default(name: str) -> str:
    default = Settings.model_fields[name].default
    if isinstance(default, bool):
        return "yes" if default else "no"
    return str(default.get_secret_value() if isinstance(default, SecretStr) else default)


def _variables() -> str:
    rows = [f"  {variable(name):26} {field.description}" for name, field in Settings.model_fields.items()]
    return "\n".join(["environment:", *rows])


if __name__ == "__main__":
    raise SystemExit(main())
