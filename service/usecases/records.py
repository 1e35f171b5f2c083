"""Records of the catalogue overlay: a change of an item as bytes in the store, and back.

In: bytes that another program may have written. Out: a `Change`, or None if they are no valid item: such a record costs
its own item only. Knows no client.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, NamedTuple

import msgspec

from model_store.catalogue.items import Item, clean
from service.store.overlay import StoredItem

_MOST = 2**53  # of whole numbers, so that each is exact as a float
_LONGEST_TITLE = 4096

_Time = Annotated[int, msgspec.Meta(ge=-_MOST, le=_MOST)]


class _Record(msgspec.Struct, forbid_unknown_fields=True):
    """Attributes may have any JSON type, as those of a bundle."""

    title: Annotated[str, msgspec.Meta(max_length=_LONGEST_TITLE)]
    item_id: str = ""  # the key of the record counts
    attributes: dict[str, Any] = {}
    hidden: bool = False
    available_from: _Time | None = None
    available_until: _Time | None = None
    popularity: Annotated[int, msgspec.Meta(ge=0, le=_MOST)] = 0
    added_at: _Time | None = None
    deleted: bool = False


class Change(NamedTuple):
    """The new content of an item."""

    item: Item
    is_deleted: bool = False

    def to_record(self) -> bytes:
        return msgspec.json.encode({**asdict(self.item), "deleted": self.is_deleted})


def read_changes(stored: Sequence[StoredItem]) -> list[Change | None]:
    return [read_change(each.item_id, each.record) for each in stored]


def read_change(item_id: str, record: bytes) -> Change | None:
    """None when the record is not a valid item."""
    try:
        fields = msgspec.structs.asdict(_decoder.decode(record))
        is_deleted = fields.pop("deleted")
        item = clean(Item(**{**fields, "item_id": item_id}))
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError):
        return None
    return Change(item, is_deleted) if _is_sound(item.attributes) else None


def _is_sound(attributes: Mapping[str, Any]) -> bool:
    """Whether every number can be compared as a 64-bit one."""
    values = (each for value in attributes.values() for each in (value if isinstance(value, list) else (value,)))
    return all(math.isfinite(value) and abs(value) < 2**63 for value in values if isinstance(value, int | float))


_decoder = msgspec.json.Decoder(_Record)
