"""Settings: where they come from, how mistakes are reported, and that secrets are never shown."""

from pathlib import Path

import pytest

from service.errors import SettingsError
from service.settings import Settings, variable


def problems_of(environ: dict[str, str], **overrides: object) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env(environ, **overrides)
    return caught.value.problems


def test_only_the_given_variables_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the environment of the process nor a `.env` file."""
    (tmp_path / ".env").write_text("AUTOMR_PORT=1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOMR_PORT", "2")
    assert Settings().port == Settings.from_env({}).port == 8000


def test_names_of_variables_are_in_upper_case() -> None:
    assert Settings.from_env({"automr_port": "1", "AUTOMR_HOST": "::1"}).port == 8000


def test_the_defaults_need_no_other_program() -> None:
    settings = Settings.from_env({"PATH": "/bin", "HOME": "/root"})
    assert (settings.host, settings.port, settings.store_url) == ("127.0.0.1", 8000, "embedded:var/store")
    assert settings.embedded_directory == Path("var/store")
    assert not settings.api_keys


def test_overrides_win_and_none_means_not_given() -> None:
    settings = Settings.from_env({"AUTOMR_PORT": "1234", "AUTOMR_HOST": "::1"}, port="4321", host=None)
    assert (settings.port, settings.host) == (4321, "::1")


def test_an_empty_variable_is_not_given() -> None:
    assert Settings.from_env({"AUTOMR_API_KEYS": "", "AUTOMR_PORT": " "}).port == 8000


def test_all_mistakes_are_reported_together() -> None:
    environ = {"AUTOMR_PROT": "1", "AUTOMR_DEVICE": "tpu", "AUTOMR_STORE": "ftp://x", "AUTOMR_MAX_BATCH": "0"}
    text = "\n".join(problems_of(environ, port="many"))
    for name in ("AUTOMR_PROT", "AUTOMR_DEVICE", "AUTOMR_STORE", "AUTOMR_MAX_BATCH", "AUTOMR_PORT"):
        assert name in text, f"{name} is missing from:\n{text}"


def test_the_error_for_an_unknown_variable_names_the_nearest_one() -> None:
    assert problems_of({"AUTOMR_PROT": "1"}) == ["AUTOMR_PROT: there is no such setting; did you mean AUTOMR_PORT?"]


def test_keys_are_a_comma_list_and_hashes_are_checked() -> None:
    hashed = "sha256:" + "ab" * 32
    assert Settings.from_env({"AUTOMR_API_KEYS": f" one , {hashed},"}).plain_api_keys == ("one", hashed)
    assert "64 hex digits" in problems_of({"AUTOMR_API_KEYS": "sha256:zz"})[0]


def test_secrets_are_shown_nowhere() -> None:
    secret = "s3cr3t-value"
    environ = {"AUTOMR_STORE": f"redis://user:{secret}@cache:6379/0", "AUTOMR_API_KEYS": secret}
    settings = Settings.from_env(environ)
    assert secret not in repr(settings) + str(settings) + settings.model_dump_json()
    assert settings.store_shown == "redis://cache:6379/0"
    assert secret not in "".join(
        problems_of({"AUTOMR_STORE": f"ftp://:{secret}@x", "AUTOMR_API_KEYS": f"sha256:{secret}"})
    )


def test_the_lame_duck_is_a_part_of_the_stop() -> None:
    problems = problems_of({"AUTOMR_LAME_DUCK_S": "20", "AUTOMR_DRAIN_S": "20"})
    assert len(problems) == 1 and problems[0].startswith("AUTOMR_DRAIN_S: must be longer than AUTOMR_LAME_DUCK_S")


@pytest.mark.parametrize("url", ["embedded:", "redis://", "localhost:6379", "embedded"])
def test_the_store_must_be_a_url(url: str) -> None:
    assert "AUTOMR_STORE" in problems_of({"AUTOMR_STORE": url})[0]


def test_every_setting_has_a_description_and_none_can_be_changed() -> None:
    undocumented = [variable(name) for name, field in Settings.model_fields.items() if not field.description]
    assert not undocumented
    with pytest.raises(ValueError, match="frozen"):
        Settings.from_env({}).port = 1
