"""What happens between a prompt and a ranked list, once, for serving and for evaluation.

    encode → score → choose → combine → generate → ground

Runs batches; a batch gives what its rows give one by one, up to rounding. Knows neither HTTP nor the store. Not
thread-safe: one caller at a time per bundle.
"""

from collections.abc import Sequence
from itertools import compress

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_store.answers import GENERATED, GROUNDED, Answer, Query, Ranked, Stopwatch, popular
from model_store.beams.search import Search, Title, beam_search
from model_store.beams.trie import Allowed
from model_store.bundle import Bundle
from model_store.grounding import with_popularity
from model_store.lm.split_lm import SplitLM, pad_left
from model_store.lm.window_cache import Bottom, WindowCache, read_bottom
from model_store.memory.combine import TopInput, combine
from model_store.memory.retriever import Selection, choose, take
from model_store.neighbors import Mixture


@torch.inference_mode()
def encode(lm: SplitLM, prompts: Sequence[Sequence[int]], windows: WindowCache | None = None) -> NDArray[np.float16]:
    """States (B, D): layer L, last token of each prompt. `windows` of this model are used and kept."""
    bottom = read_bottom(lm, prompts, has_cache=False) if windows is None else windows.read(lm, prompts)
    return to_float16(bottom.states[:, -1])


def to_float16(states: Tensor) -> NDArray[np.float16]:
    """As they are stored; what float16 cannot hold is clipped."""
    limit = torch.finfo(torch.float16).max
    half: NDArray[np.float16] = states.float().clamp(-limit, limit).half().cpu().numpy()
    return half


@torch.inference_mode()
def embed(lm: SplitLM, prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """Vectors (B, D) for grounding: last layer, last token of each prompt, which holds one title."""
    tokens, mask = pad_left(prompts, lm.device)
    hidden = lm.top_hidden(lm.bottom(tokens, mask), mask)[:, -1]
    vectors: NDArray[np.float32] = hidden.float().cpu().numpy()
    return vectors


@torch.inference_mode()
def recommend(bundle: Bundle, queries: Sequence[Query], windows: WindowCache | None = None) -> list[Answer]:
    """One answer per query, in order. `windows` of the bundle's model are used and kept."""
    watch = Stopwatch()
    spec = bundle.manifest.retriever
    prompts = [query.prompt for query in queries]
    bottom = read_bottom(bundle.lm, prompts) if windows is None else windows.read(bundle.lm, prompts)
    watch.lap("encode")

    memory, memory_mask = pad_memory([query.memory for query in queries], bundle)
    log_scores = bundle.retriever(bottom.states[:, -1], memory, memory_mask)
    chosen = _chosen(choose(log_scores, spec.top_k), queries)
    choice = _padded(chosen, bundle.lm.device)
    combined = combine(bottom.states, bottom.mask, take(memory, choice), choice.mask, spec.combine)
    watch.lap("retrieve")

    allowed = [bundle.catalogue.trie.allow(query.allowed) for query in queries]
    titles = generate(bundle, bottom, combined, allowed=allowed, queries=queries)
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
    bottom: Bottom,
    combined: TopInput,
    *,
    allowed: Sequence[Allowed],
    queries: Sequence[Query],
) -> list[list[Title]]:
    """Constrained beams, as many titles as asked for up to the manifest's `num_beams`.

    With the item vocabulary all titles are ranked by one step: more of them cost nothing.
    """
    widest = bundle.manifest.generation.num_beams
    if bundle.manifest.vocabulary == "items":
        widest = max([widest, *(query.num_results for query in queries)])
    searches = [
        Search(allowed=rows, num_titles=min(query.num_results, widest), num_beams=widest)
        for rows, query in zip(allowed, queries, strict=True)
    ]
    prompts = [query.prompt for query in queries]
    return beam_search(
        bundle.lm,
        bottom.mask,
        (bottom.cache, bundle.lm.new_caches()[1]),
        combined,
        trie=bundle.catalogue.trie,
        searches=searches,
        reweigh=lambda log_probs: with_neighbors(bundle, prompts, log_probs),
    )


