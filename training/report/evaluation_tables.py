"""The tables and sentences of the evaluation report, as text: index.html and report.md both show them.

In: the report as metrics.json has it. Out: tables, sentences. Knows no markup and escapes nothing.
"""

from collections.abc import Mapping
from typing import Any

from training.memory.retrieval_metrics import CUTS
from training.report.writer import Cell, Table, TableRow, interval_texts
from training.rows.registry import ROWS
from training.run.metrics import NDCG_CUTS, RECALL_CUTS, Interval

BASKET = (
    "No row shows an item of the current basket: the events of the user at the time of the target. These are always"
    " hidden, for all rows alike."
)
TIES = (
    "Equal scores in rows without a language model: the item that is more popular in the training period is first, "
    "then the lower item id.",
    "Equal times: interactions of one user are ordered by a hash (blake2b) of user and item, which means nothing.",
)
SHOWN = tuple([f"recall@{k}" for k in RECALL_CUTS] + [f"ndcg@{k}" for k in NDCG_CUTS])
COMPARED = ("recall@1", "ndcg@5", "ndcg@10")
ORACLE = "oracle"
SLICES = {
    "all": "all targets",
    "memory": "targets with memory: the history is longer than the window",
    "warm": "warm targets: the true item occurs in the training period",
    "memory_warm": "warm targets with memory",
    "cold": "cold targets: the true item does not occur in the training period",
    "returning": "targets that come back: the user had the true item before",
    "new": "new targets: the user did not have the true item before",
}
RETURNS = ("returning", "new")  # these two slices have one table of their own
RETURN_SHARE = 0.01  # of the targets must come back, or there is no such table
ELEMENT_CHOICES = {
    "retrieved": "ranked first by the retriever (zero where it abstains)",
    "joint": "all elements that the generator reads, together",
    "random": "random",
    "newest": "newest",
    "oracle": "the best element by likelihood, or none",
    "best": "best by gain",
}
_METRICS = {"recall": "Recall", "ndcg": "NDCG"}
_QUANTILES = {"p10": "1 of 10", "p25": "1 of 4", "p50": "half", "p75": "3 of 4", "p90": "9 of 10", "mean": "mean"}
_EMPTY = Cell("–")
_VOICES = {
    "language_model": "the language model",
    "popularity": "popularity",
    "near": "items near an event",
    "follow": "items of the basket after",
    "linear": "a linear model of all items",
    "alike": "similar titles",
    "return": "the item itself comes back",
}
RANDOM = "random"


def focus(report: Mapping[str, Any]) -> str:
    """The slice that the summary is about: targets with memory, where there are any."""
    return "memory" if "memory" in report["slices"] else "all"


def label(row: str) -> str:
    """The name of a row for people. A row that the registry does not know keeps its name."""
    return ROWS[row].label if row in ROWS else row


def explanation(row: str) -> str:
    return ROWS[row].explanation if row in ROWS else ""


def metric_label(metric: str) -> str:
    name, cut = metric.split("@")
    return f"{_METRICS[name]}@{cut}"


def shown_slices(report: Mapping[str, Any]) -> list[str]:
    """The slices that have a table of all metrics."""
    return [name for name in report["slices"] if name not in RETURNS]


# --- the rows -----------------------------------------------------------------------------------------------------


def main_table(report: Mapping[str, Any], name: str, suffix: str = "") -> Table:
    """All rows on the slice `name`. `suffix` is added to the metric's name: TITLE_SUFFIX scores by title."""
    rows = [
        TableRow(label(row), _kind(report, row), [_mean(metrics[metric + suffix]) for metric in SHOWN])
        for row, metrics in report["slices"][name]["rows"].items()
    ]
    return Table([metric_label(metric) for metric in SHOWN], rows)


