"""The signature of a bundle: Ed25519 over `manifest.json`, in the file `manifest.sig` beside it.

The manifest has the checksums of all files that are opened, so the signature stands for the whole bundle. A public key
is written as `ed25519:` and 43 characters (base64url of its 32 bytes); a private key is a PKCS#8 PEM file, as
`openssl genpkey -algorithm ed25519` makes it.
"""

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from model_store.errors import BundleUntrusted
from model_store.files import MANIFEST, SIGNATURE, read_manifest, verify_files

_START = "ed25519:"
_NUM_BYTES = 64
# Signed with the manifest, so that a signature of something else by the same key is none of a bundle.
_CONTEXT = b"automr bundle manifest\n"


def new_key(file: Path) -> str:
    """Writes a new private key, readable by its owner alone, and returns its public key. Raises FileExistsError."""
    key = Ed25519PrivateKey.generate()
    file.touch(mode=0o600, exist_ok=False)
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return public_text(key.public_key())


def public_text(key: Ed25519PublicKey) -> str:
    raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return _START + base64.urlsafe_b64encode(raw).decode().rstrip("=")


def read_public(text: str) -> Ed25519PublicKey:
    """Raises ValueError for a text that is no public key."""
    try:
        raw = base64.b64decode(text.removeprefix(_START) + "=", altchars=b"-_", validate=True)
        if not text.startswith(_START) or len(raw) != 32:
            raise ValueError
        return Ed25519PublicKey.from_public_bytes(raw)
    except (ValueError, binascii.Error):
        raise ValueError(f"must be {_START} and 43 characters") from None


def sign(path: Path, key_file: Path) -> str:
    """Checks all files of the bundle, signs it, and returns the public key. Raises ValueError and BundleError."""
    try:
        key = load_pem_private_key(key_file.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError(f"{key_file}: no private key that can be read ({type(error).__name__})") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"{key_file}: the key is not of the kind Ed25519")
    verify_files(path, read_manifest(path))
    draft = path / f".{SIGNATURE}"
    draft.write_bytes(key.sign(_CONTEXT + (path / MANIFEST).read_bytes()))
    draft.replace(path / SIGNATURE)
    return public_text(key.public_key())


def verify(path: Path, trusted: Sequence[str]) -> str:
    """The trusted public key that has signed the bundle. Raises BundleUntrusted, and BundleNotFound without a manifest.

    Checks the manifest alone: whoever opens the bundle checks its files.
    """
    read_manifest(path)
    file = path / SIGNATURE
    if not file.is_file() or file.stat().st_size != _NUM_BYTES:
        raise BundleUntrusted(f"{path}: the bundle is not signed; `python -m service bundles sign` signs it")
    signature, signed = file.read_bytes(), _CONTEXT + (path / MANIFEST).read_bytes()
    for text in trusted:
        try:
            read_public(text).verify(signature, signed)
        except InvalidSignature:
            continue
        return text
    raise BundleUntrusted(f"{path}: the bundle was changed after it was signed, or signed by a key that is not trusted")
