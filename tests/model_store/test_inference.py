"""Ranked lists are complete, allowed and without repeats, and a batch gives the answers of its queries alone."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model_store.answers import GENERATED, GROUNDED, POPULAR, Answer, PastRows, Query, popular
from model_store.bundle import Bundle
from model_store.catalogue.items import Item
from model_store.grounding import NearestItems
from model_store.inference import embed, encode, pad_memory, past_of, recommend, to_float16
from model_store.lm.item_embedding import ItemEmbedding, rows_from_pieces
from model_store.lm.padding import pad
from model_store.manifest import GenerationSpec, RetrieverSpec
from tests.conftest import BOTH_VOCABULARIES, ITEMS_ONLY, TITLES, small_voices
from training.lm.likelihood import answer_log_probs, encode_answers, log_probs_by_element

EVERYTHING = np.ones(len(TITLES), dtype=bool)


def query(bundle: Bundle, titles: list[str], num_memories: int = 0, num_results: int = 5) -> Query:
    memory = encode(bundle.lm, [bundle.prompt.tokens([TITLES[row]]) for row in range(num_memories)] or [[1]])
    return Query(bundle.prompt.tokens(titles), memory[:num_memories], EVERYTHING, num_results)


def rows(answer: Answer) -> list[int]:
    return [item.row for item in answer.items]


def check_same(batched: Answer, alone: Answer) -> None:
    assert rows(batched) == rows(alone), "a batch changes a list"
    assert [item.source for item in batched.items] == [item.source for item in alone.items]
    assert batched.chosen == alone.chosen, "a batch changes which memory elements are chosen"
    assert np.allclose(batched.weights, alone.weights, atol=1e-5), "a batch changes the retriever's weights"
    assert batched.null_weight == pytest.approx(alone.null_weight, abs=1e-5)
    for one, other in zip(batched.items, alone.items, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-3) and one.distance == pytest.approx(
            other.distance, abs=1e-3
        )


@BOTH_VOCABULARIES
@pytest.mark.parametrize("architecture", ["llama", "gemma", "gpt_neox"])
@pytest.mark.parametrize("placement", ["insert", "prepend"])
def test_a_batch_gives_the_answers_of_its_queries_alone(
    make_bundle: Callable[..., Path], architecture: str, placement: Literal["insert", "prepend"]
) -> None:
    spec = RetrieverSpec(width=16, top_k=2, combine=placement, has_null=placement == "insert")
    bundle = Bundle.open(make_bundle(architecture=architecture, retriever=spec))
    queries = [
        query(bundle, TITLES[:3], 6),
        query(bundle, [], 0, num_results=12),
        query(bundle, ["A long title of its own", TITLES[4]], 1, num_results=1),
        replace(query(bundle, TITLES[5:7], 4), chosen=(0, 3)),
        replace(query(bundle, TITLES[5:7], 4), chosen=()),
    ]
    together = recommend(bundle, queries)
    for one, batched in zip(queries, together, strict=True):
        check_same(batched, recommend(bundle, [one])[0])
    assert together[3].chosen == (0, 3) and together[4].chosen == (), "`chosen` of a query is ignored"
    assert [len(answer.weights) for answer in together] == [6, 0, 1, 4, 4]


@BOTH_VOCABULARIES
def test_scores_depend_on_which_memory_is_chosen(bundle: Bundle) -> None:
    base = query(bundle, TITLES[:3], 6)
    scores = [
        recommend(bundle, [replace(base, chosen=chosen)])[0].items[0].score for chosen in ((), (0,), (5,), (0, 5))
    ]
    assert len(set(scores)) == 4, "some memory elements do not reach the model"


@BOTH_VOCABULARIES
def test_the_weights_of_the_retriever_are_probabilities(bundle: Bundle) -> None:
    answer = recommend(bundle, [query(bundle, TITLES[:3], 6)])[0]
    assert answer.null_weight + answer.weights.sum() == pytest.approx(1, abs=1e-5)
    assert len(answer.chosen) <= 2 and list(answer.chosen) == sorted(answer.chosen)
    assert all(answer.weights[index] > answer.null_weight for index in answer.chosen)
    empty = recommend(bundle, [query(bundle, TITLES[:3])])[0]
    assert empty.null_weight == pytest.approx(1) and empty.chosen == ()


@pytest.fixture(scope="module")
def shared(bundle_path: Path) -> Bundle:
    """One bundle for all examples of a test; the tests do not change it."""
    return Bundle.open(bundle_path)


@BOTH_VOCABULARIES
@given(st.integers(1, 30), st.sets(st.integers(0, 19)))
def test_lists_are_as_long_as_the_allowed_items_permit(shared: Bundle, num_results: int, excluded: set[int]) -> None:
    allowed = ~np.isin(np.arange(20), list(excluded))
    answer = recommend(shared, [replace(query(shared, TITLES[:2]), allowed=allowed, num_results=num_results)])[0]
    assert len(answer.items) == min(num_results, int(allowed.sum())), "a list is too short or too long"
    assert len(set(rows(answer))) == len(answer.items), "an item is recommended twice"
    assert not set(rows(answer)) & excluded, "an excluded item is recommended"


def test_generated_items_come_before_grounded_and_popular_ones(bundle: Bundle) -> None:
    sources = [item.source for item in recommend(bundle, [query(bundle, TITLES[:3], 3, num_results=20)])[0].items]
    order = [GENERATED, GROUNDED, POPULAR]
    assert sources == sorted(sources, key=order.index)
    assert sources.count(GENERATED) == 5, "not as many titles as beams"
    answer = recommend(bundle, [query(bundle, TITLES[:3], 3, num_results=20)])[0]
    scores = [item.score for item in answer.items if item.score is not None]
    distances = [item.distance for item in answer.items if item.source == GROUNDED and item.distance is not None]
    assert scores == sorted(scores, reverse=True) and distances == sorted(distances)


def test_grounded_items_are_the_nearest_to_the_best_title(bundle: Bundle) -> None:
    items = recommend(bundle, [query(bundle, TITLES[:3], num_results=12)])[0].items
    vectors = bundle.index.vectors(np.arange(20))
    distances = np.linalg.norm(vectors - vectors[items[0].row], axis=1)
    taken = {item.row for item in items if item.source == GENERATED}
    expected = [row for row in np.argsort(distances).tolist() if row not in taken][:7]
    assert [item.row for item in items if item.source == GROUNDED] == expected


@BOTH_VOCABULARIES
def test_items_added_to_an_open_bundle_are_recommended(bundle: Bundle) -> None:
    items = [Item(f"new{row}", f"Blue Moon {row}", popularity=row) for row in range(30)]
    bundle.catalogue = bundle.catalogue.with_items(items)
    bundle.index.put(np.arange(20, 50), bundle.index.vectors(np.zeros(30, dtype=np.int64)))
    allowed = np.ones(50, dtype=bool)
    answer = recommend(bundle, [replace(query(bundle, []), allowed=allowed, num_results=50)])[0]
    assert sorted(rows(answer)) == list(range(50))


@BOTH_VOCABULARIES
def test_without_allowed_items_the_list_is_empty(bundle: Bundle) -> None:
    assert recommend(bundle, [replace(query(bundle, TITLES[:3]), allowed=~EVERYTHING)])[0].items == []


@BOTH_VOCABULARIES
def test_a_title_is_shown_as_its_most_popular_allowed_item(make_bundle: Callable[..., Path]) -> None:
    bundle = Bundle.open(
        make_bundle(titles=["Red Tea", "Blue Moon", "Red Tea", "Red Tea"], generation=GenerationSpec())
    )
    counts = {"i0": 1, "i2": 9, "i3": 9}
    items = [replace(item, popularity=counts.get(item.item_id, 5)) for item in bundle.catalogue.items]
    bundle.catalogue = type(bundle.catalogue)(items, bundle.prompt)
    for allowed, expected in (([1, 1, 1, 1], 2), ([1, 1, 0, 1], 3), ([1, 1, 0, 0], 0)):
        mask = np.array(allowed, dtype=bool)
        answer = recommend(bundle, [Query(bundle.prompt.tokens([]), np.zeros((0, 32), np.float16), mask, 2)])[0]
        generated = {item.row for item in answer.items if item.source == GENERATED}
        assert generated == {expected, 1}, f"with {allowed=} not item {expected} is shown for the title"


def scores_by_title(bundle: Bundle, request: Query) -> dict[str, float]:
    items = recommend(bundle, [request])[0].items
    assert {item.source for item in items} == {GENERATED}, "not all titles were scored"
    return {bundle.catalogue.items[item.row].title: item.score for item in items if item.score is not None}


@BOTH_VOCABULARIES
@pytest.mark.parametrize("placement", ["insert", "prepend"])
@pytest.mark.parametrize("architecture", ["llama", "gemma", "gpt_neox"])
def test_serving_scores_are_the_likelihoods_of_annotation(
    make_bundle: Callable[..., Path], architecture: str, placement: Literal["insert", "prepend"]
) -> None:
    """With one memory element and with none, for both vocabularies."""
    spec = RetrieverSpec(width=16, top_k=1, combine=placement)
    beams = GenerationSpec(num_beams=50)
    bundle = Bundle.open(make_bundle(architecture=architecture, retriever=spec, generation=beams))
    base = query(bundle, TITLES[:3], 4, num_results=20)
    answers = [bundle.prompt.title_tokens(title) for title in TITLES]
    memory = torch.from_numpy(base.memory).float()
    with torch.inference_mode():
        batch = encode_answers(bundle.lm, [base.prompt] * 20, answers)
        one = memory[2].expand(20, 1, 32), torch.ones(20, 1, dtype=torch.long)
        none = torch.zeros(20, 0, 32), torch.zeros(20, 0, dtype=torch.long)
        for chosen, given_memory in (((2,), one), ((), none)):
            expected = answer_log_probs(bundle.lm, batch, *given_memory, placement)
            found = scores_by_title(bundle, replace(base, chosen=chosen))
            assert found == pytest.approx(dict(zip(TITLES, expected.tolist(), strict=True)), abs=1e-3), f"{chosen=}"
        (gains,) = log_probs_by_element(
            bundle.lm, encode_answers(bundle.lm, [base.prompt], [answers[7]]), [memory], placement, max_rows=2
        )
    singly = [
        scores_by_title(bundle, replace(base, chosen=chosen))[TITLES[7]] for chosen in ((), (0,), (1,), (2,), (3,))
    ]
    assert gains.tolist() == pytest.approx(singly, abs=1e-3), "annotation and serving score memory differently"


# --- item tokens --------------------------------------------------------------------------------------------------


@ITEMS_ONLY
def test_item_tokens_are_all_ranked_with_any_number_of_beams(bundle: Bundle) -> None:
    """The first step scores all items."""
    wide = scores_by_title(bundle, query(bundle, TITLES[:3], 3, num_results=20))
    assert len(wide) == 20 > bundle.manifest.generation.num_beams
    assert list(wide.values()) == sorted(wide.values(), reverse=True)
    assert sum(np.exp(list(wide.values()))) == pytest.approx(1, abs=0.2), "not probabilities of items"
    few = scores_by_title(bundle, query(bundle, TITLES[:3], 3, num_results=7))
    assert list(few) == list(wide)[:7], "a shorter list has other items"


@ITEMS_ONLY
def test_a_longer_list_of_one_query_does_not_change_the_others(bundle: Bundle) -> None:
    small, large = query(bundle, TITLES[:3], 3, num_results=2), query(bundle, TITLES[4:6], 1, num_results=20)
    for one, batched in zip((small, large), recommend(bundle, [small, large]), strict=True):
        check_same(batched, recommend(bundle, [one])[0])


@ITEMS_ONLY
def test_items_with_the_same_title_share_a_token(make_bundle: Callable[..., Path]) -> None:
    bundle = Bundle.open(make_bundle(titles=["Red Tea", "Blue Moon", "Red  Tea", "Red Tea"]))
    assert len({bundle.prompt.title_tokens(item.title) for item in bundle.catalogue.items}) == 2
    answer = recommend(bundle, [Query(bundle.prompt.tokens([]), np.zeros((0, 32), np.float16), np.ones(4, bool), 4)])
    sources = [item.source for item in answer[0].items]
    assert sources[:2] == [GENERATED, GENERATED] and GENERATED not in sources[2:], "a title was generated twice"
    assert sorted(rows(answer[0])) == [0, 1, 2, 3]


def add(bundle: Bundle, *titles: str) -> None:
    items = [Item(title, title) for title in titles]
    bundle.catalogue = bundle.catalogue.with_items(items)
    bundle.index.put(np.arange(len(bundle.index), len(bundle.catalogue)), np.ones((len(titles), 32), dtype=np.float32))


@ITEMS_ONLY
def test_an_added_title_is_read_and_recommended_and_keeps_the_order_of_others(bundle: Bundle) -> None:
    request = query(bundle, TITLES[:3], 3, num_results=20)
    before, state = scores_by_title(bundle, request), encode(bundle.lm, [request.prompt])
    add(bundle, "A brand new title")
    request = replace(request, allowed=np.ones(21, dtype=bool), num_results=21)
    after = scores_by_title(bundle, request)
    assert "A brand new title" in after, "the added title is not recommended"
    left = [title for title in after if title != "A brand new title"]
    assert left == list(before), "an added title changed the order of the others"
    falls = [before[title] - after[title] for title in left]
    assert falls == pytest.approx([falls[0]] * 20, abs=1e-4), "the added title does not lower all scores equally"
    assert encode(bundle.lm, [request.prompt]).tobytes() == state.tobytes(), "an added title changed a state"
    with_added = encode(bundle.lm, [bundle.prompt.tokens([TITLES[0], "A brand new title"])])
    assert not np.allclose(with_added, encode(bundle.lm, [bundle.prompt.tokens([TITLES[0]])])), (
        "the added title does not change the state"
    )


@ITEMS_ONLY
def test_the_order_of_added_titles_changes_no_state(bundle_path: Path, bundle: Bundle) -> None:
    """The server, the model process and a restarted server may give them different tokens."""
    other, added = Bundle.open(bundle_path), ["Red new", "Blue new", "日本 tea"]
    for title in added:
        add(bundle, title)
        bundle.prompt.title_tokens(f"{title}, not in the catalogue")
        encode(bundle.lm, [bundle.prompt.tokens([title])])  # rows are added one by one
    add(other, *added[::-1])  # all rows at once
    assert bundle.prompt.title_tokens(added[0]) != other.prompt.title_tokens(added[0]), "the tokens are equal"
    for history in (added, [TITLES[3], added[1]], [added[2]], TITLES[:3]):
        states = [encode(each.lm, [each.prompt.tokens(history)]).tobytes() for each in (bundle, other)]
        assert states[0] == states[1], f"another state of {history}"


@ITEMS_ONLY
def test_the_head_has_a_row_for_every_token_of_the_trie(bundle: Bundle) -> None:
    """A title gets its token at its first use; its row must exist when scores are looked up."""
    for number in range(5):
        add(bundle, f"added {number}")
        request = replace(query(bundle, []), allowed=np.ones(21 + number, dtype=bool), num_results=21 + number)
        strange = replace(request, prompt=bundle.prompt.tokens([f"read, but not in the catalogue {number}"]))
        for answer in recommend(bundle, [request, strange]):
            assert sorted(rows(answer)) == list(range(21 + number))
            assert all(item.source == GENERATED for item in answer.items)
    tokens = bundle.catalogue.trie.children(bundle.catalogue.trie.root).tokens
    assert bundle.lm.head(torch.zeros(1, 32)).shape[-1] > tokens.max(), "a token has no score"


@ITEMS_ONLY
def test_tokens_may_be_added_while_the_model_runs(bundle: Bundle) -> None:
    """Other threads make prompts, and so add tokens, while a batch is running."""
    is_over = Event()
    given: list[tuple[str, int]] = []

    def write_prompts() -> None:
        number = 0
        while not is_over.wait(0.0005):
            title = f"added {number}"
            given.append((title, bundle.prompt.tokens([title])[-1]))
            number += 1

    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write_prompts) for _ in range(2)]
        try:
            for _ in range(60):
                newest = [[token] for _, token in given[-4:]] or [[0]]
                for answer in recommend(bundle, [replace(query(bundle, []), prompt=prompt) for prompt in newest]):
                    assert len(answer.items) == 5
        finally:
            is_over.set()
        for writer in writers:
            writer.result()
    inputs = bundle.lm.model.get_input_embeddings()
    assert isinstance(inputs, ItemEmbedding)
    tokens = dict(given)
    assert set(tokens.items()) == set(given), "one title has two tokens"
    assert sorted(tokens.values()) == list(range(21, len(inputs.rows()))), "a token is shared or skipped"
    for title, token in tokens.items():
        pieces = [bundle.prompt.tokenizer.encode(title, add_special_tokens=False)]
        assert inputs.rows()[token].equal(rows_from_pieces(inputs.text, pieces)[0]), (
            f"{title!r} has the row of another title"
        )


@ITEMS_ONLY
def test_voices_rank_as_they_do_alone_and_say_why(make_bundle: Callable[..., Path]) -> None:
    """The served list is that of `Voices.ranked`, restricted to what may be shown; an added title is ranked too."""
    bundle = Bundle.open(make_bundle(voices=small_voices(20)))
    add(bundle, "An added title")
    allowed = np.ones(21, dtype=bool)
    allowed[[2, 7]] = False
    past = PastRows([4, 9, 4, 11, 12], [100, 200, 300, 300, 400], 500)
    prompt = bundle.prompt.tokens([TITLES[row] for row in past.rows[-3:]])
    query = Query(prompt, np.zeros((0, 32), np.float16), allowed, 10, past=past)
    answer = recommend(bundle, [query])[0]
    assert bundle.voices is not None
    log_probs = next_token_log_probs(bundle, prompt)
    tokens = np.sort(bundle.tokens_of(np.flatnonzero(allowed)))
    scores = bundle.voices.ranked(log_probs, [past_of(bundle, query)], [tokens])[0]
    best = tokens[np.argsort(-scores.numpy()[tokens], kind="stable")][:10]
    assert bundle.tokens_of(np.array([item.row for item in answer.items])).tolist() == best.tolist()
    assert len(answer.event_shares) == 5 and 0 < answer.event_shares.sum() <= 1 + 1e-5
    for reason in answer.reasons:
        assert reason is not None and 0 < reason.share <= 1
        assert (reason.event is None) == (reason.voice in ("language_model", "popularity"))


@ITEMS_ONLY
def test_a_batch_with_voices_gives_the_answers_of_single_queries(make_bundle: Callable[..., Path]) -> None:
    bundle = Bundle.open(make_bundle(voices=small_voices(20)))
    pasts = [PastRows(list(range(size)), list(range(100, 100 + size)), 200) for size in (0, 2, 12, 19)]
    queries = [
        Query(
            bundle.prompt.tokens([TITLES[row] for row in past.rows[-3:]]),
            np.zeros((0, 32), np.float16),
            np.ones(20, dtype=bool),
            5,
            past=past,
        )
        for past in pasts
    ]
    together = recommend(bundle, queries)
    for query, answer in zip(queries, together, strict=True):
        alone = recommend(bundle, [query])[0]
        assert [item.row for item in alone.items] == [item.row for item in answer.items]
        assert alone.reasons == answer.reasons
        np.testing.assert_allclose(alone.event_shares, answer.event_shares, atol=1e-5)


def next_token_log_probs(bundle: Bundle, prompt: Sequence[int]) -> torch.Tensor:
    with torch.inference_mode():
        padded = pad([list(prompt)])
        return bundle.lm.top(bundle.lm.bottom(*padded), padded.mask, num_logits=1)[:, -1].float().log_softmax(dim=-1)


def test_popular_items_are_ordered_by_popularity(bundle: Bundle) -> None:
    allowed = np.arange(20) >= 4
    assert [item.row for item in popular(bundle.catalogue, allowed, 3)] == [4, 5, 6]


@BOTH_VOCABULARIES
def test_encoded_states_are_stored_without_further_rounding(bundle: Bundle) -> None:
    prompts = [bundle.prompt.tokens(TITLES[:size]) for size in (1, 3)]
    states = encode(bundle.lm, prompts)
    assert states.dtype == np.float16 and states.shape == (2, 32)
    for state, prompt in zip(states, prompts, strict=True):
        assert np.allclose(state, encode(bundle.lm, [prompt])[0], atol=2e-3, rtol=2e-3), "padding changes a state"
        (decoded,), _, _ = bundle.codec.decode_many([bundle.codec.encode(state, b"12345678")])
        assert decoded.tolist() == state.tolist(), "storing a state rounds it again"
    padded, _ = pad_memory([states], bundle)
    assert padded[0].half().numpy().tolist() == states.tolist(), "reading a stored state rounds it"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_beyond_float16_are_clipped(dtype: torch.dtype) -> None:
    states = to_float16(torch.tensor([[1e30, -1e30, 1.0]], dtype=dtype))
    assert states.tolist() == [[65504.0, -65504.0, 1.0]]


def test_memory_is_padded_on_the_right(bundle: Bundle) -> None:
    one, none = np.ones((1, 32), dtype=np.float16), np.zeros((0, 32), dtype=np.float16)
    memory, mask = pad_memory([none, one], bundle)
    assert memory.shape == (2, 1, 32) and mask.tolist() == [[0], [1]]
    assert pad_memory([none], bundle)[0].shape == (1, 1, 32), "a batch without memory has an empty dimension"


@BOTH_VOCABULARIES
def test_a_title_has_the_same_vector_alone_and_in_a_batch(bundle: Bundle) -> None:
    prompts = [bundle.prompt.tokens([title]) for title in TITLES[:5]]
    together = embed(bundle.lm, prompts)
    assert together.dtype == np.float32
    for vector, prompt in zip(together, prompts, strict=True):
        assert np.allclose(vector, embed(bundle.lm, [prompt])[0], atol=1e-4), "padding changes a title's vector"


def test_excluded_items_that_are_nearer_do_not_hide_allowed_ones(bundle: Bundle) -> None:
    crowd = [Item(f"new{row}", f"Blue Moon {row}") for row in range(1200)]
    bundle.catalogue = bundle.catalogue.with_items(crowd)
    vectors = bundle.index.vectors(np.zeros(1200, dtype=np.int64))
    bundle.index.put(np.arange(20, 1220), vectors)
    allowed = np.arange(1220) < 20
    answer = recommend(bundle, [replace(query(bundle, []), allowed=allowed, num_results=20)])[0]
    assert sorted(rows(answer)) == list(range(20))
    assert {item.source for item in answer.items} == {GENERATED, GROUNDED}


def test_popular_items_fill_a_list_that_grounding_does_not_fill(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lists that an approximate search scans may hold too few allowed items."""
    nothing = NearestItems(np.full((1, 80), -1), np.full((1, 80), np.inf, dtype=np.float32))
    monkeypatch.setattr(bundle.index, "search", lambda *_: nothing)
    answer = recommend(bundle, [replace(query(bundle, []), allowed=np.ones(20, dtype=bool), num_results=20)])[0]
    assert sorted(rows(answer)) == list(range(20))
    assert {item.source for item in answer.items} == {GENERATED, POPULAR}
