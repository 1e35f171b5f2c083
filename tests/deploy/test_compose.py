"""docker-compose.yml: the specification of compose takes it, and what it names exists."""

import re
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml  # type: ignore[import-untyped]

from service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def compose() -> dict[str, Any]:
    """The file with its variables filled in and its anchors resolved."""
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    text = re.sub(r"\$\{AUTOMR_API_KEYS:\?[^}]*\}", "sha256:" + "0" * 64, text)
    assert "${" not in text
    read: dict[str, Any] = yaml.safe_load(text)
    return read


def refusal(compose: dict[str, Any]) -> str:
    try:
        compose_spec.PyCompose.from_yaml(yaml.safe_dump(compose))
    except ValueError as error:
        return str(error)
    return ""


def test_compose_takes_the_file(compose: dict[str, Any]) -> None:
    assert not refusal(compose)


@pytest.mark.parametrize(
    ("field", "value"), [("restrat", "always"), ("restart", "sometimes"), ("ports", ["8000:port"])]
)
def test_the_validator_finds_mistakes(compose: dict[str, Any], field: str, value: Any) -> None:
    compose["services"]["api"][field] = value
    assert field in refusal(compose)


def test_what_a_service_names_exists(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert set(service.get("depends_on", {})) <= compose["services"].keys(), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source.startswith(("./", "/")) or source in compose["volumes"], (name, volume)
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).is_file()


@pytest.mark.parametrize("name", ["api", "worker"])
def test_services_start_with_settings_of_the_service(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]
    settings = Settings.from_env({key: str(value) for key, value in service["environment"].items()})
    assert not settings.encode_in_process and settings.plain_api_keys
    assert settings.store_url.startswith("redis://store:") and "store" in compose["services"]
    assert service["read_only"] and service["tmpfs"] == ["/tmp"]
    assert float(service["stop_grace_period"].removesuffix("s")) > settings.drain_s


@pytest.mark.parametrize("name", ["api", "worker"])
def test_every_other_setting_can_be_set_in_a_file(compose: dict[str, Any], name: str) -> None:
    """`environment` wins over the file, so it holds only what the set-up itself needs."""
    service = compose["services"][name]
    assert service["env_file"] == [{"path": "automr.env", "required": False}]
    fixed = {each for each in service["environment"] if each.startswith("AUTOMR_")}
    assert fixed == {"AUTOMR_STORE", "AUTOMR_API_KEYS", "AUTOMR_ENCODE_IN_PROCESS", "AUTOMR_THREADS"}


def test_the_store_keeps_what_was_acknowledged(compose: dict[str, Any]) -> None:
    command = compose["services"]["store"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--appendonly"] == "yes" and options["--appendfsync"] == "always"
    assert options["--maxmemory-policy"] == "noeviction"
