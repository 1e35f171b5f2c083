"""A published checkpoint, unchanged: one answer of the engine beside Hugging Face `generate` and llama.cpp.

All read the same prompt of ten titles, in the checkpoint's own tokens, with the same weights. `generate` gets the same
beams and the same catalogue. llama.cpp reads the GGUF file itself, 4 bits a weight for `smollm2`; it has neither beams
nor a catalogue, so it writes one title greedily, token by token: the least that a list of one free title costs there.
It needs `pip install xllamacpp` (llama.cpp as a wheel); without it, its rows are left out.

Titles come from a data set, or from the synthetic bookshop. Prints a table and, last, one line of JSON.

    PYTHONPATH=. python tests/benchmarks/benchmark_pretrained.py [--data data/ml] [--model smollm2] [--repeats 5]
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from model_store.inference import recommend
from model_store.lm.precision import Precision, set_precision
from model_store.lm.prepacked import prepack_matrices
from model_store.text.prompt import Prompt
from tests.benchmarks.machine import last_line, median_ms, paired, table
from tests.benchmarks.peer import Generate
from tests.benchmarks.world import RECENT, Reader, Shape, Shop, make_bundle, make_query, quiet_library
from training.data.dataset import load_dataset
from training.data.synthetic import synthetic_items
from training.lm.backbone import pretrained, prompt_spec
from training.lm.gguf import gguf_file
from training.run.recipes import RECIPES

RESULTS, BEAMS = 10, 20
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "int8")
CPU = torch.device("cpu")


def measure(model_name: str, titles: Sequence[str], repeats: int) -> dict[str, Any]:
    """Milliseconds of each way; the ways take turns."""
    whole, tokenizer = pretrained(model_name, CPU, in_float32=True)
    prompt = Prompt(tokenizer, prompt_spec(RECIPES["lora"], is_pretrained=True))
    ways: dict[str, Callable[[], Any]] = {}
    for precision in PRECISIONS:
        model, _ = pretrained(model_name, CPU, in_float32=True)  # a change of precision is irreversible
        model.eval().requires_grad_(False)
        bundle = make_bundle(model, _shape(model), Shop([], list(titles)), num_beams=BEAMS, prompt=prompt)
        set_precision(bundle.lm, precision)
        prepack_matrices(bundle.lm)
        query = make_query(bundle, Reader(_shown(titles), np.zeros((0, bundle.lm.hidden_size), np.float16)))
        ways[f"AutoMR, {precision}"] = partial(recommend, bundle, [query])
    ways["generate, float32"] = _generate(whole, prompt, titles)
    read = prompt.tokens(_shown(titles))
    longest = max(len(prompt.title_tokens(title)) for title in _shown(titles))
    ways |= _llama_cpp(model_name, read, longest)
    seconds = paired(list(ways.values()), repeats)
    found: dict[str, Any] = {name: median_ms(each) for name, each in zip(ways, seconds, strict=True)}
    return {"prompt_tokens": len(read), "title_tokens": longest, "titles": len(titles), "ms": found}


def _shape(model: Any) -> Shape:
    config = model.config
    return Shape(
        family="llama",
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        is_tied=config.tie_word_embeddings,
        num_series=0,
        num_beams=BEAMS,
    )


def _shown(titles: Sequence[str]) -> list[str]:
    """Ten titles from all over the catalogue, the same in each run."""
    rows = np.random.default_rng(0).choice(len(titles), RECENT, replace=False)
    return [titles[row] for row in rows]


def _generate(model: PreTrainedModel, prompt: Prompt, titles: Sequence[str]) -> Callable[[], Any]:
    sequences = [prompt.title_tokens(title) for title in titles]
    peer = Generate(model.eval(), sequences, terminator=prompt.terminator[0])
    return lambda: peer(prompt.tokens(_shown(titles)), num_beams=BEAMS, num_results=RESULTS)


def _llama_cpp(model_name: str, read: Sequence[int], title_tokens: int) -> dict[str, Callable[[], Any]]:
    """The prompt with one token, and the prompt with one title."""
    file = gguf_file(model_name)
    if file is None or importlib.util.find_spec("xllamacpp") is None:
        return {}
    from xllamacpp import CommonParams, Server  # llama.cpp as a wheel; a part of this benchmark only

    options = CommonParams()
    options.model.path, options.n_ctx, options.n_parallel = str(file), 2048, 1
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = torch.get_num_threads()
    server = Server(options)

    def write(count: int) -> None:
        """Nothing of an earlier call is reused."""
        asked = {"prompt": list(read), "n_predict": count, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        answer = server.handle_completions(asked)
        assert answer["usage"]["completion_tokens"] == count, answer

    return {"llama.cpp, one token": lambda: write(1), "llama.cpp, one free title": lambda: write(title_tokens)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="data set whose titles are the catalogue; default: the bookshop")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--titles", type=int, default=10_000, help="at most so many titles")
    options = parser.parse_args(argv)
    items = load_dataset(options.data).items if options.data else synthetic_items()
    titles = items["title"].unique(maintain_order=True).head(options.titles).to_list()
    with quiet_library():
        found = measure(options.model, titles, options.repeats)
    sizes = f"{found['titles']} titles, {found['prompt_tokens']} tokens in the prompt, {BEAMS} beams"
    print(f"{options.model}: {sizes}\n")
    print(table([("one request", "ms"), *found["ms"].items()]))
    print(last_line("pretrained", {"model": options.model, **found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
