"""The part of a bundle that needs no network: manifest, catalogue, byte form of stored states.

A process that only asks a model, and runs none, opens this. It needs neither torch nor a tokenizer.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from model_store.catalogue.catalogue import Catalogue
from model_store.catalogue.item import read_items
from model_store.errors import BundleCorrupt
from model_store.files import COLUMNS, ITEMS, read_manifest, verify_files, verify_parts
from model_store.manifest import Manifest
from model_store.memory.codec import StateCodec
from model_store.text.prompt import Prompt


@dataclass
class BundleView:
    """`catalogue` is replaced by a new snapshot when items change; the manifest never changes."""

    manifest: Manifest
    catalogue: Catalogue

    @classmethod
    def open_view(cls, path: Path | str) -> "BundleView":
        """Verifies only the files that it reads. Raises BundleNotFound, BundleCorrupt or FormatTooNew."""
        path = Path(path)
        manifest = read_manifest(path)
        verify_parts(path, manifest)
        verify_files(path, manifest, names={ITEMS, COLUMNS} & manifest.files.keys())
        return BundleView(manifest, open_catalogue(path, manifest))

    @cached_property
    def codec(self) -> StateCodec:
        return StateCodec(self.manifest.space, self.manifest.backbone.hidden_size, self.manifest.memory.state_dtype)


def open_catalogue(path: Path, manifest: Manifest, prompt: Prompt | None = None) -> Catalogue:
    """The catalogue of the bundle at `path`; with a `prompt` also its trie. Raises BundleCorrupt."""
    if COLUMNS in manifest.files:
        catalogue = Catalogue.open(path / ITEMS, path / COLUMNS, prompt)
    else:
        catalogue = Catalogue(read_items(path / ITEMS), prompt)
    if len(catalogue) != manifest.num_items:
        raise BundleCorrupt(f"{path}: {len(catalogue)} items, but the manifest says {manifest.num_items}")
    return catalogue
