"""Which users teach the retriever, which choose it, and which judge it: three parts that share no user.

The best of many retrievers looks better than it is on the users by whom it was chosen. Whether memory pays, and what
studies find, is therefore measured on users from whom the retriever learned nothing.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from training.data.splits import Split, Target


class UserParts(NamedTuple):
    """Numbers of users, as in `Split.histories`. Each user is in one part."""

    teach: frozenset[int]
    choose: frozenset[int]
    judge: frozenset[int]


def user_parts(split: Split, *, held_out: bool) -> UserParts:
    """The parts of the users of a split, the same for every seed and program.

    Users with targets in the valid period are ordered by a hash of their id. A quarter (at least one) chooses. If the
    labels are held out (`held_out_labels` of the recipe), the valid period must also teach: a quarter judges, and half
    teaches. Otherwise half judges, and the train period of the last quarter teaches. Of the users without valid
    targets, those with targets in the train period may teach; nobody learns from the rest, so it judges.
    """
    valid = sorted({target.user for target in split.valid}, key=lambda user: _hash(split.histories[user].user_id))
    quarter = max(1, round(len(valid) / 4))
    judges_end = quarter * (2 if held_out else 3)
    choose, judge, teach = valid[:quarter], valid[quarter:judges_end], valid[judges_end:]
    others = set(range(len(split.histories))).difference(valid)
    trained = others.intersection(target.user for target in split.train)
    return UserParts(frozenset([*teach, *trained]), frozenset(choose), frozenset([*judge, *(others - trained)]))


def targets_of(targets: Sequence[Target], users: frozenset[int]) -> list[Target]:
    """The targets of these users, in the same order."""
    return [target for target in targets if target.user in users]


def _hash(user_id: str) -> bytes:
    return hashlib.blake2b(user_id.encode(errors="surrogatepass"), digest_size=8).digest()
