"""The way from prompts to ranked lists; serving and evaluation share this code.

    encode → retrieve → combine → generate → ground

Runs batches. A query gets the same answer in a batch as alone, except for rounding errors. Knows neither HTTP nor the
store. Not thread-safe: one call at a time per bundle.
"""

import time
from collections.abc import Sequence
from itertools import compress

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_store.answers import GENERATED, GROUNDED, Answer, Query, Ranked, popular
from model_store.beams.search import ScoredTitle, Search, beam_search
from model_store.beams.trie import AllowedItems
from model_store.bundle import Bundle
from model_store.lm.padding import pad
from model_store.lm.split_lm import SplitLM
from model_store.lm.window_cache import BottomOutput, WindowCache, run_bottom
from model_store.memory.combine import TopInput, combine
from model_store.memory.retriever import Selection, choose, take
from model_store.neighbors import Mixture


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
    titles = generate(bundle, bottom, top_input, allowed=allowed, queries=queries)
    watch.lap("generate")
    lists = [_rank(bundle, *row) for row in zip(queries, titles, allowed, strict=True)]
    watch.lap("ground")
    weights = log_scores.exp().numpy(force=True)
    return [
        Answer(items, rows, own[1 : 1 + len(query.memory)], float(own[0]), watch.laps)
        for items, rows, own, query in zip(lists, chosen, weights, queries, strict=True)
    ]


def generate(
    bundle: Bundle,
    bottom: BottomOutput,
    top_input: TopInput,
    *,
    allowed: Sequence[AllowedItems],
    queries: Sequence[Query],
) -> list[list[ScoredTitle]]:
    """The titles of each query by constrained beam search, at most `num_beams` of the manifest.

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
    prompts = [query.prompt for query in queries]
    return beam_search(
        bundle.lm,
        bottom.mask,
        (bottom.cache, bundle.lm.new_caches()[1]),
        top_input,
        trie=bundle.catalogue.trie,
        searches=searches,
        adjust_first_step=lambda log_probs: with_neighbors(bundle, prompts, log_probs),
    )


def with_neighbors(bundle: Bundle, prompts: Sequence[Sequence[int]], log_probs: Tensor) -> Tensor:
    """`log_probs` (B, V) of the next item, mixed with the item neighbours of each prompt if the bundle has some."""
    spec, recent = bundle.manifest.generation, bundle.manifest.prompt.recent_length
    if bundle.neighbors is None or not spec.neighbor_share:
        return log_probs
    mixture = Mixture(bundle.neighbors, spec.neighbor_share, spec.neighbor_half_life)
    return mixture.mixed(log_probs, [prompt[-recent:] for prompt in prompts])


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
    return int(rows[np.argmax(bundle.catalogue.popularity[rows])])


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
