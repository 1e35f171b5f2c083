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
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from model_store.errors import ModelStoreError
from training.data.dataset import DataError
from training.run.distributed import is_launched, is_main, joined

CERTIFICATE = "stage.json"
_MIN_BF16_WIDTH = 128  # below it casting costs as much as it saves: a step of the demo's model (64) takes longer


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


def autocast(device: torch.device, width: int) -> AbstractContextManager[Any]:
    """bf16 where it pays: on a GPU, and on a CPU with bf16 instructions for models of some `width` (hidden size)."""
    if device.type == "cuda":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return _autocast_cpu() if width >= _MIN_BF16_WIDTH and has_bf16_instructions() else nullcontext()


def has_bf16_instructions() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


@contextmanager
def _autocast_cpu() -> Iterator[None]:
    with torch.autocast("cpu", dtype=torch.bfloat16), _Float32Attention():
        yield


class _Float32Attention(TorchFunctionMode):
    """Attention as without autocast: torch's bf16 kernel on CPU goes back four times slower than its fp32 one."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            found = func(*(each.float() for each in args[:3]), *args[3:], **(kwargs or {}))
        return found.to(args[0].dtype)


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def progress(iterable: Any = None, **options: Any) -> tqdm:
    """A bar on stderr, of the main process; on a file or a pipe it speaks every ten seconds only."""
    return tqdm(iterable, mininterval=0.5 if sys.stderr.isatty() else 10, disable=not is_main(), **options)


def run_stage(
    main: Callable[[argparse.Namespace], dict[str, Any]], arguments: argparse.Namespace, *, is_shared: bool = False
) -> int:
    """Run, print one line of JSON, turn errors a user can mend into one line. Returns the exit status.

    `is_shared`: the stage knows how to share its work among the processes that torchrun started.
    """
    started = time.monotonic()
    # Large pages for torch's buffers, asked for before the first. The logits of a step are fresh memory; faulting it in
    # by 4 KiB pages costs more than computing them (a head of 12,000 words, forward and backward: 2.4 times faster).
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        if is_launched() and not is_shared:
            raise StageError("this stage is the work of one process; start it without torchrun")
        with joined() as is_first:
            facts = main(arguments)
    except (StageError, DataError, ModelStoreError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; run the same command again to go on from here.", file=sys.stderr)
        return 130
    if is_first:
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
