"""Stage "reason": a language model learns to reason about queries in words, in place of the deterministic reasoner.

In: a data set with queries, OUT of `training.train_words` for it, a language model. Out: `reasoner/`, which a bundle
has beside the words, and a certificate. Each step has a folder of its own, so an interrupted run continues:

    head-room   what better aspects, memories and ideal items could win over the deterministic reasoner
    warm-up     supervised learning of dialogues that were verified to raise the rank of the truth
    raft        dialogues are drawn; the best of each group teach. Says how many groups have equal rewards
    grpo        GRPO by trl, with retrieval between the two turns
    reasoner    the step with the best reward on users that choose, and the weights of the ranking that fit it

Rewards are of valid users: some teach, some choose, some judge. `--bundle` puts the reasoner into a bundle with words,
unless the ranking with it is worse than with the deterministic reasoner on the users that judge.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.data.dataset import load_dataset
from training.reasoning.pipeline import Reasoning, put_into_bundle
from training.reasoning.recipes import reason_recipe
from training.run.program import run_program
from training.words.split import words_split


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="data set directory with queries.parquet")
    parser.add_argument("--words", type=Path, required=True, help="OUT of training.train_words for this data set")
    parser.add_argument("--out", type=Path, required=True, help="directory this stage writes")
    parser.add_argument("--model", default="smollm2", help="smollm2, a checkpoint folder, a GGUF file or a hub name")
    parser.add_argument("--recipe", default="small", help="named settings, see training/reasoning/recipes.py")
    parser.add_argument("--bundle", type=Path, help="bundle with words of the same data set, which gets the reasoner")
    parser.add_argument("--even-if-worse", action="store_true", help="put it into the bundle also where it is worse")
    parser.add_argument("--seed", type=int, default=0)

    def stage(options: argparse.Namespace) -> dict[str, Any]:
        split = words_split(load_dataset(options.data))
        recipe = reason_recipe(options.recipe)
        made = Reasoning(split, options.words, options.out, model=options.model, recipe=recipe, seed=options.seed)
        facts = made.run()
        if options.bundle:
            put_into_bundle(options.out, options.words, options.bundle, even_if_worse=options.even_if_worse)
        return facts

    return run_program(stage, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
