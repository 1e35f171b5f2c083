"""A catalogue of a million titles: build it, search it, change it, and start a server with it.

A title has three to eight words; some words are much more frequent than others. One item in fifty is hidden. Vectors
are clustered like embeddings of titles: around 20 000 centres, with most of their variance in few directions. Queries
are vectors of items plus noise. Prints a table and, last, one line of JSON. Needs 3 GB of disk below `--directory` and
4 GB of memory; takes about four minutes on two idle cores.

    python tests/benchmarks/benchmark_catalogue.py [--items 1000000] [--dimension 256] [--directory DIR]
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from model_store.beams.paths import Paths
from model_store.beams.trie import AllowedItems, Node, Trie
from model_store.catalogue.catalogue import Catalogue
from model_store.catalogue.items import Item
from model_store.grounding import ItemIndex
from model_store.manifest import PromptSpec, RetrieverSpec
from model_store.text.prompt import Prompt
from tests.benchmarks.machine import bandwidth, last_line, median_ms, percentile_ms, table
from tests.benchmarks.serving import running_server
from tests.benchmarks.world import save_bundle

NUM_WORDS, NUM_SHELVES = 30_000, 1000
NUM_CENTRES, SPREAD, QUERY_NOISE = 20_000, 0.7, 0.2
NUM_SEEN, NUM_CANDIDATES = 5000, 100
NUM_QUERIES, NUM_NEAREST, REPEATS, NUM_PUTS = 100, 10, 100, 5
MAX_NOISE_ITEMS = 100_000
SPECIAL = ["<unk>", "<s>", "\n"]

Results = dict[str, Any]


def titles_of(num_items: int, rng: np.random.Generator) -> list[str]:
    """Words with low numbers are the most frequent."""
    words = np.array([f"w{number}" for number in range(NUM_WORDS)], dtype=object)
    drawn = words[(NUM_WORDS * rng.random((num_items, 8)) ** 3).astype(int)]
    return [" ".join(row[:length]) for row, length in zip(drawn, rng.integers(3, 9, num_items), strict=True)]


def items_of(titles: Sequence[str], rng: np.random.Generator) -> list[Item]:
    popularity, shelf = rng.geometric(0.05, len(titles)).tolist(), rng.integers(NUM_SHELVES, size=len(titles)).tolist()
    hidden = (rng.random(len(titles)) < 0.02).tolist()
    return [
        Item(f"item{row}", title, count, {"shelf": f"s{on}"}, is_hidden)
        for row, (title, count, on, is_hidden) in enumerate(zip(titles, popularity, shelf, hidden, strict=True))
    ]


def vectors_of(
    num_items: int, dimension: int, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Vectors (N, D), and queries (Q, D) near some of them."""
    scale = 1 / np.sqrt(1 + np.arange(dimension, dtype=np.float32))
    vectors = rng.standard_normal((num_items, dimension), dtype=np.float32)
    vectors *= SPREAD * scale
    centres = scale * rng.standard_normal((NUM_CENTRES, dimension), dtype=np.float32)
    for part in np.array_split(np.arange(num_items), 16):
        vectors[part] += centres[rng.integers(NUM_CENTRES, size=len(part))]
    noise = rng.standard_normal((NUM_QUERIES, dimension), dtype=np.float32)
    noise *= QUERY_NOISE * scale
    return vectors, vectors[rng.choice(num_items, NUM_QUERIES)] + noise


