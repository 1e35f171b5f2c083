"""Parts of the engine's benchmark: floors count what is read, and the peer answers the same question."""

from dataclasses import replace

import pytest

from model_store.bundle import Bundle
from model_store.inference import recommend
from tests.benchmarks.floor import counted
from tests.benchmarks.machine import cell, table
from tests.benchmarks.peer import Generate
from tests.benchmarks.summary import GOALS, goals_table
from tests.benchmarks.world import SHAPES, make_bundle, make_model, make_query, make_readers, make_shop

NUM_TITLES = 60
SHAPE = replace(SHAPES["demo"], num_series=6, vocab_size=200)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    shop = make_shop(SHAPE)
    return make_bundle(make_model(SHAPE, shop), SHAPE, shop, num_beams=NUM_TITLES)


def test_the_floor_counts_prompts_and_memories_without_padding(bundle: Bundle) -> None:
    queries = [make_query(bundle, reader) for reader in make_readers(bundle, 2, num_events=20)]
    queries[1] = replace(queries[1], prompt=queries[1].prompt[:30])
    with counted(bundle.lm) as work:
        recommend(bundle, queries)
    read = sum(len(query.prompt) for query in queries)
    assert work.prompt_tokens == (read, read + 2)  # each query retrieves one memory element
    assert work.head_rows == work.beam_tokens + 2
    assert work.steps[0].top is not None
    assert work.steps[0].top.pairs_per_token == sum(
        (len(query.prompt) + 1) * (len(query.prompt) + 2) / 2 for query in queries
    ) / (read + 2)
    assert not {"bottom", "top_hidden", "head"} & vars(bundle.lm).keys(), "the methods are still wrapped"


def test_the_floor_grows_with_the_work_and_is_positive(bundle: Bundle) -> None:
    queries = [make_query(bundle, reader) for reader in make_readers(bundle, 4, num_events=20)]
    floors = []
    for size in (1, 4):
        with counted(bundle.lm) as work:
            recommend(bundle, queries[:size])
        floors.append(work.floor_s(SHAPE))
    assert 0 < floors[0] < floors[1]


def test_with_beams_for_all_titles_generate_finds_the_same_titles(bundle: Bundle) -> None:
    titles = [bundle.prompt.title_tokens(item.title) for item in bundle.catalogue.items]
    shop = make_shop(SHAPE)
    peer = Generate(make_model(SHAPE, shop), titles, terminator=bundle.prompt.terminator[0])
    query = make_query(bundle, make_readers(bundle, 1, num_events=20)[0], with_memory=False)
    ours = [(titles[item.row], item.score) for item in recommend(bundle, [query])[0].items]
    theirs = peer(query.prompt, num_beams=NUM_TITLES, num_results=10)
    assert [title for title, _ in ours] == [each.tokens for each in theirs]
    assert [score for _, score in ours] == pytest.approx([each.score for each in theirs], abs=1e-3)


def test_a_goal_without_a_figure_counts_as_not_measured() -> None:
    rows = {row[0]: row[1:] for row in goals_table({"service": {"history": {"ratio": 1.1}}})}
    assert rows["/recommend, user with 5,000 events against 10"] == ("≤ 1.15 ×", "1.1", "yes")
    others = [verdict for row, (_, _, verdict) in rows.items() if not row.startswith("/recommend")]
    assert others == ["reached", *["not measured"] * (len(GOALS) - 1)]


def test_a_table_has_aligned_columns() -> None:
    assert table([("row", "ms"), ("long name", 1234.5), ("x", None)]).splitlines() == [
        "row           ms",
        "long name  1,234",
        "x              –",
    ]
    assert cell(0.12345) == "0.123"
