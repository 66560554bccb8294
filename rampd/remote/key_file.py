"""A private key's file, as far as one can say without understanding it: that it is there, and nobody else's to read."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from rampd.remote.hosts import SshKeyFileError

if TYPE_CHECKING:
    from pathlib import Path

_MAX_BYTES = 64 << 10


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
