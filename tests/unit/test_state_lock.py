"""One daemon an event: the lock, its holder's pid, and how it is given back."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from rampd.errors import LockedError, StoreError
from rampd.state_lock import StateLock, is_held

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOLDER = """
import pathlib, sys
from rampd.state_lock import StateLock
with StateLock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def other_daemon(state_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Have another process hold the lock."""
    argv = [sys.executable, "-c", HOLDER, str(state_dir)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            yield process
        finally:
            process.kill()


def test_a_second_holder_is_told_the_firsts_pid(tmp_path: Path) -> None:
    """The error names the process to stop, and the folder."""
    with other_daemon(tmp_path) as process, pytest.raises(LockedError, match=rf"\bpid {process.pid}\b") as caught:
        StateLock(tmp_path, patience_s=0).acquire()
    assert caught.value.state_dir == tmp_path
    assert str(tmp_path) in str(caught.value)


def test_two_locks_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    """One process cannot serve an event twice either."""
    with StateLock(tmp_path), pytest.raises(LockedError, match=f"pid {os.getpid()}"):
        StateLock(tmp_path, patience_s=0).acquire()


def test_a_release_lets_the_next_one_in(tmp_path: Path) -> None:
    """What was given back can be taken."""
    with StateLock(tmp_path):
        pass
    with StateLock(tmp_path, patience_s=0):
        assert is_held(tmp_path) == os.getpid()


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    """After kill -9 the next daemon starts at once."""
    with other_daemon(tmp_path) as process:
        process.kill()
        process.wait()
        with StateLock(tmp_path, patience_s=0):
            assert is_held(tmp_path) == os.getpid()


def test_patience_outlasts_a_short_look(tmp_path: Path) -> None:
    """Whoever looks at the lock for an instant keeps no daemon from starting."""
    looking = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(looking, fcntl.LOCK_SH)
    looker = threading.Timer(0.1, os.close, [looking])
    looker.start()
    with StateLock(tmp_path, patience_s=10):
        looker.join()


def test_a_daemon_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever holds an event holds it for long: the second daemon is told so at once, whatever its patience."""
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("waits for a daemon"))
    with other_daemon(tmp_path), pytest.raises(LockedError):
        StateLock(tmp_path, patience_s=60).acquire()


def test_impatience_does_not_wait(tmp_path: Path) -> None:
    """With no patience the answer comes at once."""
    with StateLock(tmp_path):
        began = time.monotonic()
        with pytest.raises(LockedError):
            StateLock(tmp_path, patience_s=0).acquire()
        assert time.monotonic() - began < 0.4


def test_the_note_holds_the_present_pid_alone(tmp_path: Path) -> None:
    """A longer note of an earlier holder is gone."""
    (tmp_path / "lock").write_text("99999999999999999999\n", encoding="ascii")
    with StateLock(tmp_path):
        assert (tmp_path / "lock").read_text(encoding="ascii") == f"{os.getpid()}\n"


def test_a_release_without_a_lock_is_silent(tmp_path: Path) -> None:
    """Giving back what one has not, or twice, does nothing."""
    lock = StateLock(tmp_path)
    lock.release()
    lock.acquire()
    lock.release()
    lock.release()
    assert is_held(tmp_path) is None


def test_no_child_inherits_the_lock(tmp_path: Path) -> None:
    """A submission that outlives its daemon does not keep the event locked."""
    with StateLock(tmp_path):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        assert is_held(tmp_path) is None
    finally:
        child.kill()
        child.wait()


def test_a_missing_state_dir_is_a_store_error(tmp_path: Path) -> None:
    """The sentence says what could not be opened."""
    with pytest.raises(StoreError, match=r"missing/lock: cannot be opened: No such file"):
        StateLock(tmp_path / "missing").acquire()


def test_a_lock_that_cannot_be_opened_is_a_store_error(tmp_path: Path) -> None:
    """A folder in its place is no lock."""
    (tmp_path / "lock").mkdir()
    with pytest.raises(StoreError, match="state_dir must belong to the user"):
        StateLock(tmp_path).acquire()


def test_nobody_holds_what_was_never_served(tmp_path: Path) -> None:
    """Without a lock file there is no daemon, and looking makes none."""
    assert is_held(tmp_path) is None
    assert not (tmp_path / "lock").exists()


def test_a_stale_note_is_no_holder(tmp_path: Path) -> None:
    """A pid in the file means nothing while nobody has the lock."""
    (tmp_path / "lock").write_text(f"{os.getppid()}\n", encoding="ascii")
    assert is_held(tmp_path) is None


def test_another_process_is_seen_to_hold(tmp_path: Path) -> None:
    """Looking from outside gives the daemon's pid, as often as one looks."""
    with other_daemon(tmp_path) as process:
        assert [is_held(tmp_path), is_held(tmp_path)] == [process.pid, process.pid]


@pytest.mark.parametrize("note", [b"", b"not a pid", b"\xff\x00"])
def test_a_holder_without_a_note_is_unknown(tmp_path: Path, note: bytes) -> None:
    """Held, and by whom nobody knows: 0, and an error without a pid."""
    with StateLock(tmp_path):
        (tmp_path / "lock").write_bytes(note)
        assert is_held(tmp_path) == 0
        with pytest.raises(LockedError, match="another rampd serves this event"):
            StateLock(tmp_path, patience_s=0).acquire()
