"""Host keys made for a launch: cloud-init gives the instance the private half, and nothing else is accepted there.

Blocking. A key lies in its attempt's folder, readable by its owner alone, until the handshake.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from rampd.errors import WorkerError

if TYPE_CHECKING:
    from pathlib import Path


def make(path: Path) -> None:
    """Write a new ed25519 private key, unless there is one already: a call that is made again must not differ."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 -- 30 ms that only this policy needs
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415 -- as above

    if path.exists():
        return
    private = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    temporary = path.with_suffix(".new")
    try:
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(private)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError as error:
        raise WorkerError(f"{path}: cannot be written: {error.strerror}") from error


def public_line(path: Path) -> str:
    """Return the public half as OpenSSH writes it."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 -- see `make`

    private = serialization.load_ssh_private_key(_read(path), None)
    public = private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return public.decode("ascii")


def user_data(path: Path) -> str:
    """Return the cloud-config that makes the key the instance's own (cloud-init, module cc_ssh)."""
    private = "".join(f"    {line}\n" for line in _read(path).decode("ascii").splitlines())
    return f"#cloud-config\nssh_keys:\n  ed25519_private: |\n{private}  ed25519_public: {public_line(path)}\n"


def forget(path: Path) -> None:
    """Remove a key once the handshake has shown that the instance has it."""
    path.unlink(missing_ok=True)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise WorkerError(f"{path}: cannot be read: {error.strerror}") from error
