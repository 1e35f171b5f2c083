"""Metrics agree with another library, tie rules with a plain sort, and the bootstrap with statistics."""

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.run.metrics import (
    MISSED,
    Interval,
    ndcg,
    paired_bootstrap,
    popularity_tie_order,
    rank_correlation,
    rank_in_list,
    ranks_to_metrics,
    standard_error,
    title_rank_in_list,
)

IR_MEASURES = {
    "recall@1": ir_measures.R @ 1,
    "recall@5": ir_measures.R @ 5,
    "recall@10": ir_measures.R @ 10,
    "ndcg@5": ir_measures.nDCG @ 5,
    "ndcg@10": ir_measures.nDCG @ 10,
}


@given(st.lists(st.integers(0, 20), min_size=1, max_size=20))
def test_metrics_agree_with_ir_measures(ranks: list[int]) -> None:
    truths = [ir_measures.Qrel(str(q), "truth", 1) for q in range(len(ranks))]
    run = [
        ir_measures.ScoredDoc(str(q), "truth" if place == rank else f"other{place}", float(-place))
        for q, rank in enumerate(ranks)
        for place in range(21)
    ]
    ours = ranks_to_metrics(np.array(ranks))
    theirs = ir_measures.calc_aggregate(list(IR_MEASURES.values()), truths, run)
    for name, measure in IR_MEASURES.items():
        assert ours[name].mean() == pytest.approx(theirs[measure], abs=1e-9), name


def test_a_missed_item_has_metrics_of_zero() -> None:
    assert all(values.tolist() == [0.0] for values in ranks_to_metrics(np.array([MISSED])).values())


def test_names_are_those_of_the_report() -> None:
    both = ranks_to_metrics(np.array([0]), np.array([0]))
    assert list(both)[:5] == ["recall@1", "recall@5", "recall@10", "ndcg@5", "ndcg@10"]
    assert list(both)[5:] == [f"{name}/title" for name in list(both)[:5]]


def test_a_negative_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        ranks_to_metrics(np.array([-1]))


@given(st.permutations(range(12)), st.lists(st.integers(0, 4), min_size=12, max_size=12), st.integers(0, 11))
def test_a_title_never_ranks_behind_its_item(ranked: list[int], classes: list[int], truth: int) -> None:
    assert title_rank_in_list(ranked, truth, np.array(classes)) <= rank_in_list(ranked, truth)


def test_ndcg_of_a_tie_is_between_those_of_its_ranks() -> None:
    first, tied, second, last = ndcg(np.array([0, 0.5, 1, 10])).tolist()
    assert first == 1 > tied > second > last == 0


def test_rank_in_list_of_something_not_listed() -> None:
    assert rank_in_list(["a", "b"], "b") == 1
    assert rank_in_list(["a", "b"], "c") == MISSED
    assert rank_in_list([], "c") == MISSED


def test_title_rank_counts_a_title_once() -> None:
    title_class = np.array([0, 0, 1, 1])
    assert title_rank_in_list([0, 1, 2], 3, title_class) == 1, "item 2 has the title of the true item"
    assert title_rank_in_list([0, 1], 3, title_class) == MISSED
    assert title_rank_in_list([], 3, title_class) == MISSED


def test_tie_order_is_popularity_then_id() -> None:
    places = popularity_tie_order(np.array([1, 5, 5, 1]), ["d", "c", "b", "a"])
    assert places.tolist() == [3, 1, 0, 2]


# --- the bootstrap ------------------------------------------------------------------------------------------------


def interval_of(values: np.ndarray, users: np.ndarray, **options: int) -> Interval:
    return paired_bootstrap({"a": values}, users, **options).interval("a")


def plainly_drawn(columns: dict[str, np.ndarray], users: np.ndarray, draws: int, seed: int) -> dict[str, list[float]]:
    """A slow bootstrap: collects the targets of the drawn users for every resample."""
    rng, names = np.random.default_rng(seed), sorted(set(users.tolist()))
    means: dict[str, list[float]] = {column: [] for column in columns}
    for _ in range(draws):
        chosen = [names[place] for place in rng.integers(len(names), size=len(names))]
        for column, values in columns.items():
            seen = [value for user in chosen for value in values[users == user].tolist()]
            means[column].append(sum(seen) / len(seen))
    return means


def test_the_bootstrap_agrees_with_a_slow_one() -> None:
    rng = np.random.default_rng(8)
    users = rng.integers(12, size=50)
    columns = {"a": rng.random(50), "b": 1 + rng.random(50)}
    drawn = paired_bootstrap(columns, users, draws=60, seed=3)
    slow = {name: np.array(means) for name, means in plainly_drawn(columns, users, 60, 3).items()}
    for name, values in columns.items():
        assert drawn.drawn[name] == pytest.approx(slow[name]), f"{name}: other resamples than the slow bootstrap"
        expected = (values.mean(), *np.quantile(slow[name], [0.025, 0.975]))
        assert drawn.interval(name) == pytest.approx(expected)
    difference, ratio = slow["a"] - slow["b"], slow["a"] / slow["b"]
    assert drawn.difference("a", "b")[1:] == pytest.approx(np.quantile(difference, [0.025, 0.975]).tolist())
    found = drawn.ratio("a", "b"), drawn.relative("a", "b")
    assert found[0] is not None and found[1] is not None
    assert found[0] == pytest.approx((columns["a"].mean() / columns["b"].mean(), *np.quantile(ratio, [0.025, 0.975])))
    assert found[1] == pytest.approx([value - 1 for value in found[0]])


