"""Signed bundles: only a bundle that a trusted key has signed, as it is, is opened."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from model_store import signature
from model_store.errors import BundleCorrupt, BundleError, BundleNotFound, BundleUntrusted
from model_store.files import describe_files
from service.__main__ import main
from service.bundles.entries import check_readable
from service.errors import BundleConflict, SettingsError
from service.resources import open_view
from service.settings import Settings
from service.store.bundles import Source


@pytest.fixture
def signed(bundle_path: Path, tmp_path: Path) -> tuple[Path, str]:
    """A signed copy of the bundle, and the public key."""
    shutil.copytree(bundle_path, tmp_path / "signed")
    public = signature.new_key(tmp_path / "signer.pem")
    assert signature.sign(tmp_path / "signed", tmp_path / "signer.pem") == public
    return tmp_path / "signed", public


def settings(path: Path, *keys: str) -> Settings:
    return Settings.from_env({}, bundle=path, bundle_keys=",".join(keys))


def other_key(path: Path) -> str:
    return signature.new_key(path.with_name("other.pem"))


def test_a_bundle_that_a_trusted_key_signed_is_opened(signed: tuple[Path, str]) -> None:
    path, public = signed
    assert open_view(settings(path, public)).manifest.num_items
    assert signature.verify(path, [other_key(path), public]) == public
    assert signature.read_public(public) and (path.parent / "signer.pem").stat().st_mode & 0o077 == 0
    assert "manifest.sig" not in describe_files(path)


def _unsigned(path: Path) -> None:
    (path / "manifest.sig").unlink()


def _changed_manifest(path: Path) -> None:
    facts = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(facts | {"name": "other"}))


def _other_spaces(path: Path) -> None:
    (path / "manifest.json").write_text((path / "manifest.json").read_text() + " ")


def _empty(path: Path) -> None:
    (path / "manifest.sig").write_bytes(b"")


def _wrong(path: Path) -> None:
    (path / "manifest.sig").write_bytes(bytes(64))


def _signed_by_another(path: Path) -> None:
    other_key(path)
    signature.sign(path, path.with_name("other.pem"))


@pytest.mark.parametrize("change", [_unsigned, _changed_manifest, _other_spaces, _empty, _wrong, _signed_by_another])
def test_other_bundles_are_refused(change: Callable[[Path], None], signed: tuple[Path, str]) -> None:
    path, public = signed
    change(path)
    with pytest.raises(BundleUntrusted):
        open_view(settings(path, public))
    assert open_view(settings(path)).manifest, "without trusted keys nothing is asked for"
    loading = Settings.from_env({}, bundles_dir=path.parent, bundle_keys=public)
    with pytest.raises(BundleConflict, match="not signed"):
        check_readable(loading, Source(path.name))


def test_a_changed_file_is_found_by_the_signed_checksums(signed: tuple[Path, str]) -> None:
    path, public = signed
    items = path / "items.jsonl"
    items.write_bytes(items.read_bytes().replace(b"Red", b"Bad"))
    with pytest.raises(BundleCorrupt):
        open_view(settings(path, public))
    with pytest.raises(BundleError):
        signature.sign(path, path.with_name("signer.pem"))
    with pytest.raises(BundleNotFound):
        signature.verify(path / "lm", [public])


def test_only_keys_of_the_right_kind_sign(signed: tuple[Path, str]) -> None:
    path, _ = signed
    file = path.with_name("rsa.pem")
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(ValueError, match="Ed25519"):
        signature.sign(path, file)
    with pytest.raises(ValueError, match="no private key"):
        signature.sign(path, path / "manifest.json")
    for text in ("", "ed25519:", "ed25519:" + "A" * 42, "rsa:" + "A" * 43, "ed25519:" + "!" * 43):
        with pytest.raises(ValueError, match="43 characters"):
            signature.read_public(text)
        if text:
            with pytest.raises(SettingsError):
                settings(path, text)


def test_the_commands(
    bundle_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.logs.configure", lambda **options: None)
    bundle, pem = str(tmp_path / "copy"), str(tmp_path / "signer.pem")
    shutil.copytree(bundle_path, bundle)
    assert main(["bundles", "keygen", pem]) == 0
    public = capsys.readouterr().out.split()[0]
    assert main(["bundles", "verify", bundle, "--public", public]) == 2
    assert main(["bundles", "sign", bundle, "--key-file", pem]) == 0
    assert main(["bundles", "verify", bundle, "--public", public]) == 0
    assert main(["bundles", "verify", bundle]) == 2, "no key is trusted"
    assert main(["bundles", "keygen", pem]) == 2, "a key would be overwritten"
    assert public in capsys.readouterr().out
