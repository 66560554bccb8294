"""A store that keeps everything in memory."""

from __future__ import annotations

import asyncio
import difflib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from rampd import clock
from rampd.errors import TransitionRefusedError, UnknownSubmissionError
from rampd.models import Submission
from rampd.states import TRANSITIONS, SubmissionState
from rampd.stores.base import SubmissionStore

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from contextlib import AsyncExitStack
    from pathlib import Path

    from rampd.models import Scores


@dataclass(slots=True)
class _Row:
    submission: Submission
    place: int
    scores: Scores | None = None
    history: list[tuple[SubmissionState, float]] = field(default_factory=list)


class InMemoryStore(SubmissionStore):
    """Keeps every row in memory; `DirectoryStore`'s equal in all else, and told of submissions by `add`.

    Parameters
    ----------
    submissions_dir
        Where the submissions' folders are.
    """

    def __init__(self, submissions_dir: Path) -> None:
        self.changed = asyncio.Event()
        self.scanned = asyncio.Event()
        self._submissions_dir = submissions_dir
        self._rows: dict[int, _Row] = {}
        self._forgotten: dict[int, _Row] = {}
        self._last_id = 0

    def add(self, name: str) -> Submission:
        """Put a new submission into the queue, and return it; its folder is made if there is none.

        Raises
        ------
        ValueError
            There is one of that name.
        """
        if any(row.submission.name == name for row in self._rows.values()):
            raise ValueError(f"there is a submission named {name!r} already")
        folder = self._submissions_dir / name
        if not folder.exists():
            folder.mkdir(parents=True)
            (folder / "estimator.py").write_text(f"# {name}\n", encoding="utf-8")
        self._last_id += 1
        now = clock.wall()
        submission = Submission(self._last_id, name, SubmissionState.NEW, queued_at=now, state_at=now)
        self._rows[submission.id] = _Row(submission, self._next_place(), history=[(SubmissionState.NEW, now)])
        self.changed.set()
        return submission

    def _next_place(self) -> int:
        return max((row.place for row in self._rows.values()), default=0) + 1

    def _waiting(self) -> list[_Row]:
        rows = [row for row in self._rows.values() if row.submission.state is SubmissionState.NEW]
        return sorted(rows, key=lambda row: row.place)

    async def open(self, stack: AsyncExitStack) -> None:
        """Do nothing: there is nothing to open."""

    async def watch(self) -> None:
        """Look once, then for ever at nothing: `add` says what arrives."""
        await self.scan()
        self.scanned.set()
        await asyncio.get_running_loop().create_future()

    async def scan(self) -> None:
        """Forget the waiting ones whose folders are gone."""
        for row in self._waiting():
            self._forget_if_gone(row)

    @property
    def settling(self) -> int:
        """Nothing ever settles here."""
        return 0

    def submission_dir(self, submission: Submission) -> Path:
        """Return the submission's folder."""
        return self._submissions_dir / submission.name

    def _forget_if_gone(self, row: _Row) -> bool:
        if self.submission_dir(row.submission).is_dir():
            return False
        self._forgotten[row.submission.id] = self._rows.pop(row.submission.id)
        self.changed.set()
        return True

    async def claim(self, skip: Collection[int] = ()) -> Submission | None:
        """Take the oldest waiting submission."""
        for row in self._waiting():
            if row.submission.id not in skip and not self._forget_if_gone(row):
                return self._set(row, SubmissionState.SENT_TO_TRAINING)
        return None

    async def claim_named(self, name: str) -> Submission | None:
        """Take one submission whatever its place."""
        row = self._rows[(await self.get(name)).id]
        if row.submission.state is not SubmissionState.NEW:
            return None
        return self._set(row, SubmissionState.SENT_TO_TRAINING)

    def _set(self, row: _Row, state: SubmissionState, error_msg: str = "", scores: Scores | None = None) -> Submission:
        now = clock.wall()
        row.submission = replace(row.submission, state=state, state_at=now, error_msg=error_msg)
        row.scores = scores
        row.history.append((state, now))
        return row.submission

    def _move(
        self, submission_id: int, state: SubmissionState, error_msg: str = "", scores: Scores | None = None
    ) -> None:
        """Make one transition; one that was made already is left as it is, and what was forgotten as well."""
        row = self._rows.get(submission_id)
        if row is None or row.submission.state is state:
            return
        before = row.submission.state
        if before.is_final or state not in TRANSITIONS[before]:
            raise TransitionRefusedError(submission_id, before, state)
        self._set(row, state, error_msg, scores)

    async def release(self, submission_id: int) -> None:
        """Put back; the place is kept."""
        self._move(submission_id, SubmissionState.NEW)
        self.changed.set()

    async def release_unheld(self, held: Collection[int]) -> Sequence[Submission]:
        """Put back what nobody holds."""
        claimed = (SubmissionState.SENT_TO_TRAINING, SubmissionState.TRAINING, SubmissionState.TESTED)
        self.changed.set()
        return [
            self._set(row, SubmissionState.NEW)
            for row in self._rows.values()
            if row.submission.state in claimed and row.submission.id not in held
        ]

    async def set_training(self, submission_id: int) -> None:
        """Say `training`."""
        self._move(submission_id, SubmissionState.TRAINING)

    async def set_tested(self, submission_id: int) -> None:
        """Say `tested`."""
        self._move(submission_id, SubmissionState.TESTED)

    async def set_scored(self, submission_id: int, scores: Scores, *, max_rss_bytes: int | None = None) -> None:
        """Keep scores and say `scored`."""
        del max_rss_bytes
        self._move(submission_id, SubmissionState.SCORED, scores=scores)

    async def set_failed(
        self, submission_id: int, state: SubmissionState, error_msg: str, *, max_rss_bytes: int | None = None
    ) -> None:
        """Say that it failed, and why."""
        del max_rss_bytes
        self._move(submission_id, state, error_msg)

    async def requeue(self, submission_id: int) -> None:
        """Put a submission that has ended at the end of the queue."""
        row = self._rows.get(submission_id)
        if row is not None and row.submission.state is not SubmissionState.NEW:
            if not row.submission.state.is_final:
                raise TransitionRefusedError(submission_id, row.submission.state, SubmissionState.NEW)
            row.place = self._next_place()
            row.submission = replace(self._set(row, SubmissionState.NEW), queued_at=clock.wall())
        self.changed.set()

    async def get(self, name: str) -> Submission:
        """Return one submission."""
        rows = {row.submission.name: row.submission for row in self._rows.values()}
        if name not in rows:
            raise UnknownSubmissionError(name, difflib.get_close_matches(name, rows, n=3))
        return rows[name]

    async def list(self, states: Collection[SubmissionState] | None = None) -> Sequence[Submission]:
        """Return those that wait after the others."""
        others = [row for row in self._rows.values() if row.submission.state is not SubmissionState.NEW]
        rows = [row.submission for row in (*others, *self._waiting())]
        return [submission for submission in rows if states is None or submission.state in states]

    async def counts(self) -> Mapping[SubmissionState, int]:
        """Return how many submissions are in each state."""
        states = [row.submission.state for row in self._rows.values()]
        return {state: states.count(state) for state in SubmissionState}

    async def history(self, submission_id: int) -> Sequence[tuple[SubmissionState, float]]:
        """Return every transition with its time."""
        row = self._rows.get(submission_id) or self._forgotten.get(submission_id)
        return [] if row is None else [*row.history]

    async def scores(self) -> Mapping[int, Scores]:
        """Return the scores of every scored submission."""
        return {
            number: row.scores or {}
            for number, row in self._rows.items()
            if row.submission.state is SubmissionState.SCORED
        }
