"""The command line of stages whose inputs are a data set and a backbone."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from training.run.inputs import load_inputs
from training.run.recipes import get_recipe
from training.run.stage import read_certificate, run_stage, stage_parser


def main_after_backbone(
    description: str, run: Callable[..., dict[str, Any]], stage_key: Callable[..., str], argv: Sequence[str] | None
) -> int:
    """`run` and `stage_key` as the modules of stages have them. Returns the exit status."""
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

    return run_stage(stage, parser.parse_args(argv))
