"""Manifests signed with ed25519: who wrote a backup. age says who can read one, and nothing about its sender.

What is signed is the manifest without its signature, as JSON with sorted keys and no spaces, ASCII only, after a line
of its own kind. Fields that this version does not know are covered too.
"""

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from opsctl.errors import ConfigurationError
from opsctl.manifest import Manifest, Signature

KIND = b"opsctl manifest signature v1\n"
"""Goes before what is signed: nothing else that the same key may sign can be taken for a manifest."""

PUBLIC_KEY_HINT = "A public key is a line ssh-ed25519 AAAA…, as `opsctl keygen --signing` prints it."


@dataclass(frozen=True)
class SigningKey:
    """A private key, and the public one as it is written down."""

    public_key: str
    _private: Any

    def signed(self, manifest: Manifest) -> Manifest:
        """The manifest with its signature."""
        value = self._private.sign(_signed_bytes(json.loads(manifest.to_json())))
        return replace(manifest, signature=Signature(self.public_key, base64.b64encode(value).decode()))


def parse_signing_key(text: str, *, where: str) -> SigningKey:
    """An ed25519 private key, in OpenSSH's format or as PEM. Raises ConfigurationError that shows nothing of it."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    is_openssh = text.startswith("-----BEGIN OPENSSH")
    read = serialization.load_ssh_private_key if is_openssh else serialization.load_pem_private_key
    try:
        private = read(text.encode(), password=None)
    except TypeError as error:  # the library's word for a passphrase that is needed
        raise ConfigurationError(
            f"{where}: the key is protected by a passphrase, and a backup asks nobody.",
            hint="Use a key without one, in a file that only the user opsctl runs as can read.",
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(
            f"{where}: it is no private key.", hint="`opsctl keygen --signing -o FILE` makes one."
        ) from error
    if not isinstance(private, Ed25519PrivateKey):
        raise ConfigurationError(f"{where}: it is no ed25519 key.", hint="`opsctl keygen --signing -o FILE` makes one.")
    return SigningKey(_written(private.public_key()), private)


def new_signing_key() -> tuple[str, str]:
    """A new key pair: the public key, and the private one in OpenSSH's format."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate()
    text = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    return _written(private.public_key()), text.decode()


def parse_public_keys(keys: Sequence[str], *, where: str) -> tuple[str, ...]:
    """The keys to trust, without their comments. Raises ConfigurationError that names the one that is none."""
    return tuple(_checked_public_key(key, where=where) for key in keys)


def _checked_public_key(key: str, *, where: str) -> str:
    if "PRIVATE KEY" in key:
        raise ConfigurationError(f"{where}: holds a private key.", hint=PUBLIC_KEY_HINT)
    try:
        return _written(_public(key))
    except ValueError as error:
        raise ConfigurationError(f"{where}: {key!r} is no ed25519 public key.", hint=PUBLIC_KEY_HINT) from error


def signature_problem(data: bytes, trusted: Sequence[str]) -> str | None:
    """Why the manifest with these bytes is not signed by one of the trusted keys, or None when it is."""
    from cryptography.exceptions import InvalidSignature

    try:
        document = json.loads(data)
    except ValueError:
        return "its manifest cannot be read"
    signature = document.get("signature") if isinstance(document, dict) else None
    if not isinstance(signature, dict):
        return "its manifest is not signed"
    signer, value = str(signature.get("public_key")), str(signature.get("value"))
    if signer not in trusted:
        return f"its manifest is signed by {signer}, which signing.public_keys does not have"
    try:
        _public(signer).verify(base64.b64decode(value, validate=True), _signed_bytes(document))
    except (InvalidSignature, binascii.Error, ValueError):
        return f"its manifest was changed after {signer} signed it"
    return None


def _signed_bytes(document: dict[str, Any]) -> bytes:
    unsigned = {key: value for key, value in document.items() if key != "signature"}
    return KIND + json.dumps(unsigned, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _public(key: str) -> Any:
    """Raises ValueError when it is no ed25519 key."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    try:
        public = load_ssh_public_key(key.encode())
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from error
    if isinstance(public, Ed25519PublicKey):
        return public
    raise ValueError("not ed25519")


def _written(public: Any) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return str(public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode())
