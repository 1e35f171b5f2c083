"""Row `automr`: AutoMR as published (arXiv 2412.17593). The generator is frozen: it was never tuned to read memory.

In: an evaluation, the generator of BIGRec. Out: lists. The steps are those of the paper, with the functions of the
product:

1. annotate: the mean gain in log-probability per token of the true title, for each memory alone (eq. 5)
2. train the retriever by the KL divergence to the softmax of the gains (eq. 6)
3. read the memory that the retriever ranks first, with the generator as it is; no voices

Two things are chosen by the gain on the valid period, which the paper leaves open: the temperature of the softmax, and
whether the retriever may read no memory where its null slot is better. Unlike the product, this row never switches all
memory off, so it shows what the method does even where memory does harm.

Where the bundle's own generator was not tuned to read memory, this row is the bundle itself.
"""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file

from model_store.bundle import Bundle, build_retriever
from model_store.manifest import RetrieverSpec
from model_store.memory.retriever import Retriever
from training.data.splits import Split
from training.items.item_knn import at_grid_end
from training.lm.backbone import Backbone
from training.lm.states import spans_of, window_states
from training.lm.windows import Windows
from training.memory.annotations import AnnotationSet, learning_targets, read_annotations, write_annotations
from training.memory.learning import RETRIEVER_FILE, fit_retriever, make_abstainer, save_retriever
from training.memory.selection import MemoryGains, valid_gains
from training.rows.evaluation import Evaluation, RankedLists, is_memory_tuned
from training.rows.generators import bigrec_generator, generator_directory
from training.rows.memory_choices import retriever_choice
from training.run.device import pick_device
from training.run.recipes import Recipe
from training.run.stage import begin, digest, finish, is_done, read_certificate

_VERSION = 1


class Candidate(NamedTuple):
    temperature: float
    may_abstain: bool


def frozen_automr(evaluation: Evaluation, seed: int) -> RankedLists:
    if not is_memory_tuned(evaluation.bundle):
        return evaluation.rank_with_memory(retriever_choice, "automr", voters="none")
    bundle = evaluation.compute_once(("automr", seed), lambda: train_frozen_automr(evaluation, seed))
    return evaluation.as_read_by(bundle).rank_with_memory(retriever_choice, "automr", voters="none")


def train_frozen_automr(evaluation: Evaluation, seed: int) -> Bundle:
    """The generator of BIGRec with a retriever of its own; loaded where it is trained. Raises StageError."""
    training, generator = evaluation.training, bigrec_generator(evaluation, seed)
    recipe, directory = published_recipe(training.require_recipe()), retriever_directory(evaluation, seed)
    inputs = directory.name
    if not is_done(directory, inputs):
        begin(directory)
        finish(directory, inputs, _train(evaluation.split, generator, recipe, seed=seed, directory=directory))
    may_abstain = bool(read_certificate(directory)["settings"]["may_abstain"])
    spec = RetrieverSpec.model_validate(
        {"width": recipe.retriever_width, "top_k": 1, "has_null": may_abstain, "combine": recipe.combine}
    )
    manifest = generator.manifest.model_copy(update={"retriever": spec})
    retriever = build_retriever(manifest)
    retriever.load_state_dict(load_file(directory / RETRIEVER_FILE))
    retriever = retriever.to(pick_device(training.device)).eval()
    return replace(generator, manifest=manifest, retriever=retriever)


def retriever_directory(evaluation: Evaluation, seed: int) -> Path:
    """Where the retriever is kept, trained or not. Raises StageError."""
    recipe = published_recipe(evaluation.training.require_recipe())
    tuned = generator_directory(evaluation, evaluation.recent_length, seed).name
    targets = [recipe.annotate_targets, recipe.valid_targets, recipe.held_out_labels, recipe.max_memory]
    network = [recipe.retriever, recipe.retriever_batch, recipe.retriever_width, recipe.label_temperatures]
    key = digest([_VERSION, tuned, targets, network, recipe.combine, seed])
    return evaluation.training.directory / f"automr-{key}"


def published_recipe(recipe: Recipe) -> Recipe:
    """`recipe` with the paper's loss, number of memories and generator, and with gains per token."""
    return replace(recipe, memory_share=0.0, retriever_losses=("kl",), top_ks=(1,), gain_form="log_gain")


def _train(split: Split, generator: Bundle, recipe: Recipe, *, seed: int, directory: Path) -> dict[str, Any]:
    """Writes the retriever and returns the facts of its certificate."""
    windows = Windows(split, generator.prompt, recipe.max_memory)
    annotated = _annotate(generator, windows, recipe, seed=seed, directory=directory).with_memory()
    if not annotated.teach or not annotated.choose:  # nobody has memory
        save_retriever(make_abstainer(Retriever(generator.lm.hidden_size, width=recipe.retriever_width)), directory)
        return {"settings": {"may_abstain": True}, "teach_targets": 0}
    candidates = _candidates(annotated, recipe, seed=seed, directory=directory)
    manifest = generator.manifest
    backbone = Backbone(manifest.backbone, manifest.vocabulary, generator.lm, generator.prompt)
    gains = valid_gains(
        candidates,
        recipe.top_ks,
        annotated.choose,
        backbone,
        windows,
        states=annotated.states,
        placement=recipe.combine,
    )
    best = max(candidates, key=lambda candidate: gains[candidate, 1].value.mean())
    save_retriever(candidates[best], directory)
    grid = {"temperature": recipe.label_temperatures}
    return {
        "settings": best._asdict(),
        "at_grid_end": at_grid_end(best._asdict(), grid),
        "teach_targets": len(annotated.teach),
        **_gain_facts(gains[best, 1]),
    }


def _annotate(generator: Bundle, windows: Windows, recipe: Recipe, *, seed: int, directory: Path) -> AnnotationSet:
    """Eq. 5 for targets that teach and targets that choose, of different users; kept until the retriever is trained.

    Nothing is judged: the retriever is used in any case.
    """
    learning = learning_targets(windows.split, recipe, seed)
    spans = spans_of(windows, [*learning["teach"], *learning["choose"]])
    states = window_states(generator.lm, windows, spans, directory / "checkpoints-states")
    found = {}
    for part in ("teach", "choose"):
        folder = directory / f"checkpoints-{part}"
        write_annotations(generator.lm, windows, learning[part], states, recipe=recipe, directory=folder)
        found[part] = read_annotations(folder)
    return AnnotationSet(teach=found["teach"], choose=found["choose"], judge=[], states=states)


def _candidates(annotated: AnnotationSet, recipe: Recipe, *, seed: int, directory: Path) -> dict[Candidate, Retriever]:
    """A retriever for each temperature, as it is and without its null slot."""
    candidates = {}
    for temperature in recipe.label_temperatures:
        checkpoints = directory / f"checkpoints-retriever-{temperature}"
        trained = fit_retriever(annotated, recipe, temperature=temperature, seed=seed, checkpoints=checkpoints)
        without_null = copy.deepcopy(trained.retriever)
        without_null.has_null = False
        candidates[Candidate(temperature, True)] = trained.retriever
        candidates[Candidate(temperature, False)] = without_null
    return candidates


def _gain_facts(gains: MemoryGains) -> dict[str, float]:
    facts = {"valid_gain_nats": round(float(gains.nats.mean()), 4)}
    return facts if gains.ndcg is None else facts | {"valid_gain_ndcg@10": round(float(gains.ndcg.mean()), 5)}
