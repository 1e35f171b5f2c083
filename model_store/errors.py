"""What can go wrong with a bundle, a backbone or a stored state. Knows no HTTP.

ModelStoreError
├── BundleError              the artefacts on disk
│   ├── BundleNotFound       no manifest there
│   ├── BundleCorrupt        a file is missing, cut short or changed
│   ├── FormatTooNew         written by a later version of this software
│   └── SpaceMismatch        parts made with different language models
├── UnsupportedBackbone      the checkpoint cannot be split faithfully
├── EmptyCatalogue           nothing to recommend
└── StateCorrupt             bytes that are not a state of this space
"""


class ModelStoreError(Exception):
    """Base of all errors raised by `model_store`."""


class BundleError(ModelStoreError):
    """A bundle on disk cannot be used."""


class BundleNotFound(BundleError):
    """There is no finished bundle at the path."""


class BundleCorrupt(BundleError):
    """A file of the bundle is missing, cut short, or differs from its checksum."""


class FormatTooNew(BundleError):
    """The bundle was written by a later version of this software."""


class SpaceMismatch(BundleError):
    """Two parts come from different language models, split layers or prompts."""


class UnsupportedBackbone(ModelStoreError):
    """The checkpoint is not a decoder-only model whose halves reproduce the whole."""


class EmptyCatalogue(ModelStoreError):
    """There is no item to recommend."""


class StateCorrupt(ModelStoreError):
    """Bytes read back from the memory store are not a state of this space."""
