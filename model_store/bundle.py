"""An opened bundle with its networks, and the writer of a new bundle.

`Bundle` adds to `BundleView` the language model, the retriever, the title index, the voices and the words. Opening
verifies every file; writing is atomic. Nothing is unpickled. See `files.py` for the files.
"""

import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from model_store.catalogue.catalogue import Catalogue
from model_store.catalogue.items import Item, write_items
from model_store.errors import BundleCorrupt, BundleError, UnsupportedBackbone
from model_store.event_types import EventTypes
from model_store.files import (
    COLUMNS,
    EVENT_TYPES,
    INDEX,
    ITEMS,
    LM,
    MANIFEST,
    RETRIEVER,
    VOICES,
    WORDS,
    describe_files,
    read_manifest,
    verify_files,
    verify_parts,
    verify_space,
)
from model_store.grounding import ItemIndex
from model_store.lm.checkpoint import load_lm
from model_store.lm.split_lm import SplitLM
from model_store.manifest import Manifest
from model_store.memory.retriever import Retriever
from model_store.reasoner.files import REASONER, open_reasoner
from model_store.reasoner.language import LanguageReasoner
from model_store.text.prompt import ItemPrompt, Prompt
from model_store.view import BundleView, open_catalogue, open_event_types
from model_store.voices.voices import Voices
from model_store.words.answer import Words
from model_store.words.files import open_words


