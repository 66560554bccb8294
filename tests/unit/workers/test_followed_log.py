from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from rampd.errors import ResultsError
from rampd.workers.followed_log import FollowedLog

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return where the source is; its folder is there."""
    (tmp_path / "attempt" / "logs" / "one").mkdir(parents=True)
    return tmp_path / "attempt" / "logs" / "one" / "log"


def _log(tmp_path: Path, max_bytes: int = 1000) -> tuple[FollowedLog, Path]:
    target = tmp_path / "event" / "one" / "log"
    log = FollowedLog(tmp_path / "attempt", ("logs", "one", "log"), target, max_bytes=max_bytes)
    log.begin()
    return log, target


def test_it_follows_what_grows(source: Path, tmp_path: Path) -> None:
    """What was added is added, and what stands there is not written again."""
    log, target = _log(tmp_path)
    log.follow()
    assert target.read_bytes() == b""
    source.write_bytes(b"one")
    log.follow()
    target.write_bytes(b"ONE")  # would show a second writing
    with source.open("ab") as file:
        file.write(b"two")
    log.follow()
    assert target.read_bytes() == b"ONEtwo"
    assert log.size == 6


@pytest.mark.parametrize("text", [b"new", b"a longer text than before"])
def test_a_file_that_was_rewritten_is_read_anew_at_the_end(source: Path, tmp_path: Path, text: bytes) -> None:
    """Shorter or longer, in the end the target is what the source is."""
    log, target = _log(tmp_path)
    source.write_bytes(b"the first text")
    log.follow()
    source.write_bytes(text)
    log.follow(anew=True)
    assert target.read_bytes() == text


def test_a_shorter_file_is_noticed_while_it_is_followed(source: Path, tmp_path: Path) -> None:
    """One that was begun anew is, in the target as well."""
    log, target = _log(tmp_path)
    source.write_bytes(b"the first text")
    log.follow()
    source.write_bytes(b"new")
    log.follow()
    assert target.read_bytes() == b"new"


def test_no_more_is_kept_than_is_allowed(source: Path, tmp_path: Path) -> None:
    """The rest is counted."""
    log, target = _log(tmp_path, max_bytes=4)
    source.write_bytes(b"123")
    log.follow()
    assert not log.is_capped
    source.write_bytes(b"123456789")
    log.follow()
    assert target.read_bytes() == b"1234"
    assert (log.size, log.is_capped) == (9, True)


def test_begin_empties_what_an_earlier_attempt_left(source: Path, tmp_path: Path) -> None:
    """The log is this attempt's alone."""
    _, target = _log(tmp_path)
    target.write_bytes(b"earlier")
    _log(tmp_path)
    assert target.read_bytes() == b""


@pytest.mark.parametrize("what", ["file link", "folder link", "fifo", "folder"])
def test_only_a_plain_file_is_read(source: Path, tmp_path: Path, what: str) -> None:
    """A link on the way, or anything that is no file, is not followed, and not waited for."""
    secret = tmp_path / "secret" / "log"
    secret.parent.mkdir()
    secret.write_bytes(b"secret")
    match what:
        case "file link":
            source.symlink_to(secret)
        case "folder link":
            source.parent.rmdir()
            source.parent.symlink_to(secret.parent)
        case "fifo":
            os.mkfifo(source)
        case _:
            source.mkdir()
    log, target = _log(tmp_path)
    log.follow()
    log.follow(anew=True)
    assert target.read_bytes() == b""


def test_a_target_that_cannot_be_written(source: Path, tmp_path: Path) -> None:
    """It is the platform's failure, and names the file."""
    log, target = _log(tmp_path)
    source.write_bytes(b"text")
    target.unlink()
    target.mkdir()
    with pytest.raises(ResultsError, match=f"{target}: cannot be written: Is a directory"):
        log.follow()
    (tmp_path / "event" / "two").write_bytes(b"")
    other = FollowedLog(tmp_path / "attempt", ("log",), tmp_path / "event" / "two" / "log", max_bytes=1)
    with pytest.raises(ResultsError, match="cannot be written"):
        other.begin()
