"""Stage 1: tune the language model to write the next title, and to read memory (see training/lm/tuning.py).

In: a data set. Out: a backbone directory. Can be started by torchrun: the processes share the batches of each step.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from training.lm import tuning
from training.run.inputs import load_inputs
from training.run.program import run_program, stage_parser
from training.run.recipes import get_recipe


def main(argv: Sequence[str] | None = None) -> int:
    parser = stage_parser(__doc__ or "")
    parser.add_argument(
        "--model", help="checkpoint folder, GGUF file, hub name or `smollm2`; without it a small model is made here"
    )

    def stage(arguments: argparse.Namespace) -> dict[str, Any]:
        _, split, fingerprint = load_inputs(arguments.data, arguments.cut)
        recipe = get_recipe(arguments.recipe)
        return tuning.run(
            split,
            arguments.out,
            recipe=recipe,
            inputs=tuning.stage_key(fingerprint, recipe, arguments.model, arguments.seed),
            model_name=arguments.model,
            seed=arguments.seed,
            device=arguments.device,
        )

    return run_program(stage, parser.parse_args(argv), is_shared=True)


if __name__ == "__main__":
    sys.exit(main())
