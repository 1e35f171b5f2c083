"""The way from prompts to ranked lists; serving and evaluation share this code.

    encode → retrieve → combine → generate → ground

Runs batches. A query gets the same answer in a batch as alone, except for rounding errors. Knows neither HTTP nor the
store. Not thread-safe: one call at a time per bundle.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import compress
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_store.answers import GENERATED, GROUNDED, Answer, PastRows, Query, Ranked, Reason, popular
from model_store.beams.new_titles import asked_again, shares_of_rest
from model_store.beams.search import Search, beam_search
from model_store.beams.trie import AllowedItems, Node, ScoredTitle
from model_store.bundle import Bundle
from model_store.lm.padding import pad
from model_store.lm.split_lm import SplitLM
from model_store.lm.window_cache import BottomOutput, WindowCache, run_bottom
from model_store.memory.combine import TopInput, combine
from model_store.memory.retriever import Selection, choose, take
from model_store.text.vocabulary import BEGIN
from model_store.voices.past import Against, Past
from model_store.voices.reasons import reasons, shares_of_events
from model_store.voices.voices import Voting, all_scores


class Stopwatch:
    """Seconds between marks."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now


@torch.inference_mode()
def encode(lm: SplitLM, prompts: Sequence[Sequence[int]], windows: WindowCache | None = None) -> NDArray[np.float16]:
    """Layer-L states (B, D) of the last token of each prompt. `windows` is a cache that belongs to `lm`."""
    bottom = run_bottom(lm, prompts, with_cache=False) if windows is None else windows.run_bottom(lm, prompts)
    return to_float16(bottom.states[:, -1])


def to_float16(states: Tensor) -> NDArray[np.float16]:
    """`states` in float16; values outside its range are clipped."""
    limit = torch.finfo(torch.float16).max
    half: NDArray[np.float16] = states.float().clamp(-limit, limit).half().cpu().numpy()
    return half


@torch.inference_mode()
def embed(lm: SplitLM, prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """Vectors (B, D) for grounding: final hidden state of the last token of each prompt, which holds one title."""
    tokens, mask = pad(prompts, device=lm.device)
    hidden = lm.top_hidden(lm.bottom(tokens, mask), mask)[:, -1]
    vectors: NDArray[np.float32] = hidden.float().cpu().numpy()
    return vectors


@torch.inference_mode()
def recommend(bundle: Bundle, queries: Sequence[Query], windows: WindowCache | None = None) -> list[Answer]:
    """One answer per query, in order. `windows` is a cache that belongs to the bundle's language model."""
    watch = Stopwatch()
    asked, num_asked = queries, len(queries)
    again = _asked_again(bundle, queries)
    queries = [*queries, *(each.query for each in again)]
    spec = bundle.manifest.retriever
    prompts = [query.prompt for query in queries]
    bottom = run_bottom(bundle.lm, prompts) if windows is None else windows.run_bottom(bundle.lm, prompts)
    watch.lap("encode")

    memory, memory_mask = pad_memory([query.memory for query in queries], bundle)
    log_scores = bundle.retriever(bottom.states[:, -1], memory, memory_mask)
    chosen = _chosen(choose(log_scores, spec.top_k), queries)
    selection = _selection(chosen, bundle.lm.device)
    top_input = combine(bottom.states, bottom.mask, take(memory, selection), selection.mask, spec.combine)
    watch.lap("retrieve")

    allowed = [bundle.catalogue.trie.allow(query.allowed) for query in queries]
    titles, voting = generate(bundle, bottom, top_input, allowed=allowed, queries=queries)
    for each, found in zip(again, titles[num_asked:], strict=True):
        shares = shares_of_rest(bundle.catalogue.trie, found, each.num_below)
        titles[each.owner] = joined(titles[each.owner], shares)
    watch.lap("generate")
    lists = [_rank(bundle, *row) for row in zip(asked, titles, allowed, strict=False)]
    watch.lap("ground")
    weights = log_scores.exp().numpy(force=True)
    return [
        Answer(
            items=lists[row],
            chosen=chosen[row],
            weights=weights[row, 1 : 1 + len(query.memory)],
            null_weight=float(weights[row, 0]),
            reasons=_reasons(bundle, voting, row, query, lists[row]),
            event_shares=_event_shares(voting, row, query),
            timings_s=watch.laps,
        )
        for row, query in enumerate(asked)
    ]


class _Again(NamedTuple):
    """A further query for new titles (see `new_titles.py`).

    `owner`: the place of the query that it belongs to. `num_below`: how many titles may be shown below its node.
    """

    owner: int
    query: Query
    num_below: int


def _asked_again(bundle: Bundle, queries: Sequence[Query]) -> list[_Again]:
    trie, prompt = bundle.catalogue.trie, bundle.prompt
    found = list[_Again]()
    if trie.is_new is None:
        return found
    for owner, query in enumerate(queries):
        allowed = trie.allow(query.allowed)
        for window, node in asked_again(trie, allowed, prompt.titles_in(query.prompt)):
            below = np.zeros(len(query.allowed), dtype=bool)
            rows = trie.order[node.start : node.stop]
            below[rows] = query.allowed[rows]
            tokens = [*prompt.head, *(token for title in window for token in title)]
            found.append(_Again(owner, replace(query, prompt=tokens, allowed=below), allowed.count(node)))
    return found


def joined(titles: Sequence[ScoredTitle], others: Sequence[ScoredTitle]) -> list[ScoredTitle]:
    """The titles of both, each once with its higher score, best first."""
    scores: dict[Node, float] = {}
    for node, score in (*titles, *others):
        scores[node] = max(score, scores.get(node, score))
    return [ScoredTitle(node, score) for node, score in sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))]


