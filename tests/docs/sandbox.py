"""A directory like a checkout after `make demo`, in which the commands of a document run as they stand.

It has a copy of the sources, an environment `.venv` that leads to the interpreter of the tests, a small demo bundle and
raw data. Nothing is changed in the commands; only the recipe `study` takes fewer steps there. The server's port, 8000
in all documents, is another one here, by means that the programs offer: the variables PORT (make) and AUTOMR_PORT
(service), and the option connect-to in curl's configuration file.
"""

import contextlib
import csv
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from tests.docs.documents import ROOT

_COPIED = ("Makefile", "pyproject.toml", "constraints.txt", "automr", "model_store", "service", "training")
_STAMPS = (".created", ".torch", ".demo", ".test")  # of the Makefile: what is installed
_COMMAND_S, _START_S = 600, 120  # against what never ends; other work may share the cores
_FEWER_STEPS = """
RECIPES["study"] = replace(
    RECIPES["study"],
    sft=Schedule(max_steps=40, learning_rate=4e-3, evaluate_every=40),
    memory_from=10,
    annotate_targets=100,
    valid_targets=60,
    retriever=Schedule(max_steps=20, learning_rate=2e-3, evaluate_every=20),
)
"""
_PROLOGUE = "set -euo pipefail -o allexport; if [ -f .shell-state ]; then . ./.shell-state; fi\n"
_EPILOGUE = "\nexport -p > .shell-state\n"


class Sandbox:
    """One document's directory. Variables that a block sets are known to the later ones, as in a terminal."""

    def __init__(self, directory: Path, demo_bundle: Path) -> None:
        self.directory = directory
        self.port = _free_port()
        self._server: subprocess.Popen[bytes] | None = None
        _copy_sources(directory)
        with (directory / "training/run/recipes.py").open("a") as recipes:
            recipes.write(_FEWER_STEPS)
        shutil.copytree(demo_bundle, directory / "model_store/bundles/demo")
        _write_environment(directory / ".venv")
        _write_raw_data(directory / "raw")
        (directory / ".curlrc").write_text(f'connect-to = "127.0.0.1:8000:127.0.0.1:{self.port}"\n')

    def run(self, script: str) -> str:
        """Standard output. Fails when a command of the script does."""
        command = ["bash", "-c", _PROLOGUE + script + _EPILOGUE]
        done = subprocess.run(
            command,
            check=False,
            cwd=self.directory,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=_COMMAND_S,
        )
        assert done.returncode == 0, f"{script}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def serve(self, script: str) -> None:
        """Starts a server instead of the one before, and waits until it is ready."""
        self.stop()
        log_path = self.directory / "server.log"
        with log_path.open("wb") as log:
            self._server = subprocess.Popen(
                ["bash", "-c", script],
                cwd=self.directory,
                env=self._environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_S
        while not self._is_ready():
            has_ended = self._server.poll() is not None
            assert not has_ended and time.monotonic() < deadline, f"{script}\n{log_path.read_text()}"
            time.sleep(0.1)

    def stop(self) -> None:
        if self._server is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._server.pid, signal.SIGTERM)
            self._server.wait(30)
            self._server = None

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _environment(self) -> dict[str, str]:
        inherited = {
            name: text for name, text in os.environ.items() if not name.startswith(("AUTOMR_", "MAKE", "MFLAGS"))
        }
        path = f"{self.directory / '.venv/bin'}{os.pathsep}{os.environ['PATH']}"
        port = str(self.port)
        own = {"PATH": path, "PORT": port, "AUTOMR_PORT": port, "AUTOMR_THREADS": "1", "OMP_NUM_THREADS": "1"}
        return inherited | own | {"CURL_HOME": str(self.directory), "NO_PROXY": "127.0.0.1", "HF_HUB_OFFLINE": "1"}


def _copy_sources(directory: Path) -> None:
    for name in _COPIED:
        if (ROOT / name).is_dir():
            left_out = ("__pycache__", *(["bundles"] if name == "model_store" else []))
            shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns(*left_out))
        else:
            shutil.copy2(ROOT / name, directory / name)


def _write_environment(venv: Path) -> None:
    """`.venv/bin/python` runs the interpreter of the tests; the stamps say that all packages are installed."""
    (venv / "bin").mkdir(parents=True)
    python = venv / "bin/python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    for stamp in _STAMPS:
        (venv / stamp).touch()


def _write_raw_data(directory: Path, num_users: int = 60, num_items: int = 40, num_events: int = 30) -> None:
    """A shop's `interactions.csv` and `items.csv`: each user walks from item to item, mostly to the next one."""
    directory.mkdir()
    chance = random.Random(0)
    kinds = ("tea", "clay", "wool", "oak")
    items = [(f"sku-{row}", f"Thing {row} of {kinds[row % 4]}", kinds[row % 4]) for row in range(num_items)]
    events = []
    for user in range(num_users):
        place = chance.randrange(num_items)
        for day in range(num_events):
            place = (place + chance.choice((1, 1, 2, 7))) % num_items
            events.append((f"u{user}", f"sku-{place}", 1_700_000_000 + 86_400 * day + user))
    for name, rows in (
        ("items", [("item_id", "title", "kind"), *items]),
        ("interactions", [("user_id", "item_id", "timestamp"), *events]),
    ):
        with (directory / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
