"""What followed similar windows of other users: never the user's own windows, never later ones, the nearest most."""

import numpy as np
import pytest

from tests.training.worlds import world
from training.data.splits import Target
from training.studies.collective import OtherWindows, forecasts_of_others

SPLIT = world([[0, 1, 2, 3], [1, 2, 3, 0], [2, 3, 0, 1]], train_ends=[3, 3, 3])
TARGET = Target(0, 3)
NOW = int(SPLIT.histories[0].timestamps[3])


def others(*rows: tuple[float, int, int, int]) -> OtherWindows:
    """Rows are (cosine with the target's window, user, the token that followed, its time)."""
    cosine, user, token, time = map(np.array, zip(*rows, strict=True))
    states = np.stack([cosine, np.sqrt(1 - cosine**2)], axis=1).astype(np.float32)
    return OtherWindows(states, user, token, time, np.ones(len(rows), dtype=bool))


def forecast(found: OtherWindows) -> np.ndarray:
    states = np.array([[1, 0]], dtype=np.float32)
    return forecasts_of_others(found, states, [TARGET], SPLIT, 5)[0]


def test_the_users_own_windows_and_later_ones_do_not_count() -> None:
    found = forecast(others((1.0, 0, 1, NOW - 1), (0.9, 1, 2, NOW), (0.5, 2, 3, NOW - 1)))
    assert found.tolist() == pytest.approx([0, 0, 0, 1, 0])


def test_the_nearest_counts_most() -> None:
    found = forecast(others((0.9, 1, 2, NOW - 1), (0.8, 2, 3, NOW - 1)))
    assert found.sum() == pytest.approx(1)
    assert found[2] / found[3] == pytest.approx(np.e, rel=1e-3)


def test_without_other_windows_nothing_is_said() -> None:
    assert not forecast(others((1.0, 0, 1, NOW - 1))).any()
