"""The tables and sentences of a report, as text: what index.html and report.md both say.

In: the report as metrics.json has it. Out: tables of cells, sentences. Knows no markup and escapes nothing.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from training.memory.retrieval_quality import CUTS
from training.run.metrics import NDCG_CUTS, RECALL_CUTS, Interval

SHOWN = tuple([f"recall@{k}" for k in RECALL_CUTS] + [f"ndcg@{k}" for k in NDCG_CUTS])
COMPARED = ("recall@1", "ndcg@5", "ndcg@10")
ORACLE = "oracle"
SLICES = {
    "all": "all targets",
    "memory": "targets with memory: something lies beyond the window",
    "warm": "warm targets: the true item was seen in training",
    "memory_warm": "warm targets with memory",
    "cold": "cold targets: the true item was never seen in training",
}
_ROWS = {
    "popularity": ("popularity", "the most popular items of the train period, the same for everybody"),
    "copy_last": ("copy the last title", "the last item again, then the popular ones"),
    "item_knn": ("item-kNN", "items that the same people chose"),
    "sasrec_bce": ("SASRec (BCE)", "a self-attentive model over item ids, trained as in its paper"),
    "sasrec": ("SASRec (strong)", "the same network with a softmax over the items"),
    "bigrec": ("BIGRec", "the language model with the recent window alone, as published"),
    "rella_replace": ("ReLLa, replace", "the window gives way to the past items most like the latest"),
    "rella_extend": ("ReLLa, extend", "the window grows by the past items most like the latest"),
    "trsr": ("TRSR", "the older history as a summary that is carried from block to block"),
    "full_history": ("full history in the prompt", "all older items as text: the reference for cost"),
    "automr": ("AutoMR", "what the learned retriever picks, if anything, before a generator that never saw memory"),
    "neighbors": ("item neighbours of AutoMR +", "these alone: what was read next to the window, what is called alike"),
    "no_memory": ("AutoMR + without memory", "the window and item neighbours: what memory has to beat"),
    "random": ("random memory", "as many elements as the retriever may take, drawn blindly; the mean of several draws"),
    "recent_beyond": ("newest memory", "the newest elements beyond the window"),
    "automr_plus_lm": ("AutoMR + without neighbours", "its language model and memory alone"),
    "automr_plus": (
        "AutoMR +",
        "what the learned retriever picks, if anything, before a generator tuned to read it, and item neighbours",
    ),
    "oracle": ("oracle", "the single element that helps the true answer most: it knows the answer, an upper bound"),
}
_NICE = {"recall": "Recall", "ndcg": "NDCG"}
_CHOICES = {
    "retrieved": "ranked first by the retriever (zero where it abstains)",
    "joint": "all that is shown, together",
    "random": "random",
    "newest": "newest",
    "oracle": "oracle: the best, or none",
    "best": "best by gain",
}


class Cell(NamedTuple):
    """`under` is small print; `kind` says what the cell shows: "", better, worse or even."""

    text: str
    under: str = ""
    kind: str = ""


class Line(NamedTuple):
    """`kind` is own (the bundle's row), bound (the oracle) or ""."""

    label: str
    kind: str
    cells: list[Cell]


class Table(NamedTuple):
    head: list[str]
    lines: list[Line]


def label(row: str) -> str:
    return _ROWS[row][0] if row in _ROWS else row


def explanation(row: str) -> str:
    return _ROWS[row][1] if row in _ROWS else ""


def nice(metric: str) -> str:
    name, cut = metric.split("@")
    return f"{_NICE[name]}@{cut}"


# --- the rows -----------------------------------------------------------------------------------------------------


def main_table(report: Mapping[str, Any], name: str, suffix: str = "") -> Table:
    """All rows of a slice; with the suffix of the title classes, scored by title."""
    lines = [
        Line(label(row), _kind(report, row), [_level(metrics[metric + suffix]) for metric in SHOWN])
        for row, metrics in report["slices"][name]["rows"].items()
    ]
    return Table([nice(metric) for metric in SHOWN], lines)


def difference_table(report: Mapping[str, Any], name: str, key: str) -> Table:
    """`key` is `own_minus`, `minus_bigrec` or `minus_no_memory`; empty where the row that it needs is missing."""
    absolute, relative = report["slices"][name][key], report["slices"][name][f"{key}_relative"]
    head = [text for metric in COMPARED for text in (nice(metric), "relative")]
    lines = []
    for row in absolute:
        pairs = [(_difference(absolute[row][metric]), _relative(relative[row][metric])) for metric in COMPARED]
        lines.append(Line(label(row), _kind(report, row), [cell for pair in pairs for cell in pair]))
    return Table(head, lines)


def cost_table(report: Mapping[str, Any]) -> Table:
    lines = []
    for row, about in report["about_rows"].items():
        shown = [Cell(f"{100 * about['coverage']:.1f} %"), Cell(str(about["draws"]))]
        lines.append(Line(label(row), _kind(report, row), [*_times(about["latency"]), *shown]))
    return Table(["median ms", "fastest tenth, ms", "× BIGRec", "items shown", "draws"], lines)


def _times(latency: Mapping[str, Any] | None) -> list[Cell]:
    if latency is None:
        return [Cell("–")] * 3
    return [
        Cell(f"{latency['ms']:.1f}"),
        Cell(f"{latency['ms_p10']:.1f}"),
        Cell(*_texts(latency["times_plain"], ".2f")),
    ]


# --- the retriever ------------------------------------------------------------------------------------------------


def precision_table(quality: Mapping[str, Any]) -> Table:
    lines = [
        Line(
            f"first {k}" if k > 1 else "first", "", [_percent(quality[f"{who}@{k}"]) for who in ("precision", "chance")]
        )
        for k in CUTS
    ]
    return Table(["by the retriever's scores", "drawn blindly"], lines)


def gain_table(quality: Mapping[str, Any]) -> Table:
    lines = [Line(_CHOICES[who], "", [_difference(interval)]) for who, interval in quality["gain_nats"].items()]
    return Table(["mean gain, nats per title"], lines)


def distance_table(quality: Mapping[str, Any]) -> Table:
    columns = {"p10": "1 of 10", "p25": "1 of 4", "p50": "half", "p75": "3 of 4", "p90": "9 of 10", "mean": "mean"}
    lines = [
        Line(
            f"{who if who == 'retrieved' else _CHOICES[who]}, {'interactions' if unit == 'positions' else unit}",
            "",
            [Cell(f"{at[column]:.3g}" if at else "–") for column in columns],
        )
        for unit, by_choice in quality["distance"].items()
        for who, at in by_choice.items()
    ]
    return Table(list(columns.values()), lines)


def retriever_sentences(quality: Mapping[str, Any]) -> list[str]:
    captured, joint, correlation = (quality[name] for name in ("captured", "captured_joint", "rank_correlation"))
    sentences = [
        f"Judged on {quality['targets']} targets of {quality['users']} users, with {quality['elements']:g} memory "
        f"elements each on average. Some element helps the truth in {_share(quality['helped'])} of them.",
        f"What the retriever ranks first captures {_share(captured)} of what the oracle gains."
        if captured
        else "No element helps anywhere in these targets, so there is nothing to capture.",
    ]
    if joint:
        sentences.append(f"All that the bundle shows (up to {quality['top_k']}) together: {_share(joint)}.")
    if correlation:
        told = " ".join(_texts(correlation, ".2f"))
        sentences.append(f"The rank correlation (Spearman) of scores and gains is {told}, the mean over targets.")
    sentences.append(_abstention(quality))
    return sentences


def _abstention(quality: Mapping[str, Any]) -> str:
    told = f"It abstains in {_share(quality['abstains'])} of the targets"
    if rightly := quality["abstains_rightly"]:
        told += f"; in {_share(rightly)} of these its first choice would indeed not have helped"
    if takes := quality["takes_what_helps"]:
        told += f". Where it takes an element, that one helps in {_share(takes)}"
    return f"{told}."


# --- in short -----------------------------------------------------------------------------------------------------


def summary(report: Mapping[str, Any], name: str) -> list[str]:
    """What the tables say, in a few sentences; differences in NDCG@5 on one slice."""
    own, part = report["own"], report["slices"][name]
    if own is None:
        return ["The bundle's own row was not asked for; the tables below compare the others."]
    mean, low, high = part["rows"][own]["ndcg@5"]
    told = [
        f"On {part['targets']} {SLICES[name].partition(':')[0]}, {label(own)} has an NDCG@5 of {mean:.4f} "
        f"[{low:.4f}, {high:.4f}]."
    ]
    groups: dict[str, list[str]] = {"better": [], "worse": [], "even": []}
    for row, metrics in part["own_minus"].items():
        if row == ORACLE:
            continue
        groups[verdict(metrics["ndcg@5"])].append(f"{label(row)} ({_brief(part, row)})")
    words = {"better": "It is better than", "worse": "It is worse than", "even": "It cannot be told apart from"}
    told += [f"{words[group]} {', '.join(rows)}." for group, rows in groups.items() if rows]
    if worth := part["minus_no_memory"].get(own):
        more = _relative(part["minus_no_memory_relative"][own]["ndcg@5"])
        told.append(f"Memory adds {' '.join(_texts(worth['ndcg@5'], '+.4f'))} to it, {more.text} {more.under}.")
    if ORACLE in part["rows"]:
        told.append(
            f"The oracle, which knows the answer and is an upper bound, has {part['rows'][ORACLE]['ndcg@5'][0]:.4f}."
        )
    if times := report["about_rows"][own]["latency"]:
        slower = " ".join(_texts(times["times_plain"], ".2f"))
        told.append(f"One answer takes {times['ms']:.1f} ms, {slower} times the prompt without memory.")
    return told


def _brief(part: Mapping[str, Any], row: str) -> str:
    relative = part["own_minus_relative"][row]["ndcg@5"]
    return _relative(relative).text if relative else _difference(part["own_minus"][row]["ndcg@5"]).text


# --- cells --------------------------------------------------------------------------------------------------------


def verdict(interval: Interval) -> str:
    return "better" if interval[1] > 0 else "worse" if interval[2] < 0 else "even"


def _kind(report: Mapping[str, Any], row: str) -> str:
    return "own" if row == report["own"] else "bound" if row == ORACLE else ""


def _level(interval: Interval) -> Cell:
    return Cell(*_texts(interval, ".4f"))


def _difference(interval: Interval) -> Cell:
    return Cell(*_texts(interval, "+.4f"), verdict(interval))


def _relative(interval: Interval | None) -> Cell:
    return Cell(*_texts(interval, "+.1f", percent=True), verdict(interval)) if interval else Cell("–")


def _percent(interval: Interval | None) -> Cell:
    return Cell(*_texts(interval, ".1f", percent=True)) if interval else Cell("–")


def _share(interval: Interval) -> str:
    return " ".join(_texts(interval, ".0f", percent=True))


def _texts(interval: Interval, form: str, *, percent: bool = False) -> tuple[str, str]:
    """The mean, and the interval in brackets; a minus is a minus, not a hyphen."""
    mean, low, high = (f"{100 * value if percent else value:{form}}".replace("-", "−") for value in interval)
    return f"{mean} %" if percent else mean, f"[{low}, {high}]"
