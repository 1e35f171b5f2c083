"""Every question of the bookshop has one memory that tells its answer, and the memory is older."""

import polars as pl

from training.data.questions import PRESENTS, questions_dataset, right_memories
from training.words.split import TEST, VALID, words_split

DATASET = questions_dataset(120, seed=3)
SPLIT = words_split(DATASET)


def test_every_valid_and_test_query_is_a_question_with_a_right_memory() -> None:
    answered = set(right_memories(DATASET).select("user_id", "query").rows())
    targets = [*SPLIT.targets(VALID), *SPLIT.targets(TEST)]
    assert targets
    for target in targets:
        assert (SPLIT.user_ids[target.user], target.query) in answered
        assert len(target.answers) == 1


def test_the_right_memory_is_in_the_history_and_the_answer_is_not() -> None:
    sources = {(user, query): source for user, _, query, _, source in right_memories(DATASET).rows()}
    for target in SPLIT.targets(VALID):
        history = {SPLIT.item_ids[event.row] for event in SPLIT.history(target.user, target.timestamp)}
        assert sources[SPLIT.user_ids[target.user], target.query] in history
        assert SPLIT.item_ids[target.answers[0]] not in history


def test_a_gift_question_fits_every_present_without_its_person() -> None:
    """The words of a question but for the person are those of other people's questions."""
    queries = DATASET.queries
    assert queries is not None
    presents = queries.filter(pl.col("query").str.starts_with("a present for my "))
    assert presents["query"].n_unique() > PRESENTS
    assert presents["item_id"].n_unique() > PRESENTS


def test_equal_seeds_make_equal_data() -> None:
    one, same, other = questions_dataset(5), questions_dataset(5), questions_dataset(5, seed=1)
    assert one.interactions.equals(same.interactions)
    assert not one.interactions.equals(other.interactions)


def test_unrelated_questions_are_asked_by_readers_whose_past_does_not_answer_them() -> None:
    unrelated = questions_dataset(120, seed=3, unrelated=True)
    assert unrelated.queries is not None and DATASET.queries is not None
    assert unrelated.queries.height == DATASET.queries.height
    assert right_memories(unrelated).height < 0.2 * right_memories(DATASET).height
