"""Rows of voices: the votes of a single one, and the mixture of all as the gates weigh it.

In: an evaluation whose bundle has voices. Out: lists. A single voice ranks by what it adds to the mixture, from the
window and from older events; items without votes follow by popularity. The language model alone is another row.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from model_store.bundle import Bundle
from model_store.inference import past_of_rows
from model_store.voices.candidates import Candidates
from model_store.voices.gate import FORECAST
from model_store.voices.past import RETURN, Past
from model_store.voices.voices import Voices, Voting
from training.data.splits import Target
from training.items.likeness import most_popular_of_titles
from training.items.scoring import Scorer
from training.rows.evaluation import Evaluation, Rank, RankedLists
from training.rows.memory_choices import retriever_choice

ScoreCandidates = Callable[[Candidates], NDArray[np.float32]]


def has_voice(channel: str) -> Callable[[Bundle], bool]:
    """Whether a bundle has this channel. No item returns in data whose users do not come back to items."""

    def fits(bundle: Bundle) -> bool:
        voices = bundle.voices
        return voices is not None and channel in voices.channels and (channel != RETURN or voices.spec.has_returns)

    return fits


def single_voice(channel: str) -> Rank:
    def rank(evaluation: Evaluation, seed: int) -> RankedLists:
        return evaluation.rank_with_scores(voice_scorer(evaluation, channel))

    return rank


def voice_scorer(evaluation: Evaluation, channel: str) -> Scorer:
    """Votes of one channel. Of items with equal titles, only the most popular one has votes, as in the tables."""
    voices, tokens = evaluation.voices, evaluation.tokens
    place = voices.channels.index(channel)
    is_shown = np.zeros(len(tokens), dtype=bool)
    is_shown[most_popular_of_titles(tokens, evaluation.split.popularity)] = True
    known = np.flatnonzero(is_shown & (tokens < len(voices)))

    def score(targets: Sequence[Target]) -> NDArray[np.float32]:
        found = np.zeros((len(targets), len(tokens)), dtype=np.float32)
        no_forecast = np.zeros((len(targets), len(voices)), dtype=np.float32)
        mixtures = voices.mix(no_forecast, [past_of_target(evaluation, target) for target in targets])
        kept = mixtures.weights[1].overall[:, FORECAST].tolist()  # the share of the window in the mixture
        for row, (recent, older) in enumerate(zip(mixtures.recent, mixtures.older, strict=True)):
            votes = older.by_channel[place] + kept[row] * recent.by_channel[place]
            found[row, known] = votes[tokens[known]]
        return found

    return score


def past_of_target(evaluation: Evaluation, target: Target) -> Past:
    past = evaluation.past(target)
    if past is None:
        raise ValueError("a bundle without voices has no past")
    return past_of_rows(evaluation.bundle, past)


class Reranked(Voices):
    """The same voices, whose candidates `score` ranks instead of the combiner."""

    def __init__(self, voices: Voices, score: ScoreCandidates) -> None:
        super().__init__(voices.spec, voices.facts, voices.tables, gates=voices.gates, combiner=voices.combiner)
        self.score = score

    def vote(
        self, forecast: NDArray[np.float32], pasts: Sequence[Past], allowed: Sequence[NDArray[np.int64] | None]
    ) -> Voting:
        voting = super().vote(forecast, pasts, allowed)
        return voting._replace(scores=[self.score(candidates) for candidates in voting.candidates])


def rank_by(evaluation: Evaluation, score: ScoreCandidates, label: str) -> RankedLists:
    """AutoMR + with another ranking of its candidates."""
    changed = evaluation.with_voices(Reranked(evaluation.voices, score))
    return changed.rank_with_memory(retriever_choice, label)


def mixture(evaluation: Evaluation, seed: int) -> RankedLists:
    return rank_by(evaluation, _log_mixture, "mixture")


def _log_mixture(candidates: Candidates) -> NDArray[np.float32]:
    return np.log(np.maximum(candidates.mixture, np.finfo(np.float32).tiny))