def generate(
    bundle: Bundle,
    bottom: BottomOutput,
    top_input: TopInput,
    *,
    allowed: Sequence[AllowedItems],
    queries: Sequence[Query],
) -> tuple[list[list[ScoredTitle]], Voting | None]:
    """The titles of each query by constrained beam search, at most `num_beams` of the manifest, and the voting.

    With item tokens the first step scores all titles, so a longer list costs no further step: there the limit is the
    largest `num_results`.
    """
    num_beams = bundle.manifest.generation.num_beams
    if bundle.manifest.vocabulary == "items":
        num_beams = max([num_beams, *(query.num_results for query in queries)])
    searches = [
        Search(allowed=rows, num_titles=min(query.num_results, num_beams), num_beams=num_beams)
        for rows, query in zip(allowed, queries, strict=True)
    ]
    voting: Voting | None = None

    def with_voices(log_probs: Tensor) -> Tensor:
        nonlocal voting
        voting = vote(bundle, log_probs, allowed, queries)
        return log_probs if voting is None else torch.from_numpy(all_scores(voting)).to(log_probs.device)

    titles = beam_search(
        bundle.lm,
        bottom.mask,
        (bottom.cache, bundle.lm.new_caches()[1]),
        top_input,
        trie=bundle.catalogue.trie,
        searches=searches,
        adjust_first_step=with_voices,
    )
    return titles, voting


def vote(bundle: Bundle, log_probs: Tensor, allowed: Sequence[AllowedItems], queries: Sequence[Query]) -> Voting | None:
    """The voting of the bundle's voices on the language model's `log_probs` (B, V). None if it has no voices."""
    if bundle.voices is None:
        return None
    first = bundle.catalogue.trie.children(bundle.catalogue.trie.root)
    tokens = [first.tokens[rows.among(first)].astype(np.int64) for rows in allowed]
    forecast = log_probs.exp().numpy(force=True)
    return bundle.voices.vote(forecast, [past_of(bundle, query) for query in queries], tokens)


def past_of(bundle: Bundle, query: Query) -> Past:
    """The events of a query as tokens; without `past`, the prompt's items, whose times are not known."""
    if query.past is None:
        recent = np.array(query.prompt[-bundle.manifest.prompt.recent_length :], dtype=np.int64)
        recent = recent[recent != BEGIN]
        return Past(recent, np.arange(len(recent)), len(recent))
    return past_of_rows(bundle, query.past)


def past_of_rows(bundle: Bundle, past: PastRows) -> Past:
    return Past(
        bundle.tokens_of(np.array(past.rows, dtype=np.int64)),
        np.array(past.timestamps, dtype=np.int64),
        past.now,
        np.array(past.weights, dtype=np.float32) if past.weights else None,
        _against(bundle, past.against) if past.against else None,
        past.voices,
    )


