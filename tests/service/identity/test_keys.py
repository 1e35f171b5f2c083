"""API keys: the forms of an entry, its scopes, where a request holds its key, and when a server needs keys."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InsecureBind
from service.identity.keys import Keys, hashed, is_digest, new_key, presented_key, refuse_insecure_bind
from service.identity.scopes import ALL


def key_id(keys: Keys, presented: str) -> str | None:
    found = keys.principal(hashed(presented))
    return None if found is None else found.key_id


def test_a_new_key_is_valid_with_its_entry_alone() -> None:
    key, line = new_key()
    keys = Keys([line, "a-plain-key"])
    assert key_id(keys, key) == hashed(key)[:8]
    assert key_id(keys, "a-plain-key") and not key_id(keys, "a-plain-kez") and not key_id(keys, line)
    assert is_digest(line.removeprefix("sha256:"))


def test_hashes_may_be_upper_case() -> None:
    assert key_id(Keys(["sha256:" + hashed("k").upper()]), "k")


def test_an_empty_list_of_keys_is_false() -> None:
    assert not Keys() and Keys(["k"])


@given(st.text(min_size=1), st.lists(st.text(min_size=1), max_size=5))
def test_only_listed_keys_are_valid(presented: str, listed: list[str]) -> None:
    plain = [key for key in listed if not key.startswith("sha256:")]
    assert (key_id(Keys(plain), presented) is not None) == (presented in plain)


@pytest.mark.parametrize(
    ("entry", "key", "scopes"),
    [
        ("secret", "secret", ALL),
        ("metrics=secret", "secret", {"metrics"}),
        ("recommend+ingest=secret=", "secret=", {"recommend", "ingest"}),
        (f"users=sha256:{hashed('secret')}", "secret", {"users"}),
        ("secret=", "secret=", ALL),
        ("metrics+other=secret", "metrics+other=secret", ALL),
    ],
)
def test_scopes_stand_in_front_of_a_key(entry: str, key: str, scopes: set[str]) -> None:
    found = Keys([entry]).principal(hashed(key))
    assert found is not None and found.scopes == scopes


def test_a_key_in_two_entries_has_the_scopes_of_both() -> None:
    found = Keys(["metrics=secret", "users=secret"]).principal(hashed("secret"))
    assert found is not None and found.scopes == {"metrics", "users"}


def test_scopes_without_a_key_are_refused() -> None:
    with pytest.raises(ValueError, match="no key"):
        Keys(["metrics="])


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


@pytest.mark.parametrize("entry", ["fifteen-letters", "metrics=fifteen-letters"])
def test_short_keys_do_for_this_machine_alone(entry: str) -> None:
    refuse_insecure_bind("127.0.0.1", has_keys=True, allow_anonymous=False, entries=[entry])
    with pytest.raises(InsecureBind, match="16 characters"):
        refuse_insecure_bind("0.0.0.0", has_keys=True, allow_anonymous=False, entries=[entry])
    long = [entry + "x", f"sha256:{hashed('k')}"]
    refuse_insecure_bind("0.0.0.0", has_keys=True, allow_anonymous=False, entries=long)
