"""What all stages share: a directory with a certificate written last, a device, a seed, one line of JSON at the end.

A stage is done when `stage.json` stands in its directory and names the same inputs; otherwise it runs (again), and
resumes from whatever partial results it finds there. Knows nothing of models.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from model_store.errors import ModelStoreError
from training.data.dataset import DataError

CERTIFICATE = "stage.json"


class StageError(Exception):
    """A stage cannot run: something asked for is wrong or missing. The message says what to do."""


def digest(facts: Any) -> str:
    """12 hex characters for anything JSON can say."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def read_certificate(directory: Path) -> dict[str, Any]:
    """Raises StageError when the stage has not finished."""
    file = directory / CERTIFICATE
    if not file.is_file():
        raise StageError(f"{directory}: no {CERTIFICATE}, so this stage has not finished; run it first")
    facts: dict[str, Any] = json.loads(file.read_text())
    return facts


def is_done(directory: Path, inputs: str) -> bool:
    return (directory / CERTIFICATE).is_file() and read_certificate(directory).get("inputs") == inputs


def begin(directory: Path) -> None:
    """Before a finished stage's files are overwritten: a run cut short must not look like the old one."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CERTIFICATE).unlink(missing_ok=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A draft to write to; it takes the place of `path` once it is complete and on disk."""
    draft = path.with_name(f".{path.name}.draft")
    yield draft
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(path)


def write_json(path: Path, facts: Any) -> None:
    with whole_file(path) as draft:
        draft.write_text(json.dumps(facts, indent=2, default=_plain) + "\n", encoding="utf-8")


def finish(directory: Path, inputs: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Certifies the directory, then drops the checkpoints, which nobody needs any more."""
    write_json(directory / CERTIFICATE, {"inputs": inputs, **facts})
    for checkpoints in directory.glob("checkpoints-*"):
        shutil.rmtree(checkpoints)
    return read_certificate(directory)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)


def pick_device(name: str = "auto") -> torch.device:
    """Raises StageError for a device that this machine does not have."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise StageError(f"--device {name}: not usable here ({str(error).splitlines()[0]})") from error


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """bf16 where it pays: on a GPU. On CPU the small models trained there are bound by overhead, not by matrix rate."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if device.type == "cuda" else nullcontext()


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def progress(iterable: Any = None, **options: Any) -> tqdm:
    """A bar on stderr; on a file or a pipe it speaks every ten seconds only."""
    return tqdm(iterable, mininterval=0.5 if sys.stderr.isatty() else 10, **options)


def run_stage(main: Callable[[argparse.Namespace], dict[str, Any]], arguments: argparse.Namespace) -> int:
    """Run, print one line of JSON, turn errors a user can mend into one line. Returns the exit status."""
    started = time.monotonic()
    # Large pages for torch's buffers, asked for before the first. The logits of a step are fresh memory; faulting it in
    # by 4 KiB pages costs more than computing them (a head of 12,000 words, forward and backward: 2.4 times faster).
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        facts = main(arguments)
    except (StageError, DataError, ModelStoreError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; run the same command again to go on from here.", file=sys.stderr)
        return 130
    print(json.dumps({**facts, "seconds": round(time.monotonic() - started, 1)}, default=_plain))
    return 0


def stage_parser(description: str, *, needs: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Options that every stage has; `needs` names directories of earlier stages."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="data set directory (see training.prepare)")
    parser.add_argument("--out", type=Path, required=True, help="directory this stage writes")
    for name in needs:
        parser.add_argument(f"--{name}", type=Path, required=True, help=f"directory of the {name} stage")
    parser.add_argument("--recipe", default="cpu-small", help="named settings, see training/recipes.py")
    parser.add_argument("--cut", default="time", choices=("time", "leave-one-out"), help="how data is cut")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser
