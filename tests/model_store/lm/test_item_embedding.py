"""Known titles keep their rows, added titles get rows from their pieces, and the head scores all of them."""

import pytest
import torch

from model_store.lm.item_embedding import ItemEmbedding, ItemHead, rows_from_flat_pieces, rows_from_pieces
from model_store.text.vocabulary import ItemVocabulary
from tests.conftest import TITLES, make_tokenizer

D = 8


def make_embedding(num_known: int = 5) -> ItemEmbedding:
    tokenizer = make_tokenizer(TITLES)
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(len(tokenizer), D, generator=generator)
    vocabulary = ItemVocabulary(TITLES[:num_known], tokenizer)
    return ItemEmbedding(torch.randn(1 + num_known, D, generator=generator), text, vocabulary, scale=2.0)


def test_a_row_is_the_sum_of_its_pieces_over_the_root_of_their_number() -> None:
    text = torch.randn(10, D)
    pieces = [[1, 2, 2], [], [7]]
    expected = torch.stack([text[[1, 2, 2]].sum(0) / 3**0.5, torch.zeros(D), text[7]])
    torch.testing.assert_close(rows_from_pieces(text, pieces), expected)
    flat, counts = torch.tensor([1, 2, 2, 7]), torch.tensor([3, 0, 1])
    torch.testing.assert_close(rows_from_flat_pieces(text, flat, counts), expected)


def test_an_added_title_gets_the_row_of_its_pieces() -> None:
    embedding = make_embedding()
    before = embedding.rows().clone()
    token = embedding.vocabulary.token("An added title")
    rows = embedding.rows()
    torch.testing.assert_close(rows[: len(before)], before, msg="a known row changed")
    torch.testing.assert_close(
        rows[token], rows_from_pieces(embedding.text, embedding.vocabulary.pieces(token, token + 1))[0]
    )


def test_the_row_of_an_added_title_does_not_depend_on_the_order() -> None:
    one, other = make_embedding(), make_embedding()
    for title in ("x y", "z"):
        one.vocabulary.token(title)
    other.rows()
    for title in ("z", "x y"):
        other.vocabulary.token(title)
        other.rows()
    for title in ("x y", "z"):
        rows = [each.rows()[each.vocabulary.token(title)] for each in (one, other)]
        torch.testing.assert_close(*rows, msg=f"{title!r} depends on the order")


def test_rows_do_not_change_when_titles_are_added() -> None:
    """Also if some are added in inference mode and some are not, and if the module is converted in between."""
    embedding, expected = make_embedding(), []
    for number in range(40):
        token = embedding.vocabulary.token(f"added {number}")
        expected.append(rows_from_pieces(embedding.text, embedding.vocabulary.pieces(token, token + 1))[0])
        with torch.inference_mode(number % 3 == 0):
            rows = embedding.rows()
        if number == 20:
            embedding.to(torch.float64).to(torch.float32)
        torch.testing.assert_close(rows[6:], torch.stack(expected), msg=f"after added title {number}")


def test_the_head_scores_all_tokens_and_only_the_input_is_scaled() -> None:
    embedding = make_embedding()
    head, hidden = ItemHead(embedding), torch.randn(2, D)
    embedding.vocabulary.token("added")
    logits = head(hidden)
    assert logits.shape == (2, len(embedding.vocabulary)), "an added title cannot be recommended"
    torch.testing.assert_close(logits, hidden @ embedding.rows().T)
    torch.testing.assert_close(embedding(torch.tensor([[3, 6]])), 2 * embedding.rows()[[3, 6]][None])


def test_titles_without_pieces_have_zero_rows() -> None:
    assert rows_from_pieces(torch.randn(10, D), [[], []]).equal(torch.zeros(2, D)), "a row is not zero"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_the_batch(dtype: torch.dtype) -> None:
    """Bit by bit: two processes compute rows in different batches and must get the same states."""
    text = torch.randn(50, 33, generator=torch.Generator().manual_seed(0)).to(dtype)
    pieces = [torch.randint(50, (length,)).tolist() for length in (3, 1, 0, 17, 8, 2, 40)]
    together = rows_from_pieces(text, pieces)
    assert together.dtype == dtype
    for row, each in zip(together, pieces, strict=True):
        assert row.equal(rows_from_pieces(text, [each])[0]), (
            f"a title of {len(each)} pieces has another row when computed alone"
        )


def test_a_token_without_a_title_is_refused() -> None:
    """It must not be read as another item."""
    embedding = make_embedding()
    with pytest.raises(IndexError):
        embedding(torch.tensor([[6]]))
