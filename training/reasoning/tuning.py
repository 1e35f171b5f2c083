"""Adapters for the language model, and supervised learning of dialogues.

Only adapters of the upper layers learn (LoRA): the lower ones need no gradients, which takes a third of the time. The
loss counts the tokens that the model itself writes: letters, the ideal item, ends of lines.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from model_store.reasoner.dialogue import Format
from model_store.reasoner.policy import Thought
from training.reasoning.recipes import TuningSettings
from training.reasoning.situations import Situation
from training.reasoning.traces import Trace
from training.run.loop import Schedule, fit

_MATRICES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_IGNORED = -100
_HELD_OUT = 10  # one dialogue of so many


class Dialogue(NamedTuple):
    """`tokens` of the whole dialogue; `is_own`: those that the model writes."""

    tokens: list[int]
    is_own: list[bool]


def dialogue_of(trace: Trace, form: Format) -> Dialogue:
    situation, letters = trace.situation, form.letters
    parts: list[tuple[list[int], bool]] = [
        ([*form.head, *form.question(situation.target.query, situation.names)], False),
        ([letters.aspects[place] for place in trace.need], True),
        ([letters.end], len(trace.need) < min(3, len(situation.offered))),
        (form.memories(situation.texts(trace.need)), False),
        ([letters.memories[place] for place in trace.used], True),
        ([letters.end], len(trace.used) < min(3, len(situation.texts(trace.need)))),
        (form.ideal, False),
        ([*form.written(trace.ideal), letters.end], True),
    ]
    tokens = [token for part, _ in parts for token in part]
    return Dialogue(tokens, [own for part, own in parts for _ in part])


def thought_dialogue(situation: Situation, thought: Thought, form: Format) -> Dialogue:
    """What the model drew itself."""
    start = [*form.head, *form.question(situation.target.query, situation.names)]
    return Dialogue([*start, *thought.tokens], [*[False] * len(start), *thought.is_own])


def adapted(model: PreTrainedModel, settings: TuningSettings, saved: Path | None = None) -> PeftModel:
    """The model with adapters, which learn: new ones, or those of a folder that peft wrote."""
    if saved is not None:
        found: PeftModel = PeftModel.from_pretrained(model, saved, is_trainable=True)
        return found
    total = model.config.num_hidden_layers
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=2 * settings.rank,
        lora_dropout=0.0,
        target_modules=[name for name in _MATRICES if name in names],
        layers_to_transform=list(range(max(total - settings.top_layers, 0), total)),
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(settings.seed)
    found = get_peft_model(model, config)
    return found


def inner_model(model: PeftModel) -> PreTrainedModel:
    """The model itself, with the adapters in its layers."""
    inner = model.get_base_model()
    assert isinstance(inner, PreTrainedModel)
    return inner


def learn(
    model: PeftModel, dialogues: Sequence[Dialogue], settings: TuningSettings, schedule: Schedule, work: Path
) -> dict[str, float]:
    """Supervised steps on all dialogues but a tenth, whose loss ends the training early. `work`: checkpoints."""
    held_out = dialogues[::_HELD_OUT] if len(dialogues) >= _HELD_OUT else dialogues
    taught = [each for place, each in enumerate(dialogues) if place % _HELD_OUT] or dialogues

    def loss_at(batch: int) -> Tensor:
        chosen = random.Random(f"{settings.seed} {batch}").choices(range(len(taught)), k=settings.batch)
        return _loss(model, [taught[place] for place in chosen])

    @torch.inference_mode()
    def validate() -> float:
        parts = [held_out[at : at + settings.batch] for at in range(0, len(held_out), settings.batch)]
        return sum(_loss(model, part).item() * len(part) for part in parts) / len(held_out)

    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    model.train()
    done = fit(weights, loss_at, validate, schedule, checkpoints=work, label=work.parent.name, seed=settings.seed)
    model.eval()
    return {"steps": done.step, "best_step": done.best_step, "valid_loss": round(done.best_loss, 5)}


def _loss(model: PeftModel, dialogues: Sequence[Dialogue]) -> Tensor:
    """The head scores only the places before own tokens."""
    longest = max(len(each.tokens) for each in dialogues)
    tokens = torch.zeros(len(dialogues), longest, dtype=torch.long)
    labels = torch.full((len(dialogues), longest), _IGNORED)
    for row, (ids, own) in enumerate(dialogues):
        tokens[row, : len(ids)] = torch.tensor(ids)
        labels[row, : len(ids)] = torch.where(torch.tensor(own), tokens[row, : len(ids)], _IGNORED)
    inner = inner_model(model)
    tokens, labels = tokens.to(inner.device), labels.to(inner.device)
    states = inner.base_model(input_ids=tokens).last_hidden_state[:, :-1]
    wanted = labels[:, 1:]
    chosen = wanted != _IGNORED
    logits = inner.get_output_embeddings()(states[chosen]).float()
    return torch.nn.functional.cross_entropy(logits, wanted[chosen])
