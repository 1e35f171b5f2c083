"""A bundle on disk: opened with every file verified, written so that a half-made one is never seen.

    manifest.json          written last; its presence is the proof that the rest is whole
    lm/                    a Hugging Face checkpoint (safetensors) and its tokenizer, adapters merged; see checkpoint.py
    retriever.safetensors
    items.jsonl            the catalogue; line number = row
    items.safetensors      what follows from the catalogue, to be mapped instead of made again (optional)
    items.faiss            title embeddings; id = row
    neighbors.safetensors  what was read next to what, or is called alike (item vocabulary, optional)

The only file that knows all the others. Nothing in a bundle is ever unpickled.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from model_store.catalogue.catalogue import Catalogue, Item, read_items, write_items
from model_store.errors import (
    BundleCorrupt,
    BundleError,
    BundleNotFound,
    FormatTooNew,
    SpaceMismatch,
    UnsupportedBackbone,
)
from model_store.grounding import ItemIndex
from model_store.lm.checkpoint import load_lm
from model_store.lm.split_lm import SplitLM
from model_store.manifest import FORMAT_VERSION, FileEntry, Manifest, space_id
from model_store.memory.codec import StateCodec
from model_store.memory.retriever import Retriever
from model_store.neighbors import Neighbors
from model_store.text.prompt import ItemPrompt, Prompt
from model_store.text.vocabulary import TITLES_FILE

MANIFEST, LM, RETRIEVER, ITEMS, INDEX = "manifest.json", "lm", "retriever.safetensors", "items.jsonl", "items.faiss"
COLUMNS, NEIGHBORS = "items.safetensors", "neighbors.safetensors"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json")
_WEIGHTS_AND_TOKENS = (".safetensors", "config.json", TITLES_FILE, *_TOKENIZERS)


@dataclass
class Bundle:
    """Everything that answers requests. `catalogue` and `index` are replaced when items change; the rest stays."""

    manifest: Manifest
    prompt: Prompt
    lm: SplitLM
    retriever: Retriever
    catalogue: Catalogue
    index: ItemIndex
    neighbors: Neighbors | None = None

    @cached_property
    def codec(self) -> StateCodec:
        return StateCodec(self.manifest.space, self.manifest.backbone.hidden_size, self.manifest.memory.state_dtype)

    @classmethod
    def open(cls, path: Path | str, *, device: torch.device | str = "cpu") -> Self:
        """Raises BundleNotFound, BundleCorrupt, FormatTooNew, SpaceMismatch or UnsupportedBackbone."""
        path = Path(path)
        manifest = read_manifest(path)
        _verify_parts(path, manifest)
        verify_files(path, manifest)
        _verify_space(path, manifest)
        lm, prompt = load_lm(path / LM, manifest.backbone, manifest.prompt, manifest.vocabulary, device=device)
        retriever = build_retriever(manifest)
        _load_weights(retriever, path / RETRIEVER)
        bundle = cls(
            manifest=manifest,
            prompt=prompt,
            lm=lm,
            retriever=retriever.to(device).eval(),
            catalogue=_open_catalogue(path, manifest, prompt),
            index=ItemIndex.load(path / INDEX),
            neighbors=Neighbors.load(path / NEIGHBORS) if manifest.generation.neighbor_share else None,
        )
        bundle._check_sizes(path)
        bundle._check_window(path)
        return bundle

    def _check_sizes(self, path: Path) -> None:
        sizes = {len(self.catalogue), len(self.index), self.manifest.num_items}
        if len(sizes) > 1:
            raise BundleCorrupt(f"{path}: catalogue, index and manifest disagree on the number of items: {sizes}")
        if self.neighbors is not None:
            self._check_neighbors(path, self.neighbors)

    def _check_neighbors(self, path: Path, neighbors: Neighbors) -> None:
        if not isinstance(self.prompt, ItemPrompt):
            raise BundleCorrupt(f"{path}: only the item vocabulary has neighbours; build the bundle again")
        if max(len(neighbors.starts) - 1, neighbors.indices.max(initial=0) + 1) > len(self.prompt.vocabulary):
            raise BundleCorrupt(f"{path}: neighbours of items that the vocabulary lacks; build the bundle again")

    def _check_window(self, path: Path) -> None:
        """A token may see the prompt, the memory and the title before it. Other beams take columns, not positions."""
        longest = self.prompt.max_tokens + self.manifest.retriever.top_k + self.prompt.longest_title
        window = self.lm.attention_window
        if window is not None and window < longest:
            raise UnsupportedBackbone(
                f"{path}: prompt, memory and answer may take {longest} tokens, more than the {window} that the model's"
                " sliding attention sees; lower recent_length or max_title_tokens"
            )


def build_retriever(manifest: Manifest) -> Retriever:
    spec = manifest.retriever
    return Retriever(manifest.backbone.hidden_size, width=spec.width, has_null=spec.has_null)


def _open_catalogue(path: Path, manifest: Manifest, prompt: Prompt) -> Catalogue:
    if COLUMNS in manifest.files:
        return Catalogue.open(path / ITEMS, path / COLUMNS, prompt)
    return Catalogue(read_items(path / ITEMS), prompt)


def _load_weights(retriever: Retriever, file: Path) -> None:
    try:
        retriever.load_state_dict(load_file(file))
    except RuntimeError as error:
        raise BundleCorrupt(
            f"{file}: weights of another shape than the manifest's retriever; build it again"
        ) from error


def read_manifest(path: Path) -> Manifest:
    """Checks the format version before anything else, since later versions may have other fields."""
    file = path / MANIFEST
    if not file.is_file():
        raise BundleNotFound(
            f"{path}: no {MANIFEST}; try `make demo` or `python -m training.pipeline --data DATASET --out {path}`"
        )
    try:
        facts = json.loads(file.read_bytes())
        version = facts["format_version"]
        if version > FORMAT_VERSION:
            raise FormatTooNew(
                f"{path}: bundle format {version}, but this software reads up to {FORMAT_VERSION}; upgrade"
            )
        return Manifest.model_validate(facts)
    except (ValueError, TypeError, KeyError, ValidationError) as error:
        raise BundleCorrupt(f"{file}: not a manifest ({type(error).__name__}); build the bundle again") from error


def _verify_parts(path: Path, manifest: Manifest) -> None:
    """What is opened must be listed, or it would be opened without its checksum verified."""
    needed = {RETRIEVER, ITEMS, INDEX} | ({NEIGHBORS} if manifest.generation.neighbor_share else set())
    missing = needed - manifest.files.keys()
    if missing:
        raise BundleCorrupt(
            f"{path}: {', '.join(sorted(missing))} is not among the files of the manifest; build it again"
        )


def verify_files(path: Path, manifest: Manifest) -> None:
    """Sizes and SHA-256 of all files. Extra files are nobody's business, but in the folder that transformers reads."""
    for file in sorted((path / LM).glob("[!.]*")):
        if f"{LM}/{file.name}" not in manifest.files and not file.is_dir():
            raise BundleCorrupt(
                f"{path}: {LM}/{file.name} does not belong to the bundle and may change its model; remove it"
            )
    for name, entry in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise BundleCorrupt(f"{path}: {name} is missing; copy the bundle again or build it again")
        if file.stat().st_size != entry.num_bytes:
            raise BundleCorrupt(f"{path}: {name} has {file.stat().st_size} bytes, not {entry.num_bytes}; copy it again")
    digests = sha256_of_all(path / name for name in manifest.files)
    for (name, entry), digest in zip(manifest.files.items(), digests, strict=True):
        if digest != entry.sha256:
            raise BundleCorrupt(f"{path}: {name} differs from its checksum; copy the bundle again or build it again")


