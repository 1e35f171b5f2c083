"""The entries of the rows of AutoMR + for the table: the bundle itself, and the bundle without one of its parts."""

from collections.abc import Callable

from model_store.bundle import Bundle
from training.rows.evaluation import Evaluation, Rank, Voters
from training.rows.memory_choices import (
    ChooseMemories,
    best_single_choice,
    newest_choice,
    no_memory,
    retriever_choice,
)
from training.rows.plus.boosted import boosted, trees_place
from training.rows.plus.strangers import random_memory
from training.rows.plus.voice_rows import has_voice, mixture, single_voice
from training.rows.row import EvaluationRow

_CHANNELS = {
    "near": "items that users of the training period had near each other",
    "follow": "items that users had in the basket after",
    "linear": "a linear model of all items of a user (EASE)",
    "alike": "items with similar titles",
    "return": "the user's own items again",
}


def has_voices(bundle: Bundle) -> bool:
    return bundle.voices is not None


def _generated(name: str, choice: Callable[[Evaluation], ChooseMemories], voters: Voters = "all") -> Rank:
    """The bundle with the states of `choice`, where the events `voters` vote."""
    return lambda evaluation, seed: evaluation.rank_with_memory(choice(evaluation), name, voters=voters)


def _always(choose: ChooseMemories) -> Callable[[Evaluation], ChooseMemories]:
    return lambda evaluation: choose


def _newest(evaluation: Evaluation) -> ChooseMemories:
    return newest_choice(evaluation.bundle.manifest.retriever.top_k)


def _oracle(evaluation: Evaluation) -> ChooseMemories:
    return best_single_choice(evaluation.annotate())


def _voice_row(channel: str) -> EvaluationRow:
    return EvaluationRow(
        f"voice “{channel}” alone",
        f"{_CHANNELS[channel]}: what this voice adds to the mixture, from the window and from older events; no language"
        " model",
        single_voice(channel),
        is_timed=False,
        fits=has_voice(channel),
    )


OWN_ROWS: dict[str, EvaluationRow] = {
    # Parts of AutoMR + alone.
    "generator_alone": EvaluationRow(
        "AutoMR +'s generator alone",
        "the language model that was tuned to read memory, with the window only: no memory, no other voices",
        _generated("generator_alone", _always(no_memory), "none"),
    ),
    "automr_plus_lm": EvaluationRow(
        "AutoMR + without voices",
        "its language model with the states that the retriever picks, without the other voices",
        _generated("automr_plus_lm", _always(retriever_choice), "none"),
    ),
    **{f"voice_{channel}": _voice_row(channel) for channel in _CHANNELS},
    "mixture": EvaluationRow(
        "AutoMR +, mixture only",
        "all voices as the gates weigh them, with all memory, but without the ranking of the candidates",
        mixture,
        is_timed=False,
        fits=has_voices,
    ),
    "boosted": EvaluationRow(
        "boosted trees on the voices (reference)",
        "the reference for the combination: boosted trees rank the candidates by the same features as AutoMR +, taught"
        " on the same targets",
        boosted,
        is_timed=False,
        fits=has_voices,
        place=trees_place,
    ),
    # AutoMR + with another memory.
    "no_memory": EvaluationRow(
        "AutoMR + without memory",
        "no states, and the voices read the window only: the reference for what memory adds",
        _generated("no_memory", _always(no_memory), "window"),
    ),
    "state_memory": EvaluationRow(
        "AutoMR +, memory of states only",
        "the generator reads the states that the retriever picks; the voices read the window only",
        _generated("state_memory", _always(retriever_choice), "window"),
        differs_in_memory=True,
    ),
    "voice_memory": EvaluationRow(
        "AutoMR +, memory of voices only",
        "the voices read older events; the generator reads no states",
        _generated("voice_memory", _always(no_memory)),
        differs_in_memory=True,
    ),
    "random": EvaluationRow(
        "AutoMR + with the memory of another user",
        "the states and older events of another user, drawn by seed: as many as the user has, at the times of the"
        " user's own; the mean of several draws",
        random_memory,
        is_seeded=True,
        differs_in_memory=True,
    ),
    "recent_beyond": EvaluationRow(
        "AutoMR + with the newest states",
        "the newest states older than the window, as many as the retriever may take; the voices read all events",
        _generated("recent_beyond", _newest),
        differs_in_memory=True,
    ),
    "automr_plus": EvaluationRow(
        "AutoMR +",
        "the bundle as it is served: the states that the retriever picks, if any, a generator that reads them, and the"
        " voices, which read all events",
        _generated("automr_plus", _always(retriever_choice)),
        differs_in_memory=True,
    ),
    "oracle": EvaluationRow(
        "best single state by likelihood",
        "instead of what the retriever picks, the single state that raises the log-probability of the true title most,"
        " or none: it knows the answer. It bounds what one state can add to the log-probability, and neither NDCG nor"
        " what several states can add",
        _generated("oracle", _oracle),
        is_timed=False,
        differs_in_memory=True,
    ),
}
