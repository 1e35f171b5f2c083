"""The demo, whole: what the language model says helps, what the retriever picks, and what the generator makes of it.

In the synthetic bookshop the right memory is known: a far echo is explained by one old interaction alone. So the three
learned parts can be judged against the truth, on readers' test period. The recipe is the demo's with half of the steps
of tuning: what half of them teach must be enough.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from model_store.answers import Answer, Query
from model_store.bundle import Bundle
from model_store.catalogue.items import Item
from model_store.inference import encode, recommend
from training import pipeline
from training.data.splits import Target
from training.data.synthetic import FAR_GAP, find_echoes
from training.lm.states import States, spans_of, window_states
from training.lm.windows import Example, Windows
from training.memory.annotations import Annotation, annotate
from training.run.demo import demo_inputs
from training.run.inputs import Inputs
from training.run.recipes import get_recipe

NUM_ECHOES, NUM_READERS = 150, 100


class World(NamedTuple):
    """Far echoes of the test period: their examples, and which memory element is the source."""

    bundle: Bundle
    examples: list[Example]
    sources: np.ndarray
    truths: list[int]  # catalogue rows
    states: States
    histories: list[list[str]]  # item ids of some readers, oldest first
    cued: list[list[str]]  # item ids before each echo; the last one is the cue

    def answers(self, chosen: Sequence[tuple[int, ...] | None]) -> list[Answer]:
        allowed = np.ones(len(self.bundle.catalogue), dtype=bool)
        queries = [
            Query(example.prompt, self.states.at(example.user, example.memory_positions), allowed, 5, pick)
            for example, pick in zip(self.examples, chosen, strict=True)
        ]
        return [answer for query in queries for answer in recommend(self.bundle, [query])]

    def hits(self, answers: list[Answer]) -> float:
        """Share of echoes whose true next volume is first."""
        pairs = zip(answers, self.truths, strict=True)
        return float(np.mean([answer.items[0].row == truth for answer, truth in pairs]))


def far_echoes(inputs: Inputs) -> list[tuple[Target, int]]:
    users = {history.user_id: user for user, history in enumerate(inputs.split.histories)}
    test = set(inputs.split.test)
    echoes = [
        (Target(users[user_id], position), source)
        for user_id, position, source in find_echoes(inputs.dataset).rows()
        if position - source >= FAR_GAP
    ]
    return [echo for echo in echoes if echo[0] in test][:NUM_ECHOES]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    directory: Path = tmp_path_factory.mktemp("world")
    demo = get_recipe("demo")
    tuning = dataclasses.replace(demo.sft, max_steps=demo.sft.max_steps // 2, evaluate_every=demo.sft.max_steps // 4)
    recipe = dataclasses.replace(demo, sft=tuning, memory_from=demo.memory_from // 2)
    inputs = demo_inputs(recipe.synthetic_users, seed=0)
    pipeline.run(inputs, directory / "bundle", recipe_name="demo", work=directory / "work", recipe=recipe)
    bundle = Bundle.open(directory / "bundle")
    windows = Windows(inputs.split, bundle.prompt, bundle.manifest.memory.max_elements)
    echoes = far_echoes(inputs)
    examples = [windows.example(target) for target, _ in echoes]
    states = window_states(
        bundle.lm, windows, spans_of(windows, [target for target, _ in echoes]), directory / "states"
    )
    pairs = zip(examples, echoes, strict=True)
    sources = np.array([int(np.flatnonzero(example.memory_positions == source)[0]) for example, (_, source) in pairs])
    ids, histories = inputs.split.item_ids, inputs.split.histories
    truths = [bundle.catalogue.rows[ids[histories[target.user].items[target.position]]] for target, _ in echoes]
    readers = [[ids[item] for item in history.items] for history in histories[:NUM_READERS]]
    cued = [[ids[item] for item in histories[target.user].items[: target.position]] for target, _ in echoes]
    return World(bundle, examples, sources, truths, states, readers, cued)


@pytest.fixture(scope="module")
def annotations(world: World) -> list[Annotation]:
    placement = world.bundle.manifest.retriever.combine
    return list(annotate(world.bundle.lm, world.examples, world.states, placement=placement, batch_size=16))


def test_the_annotator_puts_its_weight_on_the_one_memory_that_explains(
    world: World, annotations: list[Annotation]
) -> None:
    gains = [found.log_probs[1:] - found.log_probs[0] for found in annotations]
    best = np.array([gain.argmax() for gain in gains])
    of_source = np.mean([gain[source] for gain, source in zip(gains, world.sources, strict=True)])
    assert (best == world.sources).mean() >= 0.6, "the source is too rarely the memory that helps most"
    assert of_source >= 0.5, f"the source gains only {of_source:.2f} nats"
    assert of_source >= np.mean([gain.mean() for gain in gains]) + 0.4, "any memory helps as much as the source"


def test_the_retriever_picks_it_and_random_does_not(world: World) -> None:
    answers = world.answers([None] * len(world.examples))
    picked = np.mean([source in answer.chosen for answer, source in zip(answers, world.sources, strict=True)])
    rng = np.random.default_rng(0)
    random = np.mean([rng.integers(len(example.memory_positions)) for example in world.examples] == world.sources)
    assert picked >= 0.6, f"the retriever finds the source in {picked:.0%} of the echoes only"
    assert random <= 0.2, f"a random pick finds it in {random:.0%}: this world is too easy to prove anything"


def test_with_the_retrieved_memory_the_next_volume_comes_first_far_more_often(world: World) -> None:
    none, random_ = [()] * len(world.examples), np.random.default_rng(1)
    picks = [(int(random_.integers(len(example.memory_positions))),) for example in world.examples]
    retrieved = world.hits(world.answers([None] * len(world.examples)))
    without, at_random = world.hits(world.answers(none)), world.hits(world.answers(picks))
    assert retrieved >= 2 * max(without, at_random), (
        f"right at the first place: {retrieved:.0%} with the retrieved memory, {without:.0%} without, "
        f"{at_random:.0%} with a random one"
    )


def test_a_new_volume_is_in_the_top_3_of_readers_of_its_series_and_an_unrelated_title_is_not(world: World) -> None:
    """Right after a reader's last volume of a series, for every tenth series. Known items keep their order."""
    bundle, catalogue = world.bundle, world.bundle.catalogue
    num_known = len(catalogue)
    series = {item.item_id: str(item.attributes["series"]) for item in catalogue.items if "series" in item.attributes}
    ranks = []
    for name in sorted(set(series.values()))[::10]:
        new = [Item("volume", f"{name} 9: The Moonlit Compost"), Item("odd", "Quarterly Report on Zinc Prices")]
        changed = dataclasses.replace(bundle, catalogue=catalogue.with_items(new))
        for items in world.histories:
            volumes = [place for place, item_id in enumerate(items) if series.get(item_id) == name]
            if not volumes:
                continue
            query = query_after(bundle, items[: volumes[-1] + 1])
            known = recommend(bundle, [query])[0].items
            (answer,) = recommend(changed, [dataclasses.replace(query, allowed=np.append(query.allowed, [True, True]))])
            rows = [item.row for item in answer.items]
            rest = [row for row in rows if row < num_known]
            assert rest == [item.row for item in known][: len(rest)], "known items are in another order"
            assert num_known + 1 not in rows, "a title that nothing is known of is among the first ten"
            ranks.append(rows.index(num_known) + 1 if num_known in rows else 99)
    assert len(ranks) >= 10 and np.mean(np.array(ranks) <= 3) >= 0.7, f"ranks of a new volume: {sorted(ranks)}"


