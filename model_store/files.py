"""The files of a bundle: their names, reading the manifest, and checking every file against it.

    manifest.json          written last; a directory with it is a complete bundle
    manifest.sig           its signature (optional, see signature.py)
    lm/                    a Hugging Face checkpoint (safetensors) with its tokenizer, adapters merged
    retriever.safetensors  weights of the retriever
    items.jsonl            the catalogue; line number = row
    items.safetensors      columns computed from the catalogue, memory-mapped when the bundle is opened (optional)
    items.faiss            title embeddings; id = row
    voices.safetensors     tables of near items and the networks that weigh them (item vocabulary, optional)
    event_types.json       what types of events mean (optional, see event_types.py)
    words/                 what answers queries in words (optional, see words/files.py)

README.md describes each file. Loads neither torch nor a tokenizer.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import ValidationError

from model_store.errors import BundleCorrupt, BundleNotFound, FormatTooNew, SpaceMismatch
from model_store.manifest import FORMAT_VERSION, FileEntry, Manifest, space_id
from model_store.text.vocabulary import TITLES_FILE

MANIFEST, LM, RETRIEVER, ITEMS, INDEX = "manifest.json", "lm", "retriever.safetensors", "items.jsonl", "items.faiss"
SIGNATURE = "manifest.sig"
COLUMNS, VOICES, WORDS = "items.safetensors", "voices.safetensors", "words"
REASONER = f"{WORDS}/reasoner"
_REASONER_FILES = ("config.json", "model.safetensors", "tokenizer.json", "ranker.safetensors")
EVENT_TYPES = "event_types.json"
_WORDS_FILES = ("words.json", "words.safetensors", "dense.faiss", "encoder/encoder.json")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json")
_MODEL_FILES = (".safetensors", "config.json", TITLES_FILE, *_TOKENIZER_FILES)


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of the bundle at `path`. Raises BundleNotFound, BundleCorrupt or FormatTooNew.

    The format version is checked first, because later versions may have other fields.
    """
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


def verify_parts(path: Path, manifest: Manifest) -> None:
    """Check that the manifest lists all files that are opened, because only listed files have a checksum.

    Raises BundleCorrupt.
    """
    needed = {RETRIEVER, ITEMS, INDEX} | ({VOICES} if manifest.voices else set())
    needed |= {f"{WORDS}/{name}" for name in _WORDS_FILES} if manifest.words else set()
    has_reasoner = manifest.words is not None and manifest.words.has_reasoner
    needed |= {f"{REASONER}/{name}" for name in _REASONER_FILES} if has_reasoner else set()
    missing = needed - manifest.files.keys()
    if missing:
        raise BundleCorrupt(
            f"{path}: {', '.join(sorted(missing))} is not among the files of the manifest; build the bundle again"
        )


def verify_files(path: Path, manifest: Manifest, names: Collection[str] | None = None) -> None:
    """Check size and SHA-256 of the files in `names` (None: all files). Raises BundleCorrupt.

    Extra files are ignored, except in `lm/` and `words/reasoner/`, where transformers could read them.
    """
    for folder in (LM, REASONER):
        for file in sorted((path / folder).glob("[!.]*")):
            if f"{folder}/{file.name}" not in manifest.files and not file.is_dir():
                raise BundleCorrupt(
                    f"{path}: {folder}/{file.name} does not belong to the bundle and may change its model; remove it"
                )
    checked = {name: entry for name, entry in manifest.files.items() if names is None or name in names}
    for name, entry in checked.items():
        file = path / name
        if not file.is_file():
            raise BundleCorrupt(f"{path}: {name} is missing; copy the bundle again or build it again")
        if file.stat().st_size != entry.num_bytes:
            raise BundleCorrupt(f"{path}: {name} has {file.stat().st_size} bytes, not {entry.num_bytes}; copy it again")
    digests = sha256_of_all(path / name for name in checked)
    for (name, entry), digest in zip(checked.items(), digests, strict=True):
        if digest != entry.sha256:
            raise BundleCorrupt(f"{path}: {name} differs from its checksum; copy the bundle again or build it again")


def verify_space(path: Path, manifest: Manifest) -> None:
    """Check that `space` is that of the files in `lm/`. Raises SpaceMismatch."""
    weights = weights_sha256({name: entry for name, entry in manifest.files.items() if name.startswith(LM + "/")})
    backbone = manifest.backbone.model_copy(update={"weights_sha256": weights})
    if space_id(backbone, manifest.prompt, manifest.memory) != manifest.space:
        raise SpaceMismatch(f"{path}: the language model is not that of space {manifest.space}; build the bundle again")


def sha256_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_all(files: Iterable[Path]) -> list[str]:
    """Hash on all cores; hashlib releases the GIL."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(sha256_of, files))


def weights_sha256(files: dict[str, FileEntry]) -> str:
    """One SHA-256 for all files that determine what the language model computes: weights, configuration, tokenizer."""
    relevant = {Path(name).name: entry.sha256 for name, entry in files.items() if name.endswith(_MODEL_FILES)}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


def describe_files(root: Path) -> dict[str, FileEntry]:
    """Size and checksum of every file below `root` except the manifest, by relative path."""
    files = sorted(file for file in root.rglob("*") if file.is_file() and file.name not in (MANIFEST, SIGNATURE))
    return {
        file.relative_to(root).as_posix(): FileEntry(num_bytes=file.stat().st_size, sha256=digest)
        for file, digest in zip(files, sha256_of_all(files), strict=True)
    }


def identity_of(manifest: Manifest) -> str:
    """A digest of all files of the bundle: equal for two processes that opened the same bundle."""
    digests = {name: entry.sha256 for name, entry in manifest.files.items()}
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
