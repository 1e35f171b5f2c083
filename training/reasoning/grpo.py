"""GRPO of the language model by trl: its trainer, with rollouts of our own that fetch memories between two turns.

In: a model with adapters, situations, the reward. Out: the same model, tuned in place, and facts. Only what the model
wrote itself counts in the loss (`env_mask`); no reference model (beta 0); one update for each batch of rollouts, so the
ratio of old and new policy is one. Checkpoints of the trainer make it resumable.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from model_store.reasoner.dialogue import Format
from model_store.reasoner.policy import Policy
from training.reasoning.judging import think
from training.reasoning.recipes import GROUP, GrpoSettings
from training.reasoning.situations import QUALITY_WEIGHT, SMALL_WEIGHT, Reward, Situation
from training.reasoning.tuning import inner_model
from training.run.stage import progress

_SAVED_EVERY = 20


class Rollouts:
    """`rollout_func` of trl. A prompt is the number of a situation, repeated for each rollout of its group."""

    def __init__(self, situations: Sequence[Situation], form: Format, seed: int) -> None:
        self.situations, self.form, self.seed = situations, form, seed

    def __call__(self, prompts: list[str], trainer: GRPOTrainer) -> dict[str, list[Any]]:
        numbers = [int(prompt) for prompt in prompts]
        assert all(len(set(numbers[at : at + GROUP])) == 1 for at in range(0, len(numbers), GROUP))
        asked = [self.situations[number] for number in numbers[::GROUP]]
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + trainer.state.global_step)
        policy = Policy(inner_model(trainer.accelerator.unwrap_model(trainer.model)), self.form)
        thoughts = think(policy, asked, GROUP, generator)
        starts = [[*self.form.head, *self.form.question(each.target.query, each.names)] for each in asked]
        return {
            "prompt_ids": [starts[row // GROUP] for row in range(len(thoughts))],
            "completion_ids": [thought.tokens for thought in thoughts],
            "logprobs": [[0.0] * len(thought.tokens) for thought in thoughts],  # not used without vLLM
            "env_mask": [[int(own) for own in thought.is_own] for thought in thoughts],
            "thought": thoughts,
        }


class RewardPart:
    """One part of the reward, without its weight; trl asks for a name."""

    def __init__(self, name: str, weight: float, situations: Sequence[Situation], reward: Reward) -> None:
        self.__name__, self._weight, self._situations, self._reward = name, weight, situations, reward

    def __call__(self, prompts: list[str], thought: list[Any], **_: Any) -> list[float]:
        return [self._of(self._situations[int(prompt)], each) for prompt, each in zip(prompts, thought, strict=True)]

    def _of(self, situation: Situation, thought: Any) -> float:
        parts = self._reward.parts(situation, thought.need, thought.used, thought.ideal, is_ended=thought.is_ended)
        return parts[self.__name__] / self._weight


def grpo(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    situations: Sequence[Situation],
    reward: Reward,
    *,
    settings: GrpoSettings,
    work: Path,
) -> dict[str, Any]:
    """Facts of the training: the mean reward of its first and last steps, and the share of tied groups."""
    weights = {"quality": QUALITY_WEIGHT, "complete": SMALL_WEIGHT, "helped": SMALL_WEIGHT}
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    parts: list[Any] = [RewardPart(name, weight, situations, reward) for name, weight in weights.items()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of trl and transformers, about names that change
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=parts,
            args=_options(settings, list(weights.values()), work),
            train_dataset=Dataset.from_dict({"prompt": [str(number) for number in range(len(situations))]}),
            processing_class=tokenizer,
            rollout_func=Rollouts(situations, Format(tokenizer), settings.seed),
        )
        for printing in (ProgressCallback, PrinterCallback):  # to stdout, where only the result belongs
            trainer.remove_callback(printing)
        trainer.add_callback(_Bar())
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(work)) if work.is_dir() else None)
    model.eval()
    return _facts(trainer.state.log_history)


class _Bar(TrainerCallback):
    """Progress like that of the other stages."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar = progress(total=state.max_steps, initial=state.global_step, desc="grpo", unit="step")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.update()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.close()


def _options(settings: GrpoSettings, weights: list[float], work: Path) -> GRPOConfig:
    on_gpu = torch.cuda.is_available()
    return GRPOConfig(
        output_dir=str(work),
        max_steps=settings.steps,
        per_device_train_batch_size=GROUP * settings.groups,
        gradient_accumulation_steps=1,
        num_generations=GROUP,
        max_completion_length=512,
        learning_rate=settings.rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=5,
        beta=0.0,
        scale_rewards="none",  # a group whose rewards differ by hundredths shall not count as much as others
        reward_weights=weights,
        bf16=False,  # the weights are bf16 already
        gradient_checkpointing=False,
        use_cpu=not on_gpu,
        save_steps=_SAVED_EVERY,
        save_total_limit=1,
        logging_steps=1,
        report_to=[],
        seed=settings.seed,
        dataloader_pin_memory=on_gpu,
    )


def _facts(history: Sequence[dict[str, Any]]) -> dict[str, Any]:
    rewards = [step["reward"] for step in history if "reward" in step]
    tied = [step["frac_reward_zero_std"] for step in history if "frac_reward_zero_std" in step]
    few = max(len(rewards) // 5, 1)
    return {
        "steps": len(rewards),
        "drawn_reward_first": round(float(np.mean(rewards[:few])), 5),
        "drawn_reward_last": round(float(np.mean(rewards[-few:])), 5),
        "tied": round(float(np.mean(tied)), 5),
    }