def difference_table(report: Mapping[str, Any], name: str, key: str) -> Table:
    """Differences on the slice `name`. `key` is own_minus, minus_bigrec or minus_no_memory."""
    absolute, relative = report["slices"][name][key], report["slices"][name][f"{key}_relative"]
    head = [text for metric in COMPARED for text in (metric_label(metric), "relative")]
    rows = []
    for row in absolute:
        pairs = [(_difference(absolute[row][metric]), _relative(relative[row][metric])) for metric in COMPARED]
        rows.append(TableRow(label(row), _kind(report, row), [cell for pair in pairs for cell in pair]))
    return Table(head, rows)


def return_table(report: Mapping[str, Any]) -> Table | None:
    """NDCG@10 of items that the user had before and of new ones. None where less than 1 % of the targets come back."""
    parts = [report["slices"].get(name) for name in RETURNS]
    if not parts[0] or parts[0]["targets"] < RETURN_SHARE * report["targets"]:
        return None
    words = ("that come back", "that are new")
    head = [f"{part['targets'] if part else 0} targets {text}" for part, text in zip(parts, words, strict=True)]
    rows = [
        TableRow(
            label(row),
            _kind(report, row),
            [_mean(part["rows"][row]["ndcg@10"]) if part else _EMPTY for part in parts],
        )
        for row in report["slices"]["all"]["rows"]
    ]
    return Table(head, rows)


def cost_table(report: Mapping[str, Any]) -> Table:
    rows = []
    for row, about in report["about_rows"].items():
        coverage = [Cell(f"{100 * about['coverage']:.1f} %"), Cell(str(about["draws"]))]
        rows.append(TableRow(label(row), _kind(report, row), [*_times(about["latency"]), *coverage]))
    return Table(["median ms", "fastest tenth, ms", "× window alone", "items shown", "draws"], rows)


def _times(latency: Mapping[str, Any] | None) -> list[Cell]:
    if latency is None:
        return [_EMPTY] * 3
    ratio = Cell(*interval_texts(latency["times_plain"], ".2f"))
    return [Cell(f"{latency['ms']:.1f}"), Cell(f"{latency['ms_p10']:.1f}"), ratio]


# --- what was chosen ----------------------------------------------------------------------------------------------


def choice_sentences(report: Mapping[str, Any]) -> list[str]:
    """What each row chose on the valid period, what lies at the end of its grid, and which training did not end."""
    return [
        sentence
        for row, about in report["about_rows"].items()
        for facts in about["trained"]
        if (sentence := _choice(f"{label(row)}{_seed(about, facts)}", facts))
    ]


