"""What all programs of training share: options, one line of JSON at the end, errors as one line.

Exit status: 0 done, 2 an error that the user can fix, 130 interrupted.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from model_store.errors import ModelStoreError
from training.data.dataset import DataError
from training.run.distributed import is_torchrun, process_group
from training.run.inputs import SPLITS, load_inputs
from training.run.recipes import get_recipe
from training.run.stage import StageError, json_value, read_certificate


def run_program(
    main: Callable[[argparse.Namespace], dict[str, Any]], arguments: argparse.Namespace, *, is_shared: bool = False
) -> int:
    """Runs `main` and prints its facts as one line of JSON. Returns the exit status.

    `is_shared`: the program can share its work among the processes that torchrun started.
    """
    started = time.monotonic()
    # Asks torch for large pages; must be set before its first buffer. The logits of a step are fresh memory, and to map
    # it in pages of 4 KiB takes longer than to compute them (a head of 12,000 tokens, both passes: 2.4 times faster).
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        if is_torchrun() and not is_shared:
            raise StageError("this stage runs in one process; start it without torchrun")
        with process_group() as is_first:
            facts = main(arguments)
    except (StageError, DataError, ModelStoreError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; run the same command again to continue from here.", file=sys.stderr)
        return 130
    if is_first:
        print(json.dumps({**facts, "seconds": round(time.monotonic() - started, 1)}, default=json_value))
    return 0


def stage_parser(description: str, *, needs: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The options that every stage has; `needs` names the directories of earlier stages."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="data set directory (see training.prepare)")
    parser.add_argument("--out", type=Path, required=True, help="directory this stage writes")
    for name in needs:
        parser.add_argument(f"--{name}", type=Path, required=True, help=f"directory of the {name} stage")
    parser.add_argument("--recipe", default="cpu-small", help="named settings, see training/run/recipes.py")
    parser.add_argument("--cut", default="time", choices=tuple(SPLITS), help="how data is split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser


def main_after_backbone(
    description: str, run: Callable[..., dict[str, Any]], stage_key: Callable[..., str], argv: Sequence[str] | None
) -> int:
    """The `main` of a stage that needs a data set and a backbone. Returns the exit status.

    `run` and `stage_key` are the functions of that name in the program's module.
    """
    parser = stage_parser(description, needs=["backbone"])

    def stage(arguments: argparse.Namespace) -> dict[str, Any]:
        _, split, fingerprint = load_inputs(arguments.data, arguments.cut)
        recipe, upstream = get_recipe(arguments.recipe), read_certificate(arguments.backbone)
        return run(
            split,
            arguments.out,
            backbone_dir=arguments.backbone,
            recipe=recipe,
            inputs=stage_key(fingerprint, upstream, recipe, arguments.seed),
            seed=arguments.seed,
            device=arguments.device,
        )

    return run_program(stage, parser.parse_args(argv))
