"""The steps of `training.reason`, each in a folder of its own, and what goes into a bundle."""

import shutil
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from model_store.bundle import BundleWriter
from model_store.files import WORDS as WORDS_IN_BUNDLE
from model_store.files import read_manifest
from model_store.reasoner.dialogue import Format
from model_store.reasoner.files import REASONER, save_reasoner
from model_store.reasoner.policy import Policy
from model_store.words.files import open_words
from training.lm.backbone import pretrained
from training.reasoning.fitting import fit_ranker, over_deterministic
from training.reasoning.headroom import headroom
from training.reasoning.judging import Sample, drawn, first_rewards, gain, most_probable, spread
from training.reasoning.recipes import ReasonRecipe
from training.reasoning.situations import Reward, Situation, make_situations
from training.reasoning.traces import Trace, verified_traces
from training.reasoning.tuning import Dialogue, adapted, dialogue_of, inner_model, learn, thought_dialogue
from training.run.stage import StageError, begin, digest, finish, is_done, read_certificate
from training.words.split import VALID, WordsSplit, sample_query_targets
from training.words.training import CHOOSE, JUDGE, TEACH, role_of
from training.words.words_files import WORDS

STEPS = ("warm-up", "raft", "grpo")
_VERSION = 2
_LEAST_BEST_OVER_MEAN = 0.01  # of drawn groups: below, reinforcement learning has nothing to win


