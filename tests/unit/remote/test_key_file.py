"""The private key's file: what is refused, and in which words."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import asyncssh
import pytest

from rampd.errors import WorkerSetupError
from rampd.remote.hosts import SshKeyFileError
from rampd.remote.ssh_connection import load_private_key
from support.requirements import needs

if TYPE_CHECKING:
    from pathlib import Path

_CONTENT = "c2VjcmV0IG9mIG91cnM="


@pytest.fixture(scope="module")
def pair() -> asyncssh.SSHKey:
    """Give a key pair."""
    return asyncssh.generate_private_key("ssh-ed25519")


def _written(folder: Path, data: bytes, mode: int = 0o400) -> Path:
    file = folder / "iris_key.pem"
    file.write_bytes(data)
    file.chmod(mode)
    return file


def test_a_key_that_only_its_owner_reads_is_taken(tmp_path: Path, pair: asyncssh.SSHKey) -> None:
    """In OpenSSH's form, or in PEM as AWS hands it out."""
    loaded = load_private_key(_written(tmp_path, pair.export_private_key("openssh")))
    assert loaded.public_data == pair.public_data
    rsa = asyncssh.generate_private_key("ssh-rsa", key_size=2048)
    (tmp_path / "iris_key.pem").unlink()
    loaded = load_private_key(_written(tmp_path, rsa.export_private_key("pkcs1-pem")))
    assert loaded.public_data == rsa.public_data


@pytest.mark.parametrize("mode", [0o440, 0o404, 0o600 | 0o020, 0o777])
def test_a_key_that_others_may_touch_is_refused_with_the_command_to_run(
    tmp_path: Path, pair: asyncssh.SSHKey, mode: int
) -> None:
    """As ssh itself does; the path is in the command as it is."""
    file = _written(tmp_path, pair.export_private_key("openssh"), mode)
    with pytest.raises(SshKeyFileError, match=rf"open to other users \(mode {mode:04o}\).*chmod 400 {file}"):
        load_private_key(file)


def test_a_missing_key_names_the_setting(tmp_path: Path) -> None:
    """The event is held, not failed."""
    with pytest.raises(SshKeyFileError, match=r"there is no key file .*nothing\.pem; key_path") as caught:
        load_private_key(tmp_path / "nothing.pem")
    assert isinstance(caught.value, WorkerSetupError)


def test_a_folder_is_no_key(tmp_path: Path) -> None:
    """Nor is anything else that is not a file."""
    with pytest.raises(SshKeyFileError, match="is not a file"):
        load_private_key(tmp_path)


@pytest.mark.parametrize(
    "form", [("ed25519",), ("rsa",), ("rsa", "-m", "PEM"), ("rsa", "-m", "PKCS8"), ("ecdsa", "-m", "PEM")]
)
def test_a_key_with_a_passphrase_says_so(tmp_path: Path, form: tuple[str, ...]) -> None:
    """In whatever form ssh-keygen wrote it; and how to get rid of it. Without the passphrase it is a key."""
    needs("ssh-keygen", package="openssh-client")
    file = tmp_path / "iris_key.pem"
    subprocess.run(["ssh-keygen", "-q", "-t", *form, "-N", "made up", "-f", file], check=True)
    with pytest.raises(SshKeyFileError, match=r"has a passphrase.*ssh-keygen -p -f"):
        load_private_key(file)
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "made up", "-N", "", *form[1:], "-f", file], check=True)
    assert load_private_key(file).public_data


@pytest.mark.parametrize(
    "text",
    [
        "",
        _CONTENT,
        "\0\xff",
        f"-----BEGIN OPENSSH PRIVATE KEY-----\n{_CONTENT}\n-----END OPENSSH PRIVATE KEY-----\n",
        f"-----BEGIN RSA PRIVATE KEY-----\n{_CONTENT}\n",
        f"-----BEGIN EC PRIVATE KEY-----\n{_CONTENT}\n-----END EC PRIVATE KEY-----\n",
    ],
)
def test_what_is_no_key_is_told_without_a_word_of_it(tmp_path: Path, text: str) -> None:
    """Not in the sentence, and not in what is chained to it."""
    file = _written(tmp_path, text.encode("latin-1"))
    with pytest.raises(SshKeyFileError, match="holds no private key") as caught:
        load_private_key(file)
    assert _CONTENT not in repr(caught.value)
    assert caught.value.__cause__ is None


def test_a_public_key_is_no_private_one(tmp_path: Path, pair: asyncssh.SSHKey) -> None:
    """The likely mistake of naming the .pub file."""
    with pytest.raises(SshKeyFileError, match="holds no private key"):
        load_private_key(_written(tmp_path, pair.export_public_key("openssh")))