def test_intervals_contain_the_mean_and_shrink_with_data() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for num_users in (50, 5000):
        values = rng.random(num_users)
        mean, low, high = interval_of(values, np.arange(num_users))
        assert mean == pytest.approx(values.mean())
        assert low < mean < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 5


def test_the_interval_agrees_with_the_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(size=4000)
    mean, low, high = interval_of(values, np.arange(4000), draws=4000)
    half = 1.96 * values.std() / np.sqrt(4000)
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.1 * half)


def test_whole_users_are_drawn() -> None:
    per_user = np.random.default_rng(2).normal(size=100)
    repeated, users = np.repeat(per_user, 50), np.repeat(np.arange(100), 50)
    as_single = interval_of(per_user, np.arange(100))
    assert interval_of(repeated, users) == pytest.approx(as_single), "50 equal targets of a user should count as one"


def test_differences_use_the_same_resamples() -> None:
    base = np.random.default_rng(3).random(200)
    result = paired_bootstrap({"base": base, "better": base + 0.01, "twice": 2 * base}, np.arange(200))
    assert result.difference("better", "base") == pytest.approx((0.01, 0.01, 0.01))
    assert result.relative("twice", "base") == pytest.approx((1, 1, 1)), (
        "a doubled column should be 100 % better in every resample"
    )
    assert result.difference("base", "base") == (0, 0, 0)


def test_there_is_no_ratio_to_zero() -> None:
    rare = np.zeros(30)
    rare[0] = 1  # a third of the resamples do not contain the only user with a value above zero
    result = paired_bootstrap({"none": np.zeros(30), "rare": rare, "all": np.ones(30)}, np.arange(30))
    assert result.relative("all", "none") is None
    assert result.ratio("all", "rare") is None, "an interval over the defined resamples only would be too narrow"
    assert result.relative("none", "all") == (-1, -1, -1)


def test_columns_are_independent_of_each_other() -> None:
    a, b = np.random.default_rng(9).random((2, 80))
    users = np.arange(80) // 4
    together = paired_bootstrap({("row", "m"): a, ("other", "m"): b}, users)
    assert together.interval(("row", "m")) == pytest.approx(interval_of(a, users))


def test_seeds_are_averaged_before_the_users_are_drawn() -> None:
    rng = np.random.default_rng(4)
    by_seed, users = rng.random((3, 60)), np.arange(60) // 2
    assert interval_of(by_seed, users) == interval_of(by_seed.mean(axis=0), users)


def test_the_bootstrap_is_reproducible_by_seed() -> None:
    values, users = np.random.default_rng(5).random(90), np.array([f"u{i % 30}" for i in range(90)])
    assert interval_of(values, users, seed=1) == interval_of(values, users, seed=1)
    assert interval_of(values, users, seed=1) != interval_of(values, users, seed=2)


def test_chunk_size_does_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(6).random(40)
    whole = interval_of(values, np.arange(40))
    monkeypatch.setattr("training.run.metrics.CHUNK_BYTES", 8 * 40 * 7)
    assert interval_of(values, np.arange(40)) == pytest.approx(whole)


@pytest.mark.parametrize(
    ("values", "reason"),
    [([1.0, np.nan], "1 values are not finite"), ([1.0], "1 values for 2 targets")],
)
def test_bad_columns_are_named(values: list[float], reason: str) -> None:
    with pytest.raises(ValueError, match=f"sasrec: {reason}"):
        paired_bootstrap({"sasrec": np.array(values)}, np.arange(2))


# --- rank correlation ---------------------------------------------------------------------------------------------


def plain_spearman(a: list[float], b: list[float]) -> float:
    """Pearson's correlation of the ranks; equal values share the mean of their ranks."""

    def places(values: list[float]) -> list[float]:
        return [sum(v < value for v in values) + (sum(v == value for v in values) - 1) / 2 for value in values]

    return float(np.corrcoef(places(a), places(b))[0, 1])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=15))
def test_rank_correlation_agrees_with_a_plain_computation(pairs: list[tuple[int, int]]) -> None:
    a, b = ([float(value) for value in side] for side in zip(*pairs, strict=True))
    found = rank_correlation(np.array(a), np.array(b))
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert np.isnan(found), "equal values have no order"
    else:
        assert found == pytest.approx(plain_spearman(a, b))


def test_rank_correlation_depends_on_the_order_only() -> None:
    scores = np.array([-3.0, 0.1, 0.2, 50.0])
    assert rank_correlation(scores, np.exp(scores)) == pytest.approx(1)
    assert rank_correlation(scores, -scores) == pytest.approx(-1)
    assert np.isnan(rank_correlation(np.ones(1), np.ones(1)))


def test_the_standard_error_is_that_of_users() -> None:
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(200), 5)
    drawn = [rng.normal(size=200)[users] for _ in range(200)]
    errors = [standard_error(gains, users.tolist()) for gains in drawn]
    assert np.mean(errors) == pytest.approx(np.std([gains.mean() for gains in drawn]), rel=0.15)
