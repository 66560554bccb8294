"""Looks at the folders of a board's submissions: beside the loop, all at once, and none while one hangs."""

from __future__ import annotations

import asyncio
import errno
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rampd.errors import StoreError
from rampd.models import Submission
from rampd.states import SubmissionState
from rampd.stores import board_folders
from rampd.stores.board_folders import BoardFolders
from support.store_room import until

if TYPE_CHECKING:
    from collections.abc import Iterator


class FileSystem:
    """What `Path.is_dir` asks, in the place of the kernel."""

    def __init__(self) -> None:
        self.threads: list[int | None] = []
        self.error: OSError | None = None
        self.answers = threading.Event()
        self.answers.set()

    def is_dir(self, path: Path) -> bool:
        """Say whether there is a file of that name, as soon as it answers."""
        self.threads.append(threading.get_ident())
        self.answers.wait(30)
        if self.error is not None:
            raise self.error
        return path.exists()


@pytest.fixture
def file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileSystem]:
    """Give one that answers; whatever hangs in it has ended after the test."""
    del tmp_path  # made before anything is asked
    made = FileSystem()
    monkeypatch.setattr(Path, "is_dir", lambda path: made.is_dir(path))  # noqa: PLW0108 -- it has to be a function to be bound
    yield made
    made.answers.set()
    for thread in threading.enumerate():
        if thread.name == "board folders":
            thread.join(30)


@pytest.fixture
def folders(file_system: FileSystem, tmp_path: Path) -> Iterator[BoardFolders]:
    """Give those of an event."""
    made = BoardFolders(tmp_path, "s{}".format)
    yield made
    file_system.answers.set()
    made.close()


def submission(number: int) -> Submission:
    """Return one that was claimed."""
    return Submission(number, f"s{number}", SubmissionState.SENT_TO_TRAINING, queued_at=0.0, state_at=0.0)


async def test_one_look_is_enough(folders: BoardFolders, file_system: FileSystem, tmp_path: Path) -> None:
    """The claimed one and all that were missing are looked at in one thread, which is not the loop's."""
    for number in (1, 2, 3):
        folders.note_missing(submission(number))
    (tmp_path / "s2").touch()
    (tmp_path / "s4").touch()
    assert await folders.look(submission(4))
    assert folders.missing == {1, 3}
    assert len(file_system.threads) == 4
    assert len(set(file_system.threads)) == 1
    assert threading.get_ident() not in file_system.threads


async def test_what_is_missing_may_come(folders: BoardFolders, tmp_path: Path) -> None:
    """A look at the missing ones alone says whether one has."""
    assert not await folders.look(submission(1))
    folders.note_missing(submission(1))
    assert not await folders.look()
    (tmp_path / "s1").mkdir()
    assert await folders.look()
    assert folders.missing == set()


async def test_looks_at_the_same_time_wait_for_one_another(
    folders: BoardFolders, file_system: FileSystem, tmp_path: Path
) -> None:
    """One that is under way is no sign of a file system that hangs."""
    (tmp_path / "s1").mkdir()
    file_system.answers.clear()
    looks = [asyncio.create_task(folders.look(submission(number))) for number in (1, 2, 1)]
    await until(lambda: bool(file_system.threads))
    file_system.answers.set()
    assert await asyncio.gather(*looks) == [True, False, True]


async def test_a_file_system_that_hangs_is_an_outage(
    folders: BoardFolders, file_system: FileSystem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The loop goes on, nobody waits for long, and there is no second thread until the first is back."""
    monkeypatch.setattr(board_folders, "PATIENCE_S", 0.05)
    (tmp_path / "s1").touch()
    file_system.answers.clear()
    with pytest.raises(StoreError, match="does not answer"):
        await folders.look(submission(1))
    for _ in range(3):
        with pytest.raises(StoreError, match="does not answer"):
            folders.expect_an_answer()
        with pytest.raises(StoreError, match="does not answer"):
            await folders.look(submission(1))
    assert len(file_system.threads) == 1
    file_system.answers.set()
    monkeypatch.setattr(board_folders, "PATIENCE_S", 30.0)
    await until(lambda: not folders._hangs)
    folders.expect_an_answer()
    assert await folders.look(submission(1))


async def test_a_file_system_that_fails_says_nothing_of_what_is_there(
    folders: BoardFolders, file_system: FileSystem
) -> None:
    """Its error is the store's, and nothing becomes missing, or is there, by it."""
    folders.note_missing(submission(2))
    file_system.error = OSError(errno.ESTALE, "Stale file handle", "s1")
    with pytest.raises(StoreError, match="s1: Stale file handle"):
        await folders.look(submission(1))
    assert folders.missing == {2}


async def test_a_look_that_nobody_waits_for_complains_of_nothing(
    folders: BoardFolders, file_system: FileSystem
) -> None:
    """One that was cancelled, and fails afterwards, is neither an error nor in the way of the next."""
    file_system.answers.clear()
    looking = asyncio.ensure_future(folders.look(submission(1)))
    await until(lambda: file_system.threads)
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking
    file_system.error = OSError(errno.EIO, "Input/output error")
    file_system.answers.set()
    await until(lambda: not folders._hangs)
    file_system.error = None
    assert not await folders.look(submission(1))
