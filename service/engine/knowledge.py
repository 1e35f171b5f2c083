"""What the model learns while it runs: changed items, and live counts of items and pairs.

In: an open bundle and messages of the server. Out: the same bundle, which knows more. Single-threaded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from model_store.answers import Answer, PastRows, RowCounts
from model_store.bundle import Bundle
from model_store.catalogue.items import Item
from model_store.inference import embed
from model_store.text.prompt import ItemPrompt
from model_store.voices.live import LiveItems, TokenCounts
from service.engine.messages import ChangedItem, CountItems, Recommend
from service.engine.words import WordsRunner

_TITLES_PER_CALL = 64


class Knowledge:
    """`words`: None for a bundle without words."""

    def __init__(self, bundle: Bundle, words: WordsRunner | None) -> None:
        self.bundle, self._words = bundle, words
        self._live = live_items(bundle)
        self.counts: RowCounts | None = None

    def read_titles(self, titles: Sequence[str]) -> NDArray[np.float32]:
        """(n, D) the vectors of titles, for `put`. Changes nothing that is known."""
        if self._words is not None:
            self._words.read_titles(titles)
        return embed(self.bundle.lm, [self.bundle.prompt.tokens([title]) for title in titles])

    def put(
        self, changed: Sequence[ChangedItem], vectors: Mapping[str, NDArray[np.float32]] = MappingProxyType({})
    ) -> None:
        """`vectors`: title → (D,), of titles that were read before.

        Raises ValueError where an item would not get its row.
        """
        items = [_item(each) for each in changed]
        put_items(self.bundle, items, [each.row for each in changed], vectors)
        if self._live is not None:
            title_tokens = self.bundle.prompt.title_tokens
            self._live.add_titles({title_tokens(item.title)[0]: item.title for item in items})
            self._renew_voices(self._live)
        if self._words is not None:
            self._words.put_titles({each.row: item.title for each, item in zip(changed, items, strict=True)})

    def count(self, newest: CountItems) -> None:
        """Replaces the counts. Items that are not known yet are left out."""
        rows, pairs = (np.frombuffer(part, dtype="<i8") for part in (newest.rows, newest.pairs))
        counts, pair_counts = (np.frombuffer(part, dtype="<f8") for part in (newest.counts, newest.pair_counts))
        self.counts = known_counts(RowCounts(rows, counts, pairs.reshape(-1, 2), pair_counts), self.num_items)
        if self._live is not None:
            tokens_of, found = self.bundle.tokens_of, self.counts
            near = tokens_of(found.pairs.ravel()).reshape(-1, 2)
            self._live.count(TokenCounts(tokens_of(found.rows), found.counts, near, found.pair_counts))
            self._renew_voices(self._live)
        self.bundle.catalogue = self.bundle.catalogue.with_live(self.counts.by_row(self.num_items))

    def vectors(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """(n, D) the title vectors of catalogue rows; zeros for a row that is not known yet."""
        index = self.bundle.index
        found = np.zeros((len(rows), index.dimension), dtype=np.float32)
        known = [place for place, row in enumerate(rows) if row < len(index)]
        if known:
            found[known] = index.vectors(np.array([rows[place] for place in known], dtype=np.int64))
        return found

    @property
    def num_items(self) -> int:
        """Catalogue rows that the model knows: 0 … num_items − 1."""
        return len(self.bundle.catalogue)

    def _renew_voices(self, live: LiveItems) -> None:
        if self.bundle.voices is not None:
            self.bundle.voices = self.bundle.voices.with_known(live.known())


def live_items(bundle: Bundle) -> LiveItems | None:
    """What the voices learn of items from now on; None for a bundle without voices."""
    if bundle.voices is None or not isinstance(bundle.prompt, ItemPrompt):
        return None
    num_trained = bundle.voices.known.num_tokens
    titles = [pair for pair in bundle.prompt.vocabulary.titled() if pair[0] < num_trained]
    return LiveItems(bundle.voices.known, bundle.voices.near_sums, titles)


def known_past(asked: Recommend, num_items: int) -> PastRows | None:
    """The events whose items are known; None without events."""
    places, against = _known_places(asked, num_items), [pair for pair in asked.against if pair[0] < num_items]
    if not places:
        return None
    rows, times, weights = asked.past_rows, asked.past_times, asked.past_weights
    if len(places) < len(rows):
        rows, times = [rows[place] for place in places], [times[place] for place in places]
        weights = [weights[place] for place in places] if weights else weights
    return PastRows(rows, times, asked.now, weights, against, asked.voices)


def with_all_events(asked: Recommend, answer: Answer, num_items: int) -> Answer:
    """The answer to the events of `known_past`, with the places that these events have in `asked`."""
    places = _known_places(asked, num_items)
    if len(places) == len(asked.past_rows):
        return answer
    shares = np.zeros(len(asked.past_rows), dtype=np.float32)
    shares[places] = answer.event_shares
    reasons = [
        reason if reason is None or reason.event is None else reason._replace(event=places[reason.event])
        for reason in answer.reasons
    ]
    return replace(answer, reasons=reasons, event_shares=shares)


def _known_places(asked: Recommend, num_items: int) -> Sequence[int]:
    if max(asked.past_rows, default=-1) < num_items:
        return range(len(asked.past_rows))
    return [place for place, row in enumerate(asked.past_rows) if row < num_items]


def known_counts(counts: RowCounts, num_items: int) -> RowCounts:
    """Those of rows before `num_items`."""
    is_known, are_known = counts.rows < num_items, (counts.pairs < num_items).all(axis=1)
    return RowCounts(
        counts.rows[is_known], counts.counts[is_known], counts.pairs[are_known], counts.pair_counts[are_known]
    )


def put_items(
    bundle: Bundle, items: Sequence[Item], rows: Sequence[int], vectors: Mapping[str, NDArray[np.float32]]
) -> None:
    """Adds or changes items: first their vectors, then the catalogue, so that no row is without a vector.

    `vectors`: title → (D,), of titles that were read before. An item that keeps its title keeps its vector. Raises
    ValueError where an item would not get its row of `rows`.
    """
    known, catalogue = bundle.catalogue, bundle.catalogue.with_items(items)
    if [catalogue.rows[item.item_id] for item in items] != list(rows):
        raise ValueError("the server has these items at other rows")
    titles = dict(zip(rows, (item.title for item in items), strict=True))
    fresh = [row for row, title in titles.items() if row >= len(known) or known.items[row].title != title]
    unread = [row for row in fresh if titles[row] not in vectors]
    for start in range(0, len(unread), _TITLES_PER_CALL):
        part = unread[start : start + _TITLES_PER_CALL]
        bundle.index.put(np.array(part), embed(bundle.lm, [bundle.prompt.tokens([titles[row]]) for row in part]))
    if read := [row for row in fresh if titles[row] in vectors]:
        bundle.index.put(np.array(read), np.stack([vectors[titles[row]] for row in read]))
    bundle.catalogue = catalogue


def _item(changed: ChangedItem) -> Item:
    return Item(
        changed.item_id,
        changed.title,
        changed.popularity,
        hidden=changed.hidden,
        available_from=changed.available_from,
        available_until=changed.available_until,
    )
