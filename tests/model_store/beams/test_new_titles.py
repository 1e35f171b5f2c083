"""Titles that came after training: what they score, and that those of training score as before."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from model_store.beams.new_titles import AskAgain, asked_again, leaves_below, shares_of_rest
from model_store.beams.search import Search, beam_search
from model_store.beams.trie import ScoredTitle, Trie
from model_store.catalogue.catalogue import Catalogue
from model_store.catalogue.items import Item
from model_store.lm.padding import pad
from model_store.lm.split_lm import SplitLM
from model_store.memory.combine import TopInput
from tests.benchmarks.benchmark_catalogue import make_prompt
from tests.conftest import make_model

END = 3
TRAINED = [(10, 11, 12, END), (10, 11, 13, END), (14, 15, END), (16, END)]
LONG, SHORT, ALONE = (10, 11, 20, 21, 22, 23, END), (10, 11, 24, END), (30, 31, END)
PROMPT = [5, 6, 7]


def scores(titles: Sequence[tuple[int, ...]], *, num_titles: int = 50, without: Sequence[int] = ()) -> dict:
    """Title → score; the first titles are those of training."""
    lm = SplitLM(make_model("llama"), 2)
    trie = Trie(titles, np.arange(len(titles)) >= len(TRAINED))
    tokens, mask = pad([PROMPT])
    caches = lm.new_caches()
    allowed = trie.allow(~np.isin(np.arange(len(titles)), without))
    with torch.inference_mode():
        top_input = TopInput(lm.bottom(tokens, mask, caches[0]), mask)
        (found,) = beam_search(lm, mask, caches, top_input, trie=trie, searches=[Search(allowed, num_titles, 50)])
    return {titles[trie.order[title.node.start]]: title.score for title in found}


def test_titles_of_training_score_as_without_new_ones() -> None:
    found = scores([*TRAINED, LONG, SHORT, ALONE])
    assert {title: found[title] for title in TRAINED} == pytest.approx(scores(TRAINED), abs=1e-4)


def test_a_new_title_gets_an_equal_share_of_the_node_where_it_leaves_the_titles_of_training() -> None:
    found = scores([*TRAINED, LONG, SHORT, ALONE])
    assert found[LONG] == found[SHORT], "the length of a title counts"
    assert found[ALONE] == pytest.approx(-math.log(7)), "nothing is known of it: one of seven titles"
    fewer = scores([*TRAINED, LONG, SHORT, ALONE], without=[0, 5])
    assert fewer[LONG] == pytest.approx(found[LONG] + math.log(2)), "titles that may not be shown take a share"


def test_a_new_title_below_titles_that_may_not_be_shown_is_found() -> None:
    assert set(scores([*TRAINED, LONG], without=range(4))) == {LONG}


def test_of_many_new_titles_the_newest_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [*TRAINED, *((40 + number, END) for number in range(50))]
    trie = Trie(many, np.arange(len(many)) >= len(TRAINED))
    allowed = trie.allow(np.arange(len(many)) != len(many) - 1)
    newest = [trie.leaf_of(row) for row in range(len(many) - 2, len(many) - 5, -1)]
    assert leaves_below(trie, allowed, trie.root, 3) == newest
    monkeypatch.setattr("model_store.beams.new_titles._MOST_LISTED", 7)
    assert leaves_below(trie, allowed, trie.root, 3) == newest, "another answer for a large catalogue"
    assert len(scores(many, num_titles=5)) == 5


def test_a_window_with_neighbours_of_a_new_title_is_asked_about_again() -> None:
    trie = Trie([*TRAINED, LONG], np.arange(5) == 4)
    window = [TRAINED[0], TRAINED[2], TRAINED[1], (99, END)]
    without, as_if = asked_again(trie, trie.allow(), window)
    assert isinstance(as_if, AskAgain)
    assert without.window == [TRAINED[0], TRAINED[2], (99, END)], "without the newest neighbour"
    assert as_if.window == [TRAINED[2], TRAINED[0], (99, END)], "as if the reader had had the one before the newest"
    without, as_if = asked_again(trie, trie.allow(), window[1:])
    assert without.window == [TRAINED[2], (99, END)]
    assert as_if.window == [TRAINED[2], TRAINED[0], (99, END)], "the title of training beside it"
    without, as_if = asked_again(trie, trie.allow(), [TRAINED[0]])
    assert (without.window, as_if.window) == ([], [TRAINED[1]])
    assert (as_if.node.depth, as_if.node.stop - as_if.node.start) == (2, 3) and without.node == as_if.node
    assert asked_again(trie, trie.allow(np.arange(5) < 4), window) == [], "no new title may be shown"
    assert asked_again(Trie(TRAINED), Trie(TRAINED).allow(), window) == []


def test_a_catalogue_knows_which_titles_came_later() -> None:
    catalogue = Catalogue([Item("a", "w1 w2"), Item("b", "w3")], make_prompt())
    assert catalogue.trie.is_new is None
    changed = catalogue.with_items([Item("c", "w1 w4"), Item("b", "w5"), Item("a", "w1 w2", hidden=True)])
    assert changed.trie.is_new is not None and changed.trie.is_new.tolist() == [False, True, True]
    back = changed.with_items([Item("b", "w3")])
    assert back.trie.is_new is not None and back.trie.is_new.tolist() == [False, False, True], "it has its title again"


def test_new_titles_share_what_other_titles_leave_of_a_node() -> None:
    """The node has .8; a title of training that may be shown has .5 of it; two new titles share .3."""
    trie = Trie([*TRAINED, LONG, SHORT], np.arange(6) >= len(TRAINED))
    leaf = [trie.leaf_of(row) for row in range(6)]
    of_node, shown = 0.8, ScoredTitle(leaf[0], math.log(0.5))
    new = [ScoredTitle(leaf[row], math.log(of_node / 3)) for row in (4, 5)]
    found = shares_of_rest(trie, [shown, *new], num_below=3)
    assert [title.node for title in found] == leaf[4:] and [math.exp(title.score) for title in found] == [
        pytest.approx(0.15)
    ] * 2
    assert shares_of_rest(trie, [ScoredTitle(leaf[0], math.log(0.9)), *new], num_below=3) == [], "nothing is left"
    assert shares_of_rest(trie, [shown], num_below=1) == []
