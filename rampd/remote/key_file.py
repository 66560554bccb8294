"""A private key's file, as far as one can say without an SSH library: that it is there, private, and not encrypted."""

from __future__ import annotations

import base64
import binascii
import stat
from typing import TYPE_CHECKING

from rampd.remote.hosts import SshKeyFileError

if TYPE_CHECKING:
    from pathlib import Path

_MAX_BYTES = 64 << 10
_OPENSSH = b"openssh-key-v1\0"


def read_key_file(path: Path) -> bytes:
    """Read a key file that only its owner may read. Blocking.

    Raises
    ------
    SshKeyFileError
        It is missing, cannot be read, is no file, or can be read by others: what to do about it.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise SshKeyFileError(f"{path} is not a file; key_path must name the private key's file")
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            found = f"mode {stat.S_IMODE(mode):04o}"
            raise SshKeyFileError(f"{path} is open to other users ({found}); make it private: chmod 400 {path}")
        with path.open("rb") as file:
            return file.read(_MAX_BYTES)
    except FileNotFoundError:
        raise SshKeyFileError(f"there is no key file {path}; key_path must name the private key (.pem)") from None
    except OSError as error:
        raise SshKeyFileError(f"the key file {path} cannot be read: {error.strerror}") from None


def has_passphrase(data: bytes) -> bool:
    """Return whether a private key is encrypted, in any of the forms that OpenSSH writes.

    Sources: RFC 1421, 4.6.1.1 (Proc-Type); RFC 7468, 11; OpenSSH's PROTOCOL.key (the cipher's name comes first).
    """
    if b"Proc-Type: 4,ENCRYPTED" in data or b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in data:
        return True
    _, begin, rest = data.partition(b"-----BEGIN OPENSSH PRIVATE KEY-----")
    if not begin:
        return False
    try:
        body = base64.b64decode(rest.partition(b"-----END")[0])
    except binascii.Error:
        return False
    return body.startswith(_OPENSSH) and not body.startswith(_OPENSSH + b"\0\0\0\x04none")
