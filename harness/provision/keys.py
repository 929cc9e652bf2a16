"""The SSH keys of a cache: made once, readable by their user only, and never part of a recipe.

Both are stored in OpenSSH's format. The guest's host key is also given in dropbear's own format (dropbear:
``buf_put_ed25519_priv_key`` in ``src/ed25519.c``).
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from harness.errors import SetupError
from harness.provision import private


@dataclass(frozen=True)
class Keys:
    """The keys of a cache.

    :ivar client: the file of the client's private key.
    :ivar client_public: the client's public key, ``ssh-ed25519 AAAA…``; ``host_public`` likewise.
    :ivar host_dropbear: the guest's private host key in dropbear's format.
    """

    client: Path
    client_public: str
    host_public: str
    host_dropbear: bytes


def load_or_make(folder: Path) -> Keys:
    """The SSH keys in ``folder``; made when they do not exist. To be called under the cache's lock.

    :raises SetupError: when a key is unreadable, or belongs to another user.
    """
    private.folder(folder)
    client = _key(folder / "client")
    host = _key(folder / "host")
    return Keys(folder / "client", _public(client), _public(host), _dropbear(host))


def load(folder: Path) -> Keys | None:
    """The SSH keys in ``folder``, or ``None`` when they do not exist; changes at most their modes."""
    present = all((folder / name).exists() for name in ("client", "host"))
    return load_or_make(folder) if present else None


def _key(path: Path) -> Ed25519PrivateKey:
    if not path.exists():
        made = Ed25519PrivateKey.generate()
        partial = path.with_suffix(f".{os.getpid()}")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(made.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        partial.replace(path)
    private.file(path)
    try:
        key = load_ssh_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError) as exc:
        raise SetupError(f"{path}: not a usable SSH key ({exc}); remove it, and a new key is made") from exc
    if not isinstance(key, Ed25519PrivateKey):
        raise SetupError(f"{path}: not an ed25519 key; remove it, and a new key is made")
    return key


def _public(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def _dropbear(key: Ed25519PrivateKey) -> bytes:
    secret = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    name = b"ssh-ed25519"
    return struct.pack(">I", len(name)) + name + struct.pack(">I", 64) + secret + public