def test_a_new_volume_of_a_series_that_only_memory_knows_is_in_the_top_3_after_a_cue(world: World) -> None:
    """The window has the cue and no volume; the series is named by the retrieved memory alone."""
    bundle, catalogue = world.bundle, world.bundle.catalogue
    ranks = []
    for items, truth in list(zip(world.cued, world.truths, strict=True))[:30]:
        series = catalogue.items[truth].attributes["series"]
        window = catalogue.items.at(catalogue.rows[each] for each in items[-bundle.manifest.prompt.recent_length :])
        assert all(each.attributes.get("series") != series for each in window), "the window knows the series"
        changed = catalogue.with_items([Item("volume", f"{series} 9: The Moonlit Compost")])
        query = query_after(bundle, items)
        query = dataclasses.replace(query, allowed=np.append(query.allowed, [True]))
        (answer,) = recommend(dataclasses.replace(bundle, catalogue=changed), [query])
        rows = [item.row for item in answer.items]
        ranks.append(rows.index(len(catalogue)) + 1 if len(catalogue) in rows else 99)
    assert np.mean(np.array(ranks) <= 3) >= 0.7, f"ranks of a new volume: {sorted(ranks)}"


def query_after(bundle: Bundle, items: Sequence[str]) -> Query:
    """As the service asks after these events: the newest are the prompt, the others memory; read items are left out."""
    titles, size = bundle.catalogue.titles(items), bundle.manifest.prompt.recent_length
    windows = [titles[max(0, stop - size) : stop] for stop in range(1, max(len(titles) - size, 0) + 1)]
    prompts = [bundle.prompt.tokens(window) for window in windows[-bundle.manifest.memory.max_elements :]]
    memory = encode(bundle.lm, prompts) if prompts else np.zeros((0, bundle.lm.hidden_size), dtype=np.float16)
    allowed = ~np.isin(np.arange(len(bundle.catalogue)), [bundle.catalogue.rows[item_id] for item_id in items])
    return Query(bundle.prompt.tokens(titles), memory, allowed, 10)
