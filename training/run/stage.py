"""The directory of a stage: files that appear whole, and a certificate that is written last.

A stage is done if its directory holds a `stage.json` with the same inputs. Otherwise it runs (again) and continues from
the partial results it finds there. Knows nothing of models.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from training.run.distributed import is_main

CERTIFICATE = "stage.json"


class StageError(Exception):
    """A stage cannot run because something it needs is wrong or missing. The message says what to do."""


def digest(facts: Any) -> str:
    """12 hex characters that change with `facts`, which may be anything that JSON or `str` can write."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def read_certificate(directory: Path) -> dict[str, Any]:
    """Raises StageError when the stage has not finished."""
    file = directory / CERTIFICATE
    if not file.is_file():
        raise StageError(f"{directory}: no {CERTIFICATE}, so this stage has not finished; run it first")
    facts: dict[str, Any] = json.loads(file.read_text())
    return facts


def is_done(directory: Path, inputs: str) -> bool:
    """Whether the directory holds the finished result of the same inputs."""
    return (directory / CERTIFICATE).is_file() and read_certificate(directory).get("inputs") == inputs


def begin(directory: Path) -> None:
    """Creates the directory and removes its certificate, so that an interrupted run does not look finished."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CERTIFICATE).unlink(missing_ok=True)


def finish(directory: Path, inputs: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Writes and returns the certificate, and deletes the checkpoints."""
    write_json(directory / CERTIFICATE, {"inputs": inputs, **facts})
    for checkpoints in directory.glob("checkpoints-*"):
        shutil.rmtree(checkpoints)
    return read_certificate(directory)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a draft path to write to. The draft replaces `path` once it is complete and on disk."""
    draft = path.with_name(f".{path.name}.draft")
    yield draft
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(path)


def write_json(path: Path, facts: Any) -> None:
    """Atomic; numpy scalars become numbers, anything else that JSON does not know becomes text."""
    with atomic_file(path) as draft:
        draft.write_text(json.dumps(facts, indent=2, default=json_value) + "\n", encoding="utf-8")


def json_value(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)


def progress(iterable: Any = None, **options: Any) -> tqdm:
    """A progress bar on stderr, of the main process only. In a file or a pipe it prints every ten seconds."""
    return tqdm(iterable, mininterval=0.5 if sys.stderr.isatty() else 10, disable=not is_main(), **options)
