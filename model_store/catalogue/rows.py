"""Item id → catalogue row. Immutable: ids that are added make a new mapping, which shares what was there before."""

from collections.abc import Iterator, Mapping

from immutables import Map


class Rows(Mapping[str, int]):
    """`base` is in the order of rows, 0 … n − 1; `added` holds the rows from n on."""

    def __init__(self, base: dict[str, int], added: Map[str, int] | None = None) -> None:
        self._base, self._added = base, Map[str, int]() if added is None else added

    def __getitem__(self, item_id: str) -> int:
        row = self._base.get(item_id)
        return self._added[item_id] if row is None else row

    def get(self, item_id: str, default: int | None = None) -> int | None:  # type: ignore[override]
        row = self._base.get(item_id)
        return self._added.get(item_id, default) if row is None else row

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._base or item_id in self._added

    def __iter__(self) -> Iterator[str]:
        yield from self._base
        yield from self._added

    def __len__(self) -> int:
        return len(self._base) + len(self._added)

    def with_rows(self, added: Mapping[str, int]) -> "Rows":
        """A copy with further ids. The cost depends on their number only."""
        return Rows(self._base, self._added.update(added)) if added else self
