"""Whether the folders of the board's submissions are there, looked at beside the loop: they may lie on a network.

Looks have a daemon thread of their own, not asyncio's executor: one that a hung file system never gives back must
neither take the place of other work nor keep the process from ending. Looks at the same time are made one after the
other; once one took too long there is no further one until it has come back.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

import structlog

from rampd.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from rampd.models import Submission

log = structlog.get_logger("rampd.stores.rampboard")

PATIENCE_S: Final = 5.0
"""How long a look may take; the pump stands still meanwhile, and systemd's watchdog is asked for two minutes."""


@dataclass(frozen=True, slots=True)
class _Look:
    """A look that was asked for."""

    folders: Sequence[Path]
    loop: asyncio.AbstractEventLoop
    are_there: asyncio.Future[list[bool]]


class BoardFolders:
    """The folders that ramp-frontend makes.

    Parameters
    ----------
    submissions_dir
        Where they are.
    name_of
        Returns the name of a submission's folder, by its id.
    """

    def __init__(self, submissions_dir: Path, name_of: Callable[[int], str]) -> None:
        self._submissions_dir = submissions_dir
        self._name_of = name_of
        self._latest: asyncio.Future[list[bool]] | None = None
        self._overdue: asyncio.Future[list[bool]] | None = None
        self._looks: SimpleQueue[_Look | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self.missing: set[int] = set()
        """The submissions that wait for their folder, as of the last look."""

    def close(self) -> None:
        """End the thread; one that hangs is left to end when its file system lets it, or with the process."""
        if self._thread is not None:
            self._looks.put(None)
            if self._latest is None or self._latest.done():
                self._thread.join()

    def path(self, name: str) -> Path:
        """Return where a submission's folder is, or should be."""
        return self._submissions_dir / name

    def expect_an_answer(self) -> None:
        """Look at nothing, but see that one could.

        Raises
        ------
        StoreError
            An earlier look hangs still.
        """
        if self._hangs:
            raise self._silence()

    @property
    def _hangs(self) -> bool:
        return self._overdue is not None and not self._overdue.done()

    async def look(self, submission: Submission | None = None) -> bool:
        """Look at a submission's folder and, in the same breath, at all that were missing.

        Returns
        -------
        bool
            Whether the submission's folder is there; without one, whether a missing folder has come.

        Raises
        ------
        StoreError
            The file system fails, or does not answer: that says nothing of what is there.
        """
        ids = sorted(self.missing)
        names = [self._name_of(one) for one in ids]
        if submission is not None:
            names.append(submission.name)
        are_there = await self._are_there([self.path(name) for name in names])
        came = {one for one, is_there in zip(ids, are_there, strict=False) if is_there}
        self.missing -= came
        return bool(came) if submission is None else are_there[-1]

    async def _are_there(self, folders: Sequence[Path]) -> list[bool]:
        self.expect_an_answer()
        loop = asyncio.get_running_loop()
        are_there: asyncio.Future[list[bool]] = loop.create_future()
        self._latest = are_there
        are_there.add_done_callback(lambda done: done.exception())  # of one that came back late nobody asks for it
        if self._thread is None:
            self._thread = threading.Thread(target=_work, args=(self._looks,), name="board folders", daemon=True)
            self._thread.start()
        self._looks.put(_Look(folders, loop, are_there))
        await asyncio.wait({are_there}, timeout=PATIENCE_S)
        if not are_there.done():
            self._overdue = are_there
            raise self._silence()
        try:
            return are_there.result()
        except OSError as error:
            raise StoreError(f"{error.filename or self._submissions_dir}: {error.strerror}") from error

    def _silence(self) -> StoreError:
        return StoreError(f"{self._submissions_dir}: its file system does not answer; nothing is claimed meanwhile")

    def note_missing(self, submission: Submission) -> None:
        """Pass a submission over until its folder comes; say so once."""
        self.missing.add(submission.id)
        log.warning(
            "submission.rejected",
            submission=submission.name,
            submission_id=submission.id,
            name=submission.name,
            reason="no_folder",
            message=f"{self.path(submission.name)} is not there; is submissions_dir the board's own folder?",
        )


def _work(looks: SimpleQueue[_Look | None]) -> None:
    while (look := looks.get()) is not None:
        are_there: list[bool] = []
        error: OSError | None = None
        try:
            are_there = [folder.is_dir() for folder in look.folders]
        except OSError as raised:
            error = raised
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            look.loop.call_soon_threadsafe(_settle, look.are_there, are_there, error)


def _settle(future: asyncio.Future[list[bool]], are_there: list[bool], error: OSError | None) -> None:
    if error is None:
        future.set_result(are_there)
    else:
        future.set_exception(error)
