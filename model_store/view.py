"""The part of a bundle that needs no neural network: manifest, catalogue and codec of stored states.

For processes that send requests to a model but run none. Loads neither torch nor a tokenizer.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from model_store.catalogue.catalogue import Catalogue
from model_store.catalogue.items import read_items
from model_store.errors import BundleCorrupt
from model_store.event_types import EventTypes, read_event_types
from model_store.files import COLUMNS, EVENT_TYPES, ITEMS, read_manifest, verify_files, verify_parts
from model_store.manifest import Manifest, in_precision
from model_store.memory.codec import StateCodec
from model_store.text.prompt import Prompt


@dataclass
class BundleView:
    """Manifest, catalogue and table of event types of a bundle.

    A change of items replaces `catalogue`, a table that is put replaces `event_types`; the manifest never changes.
    """

    manifest: Manifest
    catalogue: Catalogue
    event_types: EventTypes = field(default_factory=EventTypes, kw_only=True)

    @classmethod
    def open_view(cls, path: Path | str, *, precision: str | None = None) -> "BundleView":
        """Open the bundle at `path`; only the files that are read are verified.

        `precision`: set it if the model computes in another precision than that of the bundle (see lm/precision.py).
        The states are then not comparable with others, so the manifest gets another `space`.

        Raises BundleNotFound, BundleCorrupt or FormatTooNew.
        """
        path = Path(path)
        manifest = read_manifest(path)
        if precision is not None:
            manifest = in_precision(manifest, precision)
        verify_parts(path, manifest)
        verify_files(path, manifest, names={ITEMS, COLUMNS, EVENT_TYPES} & manifest.files.keys())
        return BundleView(manifest, open_catalogue(path, manifest), event_types=open_event_types(path, manifest))

    @cached_property
    def codec(self) -> StateCodec:
        return StateCodec(self.manifest.space, self.manifest.backbone.hidden_size, self.manifest.memory.state_dtype)


def open_event_types(path: Path, manifest: Manifest) -> EventTypes:
    """The defaults for a bundle without a table. Raises BundleCorrupt."""
    return read_event_types(path / EVENT_TYPES) if EVENT_TYPES in manifest.files else EventTypes()


def open_catalogue(path: Path, manifest: Manifest, prompt: Prompt | None = None) -> Catalogue:
    """The catalogue of the bundle at `path`, with a trie if `prompt` is given. Raises BundleCorrupt."""
    if COLUMNS in manifest.files:
        catalogue = Catalogue.open(path / ITEMS, path / COLUMNS, prompt)
    else:
        catalogue = Catalogue(read_items(path / ITEMS), prompt)
    if len(catalogue) != manifest.num_items:
        raise BundleCorrupt(
            f"{path}: the catalogue has {len(catalogue)} items, but the manifest says {manifest.num_items}"
        )
    return catalogue
