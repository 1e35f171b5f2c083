"""API keys: both forms of an entry, where a request holds its key, and when a server needs keys."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.auth import Keys, hashed, is_digest, new_key, presented_key, refuse_insecure_bind
from service.errors import InsecureBind


def test_a_new_key_is_valid_with_its_entry_alone() -> None:
    key, line = new_key()
    keys = Keys([line, "a-plain-key"])
    assert keys.key_id(key) == hashed(key)[:8]
    assert keys.key_id("a-plain-key") and not keys.key_id("a-plain-kez") and not keys.key_id(line)
    assert is_digest(line.removeprefix("sha256:"))


def test_hashes_may_be_upper_case() -> None:
    assert Keys(["sha256:" + hashed("k").upper()]).key_id("k")


def test_an_empty_list_of_keys_is_false() -> None:
    assert not Keys() and Keys(["k"])


@given(st.text(min_size=1), st.lists(st.text(min_size=1), max_size=5))
def test_only_listed_keys_are_valid(presented: str, listed: list[str]) -> None:
    plain = [key for key in listed if not key.startswith("sha256:")]
    assert (Keys(plain).key_id(presented) is not None) == (presented in plain)


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ([(b"Authorization", b"Bearer abc")], "abc"),
        ([(b"authorization", b"bearer  abc ")], "abc"),
        ([(b"X-API-Key", b"abc")], "abc"),
        ([(b"authorization", b"Basic abc")], None),
        ([(b"authorization", b"Basic abc"), (b"x-api-key", b"def")], "def"),
        ([(b"authorization", b"Bearer")], None),
        ([], None),
    ],
)
def test_two_headers_may_hold_the_key(headers: list[tuple[bytes, bytes]], key: str | None) -> None:
    assert presented_key(headers) == key


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_a_loopback_address_needs_no_key(host: str) -> None:
    refuse_insecure_bind(host, has_keys=False, allow_anonymous=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.example.org"])
def test_other_addresses_need_a_key_or_a_flag(host: str) -> None:
    with pytest.raises(InsecureBind, match="AUTOMR_API_KEYS"):
        refuse_insecure_bind(host, has_keys=False, allow_anonymous=False)
    refuse_insecure_bind(host, has_keys=True, allow_anonymous=False)
    refuse_insecure_bind(host, has_keys=False, allow_anonymous=True)
