"""Global memory from the queries of the train period: what the chosen items have that similar items lack.

For each scenario (a query that enough people wrote, or a cluster of queries where they rarely repeat), the documents of
the chosen items are compared with those of similar items that nobody of the scenario chose. A term that is more
frequent in the chosen ones by the log-odds ratio with an informative Dirichlet prior (Monroe et al. 2008) becomes an
aspect. Aspects with similar names are merged. Nothing later than the train period is read.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from model_store.words.aspects import MIN_USERS, SAME_NAME, Aspect, GlobalMemory
from model_store.words.encoders import TextEncoder
from model_store.words.index import WordsIndex
from model_store.words.texts import ItemText, words_of
from model_store.words.vectors import unit
from training.run.stage import progress
from training.words.split import TRAIN, WordsSplit

MAX_SCENARIOS, ASPECTS_OF_A_SCENARIO = 400, 5
_MIN_Z, _SIMILAR = 1.96, 3  # significance of a term; similar items per chosen one
_SHORT_QUERY, _LONG_WORD = 4, 4  # words of a query that is one term; letters of a word of other queries
_COVERED = 0.5  # share of queries that frequent queries must cover; otherwise queries are clustered


class _Scenario(NamedTuple):
    name: str
    choices: list[tuple[int, int]]  # user, item


class _Candidate(NamedTuple):
    scenario: str
    name: str
    users: frozenset[int]
    z: float


def global_memory(split: WordsSplit, index: WordsIndex) -> GlobalMemory:
    """The aspects of the train period, of at most `MAX_SCENARIOS` scenarios."""
    terms = [_terms(text) for text in index.texts]
    background: Counter[str] = Counter(term for found in terms for term in found)
    found = [
        candidate
        for scenario in progress(_scenarios(split, index.encoder), desc="aspects", unit="scenario")
        for candidate in _contrast(scenario, terms, background, index)
    ]
    return GlobalMemory(_merged(found, index.encoder), index.encoder.dimension)


def _scenarios(split: WordsSplit, encoder: TextEncoder) -> list[_Scenario]:
    """Queries by the number of their users, or clusters of queries named after their most typical query."""
    by_query: dict[str, list[tuple[int, int]]] = {}
    for place in np.flatnonzero(split.periods == TRAIN).tolist():
        if split.queries[place]:
            by_query.setdefault(split.queries[place], []).append((int(split.users[place]), int(split.items[place])))
    users = {query: len({user for user, _ in choices}) for query, choices in by_query.items()}
    frequent = [query for query in by_query if users[query] >= MIN_USERS]
    covered = sum(len(by_query[query]) for query in frequent)
    if covered < _COVERED * sum(map(len, by_query.values())):
        return _clusters(by_query, encoder)
    chosen = sorted(frequent, key=lambda query: (-users[query], query))[:MAX_SCENARIOS]
    return [_Scenario(query, by_query[query]) for query in chosen]


def _clusters(by_query: Mapping[str, list[tuple[int, int]]], encoder: TextEncoder) -> list[_Scenario]:
    queries = sorted(by_query)
    vectors = encoder.encode(queries)
    count = min(MAX_SCENARIOS, max(1, int(len(queries) ** 0.5)))
    model = KMeans(count, n_init=1, random_state=0).fit(vectors)
    nearest = (vectors * model.cluster_centers_[model.labels_]).sum(axis=1)
    scenarios = []
    for cluster in range(count):
        members = np.flatnonzero(model.labels_ == cluster)
        if len(members):
            name = queries[members[np.argmax(nearest[members])]]
            scenarios.append(_Scenario(name, [pair for place in members for pair in by_query[queries[place]]]))
    return scenarios


def _terms(text: ItemText) -> frozenset[str]:
    """What an aspect may be called: attributes, short queries as one line, and the words of long queries."""
    names = [" ".join(words_of(attribute)) for attribute in text.attributes]
    for phrase, _ in text.phrases:
        words = words_of(phrase)
        long_words = [word for word in words if len(word) >= _LONG_WORD]
        names += [" ".join(words)] if len(words) <= _SHORT_QUERY else long_words
    return frozenset(names)


def _contrast(
    scenario: _Scenario, terms: Sequence[frozenset[str]], background: Mapping[str, int], index: WordsIndex
) -> list[_Candidate]:
    """The terms of the chosen items, most significant first; the name of the scenario itself says nothing new."""
    chosen = np.array(sorted({item for _, item in scenario.choices}))
    similar = _similar(chosen, index)
    own, others = (Counter(term for row in rows for term in terms[row]) for rows in (chosen.tolist(), similar))
    users: dict[str, set[int]] = {}
    for user, item in scenario.choices:
        for term in terms[item]:
            users.setdefault(term, set()).add(user)
    names = sorted(term for term in own if term and term != scenario.name and len(users[term]) >= MIN_USERS)
    z = _log_odds(names, own, others, background)
    best = np.argsort(-z, kind="stable")[:ASPECTS_OF_A_SCENARIO]
    return [
        _Candidate(scenario.name, names[place], frozenset(users[names[place]]), float(z[place]))
        for place in best.tolist()
        if z[place] >= _MIN_Z
    ]


def _similar(chosen: NDArray[np.int64], index: WordsIndex) -> list[int]:
    """Items near the mean of the chosen ones that are not among them."""
    cosines = index.vectors @ unit(index.vectors[chosen].mean(axis=0))
    cosines[chosen] = -np.inf
    wanted = min(_SIMILAR * len(chosen), len(cosines) - len(chosen))
    return np.argsort(-cosines, kind="stable")[:wanted].tolist()


def _log_odds(
    names: Sequence[str], own: Mapping[str, int], others: Mapping[str, int], background: Mapping[str, int]
) -> NDArray[np.float64]:
    """z-scores of the log-odds ratios; the prior of a term is its share of all documents, as ten documents."""
    total = max(sum(background.values()), 1)
    prior = np.array([10 * len(background) ** 0.5 * background[name] / total for name in names])
    mine, theirs = (np.array([counts.get(name, 0) for name in names], dtype=np.float64) for counts in (own, others))
    odds = [np.log((c + prior) / (sum(of.values()) + 10 - c)) for c, of in ((mine, own), (theirs, others))]
    spread = np.sqrt(1 / (mine + prior) + 1 / (theirs + prior))
    z: NDArray[np.float64] = (odds[0] - odds[1]) / spread
    return z


def _merged(found: Sequence[_Candidate], encoder: TextEncoder) -> list[Aspect]:
    """Within a scenario, names of a cosine above `SAME_NAME` become the most significant of them."""
    names = sorted({candidate.name for candidate in found} | {candidate.scenario for candidate in found})
    vector_of = dict(zip(names, encoder.encode(names), strict=True)) if names else {}
    aspects = []
    for scenario in dict.fromkeys(candidate.scenario for candidate in found):
        kept: list[_Candidate] = []
        for candidate in (each for each in found if each.scenario == scenario):
            same = [place for place, other in enumerate(kept) if _cosine(vector_of, candidate, other) > SAME_NAME]
            if same:
                kept[same[0]] = kept[same[0]]._replace(users=kept[same[0]].users | candidate.users)
            else:
                kept.append(candidate)
        for one in kept:
            vector = unit(vector_of[scenario] + vector_of[one.name])
            description = f"people who ask for {scenario} often choose what is also called {one.name}"
            digest = hashlib.blake2b(f"{scenario}\x1f{one.name}".encode(), digest_size=6).hexdigest()
            aspects.append(Aspect(digest, scenario, one.name, description, vector.astype(np.float16), len(one.users)))
    return aspects


def _cosine(vector_of: Mapping[str, NDArray[np.float32]], one: _Candidate, other: _Candidate) -> float:
    return float(vector_of[one.name] @ vector_of[other.name])
