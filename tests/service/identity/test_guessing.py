"""Lockout: who tries keys is refused for a while, right or wrong; others go on; memory is bounded."""

import pytest

from service.errors import LockedOut
from service.identity import guessing as module
from service.identity.guessing import MOST_FAILURES, WINDOW_S, Guessing


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def guessing(clock: Clock) -> Guessing:
    return Guessing(clock)


def fail(guessing: Guessing, address: str, times: int = MOST_FAILURES) -> None:
    for _ in range(times):
        guessing.failed(address)


def is_locked(guessing: Guessing, address: str, digest: str = "any") -> bool:
    try:
        guessing.check(address, digest)
    except LockedOut as error:
        assert error.retry_after_s is not None and 0 < error.retry_after_s <= WINDOW_S
        return True
    return False


def test_many_wrong_keys_lock_an_address_and_no_other(guessing: Guessing) -> None:
    fail(guessing, "10.0.0.1", MOST_FAILURES - 1)
    assert not is_locked(guessing, "10.0.0.1")
    fail(guessing, "10.0.0.1", 1)
    assert is_locked(guessing, "10.0.0.1") and not is_locked(guessing, "10.0.0.2")


def test_the_lock_ends(guessing: Guessing, clock: Clock) -> None:
    fail(guessing, "a")
    clock.now += WINDOW_S + 1
    assert not is_locked(guessing, "a")


def test_few_wrong_keys_in_a_long_time_lock_nobody(guessing: Guessing, clock: Clock) -> None:
    for _ in range(10):
        fail(guessing, "a", MOST_FAILURES - 1)
        clock.now += WINDOW_S + 1
    assert not is_locked(guessing, "a")


def test_a_key_that_was_right_goes_on_behind_the_same_proxy_and_another_right_one_does_not(guessing: Guessing) -> None:
    guessing.succeeded("proxy", "right")
    fail(guessing, "proxy")
    assert not is_locked(guessing, "proxy", "right")
    assert is_locked(guessing, "proxy", "also right"), "an answer would tell that the guess was right"


def test_the_addresses_of_an_ipv6_network_count_as_one(guessing: Guessing) -> None:
    for number in range(MOST_FAILURES):
        guessing.failed(f"2001:db8:1:2::{number:x}")
    assert is_locked(guessing, "2001:db8:1:2:ffff::1") and not is_locked(guessing, "2001:db8:1:3::1")


def test_memory_is_bounded(guessing: Guessing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_ADDRESSES", 100)
    for number in range(1000):
        guessing.failed(f"10.0.{number // 256}.{number % 256}")
        guessing.succeeded("10.0.3.255", str(number))
    assert len(guessing._addresses) == 100
    assert len(guessing._addresses["10.0.3.255"].right) <= 16