def _against(bundle: Bundle, pairs: Sequence[tuple[int, float]]) -> Against:
    rows, weights = zip(*pairs, strict=True)
    return Against(bundle.tokens_of(np.array(rows, dtype=np.int64)), np.array(weights, dtype=np.float32))


def _reasons(
    bundle: Bundle, voting: Voting | None, row: int, query: Query, ranked: Sequence[Ranked]
) -> list[Reason | None]:
    """Why each item is in the list; None if no voice proposed it."""
    if voting is None or query.past is None:
        return [None] * len(ranked)
    tokens = bundle.tokens_of(np.array([item.row for item in ranked], dtype=np.int64))
    found = reasons(voting, row, tokens)
    return [reason if item.source == GENERATED else None for item, reason in zip(ranked, found, strict=True)]


def _event_shares(voting: Voting | None, row: int, query: Query) -> NDArray[np.float32]:
    num_events = 0 if query.past is None else len(query.past.rows)
    if voting is None or not num_events:
        return np.zeros(num_events, dtype=np.float32)
    return shares_of_events(voting, row, num_events)


def pad_memory(memories: Sequence[NDArray[np.float16]], bundle: Bundle) -> tuple[Tensor, Tensor]:
    """Memory states (B, M, D) in the dtype of the model and their mask (B, M), padded on the right."""
    states, mask = pad([torch.tensor(memory) for memory in memories], side="right", device=bundle.lm.device)
    return states.to(bundle.lm.dtype), mask


def _chosen(selection: Selection, queries: Sequence[Query]) -> list[tuple[int, ...]]:
    """Indices of the selected memory elements of each query; `chosen` of a query replaces the retriever's selection."""
    rows = zip(selection.indices.tolist(), selection.mask.tolist(), queries, strict=True)
    return [
        tuple(compress(indices, mask)) if query.chosen is None else tuple(query.chosen) for indices, mask, query in rows
    ]


def _selection(chosen: Sequence[tuple[int, ...]], device: torch.device) -> Selection:
    indices, mask = pad(chosen, device=device)
    return Selection(indices, mask)


def _rank(bundle: Bundle, query: Query, titles: list[ScoredTitle], allowed: AllowedItems) -> list[Ranked]:
    """Generated titles, then the items nearest to the best one, then popular items, until the list is full."""
    ranked = [Ranked(_representative(bundle, allowed, title), GENERATED, title.score, 0.0) for title in titles]
    taken = {item.row for item in ranked}
    for filler in (_nearest, _popular):
        if len(ranked) < query.num_results:
            fresh = [item for item in filler(bundle, query, ranked) if item.row not in taken]
            ranked += fresh[: query.num_results - len(ranked)]
            taken |= {item.row for item in ranked}
    return ranked[: query.num_results]


def _representative(bundle: Bundle, allowed: AllowedItems, title: ScoredTitle) -> int:
    """The catalogue row that is shown for a title: its most popular allowed item, the lowest row if tied."""
    rows = allowed.rows(title.node)
    if len(rows) == 1:  # the usual case
        return rows.item()
    rows = np.sort(rows)
    return int(rows[np.argmax(bundle.catalogue.popularity_of(rows))])


def _nearest(bundle: Bundle, query: Query, ranked: list[Ranked]) -> list[Ranked]:
    """Allowed items nearest to the first of `ranked`: four times as many as asked for, since some are in the list."""
    if not ranked:
        return []
    vector = bundle.index.vectors(np.array([ranked[0].row]))
    rows, distances = (part[0] for part in bundle.index.search(vector, 4 * query.num_results, query.allowed))
    return [
        Ranked(row, GROUNDED, None, distance)
        for row, distance in zip(rows.tolist(), distances.tolist(), strict=True)
        if row >= 0
    ]


def _popular(bundle: Bundle, query: Query, ranked: list[Ranked]) -> list[Ranked]:
    """The most popular allowed items, enough to fill the list even if all of `ranked` are among them."""
    return popular(bundle.catalogue, query.allowed, query.num_results + len(ranked))
