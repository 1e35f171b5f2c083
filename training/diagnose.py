"""Says within minutes, without a language model, whether memory can help on a data set, and which recipe fits it.

In: a data set. Out: a description in words on stderr, and one line of JSON. It describes histories, baskets, items that
come back and new items. Then it measures on sampled targets of the valid period, with voices in the place of the
language model (`training/items/diagnosis.py`), what events older than the window add to NDCG@10. The test period is
not read. A language model knows more than voices, so the numbers of a trained bundle differ from these.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model_store.voices.voices import Voices
from training.data.splits import Split, Target, sample_targets
from training.items import diagnosis
from training.items.history_facts import FEW_EVENTS, Facts, history_facts, like_titles
from training.items.pasts import Pasts
from training.items.voice_setup import untrained
from training.run.inputs import SPLITS, Inputs, load_inputs
from training.run.program import run_program
from training.run.recipes import Recipe, get_recipe
from training.run.stage import begin, digest, finish, is_done, read_certificate

PAYS, MAY_PAY, NOTHING = "memory pays", "memory may pay", "memory adds nothing that can be measured"
TOO_LITTLE = "too little data"
MAX_TARGETS, SECONDS_BUDGET = 3000, 600.0
_VERSION = 1
_HALF_WIDTH = 1.96  # standard errors, of a 95 % interval
# Minutes on one core from the data to the bundle: (interactions, minutes) as measured, see training/README.md.
_MINUTES = {"cpu-small": ((499_000, 25),), "cpu-small-titles": ((127_000, 20), (499_000, 40))}
_MOST_ITEM_TOKENS = 250_000  # titles; above, a table with a row for each of them is larger than the rest of the model
_FEW_USERS = 100
_HARDLY_ANY, _SMALL_SHARE, _LARGE_SHARE = 0.0005, 0.2, 0.5


def stage_key(fingerprint: str, recipe: Recipe, seed: int, *, max_targets: int, seconds_budget: float) -> str:
    """Changes with everything that changes the result."""
    return digest([_VERSION, fingerprint, recipe.recent_length, recipe.max_past, seed, max_targets, seconds_budget])


def run(
    inputs: Inputs,
    out: Path,
    *,
    recipe: Recipe,
    seed: int = 0,
    max_targets: int = MAX_TARGETS,
    seconds_budget: float = SECONDS_BUDGET,
) -> dict[str, Any]:
    """Returns the certificate, which holds the result. Does nothing when `out` has that of the same inputs."""
    limits: dict[str, Any] = {"max_targets": max_targets, "seconds_budget": seconds_budget}
    key = stage_key(inputs.fingerprint, recipe, seed, **limits)
    if is_done(out, key):
        return read_certificate(out)
    begin(out)
    return finish(out, key, diagnose(inputs, recipe=recipe, seed=seed, **limits))


def announce(inputs: Inputs, out: Path, *, recipe: Recipe, seed: int) -> dict[str, Any]:
    """For the pipeline: runs the stage and prints its result, unless `out` has it already. Returns the verdict."""
    limits: dict[str, Any] = {"max_targets": MAX_TARGETS, "seconds_budget": SECONDS_BUDGET}
    is_new = not is_done(out, stage_key(inputs.fingerprint, recipe, seed, **limits))
    facts = run(inputs, out, recipe=recipe, seed=seed, **limits)
    if is_new:
        print("\n".join(in_words(facts)), file=sys.stderr)
    return {"verdict": facts["verdict"]}


def diagnose(inputs: Inputs, *, recipe: Recipe, seed: int, max_targets: int, seconds_budget: float) -> dict[str, Any]:
    """All numbers, the verdict, the recommended recipe and hints."""
    started = time.monotonic()
    split, tokens = inputs.split, inputs.split.title_class.astype(np.int64)
    facts = history_facts(split, tokens, window=recipe.recent_length)
    voices, pasts = untrained(split, tokens, recipe)
    has_like_title = voices.known.has_row[:, voices.channels.index("alike")]
    facts["cold"] = like_titles(split, tokens, has_like_title, facts["cold"])
    left = seconds_budget - (time.monotonic() - started)
    targets = _affordable(voices, pasts, sample_targets(split.valid, max_targets, seed), seconds=left, seed=seed)
    measured = diagnosis.measure(voices, pasts, targets, seed=seed)
    facts["memory"] = None if measured is None else diagnosis.gain_facts(measured, seed=seed)
    return {
        "data": inputs.dataset.name,
        "cut": split.name,
        "window": recipe.recent_length,
        "past": voices.spec.past_length,
        "targets_tried": len(targets),
        **facts,
        "verdict": verdict(facts["memory"]),
        "advice": advice(facts, split),
        "hints": hints(facts, inputs.dataset.interactions.height),
    }


def _affordable(voices: Voices, pasts: Pasts, targets: list[Target], *, seconds: float, seed: int) -> list[Target]:
    count = diagnosis.num_affordable(voices, pasts, targets, seconds)
    return sample_targets(targets, count, seed)


# ---- the verdict


def verdict(memory: Facts | None) -> str:
    """From the gain on all targets. Memory pays if the 95 % interval is above zero; it may pay if the gain is larger
    than its standard error. Where memory is worth nothing, chance makes it pay once in 40 data sets, and may pay once
    in 7.
    """
    if memory is None:
        return TOO_LITTLE
    mean, low, high = memory["all"]["memory_minus_window"]
    if low > 0:
        return PAYS
    return MAY_PAY if mean > (high - low) / (2 * _HALF_WIDTH) else NOTHING


def advice(facts: Facts, split: Split) -> Facts:
    """`hide_seen`: whether items that the user had should be left out. `minutes`: None where nothing was measured."""
    name = _recipe_name(facts["size"])
    minutes = None
    if name in _MINUTES:
        events, measured = zip(*_MINUTES[name], strict=True)
        minutes = round(float(np.interp(facts["size"]["events"], events, measured)))
    return {"recipe": name, "minutes": minutes, "hide_seen": not split.has_repeats}


def _recipe_name(size: Facts) -> str:
    """`gpu` where `cpu-small` would end before it has seen each event once."""
    small = get_recipe("cpu-small")
    if size["events"] > small.sft.max_steps * small.sft_batch_blocks * small.recent_length:
        return "gpu"
    return "cpu-small-titles" if size["titles"] > _MOST_ITEM_TOKENS else "cpu-small"


def hints(facts: Facts, num_interactions: int) -> list[str]:
    """What makes the verdict uncertain, or should be looked at in the data."""
    return [*_hints_of_memory(facts), *_hints_of_times(facts), *_hints_of_items(facts, num_interactions)]


def _hints_of_memory(facts: Facts) -> Iterator[str]:
    targets, memory = facts["targets"], facts["memory"]
    if memory is None:
        yield (
            f"Too little data: {targets['valid']} targets of {targets['users']} users in the valid period. "
            "Nothing was measured."
        )
    elif memory["all"]["users"] < _FEW_USERS:
        yield f"Only {memory['all']['users']} users have targets: the intervals are wide."
    if targets["with_older_share"] < _SMALL_SHARE:
        yield "Few targets have events older than the window: memory can change few answers."


def _hints_of_times(facts: Facts) -> Iterator[str]:
    histories, in_basket = facts["histories"], facts["baskets"]["window_in_basket_share"]
    if (share := histories["one_time_share"]) > _SMALL_SHARE:
        yield f"{_percent(share)} of the long histories have one timestamp for all events: check the times."
    elif (share := histories["within_a_day_share"]) > _LARGE_SHARE:
        yield (
            f"{_percent(share)} of the long histories begin and end within a day, as when a new user rates many items "
            "in one sitting: their times tell little about use."
        )
    if in_basket > _SMALL_SHARE:
        yield f"For {_percent(in_basket)} of the targets the whole window lies in the current basket."


def _hints_of_items(facts: Facts, num_interactions: int) -> Iterator[str]:
    size, kept = facts["size"], 1 - _SMALL_SHARE
    if size["titles"] == 1:
        yield "All titles are equal, so no item can be told from another."
    elif size["titles"] < kept * size["items"]:
        yield f"{size['items']} items have only {size['titles']} titles; items of equal title are one to the model."
    if size["events"] < kept * num_interactions:
        share = _percent(1 - size["events"] / num_interactions)
        yield f"{share} of the interactions are left out: fewer than 5 are with the same item."
    if facts["cold"]["no_event_share"] > _SMALL_SHARE:
        yield "Many targets are new items. Only their titles tell something about them; train again often."


# ---- words


def in_words(facts: Facts) -> list[str]:
    """Lines for people."""
    lines = [*_described(facts), *_measured(facts), f"Verdict    {facts['verdict']}"]
    chosen = facts["advice"]
    minutes = "not measured how long it takes" if chosen["minutes"] is None else f"about {chosen['minutes']} minutes"
    seen = "leave out items that the user had" if chosen["hide_seen"] else "show items that the user had, too"
    lines.append(f"Recipe     {chosen['recipe']} ({minutes} on one core); {seen}")
    return lines + [f"Note       {hint}" for hint in facts["hints"]]


def _described(facts: Facts) -> Iterator[str]:
    size, histories, targets, baskets, cold = (
        facts[name] for name in ("size", "histories", "targets", "baskets", "cold")
    )
    yield (
        f"Data       {facts['data']}: {size['users']:,} users, {size['items']:,} items, {size['events']:,} events, "
        f"{size['first_day']} to {size['last_day']}{', times in whole days' if size['whole_days'] else ''}"
    )
    yield (
        f"Histories  median {histories['median_length']:.0f} events, 90th percentile {histories['p90_length']:.0f}; "
        f"{histories['long_users']:,} users are long enough to have targets"
    )
    yield (
        f"Targets    {targets['valid']:,} in the valid period; {_percent(targets['with_older_share'])} have events "
        f"older than the window of {facts['window']} events"
    )
    yield (
        f"Baskets    {_percent(baskets['shared_time_share'])} of the events have the time of the user's event before; "
        f"{baskets['mean_size']:.1f} events per basket; the order inside a basket means nothing"
    )
    yield _returns_in_words(facts["returns"])
    yield (
        f"New items  of {_percent(cold['no_event_share'])} of the targets the item has no event in the train period, "
        f"of {_percent(cold['few_events_share'])} fewer than {FEW_EVENTS}; "
        f"{_percent(cold['like_title_share'])} of these share a word of their title with another item"
    )


def _returns_in_words(returns: Facts) -> str:
    if max(returns["train_share"], returns["targets_share"]) < _HARDLY_ANY:
        return "Returns    users never, or almost never, come back to an item"
    days = "" if returns["median_days"] is None else f", after {returns['median_days']:g} days (median)"
    return (
        f"Returns    {_percent(returns['train_share'])} of the events of the train period are of an item that the user "
        f"had{days}; {_percent(returns['targets_share'])} of the targets are "
        f"({_percent(returns['in_window_share'])} in the window, {_percent(returns['older_share'])} only before it)"
    )


def _measured(facts: Facts) -> Iterator[str]:
    if facts["memory"] is None:
        return
    found = facts["memory"]["all"]
    own = "" if facts["advice"]["hide_seen"] else f", of the user's own earlier items {found['ndcg@10_own'][0]:.4f}"
    yield f"Plain      NDCG@10 of popular items {found['ndcg@10_popularity'][0]:.4f}{own}"
    names = {"all": "all", "returning": "items that the user had", "new": "items that are new to the user"}
    is_divided = facts["memory"]["returning"] is not None  # otherwise the new items are all items
    for part, name in names.items():
        if facts["memory"][part] is not None and (is_divided or part == "all"):
            yield f"Memory     {name}: {_gain_in_words(facts['memory'][part], facts)}"


def _gain_in_words(gain: Facts, facts: Facts) -> str:
    mean, low, high = gain["memory_minus_window"]
    ratio = gain["memory_by_window"]
    times = f", × {ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]" if ratio else ""
    return (
        f"NDCG@10 {gain['ndcg@10_window'][0]:.4f} with the last {facts['window']} events, "
        f"{gain['ndcg@10_memory'][0]:.4f} with {facts['past']}: {mean:+.4f} [{low:+.4f}, {high:+.4f}]{times} "
        f"({gain['targets']:,} targets of {gain['users']:,} users)"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.{0 if share in (0, 1) or 0.1 <= share < 0.995 else 1}f} %"


# ---- the program


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="data set directory (see training.prepare)")
    parser.add_argument("--cut", default="time", choices=tuple(SPLITS), help="how data is cut (time)")
    parser.add_argument("--out", type=Path, help="directory that keeps the result; not kept without it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-targets", type=int, default=MAX_TARGETS, help="targets that are measured (%(default)s)")
    parser.add_argument(
        "--seconds-budget",
        type=float,
        default=SECONDS_BUDGET,
        help="measure fewer targets if it would take longer than about this (%(default)s)",
    )

    def stage(arguments: argparse.Namespace) -> dict[str, Any]:
        inputs = load_inputs(arguments.data, arguments.cut)
        chosen: dict[str, Any] = {
            "recipe": get_recipe("cpu-small"),
            "seed": arguments.seed,
            "max_targets": arguments.max_targets,
            "seconds_budget": arguments.seconds_budget,
        }
        facts = run(inputs, arguments.out, **chosen) if arguments.out else diagnose(inputs, **chosen)
        print("\n".join(in_words(facts)), file=sys.stderr)
        return facts

    arguments = parser.parse_args(argv)
    if arguments.max_targets < 1:
        parser.error("--max-targets must be at least 1")
    return run_program(stage, arguments)


if __name__ == "__main__":
    sys.exit(main())
