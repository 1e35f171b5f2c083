"""The rows of AutoMR +: what each of them reads, and that all of them obey the rule of the basket."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_store.bundle import Bundle
from model_store.voices.candidates import num_window_features
from model_store.voices.gate import FORECAST
from model_store.voices.voices import Voices, Voting
from tests.conftest import TITLES, small_voices
from tests.training.evaluations import (
    LONG,
    SHORT,
    SPLIT,
    TARGETS,
    bundle_with_voices,
    queries_of,
    small_evaluation,
    with_other_future,
)
from training.data.splits import Split, Target
from training.rows.evaluation import Evaluation
from training.rows.plus.own_rows import OWN_ROWS
from training.rows.registry import ROWS, predict
from training.rows.scorers import SCORERS

PLACE_OF_LONG = TARGETS.index(LONG)
OWN = [row for row in OWN_ROWS if row not in ("voice_follow", "voice_linear", "voice_alike")]  # tables of the test
READ_MEMORY = ("automr_plus", "state_memory", "voice_memory", "mixture", "random")
OTHERS = ("popularity", "copy_last", "item_knn", "sasrec", "bigrec", "automr")


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(SCORERS, "sasrec", SCORERS["item_knn"])
        yield


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    root = tmp_path_factory.mktemp("plus")
    return small_evaluation(bundle_with_voices(root / "bundle"), root / "cache")


def with_split(evaluation: Evaluation, split: Split, targets: list[Target] | None = None) -> Evaluation:
    """A copy that knows other histories; prompts and states stay."""
    places = [list(evaluation.targets).index(target) for target in targets or evaluation.targets]
    chosen = [evaluation.examples[place] for place in places]
    kept = [evaluation.targets[place] for place in places]
    return replace(evaluation, split=split, targets=kept, examples=chosen, results={})


def changed_history(target: Target, **arrays: Any) -> Split:
    histories = list(SPLIT.histories)
    histories[target.user] = replace(histories[target.user], **arrays)
    return replace(SPLIT, histories=histories)


# ---- voices without weight


def voices_without_weight() -> Voices:
    """All weight is the language model's, and candidates are ranked by its forecast."""
    voices = small_voices(len(TITLES))
    for network in (*voices.gates, voices.combiner):
        for parameter in network.parameters():
            torch.nn.init.zeros_(parameter)
    for gate in voices.gates:
        torch.nn.init.constant_(gate.overall.bias[FORECAST : FORECAST + 1], 50.0)
    column = len(voices.channels) + 3  # after the channels, the window's mixture, popularity and the rate of return
    assert column < num_window_features(len(voices.tables))
    with torch.no_grad():
        voices.combiner.window.linear.weight[:, column] = 1.0
    return voices


def test_a_bundle_whose_voices_have_no_weight_ranks_as_its_language_model(tmp_path: Path) -> None:
    unweighted = small_evaluation(bundle_with_voices(tmp_path / "bundle", voices_without_weight()), tmp_path / "cache")
    with_states, alone = predict(unweighted, "automr_plus_lm", 0), predict(unweighted, "generator_alone", 0)
    for row, expected in {
        "automr_plus": with_states,
        "state_memory": with_states,
        "mixture": with_states,
        "voice_memory": alone,
        "no_memory": alone,
    }.items():
        assert predict(unweighted, row, 0) == expected, row
    assert with_states != alone, "states change nothing, so the test proves nothing"


def test_voices_change_the_lists_of_their_rows_only(evaluation: Evaluation) -> None:
    without = evaluation.with_voices(None)
    for row in ("generator_alone", "automr_plus_lm"):
        assert predict(evaluation, row, 0) == predict(without, row, 0)
    for row in ("automr_plus", "no_memory", "state_memory", "voice_memory", "random"):
        assert predict(evaluation, row, 0) != predict(without, row, 0), row


# ---- what rows read


def other_older_items(evaluation: Evaluation) -> Evaluation:
    """The events of `LONG` that are older than the window have other items."""
    items = SPLIT.histories[LONG.user].items.copy()
    end = LONG.position - evaluation.recent_length
    items[:end] = (items[:end] + 7) % len(SPLIT.item_ids)
    return with_split(evaluation, changed_history(LONG, items=items), [LONG])


def test_without_memory_nothing_depends_on_older_events(evaluation: Evaluation) -> None:
    changed = other_older_items(evaluation)
    for row in ("no_memory", "state_memory", "generator_alone"):
        assert predict(changed, row, 0) == [predict(evaluation, row, 0)[PLACE_OF_LONG]], row
    for row in ("automr_plus", "voice_memory", "voice_near", "voice_return"):
        assert predict(changed, row, 0) != [predict(evaluation, row, 0)[PLACE_OF_LONG]], row


def test_each_row_reads_the_memory_of_its_name(evaluation: Evaluation) -> None:
    reads = {row: queries_of(evaluation, row)[PLACE_OF_LONG] for row in READ_MEMORY}
    reads["no_memory"] = queries_of(evaluation, "no_memory")[PLACE_OF_LONG]
    spec = evaluation.bundle.manifest.voices
    assert spec is not None and spec.recent_length < spec.past_length < LONG.position
    for row, query in reads.items():
        assert query.past is not None and query.past.now == SPLIT.histories[0].timestamps[LONG.position]
        has_older = row not in ("no_memory", "state_memory")
        assert len(query.past.rows) == (spec.past_length if has_older else spec.recent_length), row
        assert query.chosen == (() if row in ("no_memory", "voice_memory") else None), row
    window = reads["no_memory"].past
    assert window is not None and list(window.rows) == list(reads["automr_plus"].past.rows)[-3:]  # type: ignore[union-attr]


