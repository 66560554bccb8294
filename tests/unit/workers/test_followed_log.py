from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

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


@pytest.mark.parametrize("what", ["folder", "file in the folder's place"])
def test_a_target_that_cannot_be_written_costs_the_log(source: Path, tmp_path: Path, what: str) -> None:
    """And nothing else: the submission goes on, its output is counted, and what lies there stays."""
    target = tmp_path / "event" / "one" / "log"
    if what == "folder":
        target.mkdir(parents=True)
    else:
        target.parent.parent.mkdir()
        target.parent.write_bytes(b"")
    source.write_bytes(b"text")
    log, _ = _log(tmp_path)
    log.follow()
    log.follow(anew=True)
    assert log.size == 4
    assert target.is_dir() or target.parent.is_file()


@pytest.mark.parametrize("what", ["link", "dangling link", "fifo"])
def test_whatever_lies_in_the_logs_place_is_put_away(source: Path, tmp_path: Path, what: str) -> None:
    """No log is written through a link, nor into a fifo."""
    target, other = tmp_path / "event" / "one" / "log", tmp_path / "other"
    target.parent.mkdir(parents=True)
    match what:
        case "link":
            other.write_bytes(b"another's")
            target.symlink_to(other)
        case "dangling link":
            target.symlink_to(other)
        case _:
            os.mkfifo(target)
    log, _ = _log(tmp_path)
    source.write_bytes(b"text")
    log.follow()
    assert target.read_bytes() == b"text"
    assert not target.is_symlink()
    assert not other.exists() or other.read_bytes() == b"another's"
