"""Secrets that the service manager hands over: files in `$CREDENTIALS_DIRECTORY` (systemd.exec(5), LoadCredential=).

They stand in no config, in no environment and in no journal, and only this service's user can read them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from rampd.errors import ConfigError

AWS_ACCESS_KEY_ID = "aws_access_key_id"
AWS_SECRET_ACCESS_KEY = "aws_secret_access_key"  # noqa: S105 -- a file's name
DATABASE_PASSWORD = "database_password"  # noqa: S105 -- a file's name

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_MOST_BYTES = 64 * 1024


def read_credential(name: str) -> str | None:
    """Return a secret, without the line's end that editors leave behind it; None where none was handed over.

    Parameters
    ----------
    name
        The credential's, as the unit file has it. Blocking: reads a small file in memory.

    Raises
    ------
    ConfigError
        It is there and cannot be used; the message names the file and never shows what is in it.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no credential's name")
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        return None
    path = Path(folder) / name
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError([f"{path}: the credential cannot be read: {error.strerror}"]) from error
    if len(data) > _MOST_BYTES:
        raise ConfigError([f"{path}: the credential is larger than {_MOST_BYTES} bytes"])
    try:
        text = data.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: the credential is no UTF-8 text"]) from None
    if not text or "\0" in text:
        raise ConfigError([f"{path}: the credential is {'empty' if not text else 'no text: it has a NUL'}"])
    return text