def with_neighbors(bundle: Bundle, prompts: Sequence[Sequence[int]], log_probs: Tensor) -> Tensor:
    """Of the next item (B, V), after the neighbours of the items of each prompt have been mixed in."""
    spec, recent = bundle.manifest.generation, bundle.manifest.prompt.recent_length
    if bundle.neighbors is None or not spec.neighbor_share:
        return log_probs
    mixture = Mixture(bundle.neighbors, spec.neighbor_share, spec.neighbor_half_life)
    return mixture.mixed(log_probs, [prompt[-recent:] for prompt in prompts])


def pad_memory(memories: Sequence[NDArray[np.float16]], bundle: Bundle) -> tuple[Tensor, Tensor]:
    """(B, M, D) in the model's dtype and (B, M) int64, padded on the right. M ≥ 1, so that shapes never vanish."""
    longest = max(1, *(len(memory) for memory in memories))
    padded = np.zeros((len(memories), longest, bundle.lm.hidden_size), dtype=np.float16)
    mask = np.zeros((len(memories), longest), dtype=np.int64)
    for row, memory in enumerate(memories):
        padded[row, : len(memory)] = memory
        mask[row, : len(memory)] = 1
    device = bundle.lm.device
    return torch.from_numpy(padded).to(device, bundle.lm.dtype), torch.from_numpy(mask).to(device)


def _chosen(choice: Selection, queries: Sequence[Query]) -> list[tuple[int, ...]]:
    """Choices of the retriever, except where a query brings its own (random retrieval, an oracle, none at all)."""
    rows = zip(choice.indices.tolist(), choice.mask.tolist(), queries, strict=True)
    return [
        tuple(compress(indices, mask)) if query.chosen is None else tuple(query.chosen) for indices, mask, query in rows
    ]


def _padded(chosen: Sequence[tuple[int, ...]], device: torch.device) -> Selection:
    """At least one column wide, so that shapes never vanish."""
    indices, mask = pad_left([row or (0,) for row in chosen])
    empty = torch.tensor([not row for row in chosen])
    return Selection(indices.to(device), mask.masked_fill(empty[:, None], 0).to(device))


def _rank(bundle: Bundle, query: Query, titles: list[Title], allowed: Allowed) -> list[Ranked]:
    """Generated titles, then the nearest items to the best of them, then the popular ones, until there are enough."""
    ranked = [Ranked(_representative(bundle, allowed, title), GENERATED, title.score, 0.0) for title in titles]
    taken = {item.row for item in ranked}
    for filler in (_nearest, _popular):
        if len(ranked) < query.num_results:
            fresh = [item for item in filler(bundle, query, ranked) if item.row not in taken]
            ranked += fresh[: query.num_results - len(ranked)]
            taken |= {item.row for item in ranked}
    return ranked[: query.num_results]


def _representative(bundle: Bundle, allowed: Allowed, title: Title) -> int:
    """Items with the same title are one class: the most popular allowed one stands for it, the oldest row if tied."""
    rows = allowed.rows(title.node)
    if len(rows) == 1:  # nearly always
        return rows.item()
    rows = np.sort(rows)
    return int(rows[np.argmax(bundle.catalogue.popularity[rows])])


def _nearest(bundle: Bundle, query: Query, ranked: list[Ranked]) -> list[Ranked]:
    if not ranked:
        return []
    vector = bundle.index.vectors(np.array([ranked[0].row]))
    rows, distances = (part[0] for part in bundle.index.search(vector, 4 * query.num_results, query.allowed))
    rows, distances = rows[rows >= 0], distances[rows >= 0]
    gamma = bundle.manifest.generation.grounding_popularity_gamma
    popularity = bundle.catalogue.popularity[rows].astype(float)
    order = np.argsort(with_popularity(distances, popularity, gamma), kind="stable")
    return [Ranked(int(rows[place]), GROUNDED, None, float(distances[place])) for place in order]


def _popular(bundle: Bundle, query: Query, ranked: list[Ranked]) -> list[Ranked]:
    """Enough of the most popular allowed items to fill the list, whatever is already in it."""
    return popular(bundle.catalogue, query.allowed, query.num_results + len(ranked))