def _verify_space(path: Path, manifest: Manifest) -> None:
    weights = weights_sha256({name: entry for name, entry in manifest.files.items() if name.startswith(LM + "/")})
    backbone = manifest.backbone.model_copy(update={"weights_sha256": weights})
    if space_id(backbone, manifest.prompt, manifest.memory) != manifest.space:
        raise SpaceMismatch(
            f"{path}: the language model is not the one that space {manifest.space} was made with; build it again"
        )


def sha256_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_all(files: Iterable[Path]) -> list[str]:
    """On all cores: hashing lets other threads run."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(sha256_of, files))


def weights_sha256(files: dict[str, FileEntry]) -> str:
    """One digest of what the language model computes: weights, configuration and tokenizer."""
    relevant = {Path(name).name: entry.sha256 for name, entry in files.items() if name.endswith(_WEIGHTS_AND_TOKENS)}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


def describe_files(root: Path) -> dict[str, FileEntry]:
    """Size and checksum of every file below `root`, by relative name."""
    files = sorted(file for file in root.rglob("*") if file.is_file() and file.name != MANIFEST)
    return {
        file.relative_to(root).as_posix(): FileEntry(num_bytes=file.stat().st_size, sha256=digest)
        for file, digest in zip(files, sha256_of_all(files), strict=True)
    }


class BundleWriter:
    """Collects the parts beside the target, then renames the folder in one step. An existing bundle is replaced.

    with BundleWriter(path) as writer:
        writer.add_lm(directory); writer.add_retriever(retriever); writer.add_catalogue(catalogue)
        writer.add_index(index)
        writer.finish(manifest)
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __enter__(self) -> Self:
        """Raises BundleError when the target holds something else than a bundle: replacing would delete it."""
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
        shutil.copytree(directory, self._draft / LM, ignore=shutil.ignore_patterns("stage.json"))

    def add_retriever(self, retriever: Retriever) -> None:
        weights = {name: tensor.contiguous().cpu() for name, tensor in retriever.state_dict().items()}
        save_file(weights, self._draft / RETRIEVER)

    def add_items(self, items: Iterable[Item]) -> None:
        """The items alone: what follows from them is made each time the bundle is opened."""
        write_items(items, self._draft / ITEMS)

    def add_catalogue(self, catalogue: Catalogue) -> None:
        """The items, and what follows from them."""
        catalogue.save(self._draft / ITEMS, self._draft / COLUMNS)

    def add_index(self, index: ItemIndex) -> None:
        index.save(self._draft / INDEX)

    def add_neighbors(self, neighbors: Neighbors) -> None:
        neighbors.save(self._draft / NEIGHBORS)

    def finish(self, manifest: Manifest) -> Manifest:
        """Completes `files`, checks the space, and makes the bundle appear. Returns the manifest as written."""
        manifest = manifest.model_copy(update={"files": describe_files(self._draft)})
        _verify_parts(self.path, manifest)
        _verify_space(self.path, manifest)
        (self._draft / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        _sync(self._draft)
        self._draft.chmod(0o755)  # mkdtemp makes it private; a server under another user must be able to read it
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
