"""Secrets from $CREDENTIALS_DIRECTORY."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import pytest

from rampd.credentials import read_credential
from rampd.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the folder that systemd would have made."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    return tmp_path


def test_a_secret_is_read_without_the_lines_end(folder: Path) -> None:
    """Editors leave one behind it; what else stands there belongs to the secret."""
    secret = f" {secrets.token_hex(8)} "
    (folder / "database_password").write_text(f"{secret}\n", encoding="utf-8")
    assert read_credential("database_password") == secret


def test_what_was_not_handed_over_is_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the file, and without systemd."""
    assert read_credential("database_password") is None
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    assert read_credential("database_password") is None


@pytest.mark.parametrize("content", [b"", b"\n", b"hush\0hush", b"\xff\xfe", b"x" * 70_000])
def test_an_unusable_secret_is_named_and_not_shown(folder: Path, content: bytes) -> None:
    """The file stands in the message, and nothing of what is in it."""
    (folder / "aws_secret_access_key").write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        read_credential("aws_secret_access_key")
    message = str(raised.value)
    assert str(folder / "aws_secret_access_key") in message
    assert "hush" not in message


def test_a_folder_in_the_place_of_a_secret_is_an_error(folder: Path) -> None:
    """As is anything else that cannot be read."""
    (folder / "database_password").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        read_credential("database_password")


@pytest.mark.parametrize("name", ["../etc/passwd", "", "a/b", ".hidden"])
def test_a_name_is_no_path(folder: Path, name: str) -> None:
    """It comes from the code, and must not lead out of the folder."""
    with pytest.raises(ValueError, match="no credential"):
        read_credential(name)
