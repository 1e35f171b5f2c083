"""Stage 4: embed every title, index the vectors, and write the bundle that the service opens.

In: a data set, a backbone, a retriever, voices. Out: a bundle (see model_store/README.md). The catalogue holds all
items of the data that have a title, also those that are too rare to be evaluated: they can be recommended too.
"""

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from model_store.bundle import Bundle, BundleWriter, build_retriever
from model_store.catalogue.catalogue import Catalogue
from model_store.catalogue.items import ADDED_AT, Item, clean
from model_store.errors import EmptyCatalogue
from model_store.event_types import EventTypes
from model_store.files import MANIFEST, read_manifest
from model_store.grounding import ItemIndex
from model_store.inference import embed
from model_store.manifest import GenerationSpec, Manifest, MemorySpec, RetrieverSpec, space_id
from model_store.voices.voices import Voices
from training.data.dataset import Dataset
from training.data.splits import Split
from training.items.voice_files import VOICES_FILE
from training.lm.backbone import Backbone, open_backbone
from training.lm.windows import token_batches
from training.memory.learning import RETRIEVER_FILE
from training.run.device import pick_device
from training.run.inputs import load_inputs
from training.run.program import run_program, stage_parser
from training.run.recipes import Recipe, get_recipe
from training.run.stage import digest, progress, read_certificate

_TOKENS_PER_BATCH = 16_384


def catalogue_items(dataset: Dataset, split: Split) -> list[Item]:
    """All items of the data; popularity is that of the train period. Raises EmptyCatalogue.

    An exported data set says which items came while the service ran, so that after the training they are still new.
    """
    if dataset.items.is_empty():
        raise EmptyCatalogue(f"{dataset.name}: no item has a title, so there is nothing to recommend")
    popularity = dict(zip(split.item_ids, split.popularity.tolist(), strict=True))
    return [
        clean(
            Item(
                item_id,
                title,
                popularity=popularity.get(item_id, 0),
                attributes=_plain(attributes),
                added_at=added_at if isinstance(added_at, int) else None,
            )
        )
        for row in dataset.items.to_dicts()
        for item_id, title, added_at, attributes in [
            (row.pop("item_id"), row.pop("title"), row.pop(ADDED_AT, None), row)
        ]
    ]


def _plain(attributes: dict[str, Any]) -> dict[str, Any]:
    """The attributes that a filter can use: no missing values, no nested ones."""
    return {name: value for name, value in attributes.items() if isinstance(value, str | int | float | bool | list)}


def embed_items(backbone: Backbone, items: Sequence[Item]) -> np.ndarray:
    """(N, D) float32 vectors of the titles, for grounding."""
    prompts = [backbone.prompt.tokens([item.title]) for item in items]
    vectors = np.empty((len(items), backbone.lm.hidden_size), dtype=np.float32)
    bar = progress(total=len(items), desc="embed titles", unit="title")
    for rows in token_batches([len(prompt) for prompt in prompts], _TOKENS_PER_BATCH):
        vectors[rows] = embed(backbone.lm, [prompts[row] for row in rows])
        bar.update(len(rows))
    bar.close()
    return vectors


def stage_key(dataset: Dataset, upstream: Sequence[dict[str, Any]], recipe: Recipe) -> str:
    """Changes with everything that changes the bundle. `upstream` are the certificates of retriever and voices."""
    types = [] if dataset.event_types == EventTypes() else [dataset.event_types.digest]
    return digest([upstream, dataset.items.to_dicts(), recipe.num_beams, recipe.state_dtype, *types])


def run(
    dataset: Dataset,
    split: Split,
    out: Path,
    *,
    backbone_dir: Path,
    retriever_dir: Path,
    voices_dir: Path,
    recipe: Recipe,
    inputs: str,
    provenance: dict[str, Any],
    device: str = "auto",
) -> dict[str, Any]:
    """Returns the bundle's path, space and number of items. Does nothing when `out` is a bundle of the same inputs."""
    if (out / MANIFEST).is_file() and read_manifest(out).provenance.get("inputs") == inputs:
        return _facts(out, read_manifest(out))
    backbone = open_backbone(backbone_dir, pick_device(device))
    trained, voted = read_certificate(retriever_dir), read_certificate(voices_dir)
    items = catalogue_items(dataset, split)
    provenance = {**provenance, "inputs": inputs, "retriever": trained, "voices": voted}
    manifest = _manifest(out.name, backbone, recipe, num_items=len(items), provenance=provenance)
    retriever = build_retriever(manifest)
    retriever.load_state_dict(load_file(retriever_dir / RETRIEVER_FILE))
    with BundleWriter(out) as writer:
        writer.add_lm(backbone_dir / "lm")
        writer.add_retriever(retriever)
        writer.add_catalogue(Catalogue(items, backbone.prompt))
        writer.add_index(ItemIndex.build(embed_items(backbone, items)))
        if dataset.event_types != EventTypes():
            writer.add_event_types(dataset.event_types)
        if manifest.voices is not None:
            writer.add_voices(Voices.load(voices_dir / VOICES_FILE, manifest.voices))
        manifest = writer.finish(manifest)
    Bundle.open(out)  # fails here rather than in the service
    return _facts(out, manifest)


def _facts(out: Path, manifest: Manifest) -> dict[str, Any]:
    return {"bundle": str(out), "space": manifest.space, "items": manifest.num_items}


def _manifest(name: str, backbone: Backbone, recipe: Recipe, *, num_items: int, provenance: dict[str, Any]) -> Manifest:
    memory = MemorySpec(max_elements=recipe.max_memory, state_dtype=recipe.state_dtype)
    return Manifest(
        name=name,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        vocabulary=backbone.vocabulary,
        backbone=backbone.spec,
        prompt=backbone.prompt.spec,
        memory=memory,
        retriever=RetrieverSpec.model_validate(
            {
                "width": recipe.retriever_width,
                "combine": recipe.combine,
                **{name: provenance["retriever"][name] for name in ("top_k", "always_abstains")},
            }
        ),
        generation=GenerationSpec(num_beams=recipe.num_beams),
        voices=provenance["voices"]["spec"],
        num_items=num_items,
        space=space_id(backbone.spec, backbone.prompt.spec, memory),
        provenance=provenance,
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = stage_parser(__doc__ or "", needs=["backbone", "retriever", "voices"])

    def stage(arguments: argparse.Namespace) -> dict[str, Any]:
        dataset, split, _ = load_inputs(arguments.data, arguments.cut)
        recipe = get_recipe(arguments.recipe)
        return run(
            dataset,
            split,
            arguments.out,
            backbone_dir=arguments.backbone,
            retriever_dir=arguments.retriever,
            voices_dir=arguments.voices,
            recipe=recipe,
            inputs=stage_key(
                dataset, [read_certificate(arguments.retriever), read_certificate(arguments.voices)], recipe
            ),
            provenance={"data": dataset.name, "cut": arguments.cut, "recipe": arguments.recipe},
            device=arguments.device,
        )

    return run_program(stage, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