def make_prompt() -> Prompt:
    texts = [*SPECIAL, *(f"w{number}" for number in range(NUM_WORDS))]
    tokenizer = Tokenizer(models.WordLevel({text: place for place, text in enumerate(texts)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="removed")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")
    return Prompt(fast, PromptSpec(head=""))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def each_ms(work: Callable[[int], object], count: int = REPEATS) -> dict[str, float]:
    seconds = [timed(partial(work, number))[0] for number in range(count)]
    return {"p50": median_ms(seconds), "p99": percentile_ms(seconds, 99)}


def build_times(titles: Sequence[str], prompt: Prompt) -> Results:
    tokenising_s, flat = timed(lambda: prompt.tokens_of_titles(titles))
    sorting_s, paths = timed(lambda: Paths.from_flat(*flat))
    walking_s, trie = timed(lambda: Trie(paths))
    children_s, children = timed(lambda: trie.children(trie.root))
    sizes = [paths.tokens, paths.order, paths.places, children.tokens, children.starts, children.stops]
    return {
        "tokenising_s": tokenising_s,
        "trie_s": sorting_s + walking_s + children_s,
        "trie_mib": sum(array.nbytes for array in sizes) / 2**20,
        "first_tokens": len(children.tokens),
    }


def masks(catalogue: Catalogue, rng: np.random.Generator) -> dict[str, list[NDArray[np.bool_]]]:
    """(N,) masks of allowed items, for several kinds of requests."""
    size = len(catalogue)

    def seen() -> NDArray[np.bool_]:
        mask = catalogue.available(0)
        mask[rng.choice(size, min(NUM_SEEN, size))] = False
        return mask

    def candidates() -> NDArray[np.bool_]:
        mask = np.zeros(size, dtype=bool)
        mask[rng.choice(size, min(NUM_CANDIDATES, size))] = True
        return mask

    some_shelves = [f"s{shelf}" for shelf in range(NUM_SHELVES // 10)]
    return {
        "nothing seen": [catalogue.available(0)],
        f"{NUM_SEEN:,} seen": [seen() for _ in range(REPEATS)],
        f"{NUM_CANDIDATES} candidates": [candidates() for _ in range(REPEATS)],
        "a tenth, by a filter": [catalogue.available(0) & catalogue.matching({"shelf": some_shelves})],
    }


def mask_steps(catalogue: Catalogue, rng: np.random.Generator) -> Results:
    """Mask work of one request: allowed items, then allowed first tokens, then allowed children of a deeper node."""
    trie, nodes = catalogue.trie, below_root(catalogue.trie, rng)
    results: Results = {}
    for name, found in masks(catalogue, rng).items():
        first_s, _ = timed(partial(trie.allow, found[0]))
        allowed = [trie.allow(mask) for mask in found]
        from_root = partial(first_tokens, trie, found)
        further = partial(children_among, trie, nodes, allowed)
        results[name] = {
            "first_allow_ms": 1000 * first_s,
            "allow_and_root_ms": each_ms(from_root),
            "node_ms": each_ms(further),
        }
    return results


def first_tokens(trie: Trie, found: Sequence[NDArray[np.bool_]], number: int) -> NDArray[np.int64]:
    return trie.allow(found[number % len(found)]).among(trie.children(trie.root))


def children_among(
    trie: Trie, nodes: Sequence[Node], allowed: Sequence[AllowedItems], number: int
) -> NDArray[np.int64]:
    return allowed[number % len(allowed)].among(trie.children(nodes[number % len(nodes)]))


def below_root(trie: Trie, rng: np.random.Generator) -> list[Node]:
    """Children of the root, drawn with probability proportional to their number of titles."""
    children = trie.children(trie.root)
    places = children.starts.searchsorted(rng.integers(trie.root.stop, size=REPEATS), side="right") - 1
    return [trie.edge(children, int(place), 0).child for place in places]


def changes(catalogue: Catalogue, index: ItemIndex, rng: np.random.Generator) -> Results:
    """One PUT /items: a new snapshot of the catalogue, then the vector in the index."""
    vector = rng.standard_normal((1, index.dimension), dtype=np.float32)
    renamed = each_ms(lambda number: catalogue.with_items([Item(f"item{number}", f"w{number} w7 w9")]), NUM_PUTS)
    new = each_ms(lambda number: catalogue.with_items([Item(f"new{number}", f"w{number} w7 w9")]), NUM_PUTS)
    hidden = each_ms(
        lambda number: catalogue.with_items([Item(f"item{number}", catalogue.items[number].title, hidden=True)]),
        NUM_PUTS,
    )
    rows = np.array([len(catalogue)])
    put = each_ms(lambda number: index.put(rows + number, vector), NUM_PUTS)
    return {"renamed_ms": renamed, "new_ms": new, "hidden_ms": hidden, "vector_ms": put}


def grounding(
    index: ItemIndex, vectors: NDArray[np.float32], queries: NDArray[np.float32], floor_bytes: float
) -> Results:
    """Search time and recall against Faiss Flat, with one thread each."""
    faiss.omp_set_num_threads(1)
    flat = faiss.IndexFlatL2(vectors.shape[1])
    flat.add(vectors)
    found: list[NDArray[np.int64]] = []
    search = each_ms(lambda number: found.append(index.search(queries[[number]], NUM_NEAREST).rows[0]), len(queries))
    peer = each_ms(lambda number: flat.search(queries[[number]], NUM_NEAREST), 5)
    faiss.omp_set_num_threads(2)
    truth = flat.search(queries, NUM_NEAREST)[1]
    recall = np.mean([len(set(one) & set(other)) / NUM_NEAREST for one, other in zip(found, truth, strict=True)])
    return {
        "search_ms": search,
        "flat_ms": peer,
        "recall_at_10": float(recall),
        "floor_ms": 1000 * floor_bytes / bandwidth(1),
    }


def probed_bytes(num_items: int, dimension: int) -> float:
    """Bytes that a search reads: codes in the probed lists, the centres of all lists, and the compared vectors."""
    return min(num_items, 200_000) * dimension / 4 + 4 * dimension * (num_items**0.5 + 200)


def on_noise(num_items: int, dimension: int, rng: np.random.Generator) -> Results:
    """Worst case: vectors without clusters, so that no list is more likely than another to hold the neighbours."""
    vectors = rng.standard_normal((num_items, dimension), dtype=np.float32)
    queries = rng.standard_normal((NUM_QUERIES, dimension), dtype=np.float32)
    floor_bytes = probed_bytes(num_items, dimension)
    near = vectors[:NUM_QUERIES] + QUERY_NOISE * queries
    index = ItemIndex.build(vectors)
    far_recall = grounding(index, vectors, queries, floor_bytes)["recall_at_10"]
    return {
        "items": num_items,
        "recall_at_10": far_recall,
        "near_items_recall_at_10": grounding(index, vectors, near, floor_bytes)["recall_at_10"],
    }


def write_bundle(path: Path, catalogue: Catalogue, index: ItemIndex, prompt: Prompt) -> None:
    """With a language model and a retriever of random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + NUM_WORDS,
        hidden_size=index.dimension,
        intermediate_size=2 * index.dimension,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        bos_token_id=1,
        eos_token_id=None,
        tie_word_embeddings=True,
    )
    save_bundle(path, LlamaForCausalLM(config), catalogue, index, prompt, retriever=RetrieverSpec(width=64))


def measure_server(path: Path) -> Results:
    started = time.perf_counter()
    with running_server(path) as server:
        ready_s = time.perf_counter() - started
        body = {"recent": [{"item_id": "item3"}, {"item_id": "item5"}], "k": 10}
        answers = [timed(lambda: server.post("/recommend", body))[0] for _ in range(20)]
        put_s, _ = timed(lambda: server.ask("PUT", "/items/new", {"title": "w1 w2 w3"}))
        return {
            "start_to_ready_s": ready_s,
            "resident_mib": server.resident_mib,
            "own_mib": server.anonymous_mib,
            "recommend_ms": median_ms(answers),
            "put_ms": 1000 * put_s,
        }


def measure(num_items: int, dimension: int, directory: Path) -> Results:
    """The server starts after this process has released the catalogue."""
    results = measure_in_process(num_items, dimension, directory / "bundle")
    return {**results, "server": measure_server(directory / "bundle")}


def measure_in_process(num_items: int, dimension: int, bundle: Path) -> Results:
    rng, prompt = np.random.default_rng(0), make_prompt()
    titles = titles_of(num_items, rng)
    results: Results = {"items": num_items, "dimension": dimension, "trie": build_times(titles, prompt)}
    results["catalogue_s"], catalogue = timed(lambda: Catalogue(items_of(titles, rng), prompt))
    results["mask"] = mask_steps(catalogue, rng)
    vectors, queries = vectors_of(num_items, dimension, rng)
    results["index_s"], index = timed(lambda: ItemIndex.build(vectors))
    results["grounding"] = grounding(index, vectors, queries, probed_bytes(num_items, dimension))
    results["noise"] = on_noise(min(num_items, MAX_NOISE_ITEMS), dimension, rng)
    results["write_s"], _ = timed(lambda: write_bundle(bundle, catalogue, index, prompt))
    results["bundle_mib"] = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file()) / 2**20
    results["put"] = changes(catalogue, index, rng)
    return results


def rows_of(results: Results) -> list[list[object]]:
    """The table. Its last column is the goal at a million items: a maximum, for recall a minimum."""
    trie, ground, put, server = (results[name] for name in ("trie", "grounding", "put", "server"))
    rows: list[list[object]] = [
        ["", "p50", "p99", "goal"],
        ["titles to tokens, s", trie["tokenising_s"], None, None],
        ["trie, s", trie["trie_s"], None, 60],
        ["trie, MiB", trie["trie_mib"], None, 1024],
    ]
    for name, steps in results["mask"].items():
        rows.append([f"first mask, ms: {name}", steps["first_allow_ms"], None, None])
        rows.append([f"mask + first tokens, ms: {name}", *steps["allow_and_root_ms"].values(), 1])
        rows.append([f"children of a node, ms: {name}", *steps["node_ms"].values(), 1])
    rows += [[f"one change, ms: {name.removesuffix('_ms')}", *found.values(), None] for name, found in put.items()]
    return [
        *rows,
        ["index, s", results["index_s"], None, None],
        ["grounding, ms", *ground["search_ms"].values(), 5],
        ["  its floor by bytes, ms", ground["floor_ms"], None, None],
        ["  Faiss Flat, ms", *ground["flat_ms"].values(), None],
        ["  recall@10", ground["recall_at_10"], None, 0.98],
        [f"  on noise, {results['noise']['items']:,} items", results["noise"]["recall_at_10"], None, None],
        ["  on noise, queries near items", results["noise"]["near_items_recall_at_10"], None, None],
        ["bundle written, s", results["write_s"], None, None],
        ["bundle, MiB", results["bundle_mib"], None, None],
        ["server: start to ready, s", server["start_to_ready_s"], None, 20],
        ["server: resident, MiB", server["resident_mib"], None, None],
        ["  without mapped files", server["own_mib"], None, None],
        ["server: /recommend, ms", server["recommend_ms"], None, None],
        ["server: PUT /items/X, ms", server["put_ms"], None, None],
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--directory", type=Path, help="where the temporary bundle is written (default: TMPDIR)")
    arguments = parser.parse_args(argv)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        results = measure(arguments.items, arguments.dimension, Path(directory))
    print(table(rows_of(results)))
    print(last_line("catalogue", {**results, "seconds": time.perf_counter() - started}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
