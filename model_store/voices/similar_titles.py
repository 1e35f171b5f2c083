"""Which titles are like a title that came after training: the table `alike` of `training/items/likeness.py`, online.

In: the titles of the trained tokens, then new titles. Out: for each new title its nearest titles by the cosine of
TF-IDF vectors over runs of one to three words. A term is known by its hash, so no vocabulary is stored. Weights of
terms follow from the trained titles alone: what a new title is like does not depend on when others came. A title takes
time that does not grow with the catalogue, because a term in more than `MOST_TITLES` titles is not read.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

NUM_ALIKE = 50
LONGEST_RUN = 3
MOST_TITLES = 500  # a term in very many titles tells little and takes most of the time
_WRITTEN_WITHOUT_SPACES = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]")  # Thai, Lao, kana, Han

Vector = dict[int, float]  # term → weight


def words_of(title: str) -> list[str]:
    """Runs of letters, their marks and digits, case-folded. In scripts without spaces each character is a word."""
    plain = unicodedata.normalize("NFKC", title.casefold())
    kept = "".join(sign if sign.isalnum() or _is_mark(sign) else " " for sign in plain)
    return _WRITTEN_WITHOUT_SPACES.sub(r" \g<0> ", kept).split()


def _is_mark(sign: str) -> bool:
    return unicodedata.category(sign).startswith("M")


def _terms(title: str) -> Counter[int]:
    words = words_of(title)
    runs = range(1, LONGEST_RUN + 1)
    return Counter(hash(tuple(words[at : at + size])) for size in runs for at in range(len(words) - size + 1))


class SimilarTitles:
    """Titles by token. New ones are added by `add`; not thread-safe."""

    def __init__(self, titles: Iterable[tuple[int, str]]) -> None:
        """`titles`: pairs of a trained token and its title."""
        pairs = list(titles)
        self._tokens = np.array([token for token, _ in pairs], dtype=np.int64)
        self._place = np.full(int(self._tokens.max(initial=0)) + 1, -1)  # by token
        self._place[self._tokens] = np.arange(len(pairs))
        found = [_terms(title) for _, title in pairs]
        owners = np.repeat(np.arange(len(found)), [len(terms) for terms in found])
        codes = np.fromiter((code for terms in found for code in terms), dtype=np.int64)
        counts = np.fromiter((count for terms in found for count in terms.values()), dtype=np.float32)
        self._codes, columns = np.unique(codes, return_inverse=True)
        num_titles = np.bincount(columns, minlength=len(self._codes))
        # In a single trained title a term links nothing yet, but a new title may have it too.
        rarity = np.log(max(len(pairs), 2) / np.maximum(num_titles, 2)) + 1
        self._rarity = np.where(num_titles > MOST_TITLES, 0, rarity).astype(np.float32)
        self._rarest = float(np.log(max(len(pairs), 2) / 2) + 1)
        weights = (1 + np.log(counts)) * self._rarity[columns]
        table = sparse.csr_matrix((weights, (owners, columns)), (len(pairs), len(self._codes)), dtype=np.float32)
        lengths = np.sqrt(np.asarray(table.multiply(table).sum(axis=1))).ravel()
        self._vectors = sparse.csr_matrix(sparse.diags(1 / np.maximum(lengths, 1e-9)) @ table, dtype=np.float32)
        self._vectors.eliminate_zeros()
        self._titles_of = self._vectors.T.tocsr()  # (terms, titles)
        self._added: dict[int, Vector] = {}
        self._added_of: dict[int, list[int]] = {}  # term → tokens of new titles

    def add(self, token: int, title: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The tokens of the nearest titles, trained and new, at most `NUM_ALIKE`, and their cosines. `token` is new."""
        vector = self._vector(title)
        tokens, cosines = self._near_trained(vector)
        near: dict[int, float] = {}
        for term, weight in vector.items():
            for other in self._added_of.setdefault(term, []):
                near[other] = near.get(other, 0.0) + weight * self._added[other][term]
        tokens = np.append(tokens, np.array(list(near), dtype=np.int64))
        cosines = np.append(cosines, np.array(list(near.values()), dtype=np.float32))
        self._remember(token, vector)
        best = np.lexsort((tokens, -cosines))[:NUM_ALIKE]
        return tokens[best], cosines[best].astype(np.float32)

    def sums(self, tokens: NDArray[np.int64], near: sparse.csr_matrix) -> NDArray[np.float64]:
        """(P,) the sum of the cosines of each trained title with the titles in its row of `near` (P, V).

        A title that is not compared counts nothing, as one of `tokens` (P,) or in a row.
        """
        places, columns = self._place_of(tokens), self._place_of(near.indices)
        shape = len(tokens), self._vectors.shape[0]
        is_near = sparse.csr_matrix(((columns >= 0).astype(np.float32), np.maximum(columns, 0), near.indptr), shape)
        products = (is_near @ self._vectors).multiply(self._vectors[np.maximum(places, 0)])
        return np.where(places >= 0, np.asarray(products.sum(axis=1)).ravel(), 0).astype(np.float64)

    def _place_of(self, tokens: NDArray[np.integer]) -> NDArray[np.int64]:
        """−1 for a token whose title is not compared."""
        last = len(self._place) - 1
        return np.where(tokens <= last, self._place[np.minimum(tokens, last)], -1)

    def _vector(self, title: str) -> Vector:
        weights = {term: (1 + np.log(count)) * self._rarity_of(term) for term, count in _terms(title).items()}
        length = float(np.sqrt(sum(weight * weight for weight in weights.values())))
        return {term: float(weight / length) for term, weight in weights.items() if weight}

    def _rarity_of(self, term: int) -> float:
        place = int(self._codes.searchsorted(term))
        is_known = place < len(self._codes) and self._codes[place] == term
        return float(self._rarity[place]) if is_known else self._rarest

    def _near_trained(self, vector: Vector) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        terms = np.array(list(vector), dtype=np.int64)
        places = np.minimum(self._codes.searchsorted(terms), max(len(self._codes) - 1, 0))
        is_known = self._codes[places] == terms if len(self._codes) else np.zeros(len(terms), dtype=bool)
        weights = np.array(list(vector.values()), dtype=np.float32)[is_known]
        found = sparse.csr_matrix(sparse.csr_matrix(weights[None]) @ self._titles_of[places[is_known]])
        return self._tokens[found.indices], found.data.astype(np.float32)

    def _remember(self, token: int, vector: Vector) -> None:
        self._added[token] = vector
        for term in vector:
            if len(self._added_of[term]) < MOST_TITLES:
                self._added_of[term].append(token)
