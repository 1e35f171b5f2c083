"""What a rule did to the place of an item."""

from typing import Literal, NamedTuple

Rule = Literal["boosts", "rotation", "diversity", "distinct", "caps", "exploration", "pins"]


class Move(NamedTuple):
    """`from_rank` None: the item was not in the list before the rule brought it there."""

    rule: Rule
    from_rank: int | None
    to_rank: int
