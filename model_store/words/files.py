"""The files of `words/` in a bundle: reading and writing `Words`.

    words.json           texts of items, terms of BM25, aspects, shares of scenarios
    words.safetensors    arrays: BM25, vectors, tables of near items, aspects, selector, ranker
    dense.faiss          the index of the vectors
    encoder/             the encoder of texts

Nothing is unpickled. The bundle's manifest lists these files with their checksums.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import sparse

from model_store.errors import BundleCorrupt
from model_store.grounding import ItemIndex
from model_store.words.answer import Words
from model_store.words.aspects import GlobalMemory
from model_store.words.encoders import load_encoder
from model_store.words.index import CHANNELS, WordsIndex
from model_store.words.lexical import Lexicon
from model_store.words.ranker import Ranker
from model_store.words.selector import Selector
from model_store.words.texts import ItemText

_FACTS, _ARRAYS, _DENSE, _ENCODER = "words.json", "words.safetensors", "dense.faiss", "encoder"
_PARTS = ("indptr", "indices", "data")


def save_words(words: Words, directory: Path) -> None:
    """Write all files into `directory`, which is created."""
    index = words.index
    directory.mkdir(parents=True, exist_ok=True)
    facts = {
        "items": [[text.title, list(text.attributes), [list(pair) for pair in text.phrases]] for text in index.texts],
        "terms": index.lexicon.terms(),
        "shares": dict(index.shares),
        "aspects": words.aspects.facts(),
    }
    aspects = words.aspects.vectors.astype(np.float16)
    arrays = {"vectors": index.vectors, "popularity": index.popularity, "aspects": aspects}
    arrays |= index.lexicon.arrays() | words.selector.arrays() | words.ranker.arrays()
    for name, table in index.tables.items():
        arrays |= {f"{name}.{part}": getattr(table, part) for part in _PARTS}
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, directory / _ARRAYS)
    index.dense.save(directory / _DENSE)
    index.encoder.save(directory / _ENCODER)
    (directory / _FACTS).write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")


def open_words(directory: Path) -> Words:
    """Raises BundleCorrupt. Verify the checksums of the files first (see `model_store.files`)."""
    try:
        facts = json.loads((directory / _FACTS).read_text(encoding="utf-8"))
        arrays = load_file(directory / _ARRAYS)
        return Words(
            index=_index(directory, facts, arrays),
            aspects=GlobalMemory.from_facts(facts["aspects"], arrays["aspects"]),
            selector=Selector.from_arrays(arrays),
            ranker=Ranker.from_arrays(arrays),
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise BundleCorrupt(f"{directory}: not the words of a bundle ({error}); build the bundle again") from error


def _index(directory: Path, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> WordsIndex:
    texts = [
        ItemText(title, tuple(attributes), tuple((phrase, int(count)) for phrase, count in phrases))
        for title, attributes, phrases in facts["items"]
    ]
    size = len(texts)
    if arrays["vectors"].shape[0] != size or arrays["popularity"].shape != (size,):
        raise ValueError(f"{size} texts, but other numbers of vectors")
    return WordsIndex(
        texts=texts,
        lexicon=Lexicon.from_arrays(arrays, facts["terms"], size),
        vectors=arrays["vectors"],
        dense=ItemIndex.load(directory / _DENSE),
        tables={name: _table(name, arrays, size) for name in CHANNELS},
        popularity=arrays["popularity"],
        shares=facts["shares"],
        encoder=load_encoder(directory / _ENCODER),
    )


def _table(name: str, arrays: Mapping[str, NDArray[Any]], size: int) -> sparse.csr_matrix:
    starts, columns, values = (arrays[f"{name}.{part}"] for part in _PARTS)
    return sparse.csr_matrix((values, columns, starts), (size, size))