def _seed(about: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    return f", seed {facts['seed']}" if about["draws"] > 1 else ""


def _choice(name: str, facts: Mapping[str, Any]) -> str:
    """Empty where the facts of a training name neither settings nor how it ended."""
    parts = []
    if settings := facts.get("settings"):
        parts.append(", ".join(f"{key} = {_value(value)}" for key, value in settings.items()))
    if ends := facts.get("at_grid_end"):
        parts.append(f"at the end of the values tried: {', '.join(ends)}; a better one may lie beyond")
    if "epochs" in facts:
        ended = "ended by early stopping" if facts["stopped_early"] else "NOT CONVERGED, ended by the limit of steps"
        parts.append(f"{facts['epochs']:g} epochs, {ended}")
    return f"{name}: {'. '.join(parts)}." if parts else ""


def _value(value: Any) -> str:
    return "unlimited" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


# --- the voices ---------------------------------------------------------------------------------------------------


def voice_table(voices: Mapping[str, Any]) -> Table:
    """The mean weight of each voice in the mixture, on the valid targets that judge. All weights sum to one."""
    shares = voices["shares"]
    rows = [
        TableRow(_VOICES[voice], "", [_weight(weight), _EMPTY, _EMPTY]) for voice, weight in shares["overall"].items()
    ]
    for channel, weight in shares["window"].items():
        older = shares["older"][channel]
        cells = [_weight(weight + older), _weight(weight), _weight(older)]
        rows.append(TableRow(f"{channel}: {_VOICES.get(channel, channel)}", "", cells))
    totals = [sum(shares[part].values()) for part in ("window", "older")]
    rows.append(TableRow("all events", "", [_weight(sum(totals)), *map(_weight, totals)]))
    return Table(["share", "of the window", "of older events"], rows, corner="voice")


def voice_sentences(voices: Mapping[str, Any]) -> list[str]:
    window, memory = (voices[f"valid_ndcg@10_{part}"] for part in ("window", "memory"))
    targets, use, gain = voices["targets"], voices["memory_use"], _difference(voices["memory_minus_window"])
    return [
        f"The weights were learned from {targets['teach']} targets of the valid period and judged on {targets['judge']}"
        " targets of other users; the table shows the latter.",
        f"Of what older events were taught to add to the scores, {100 * use['scale']:g} % are used, less"
        f" {use['discount']:g} for items that the user had in older events, so that new items are ranked no worse.",
        f"On the judging targets, older events change the NDCG@10 of the voices from {window:.4f} to {memory:.4f}, by"
        f" {gain.text} {gain.small}. These users ended the training, so this is no test.",
    ]


def _weight(share: float) -> Cell:
    return Cell(f"{100 * share:.1f} %")


# --- the retriever ------------------------------------------------------------------------------------------------


def precision_table(quality: Mapping[str, Any]) -> Table:
    rows = [
        TableRow(
            f"first {k}" if k > 1 else "first", "", [_percent(quality[f"{who}@{k}"]) for who in ("precision", "chance")]
        )
        for k in CUTS
    ]
    return Table(["ranked by the retriever", "drawn at random"], rows)


def gain_table(quality: Mapping[str, Any]) -> Table:
    gains = quality["gain_nats"].items()
    rows = [TableRow(ELEMENT_CHOICES[choice], "", [_difference(interval)]) for choice, interval in gains]
    return Table(["mean gain, nats per title"], rows)


def distance_table(quality: Mapping[str, Any]) -> Table:
    rows = [
        TableRow(
            f"{choice if choice == 'retrieved' else ELEMENT_CHOICES[choice]}, "
            f"{'interactions' if unit == 'positions' else unit}",
            "",
            [Cell(f"{quantiles[name]:.3g}") if quantiles else _EMPTY for name in _QUANTILES],
        )
        for unit, by_choice in quality["distance"].items()
        for choice, quantiles in by_choice.items()
    ]
    return Table(list(_QUANTILES.values()), rows)


def retriever_sentences(quality: Mapping[str, Any]) -> list[str]:
    captured, joint, correlation = (quality[name] for name in ("captured", "captured_joint", "rank_correlation"))
    sentences = [
        f"The retriever was measured on {quality['targets']} targets of {quality['users']} users, with "
        f"{quality['elements']:g} memory elements each on average. In {_share(quality['helped'])} of the targets, at "
        "least one element helps.",
        f"The element that the retriever ranks first reaches {_share(captured)} of the gain of the best one."
        if captured
        else "No element helps in any of these targets, so there is no gain to reach.",
    ]
    if joint:
        sentences.append(
            f"All elements that the generator reads (up to {quality['top_k']}) together reach {_share(joint)}."
        )
    if correlation:
        text = " ".join(interval_texts(correlation, ".2f"))
        sentences.append(f"The rank correlation (Spearman) of scores and gains is {text}, averaged over targets.")
    sentences.append(_abstention(quality))
    return sentences


def _abstention(quality: Mapping[str, Any]) -> str:
    sentence = f"The retriever abstains in {_share(quality['abstains'])} of the targets"
    if rightly := quality["abstains_rightly"]:
        sentence += f"; in {_share(rightly)} of these, the element that it ranks first would not have helped"
    if helps := quality["takes_what_helps"]:
        sentence += f". Where it takes an element, that element helps in {_share(helps)} of the targets"
    return f"{sentence}."


# --- the summary --------------------------------------------------------------------------------------------------


def summary(report: Mapping[str, Any], name: str) -> list[str]:
    """The main results on the slice `name` in a few sentences, by NDCG@5."""
    own, part = report["own"], report["slices"][name]
    if own is None:
        return ["The bundle's own row was not evaluated; the tables below compare the other rows."]
    mean, interval = interval_texts(part["rows"][own]["ndcg@5"], ".4f")
    targets = f"{part['targets']} {SLICES[name].partition(':')[0]}"
    sentences = [f"On {targets}, {label(own)} has an NDCG@5 of {mean} {interval}.", *_comparisons(part)]
    sentences += _worth_of_memory(report, part, own)
    if ORACLE in part["rows"]:
        best = part["rows"][ORACLE]["ndcg@5"][0]
        sentences.append(
            f"With the best single memory by likelihood, which knows the answer, it is {best:.4f}. That is no bound: "
            "another memory, or several, may rank higher."
        )
    if times := report["about_rows"][own]["latency"]:
        slower = " ".join(interval_texts(times["times_plain"], ".2f"))
        sentences.append(f"One answer takes {times['ms']:.1f} ms, {slower} times as long as without memory.")
    return sentences


def _worth_of_memory(report: Mapping[str, Any], part: Mapping[str, Any], own: str) -> list[str]:
    """The bundle's own row minus the row without memory, and minus the one with the memory of another user."""
    found = []
    if worth := part["minus_no_memory"].get(own):
        found.append(f"Memory adds {_added(worth, part['minus_no_memory_relative'][own])}.")
    if RANDOM in part["own_minus"] and report["no_memory"] != RANDOM:
        added = _added(part["own_minus"][RANDOM], part["own_minus_relative"][RANDOM])
        found.append(f"Over the memory of another user, the user's own adds {added}.")
    return found


def _added(absolute: Mapping[str, Any], relative: Mapping[str, Any]) -> str:
    """NDCG@5, absolute and relative, with intervals."""
    share = _relative(relative["ndcg@5"])
    return f"{' '.join(interval_texts(absolute['ndcg@5'], '+.4f'))}, which is {share.text} {share.small}".rstrip()


def _comparisons(part: Mapping[str, Any]) -> list[str]:
    """Sentences that sort the other rows into worse, better and undecided. The oracle is no competitor."""
    groups: dict[str, list[str]] = {"better": [], "worse": [], "even": []}
    for row, metrics in part["own_minus"].items():
        if row != ORACLE:
            groups[verdict(metrics["ndcg@5"])].append(f"{label(row)} ({_brief(part, row)})")
    verbs = {"better": "is better than", "worse": "is worse than", "even": "does not differ significantly from"}
    return [f"It {verbs[group]} {', '.join(rows)}." for group, rows in groups.items() if rows]


def _brief(part: Mapping[str, Any], row: str) -> str:
    """The relative difference as text; the absolute one where the relative one is not defined."""
    relative = part["own_minus_relative"][row]["ndcg@5"]
    return _relative(relative).text if relative else _difference(part["own_minus"][row]["ndcg@5"]).text


# --- cells --------------------------------------------------------------------------------------------------------


def verdict(interval: Interval) -> str:
    """better or worse where the interval of a difference does not contain zero, else even."""
    return "better" if interval[1] > 0 else "worse" if interval[2] < 0 else "even"


def _kind(report: Mapping[str, Any], row: str) -> str:
    return "own" if row == report["own"] else "oracle" if row == ORACLE else ""


def _mean(interval: Interval) -> Cell:
    return Cell(*interval_texts(interval, ".4f"))


def _difference(interval: Interval) -> Cell:
    return Cell(*interval_texts(interval, "+.4f"), verdict(interval))


def _relative(interval: Interval | None) -> Cell:
    return Cell(*interval_texts(interval, "+.1f", percent=True), verdict(interval)) if interval else _EMPTY


def _percent(interval: Interval | None) -> Cell:
    return Cell(*interval_texts(interval, ".1f", percent=True)) if interval else _EMPTY


def _share(interval: Interval) -> str:
    return " ".join(interval_texts(interval, ".0f", percent=True))