def test_events_are_the_newest_before_the_target(evaluation: Evaluation) -> None:
    for target, query in zip(TARGETS, queries_of(evaluation, "automr_plus"), strict=True):
        history, past = SPLIT.histories[target.user], query.past
        assert past is not None
        span = slice(max(0, target.position - 12), target.position)
        ids = [evaluation.bundle.catalogue.items[row].item_id for row in past.rows]
        assert ids == [SPLIT.item_ids[item] for item in history.items[span]]
        assert list(past.timestamps) == history.timestamps[span].tolist()


@pytest.mark.parametrize("row", sorted({*OWN, "popularity", "copy_last"} - {"oracle", "boosted"}))
def test_no_row_depends_on_later_events(row: str, evaluation: Evaluation) -> None:
    """The oracle knows the answer, and trees learn from valid targets, which the change concerns."""
    lists = predict(evaluation, row, 0)
    for target in (SHORT, LONG, TARGETS[3]):
        (found,) = predict(with_other_future(evaluation, target), row, 0)
        assert found == lists[TARGETS.index(target)], f"{target} depends on later events"


# ---- the rule of the basket


@pytest.mark.parametrize("row", [*OWN, *OTHERS])
def test_no_row_shows_an_item_of_the_basket(row: str, evaluation: Evaluation) -> None:
    history = SPLIT.histories[LONG.user]
    times = history.timestamps.copy()
    times[LONG.position - 2 : LONG.position] = times[LONG.position]
    split = changed_history(LONG, timestamps=times)
    basket = set(history.items[LONG.position - 2 : LONG.position].tolist())
    assert len(basket) == 2 and not evaluation.hidden(LONG).size
    (found,) = predict(with_split(evaluation, split, [LONG]), row, 0)
    assert len(found) == 10 and not set(found) & basket


def test_the_basket_is_hidden_and_with_mask_seen_all_that_the_user_had(evaluation: Evaluation) -> None:
    history = SPLIT.histories[LONG.user]
    assert evaluation.allowed_items([LONG]).all(), "an earlier item may come back"
    masked = replace(evaluation, mask_seen=True)
    assert set(np.flatnonzero(~masked.allowed_items([LONG])[0])) == set(history.items[: LONG.position].tolist())


# ---- single voices


def voted(evaluation: Evaluation, row: str) -> list[list[int]]:
    """Lists, as catalogue rows, which are those of the tokens less one."""
    return [evaluation.rows_of(np.array(ranked)) for ranked in predict(evaluation, row, 0)]


def test_a_single_voice_ranks_by_its_votes_only(evaluation: Evaluation) -> None:
    """In the table of the test, the only near item of catalogue row r is r + 1. The popular items follow."""
    popular = voted(evaluation, "popularity")[0]
    for name, shift in (("voice_near", 1), ("voice_return", 0)):
        for target, ranked in zip(TARGETS, voted(evaluation, name), strict=True):
            past = evaluation.past(target)
            assert past is not None
            expected = {(row + shift) % len(TITLES) for row in past.rows}
            count = min(len(expected), 10)
            assert set(ranked[:count]) <= expected, f"{name} at {target}"
            rest = [row for row in popular if row not in expected]
            assert ranked[count:] == rest[: 10 - count]


def test_a_single_voice_does_not_read_the_language_model(evaluation: Evaluation) -> None:
    other = bundle_with_voices(evaluation.training.directory / "other", seed=5)
    changed = replace(evaluation, bundle=replace(evaluation.bundle, lm=other.lm))
    for row in ("voice_near", "voice_return"):
        assert predict(changed, row, 0) == predict(evaluation, row, 0)
    assert predict(changed, "automr_plus", 0) != predict(evaluation, "automr_plus", 0)


def test_a_voice_that_returns_needs_data_with_returns(evaluation: Evaluation) -> None:
    plain = evaluation.with_voices(small_voices(len(TITLES), has_returns=False))
    assert ROWS["voice_return"].fits(evaluation.bundle) and not ROWS["voice_return"].fits(plain.bundle)
    assert not ROWS["voice_linear"].fits(evaluation.bundle), "the bundle has no such table"


def test_the_mixture_ranks_by_the_mixture(evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[np.ndarray] = []
    vote = Voices.vote

    def spy(self: Voices, *args: Any) -> Voting:
        voting = vote(self, *args)
        found.extend(voting.mixtures.whole)
        return voting

    monkeypatch.setattr(Voices, "vote", spy)
    lists = predict(evaluation, "mixture", 0)
    for ranked, shares in zip(lists, found, strict=True):
        assert (np.diff(shares[evaluation.tokens[ranked]]) <= 0).all()
    assert lists != predict(evaluation, "automr_plus", 0)


def test_a_bundle_keeps_its_voices(evaluation: Evaluation) -> None:
    """Rows change copies only."""
    voices = evaluation.bundle.voices
    assert isinstance(evaluation.bundle, Bundle)
    predict(evaluation, "mixture", 0), predict(evaluation, "automr_plus_lm", 0)
    assert evaluation.bundle.voices is voices and type(voices) is Voices