@dataclass
class Bundle(BundleView):
    """All parts that are needed to answer requests. Item changes replace `catalogue` and update `index`."""

    prompt: Prompt
    lm: SplitLM
    retriever: Retriever
    index: ItemIndex
    voices: Voices | None = None
    words: Words | None = None
    reasoner: LanguageReasoner | None = None  # of queries in words

    @classmethod
    def open(cls, path: Path | str, *, device: torch.device | str = "cpu") -> Self:
        """Verify and load the bundle at `path`.

        Raises BundleNotFound, BundleCorrupt, FormatTooNew, SpaceMismatch or UnsupportedBackbone.
        """
        path = Path(path)
        manifest = read_manifest(path)
        verify_parts(path, manifest)
        verify_files(path, manifest)
        verify_space(path, manifest)
        lm, prompt = load_lm(path / LM, manifest.backbone, manifest.prompt, manifest.vocabulary, device=device)
        retriever = build_retriever(manifest)
        _load_weights(retriever, path / RETRIEVER)
        bundle = cls(
            manifest=manifest,
            prompt=prompt,
            lm=lm,
            retriever=retriever.to(device).eval(),
            catalogue=open_catalogue(path, manifest, prompt),
            index=ItemIndex.load(path / INDEX),
            voices=Voices.load(path / VOICES, manifest.voices) if manifest.voices else None,
            words=open_words(path / WORDS) if manifest.words else None,
            reasoner=_open_reasoner(path, manifest, device),
            event_types=open_event_types(path, manifest),
        )
        bundle._check_sizes(path)
        bundle._check_window(path)
        return bundle

    def tokens_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) the first tokens of the titles of catalogue rows. With the item vocabulary it is the only one."""
        return self.catalogue.trie.paths.first_tokens(rows).astype(np.int64)

    def _check_sizes(self, path: Path) -> None:
        if len(self.index) != len(self.catalogue):
            raise BundleCorrupt(
                f"{path}: the catalogue has {len(self.catalogue)} items, but the index has {len(self.index)} vectors"
            )
        if self.words is not None and len(self.words.index) != len(self.catalogue):
            raise BundleCorrupt(
                f"{path}: the catalogue has {len(self.catalogue)} items, but the words have {len(self.words.index)}"
            )
        if self.voices is not None:
            self._check_voices(path, self.voices)

    def _check_voices(self, path: Path, voices: Voices) -> None:
        if not isinstance(self.prompt, ItemPrompt):
            raise BundleCorrupt(f"{path}: voices need the item vocabulary; build the bundle again")
        if len(voices) > len(self.prompt.vocabulary):
            raise BundleCorrupt(
                f"{path}: the voices have tokens that are not in the vocabulary; build the bundle again"
            )

    def _check_window(self, path: Path) -> None:
        """Sliding attention must cover prompt, memory and title. Other beams take cache columns, but no positions."""
        longest = self.prompt.max_tokens + self.manifest.retriever.top_k + self.prompt.longest_title
        window = self.lm.attention_window
        if window is not None and window < longest:
            raise UnsupportedBackbone(
                f"{path}: prompt, memory and answer may have {longest} tokens, but the sliding attention of the model"
                f" sees {window}; lower recent_length or max_title_tokens"
            )


def _open_reasoner(path: Path, manifest: Manifest, device: torch.device | str) -> LanguageReasoner | None:
    has_reasoner = manifest.words is not None and manifest.words.has_reasoner
    return open_reasoner(path / WORDS / REASONER, device=device) if has_reasoner else None


def build_retriever(manifest: Manifest) -> Retriever:
    """A retriever with random weights and the sizes of `manifest`."""
    spec = manifest.retriever
    return Retriever(manifest.backbone.hidden_size, width=spec.width, has_null=spec.has_null)


def _load_weights(retriever: Retriever, file: Path) -> None:
    try:
        retriever.load_state_dict(load_file(file))
    except RuntimeError as error:
        raise BundleCorrupt(
            f"{file}: the shapes differ from those of the retriever in the manifest; build the bundle again"
        ) from error


class BundleWriter:
    """Collects the parts in a temporary directory beside the target, then renames it. Replaces an existing bundle.

    with BundleWriter(path) as writer:
        writer.add_lm(directory); writer.add_retriever(retriever); writer.add_catalogue(catalogue)
        writer.add_index(index)
        writer.finish(manifest)
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __enter__(self) -> Self:
        """Raises BundleError if the target is a directory with other content, which replacing would delete."""
        if self.path.exists() and not _may_be_replaced(self.path):
            raise BundleError(f"{self.path}: exists and is not a bundle; choose another path or remove it")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._draft = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=self.path.parent))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._draft, ignore_errors=True)

    def add_lm(self, directory: Path) -> None:
        """Copy a checkpoint directory (see lm/checkpoint.py)."""
        shutil.copytree(directory, self._draft / LM, ignore=shutil.ignore_patterns("stage.json"))

    def add_retriever(self, retriever: Retriever) -> None:
        weights = {name: tensor.contiguous().cpu() for name, tensor in retriever.state_dict().items()}
        save_file(weights, self._draft / RETRIEVER)

    def add_items(self, items: Iterable[Item]) -> None:
        """Write the items only. The columns are then computed each time the bundle is opened."""
        write_items(items, self._draft / ITEMS)

    def add_catalogue(self, catalogue: Catalogue) -> None:
        """Write the items and their columns."""
        catalogue.save(self._draft / ITEMS, self._draft / COLUMNS)

    def add_index(self, index: ItemIndex) -> None:
        index.save(self._draft / INDEX)

    def add_voices(self, voices: Voices) -> None:
        voices.save(self._draft / VOICES)

    def add_event_types(self, types: EventTypes) -> None:
        (self._draft / EVENT_TYPES).write_text(types.model_dump_json(indent=2) + "\n", encoding="utf-8")

    def add_words(self, directory: Path) -> None:
        """Copy a directory that `words.files.save_words` wrote, with a reasoner in it or without."""
        shutil.copytree(directory, self._draft / WORDS)

    def add_all_but_words(self, bundle: Path) -> None:
        """Copy the other files of a finished bundle."""
        left_out = shutil.ignore_patterns(MANIFEST, WORDS)
        shutil.copytree(bundle, self._draft, ignore=left_out, dirs_exist_ok=True)

    def finish(self, manifest: Manifest) -> Manifest:
        """Fill in `files`, check the space and move the bundle to its path. Returns the manifest as written."""
        manifest = manifest.model_copy(update={"files": describe_files(self._draft)})
        verify_parts(self.path, manifest)
        verify_space(self.path, manifest)
        (self._draft / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        _make_readable(self._draft)
        _sync(self._draft)
        if self.path.exists():
            retired = self._draft.with_name(self._draft.name + ".retired")
            self.path.rename(retired)
            self._draft.rename(self.path)
            shutil.rmtree(retired)
        else:
            self._draft.rename(self.path)
        return manifest


def _may_be_replaced(path: Path) -> bool:
    return path.is_dir() and ((path / MANIFEST).is_file() or not any(path.iterdir()))


def _sync(root: Path) -> None:
    for path in [root, *root.rglob("*")]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _make_readable(root: Path) -> None:
    """Let every user read the bundle: the service often runs under another user than the training.

    The temporary directory and the files that safetensors writes are otherwise readable by their owner only.
    """
    for path in [root, *root.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