class Reasoning:
    """All steps for one data set, words and model. Raises StageError where an input is missing."""

    def __init__(
        self, split: WordsSplit, words_dir: Path, out: Path, *, model: str, recipe: ReasonRecipe, seed: int
    ) -> None:
        self.split, self.out, self.model_name, self.recipe, self.seed = split, out, model, recipe, seed
        self.words = open_words(words_dir / WORDS)
        self.reward = Reward(self.words.ranker)
        self.inputs = digest([_VERSION, split.fingerprint, read_certificate(words_dir), model, recipe, seed])

    def run(self) -> dict[str, Any]:
        """Returns the certificate. Finished steps are not repeated."""
        if is_done(self.out, self.inputs):
            return read_certificate(self.out)
        if self.recipe.draw_situations and find_spec("trl") is None:
            raise StageError("reinforcement learning of the reasoner needs trl: pip install 'automr[reason]'")
        begin(self.out)
        facts: dict[str, Any] = {}
        if self.recipe.headroom:
            facts["headroom"] = self._step("head-room", self._headroom)
        facts["warm_up"] = self._step("warm-up", self._warm_up)
        if self.recipe.draw_situations:
            facts["raft"] = self._step("raft", self._raft)
            if facts["raft"]["groups"]["best_over_mean"] >= _LEAST_BEST_OVER_MEAN:
                facts["grpo"] = self._step("grpo", self._grpo)
            else:
                facts["grpo"] = {"skipped": "the best of a drawn group is hardly better than its mean"}
        return finish(self.out, self.inputs, facts | self._judged())

    def _step(self, name: str, run: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        place, inputs = self.out / name, digest([self.inputs, name])
        if not is_done(place, inputs):
            begin(place)
            finish(place, inputs, run(place))
        return {name: value for name, value in read_certificate(place).items() if name != "inputs"}

    def _situations(self, role: str, limit: int) -> list[Situation]:
        targets = sample_query_targets(self.split.targets(VALID), len(self.split.queries), self.seed)
        order = np.random.default_rng(self.seed).permutation(len(targets)).tolist()
        own = [targets[place] for place in order if role_of(self.split.user_ids[targets[place].user]) == role]
        made = list(make_situations(self.split, self.words, own[:limit], desc=f"situations, {role}"))
        if not made:
            raise StageError(f"no valid query of users with the role {role!r} has memories; more data is needed")
        return made

    @cached_property
    def teachers(self) -> list[Situation]:
        return self._situations(TEACH, self.recipe.teach + self.recipe.explore)

    @property
    def teach(self) -> list[Situation]:
        """For supervised learning: a share of the situations, if there are fewer than the recipe asks for."""
        share = self.recipe.teach / (self.recipe.teach + self.recipe.explore)
        return self.teachers[: max(1, round(share * len(self.teachers)))]

    @property
    def explore(self) -> list[Situation]:
        """For reinforcement learning: the others."""
        return self.teachers[len(self.teach) :] or self.teachers

    @cached_property
    def choose(self) -> list[Situation]:
        return self._situations(CHOOSE, self.recipe.choose)

    @cached_property
    def judge(self) -> list[Situation]:
        return self._situations(JUDGE, self.recipe.judge)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return pretrained(self.model_name, torch.device("cpu"))[1]

    def _model(self, adapters: Path | None) -> PeftModel:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model, _ = pretrained(self.model_name, device)
        torch.nn.Module.to(model, device, torch.bfloat16)  # the model's own method has no types
        return adapted(model, self.recipe.tuning, adapters)

    def _policy(self, model: PeftModel) -> Policy:
        return Policy(inner_model(model), Format(self.tokenizer))

    # --- steps ----------------------------------------------------------------------------------------------------

    def _headroom(self, _: Path) -> dict[str, Any]:
        return headroom(self.teachers[: self.recipe.headroom], self.reward)

    def _warm_up(self, place: Path) -> dict[str, Any]:
        traces = verified_traces(self.teach, self.reward)
        if not traces:
            raise StageError("no dialogue raises the rank of the truth, so there is nothing to learn from memory here")
        form, model = Format(self.tokenizer), self._model(None)
        dialogues = [dialogue_of(trace, form) for trace in traces]
        learned = learn(model, dialogues, self.recipe.tuning, self.recipe.warm_up, place / "checkpoints-sft")
        model.save_pretrained(str(place))
        return {"traces": len(traces), "of": len(self.teach), **_about(traces, dialogues), **learned}

    def _raft(self, place: Path) -> dict[str, Any]:
        recipe, model = self.recipe, self._model(self.out / "warm-up")
        asked = self.explore[-recipe.draw_situations :]
        samples = drawn(self._policy(model), asked, self.reward, "drawn", times=recipe.draws, seed=self.seed)
        form = Format(self.tokenizer)
        best = [thought_dialogue(sample.situation, sample.best, form) for sample in samples if sample.has_better]
        facts = {"groups": spread(samples), "positive": len(best)}
        if best:
            facts |= learn(model, best, recipe.tuning, recipe.raft, place / "checkpoints-sft")
        model.save_pretrained(str(place))
        return facts

    def _grpo(self, place: Path) -> dict[str, Any]:
        from training.reasoning.grpo import grpo  # trl: seconds of import, only paid here

        model = self._model(self.out / "raft")
        facts = grpo(
            model, self.tokenizer, self.explore, self.reward, settings=self.recipe.grpo, work=place / "checkpoints-grpo"
        )
        model.save_pretrained(str(place))
        return facts

    # --- the result -----------------------------------------------------------------------------------------------

    def _judged(self) -> dict[str, Any]:
        """Chooses a step on the users that choose, fits the weights of the ranking, and judges on others."""
        done = [step for step in STEPS if (self.out / step / "adapter_config.json").is_file()]
        rewards = {step: self._step(f"choose-{step}", partial(self._mean_of, step)) for step in done}
        best = max(done, key=lambda step: float(rewards[step]["reward"]))
        judged = {
            step: self._thoughts(step, self.judge, f"judge, {step}") for step in dict.fromkeys(("warm-up", *done))
        }
        model = self._model(self.out / best)
        policy = self._policy(model)
        teaching = most_probable(policy, self.teachers[: self.recipe.fit], self.reward, "fit")
        choosing = most_probable(policy, self.choose, self.reward, "choose")
        ranker = fit_ranker(self.words.ranker, teaching, choosing)
        with TemporaryDirectory(dir=self.out) as draft:
            save_reasoner(model.merge_and_unload(), self.tokenizer, ranker, Path(draft) / REASONER)
            shutil.rmtree(self.out / REASONER, ignore_errors=True)
            (Path(draft) / REASONER).rename(self.out / REASONER)
        return {
            "chosen": best,
            "choose_reward": {step: rewards[step]["reward"] for step in done},
            "judge_gain_over_warm_up": {step: gain(judged["warm-up"], judged[step]) for step in done},
            "memory_scale": ranker.memory_scale,
            "judge_ndcg_over_deterministic": over_deterministic(judged[best], self.words.ranker, ranker),
        }

    def _thoughts(self, step: str, situations: Sequence[Situation], desc: str) -> list[Sample]:
        return most_probable(self._policy(self._model(self.out / step)), situations, self.reward, desc)

    def _mean_of(self, step: str, _: Path) -> dict[str, Any]:
        return {"reward": round(float(first_rewards(self._thoughts(step, self.choose, f"choose, {step}")).mean()), 5)}


def _about(traces: Sequence[Trace], dialogues: Sequence[Dialogue]) -> dict[str, Any]:
    return {
        "with_memory": round(float(np.mean([bool(trace.used) for trace in traces])), 4),
        "gain": round(float(np.mean([trace.gain for trace in traces])), 5),
        "tokens": round(float(np.mean([len(each.tokens) for each in dialogues])), 1),
    }


def put_into_bundle(out: Path, words_dir: Path, bundle: Path, *, even_if_worse: bool) -> None:
    """Replace the bundle, at once, by itself with the reasoner. Raises StageError or BundleError."""
    facts, manifest = read_certificate(out), read_manifest(bundle)
    if manifest.words is None:
        raise StageError(f"{bundle}: no words; put them into it first (training.train_words --bundle)")
    low, high = facts["judge_ndcg_over_deterministic"][1:]
    if high < 0 and not even_if_worse:
        raise StageError(
            f"the ranking with this reasoner is worse than without it (NDCG@100 {low} to {high} on users that judge);"
            " the bundle stays as it is; --even-if-worse puts it in"
        )
    with TemporaryDirectory(dir=bundle.parent) as draft, BundleWriter(bundle) as writer:
        words = Path(draft) / WORDS_IN_BUNDLE
        shutil.copytree(words_dir / WORDS, words)
        shutil.copytree(out / REASONER, words / REASONER)
        writer.add_all_but_words(bundle)
        writer.add_words(words)
        spec = manifest.words.model_copy(update={"has_reasoner": True})
        writer.finish(manifest.model_copy(update={"words": spec}))
