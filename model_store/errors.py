"""The errors that `model_store` raises.

ModelStoreError
├── BundleError              a bundle on disk cannot be used
│   ├── BundleNotFound       there is no manifest at the path
│   ├── BundleCorrupt        a file is missing, cut short or changed
│   ├── BundleUntrusted      it is not signed by a trusted key
│   ├── FormatTooNew         a later version of this software wrote it
│   └── SpaceMismatch        its parts were made with different language models
├── UnsupportedBackbone      the halves of the checkpoint do not reproduce the whole model
├── EmptyCatalogue           there is no item to recommend
└── StateCorrupt             a state cannot be stored
"""


class ModelStoreError(Exception):
    """Base class of all errors that `model_store` raises."""


class BundleError(ModelStoreError):
    """A bundle on disk cannot be used."""


class BundleNotFound(BundleError):
    """There is no complete bundle at the path."""


class BundleCorrupt(BundleError):
    """A file of the bundle is missing, cut short, or differs from its checksum."""


class BundleUntrusted(BundleError):
    """The bundle has no signature by a trusted key, or was changed after it was signed."""


class FormatTooNew(BundleError):
    """A later version of this software wrote the bundle."""


class SpaceMismatch(BundleError):
    """Parts of the bundle come from different language models, split layers or prompts."""


class UnsupportedBackbone(ModelStoreError):
    """The checkpoint is not a decoder-only model whose two halves reproduce the whole model."""


class EmptyCatalogue(ModelStoreError):
    """There is no item to recommend."""


class StateCorrupt(ModelStoreError):
    """A state has the wrong shape for the record, or numbers that are not finite."""
