"""The embedded store: submissions are folders, their states and scores are rows of an SQLite file.

`DirectoryStore` takes rows through their states, `rampd.stores.registry` makes them of the folders that
`rampd.stores.arrivals` finds.
"""

from __future__ import annotations

import difflib
import json
from functools import partial
from typing import TYPE_CHECKING, Final

from rampd import clock
from rampd.database import Database, Row
from rampd.errors import StoreError, TransitionRefusedError, UnknownSubmissionError
from rampd.models import Submission
from rampd.states import TRANSITIONS, SubmissionState
from rampd.stores.adoption import find_adoption
from rampd.stores.arrivals import Arrivals
from rampd.stores.base import SubmissionStore
from rampd.stores.registry import DirectoryRegistry
from rampd.stores.score_text import dump_scores, load_scores

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from contextlib import AsyncExitStack
    from pathlib import Path

    from rampd.models import Scores
    from rampd.stores.adoption import Adoption

TRANSITIONS_KEPT: Final = 200
"""So many of a submission's newest transitions are kept; of the older ones those to a final state."""

# Scores are JSON, so that they and `scored` are one statement; for people and other programs there is a view of them.
# NaN and infinities, which JSON has not, are texts.
# The checks have a flipped bit in a state found when the file is opened.
# The triggers keep every transition with its time, whichever code path makes it.
_SCHEMA = """
CREATE TABLE submissions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL CHECK (state IN (STATES)),
    queued_at REAL NOT NULL,
    place INTEGER NOT NULL,
    state_at REAL NOT NULL,
    error_msg TEXT NOT NULL DEFAULT '',
    scores TEXT,
    fingerprint TEXT NOT NULL
);
CREATE INDEX places ON submissions (place);
CREATE INDEX waiting ON submissions (place) WHERE state = 'new';
CREATE TABLE transitions (
    submission_id INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN (STATES)),
    at REAL NOT NULL
);
CREATE INDEX transitions_of ON transitions (submission_id);
CREATE TRIGGER first_state AFTER INSERT ON submissions BEGIN
    INSERT INTO transitions VALUES (new.id, new.state, new.state_at);
END;
CREATE TRIGGER next_state AFTER UPDATE OF state ON submissions WHEN new.state <> old.state BEGIN
    INSERT INTO transitions VALUES (new.id, new.state, new.state_at);
    DELETE FROM transitions WHERE submission_id = new.id AND state IN ('new', 'sent_to_training', 'training')
        AND rowid < (
            SELECT rowid FROM transitions WHERE submission_id = new.id ORDER BY rowid DESC LIMIT 1 OFFSET KEPT
        );
END;
CREATE VIEW scores AS
    SELECT submissions.id AS submission_id, name, one.key AS score, step.key AS step,
        step.value ->> 'mean' AS mean, step.value ->> 'std' AS std, step.value ->> 'bagged' AS bagged
    FROM submissions, json_each(submissions.scores) AS one, json_each(one.value) AS step;
CREATE TABLE rejections (name TEXT PRIMARY KEY, stamp TEXT NOT NULL);
CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL)
""".replace("STATES", ", ".join(f"'{state}'" for state in SubmissionState)).replace("KEPT", str(TRANSITIONS_KEPT))


class DirectoryStore(SubmissionStore):
    """Submissions of one event, as folders.

    Parameters
    ----------
    path
        The SQLite file; its folder must exist.
    submissions_dir
        Where submissions arrive; never written to.
    predictions_dir, logs_dir
        Looked at once, at the very first start: an event that was served before is adopted.
    sandbox_dir
        The name that is never run.
    settle_time_s
        For how long a folder that was not renamed into place must not have changed.
    rescan_interval_s
        How often everything is looked at although nothing was heard of.
    read_scores
        Reads the scores of predictions that are adopted.
    poll
        Poll instead of inotify; None to decide by the file system.
    """

    def __init__(
        self,
        path: Path,
        *,
        submissions_dir: Path,
        predictions_dir: Path,
        logs_dir: Path,
        sandbox_dir: str = "starting_kit",
        settle_time_s: float = 1.0,
        rescan_interval_s: float = 10.0,
        read_scores: Callable[[Path], Scores] | None = None,
        poll: bool | None = None,
    ) -> None:
        self._database = Database(path, schema=_SCHEMA)
        self._submissions_dir = submissions_dir
        self._sandbox_dir = sandbox_dir
        find = partial(find_adoption, submissions_dir, predictions_dir, logs_dir, sandbox_dir, read_scores)
        self.registry = DirectoryRegistry(self._database, find)
        self.changed = self.registry.changed
        self.scanned = self.registry.scanned
        self._arrivals = Arrivals(
            self.registry,
            submissions_dir,
            sandbox_dir=sandbox_dir,
            settle_time_s=settle_time_s,
            rescan_interval_s=rescan_interval_s,
            poll=poll,
        )

    async def open(self, stack: AsyncExitStack, *, create: bool = True) -> None:
        """Open the database; see `SubmissionStore.open`."""
        await self._database.open(stack, create=create)

    def reconfigure(self, *, settle_time_s: float) -> None:
        """Use another settle_time from now on."""
        self._arrivals.settle_time_s = settle_time_s

    async def watch(self) -> None:
        """Find submissions as they arrive; see `SubmissionStore.watch`."""
        await self._arrivals.watch()

    async def scan(self) -> None:
        """Look once; see `SubmissionStore.scan`."""
        await self._arrivals.scan()

    @property
    def settling(self) -> int:
        """How many folders were seen that are not taken yet."""
        return self._arrivals.settling

    def submission_dir(self, submission: Submission) -> Path:
        """Return the folder that the participant sent."""
        return self._submissions_dir / submission.name

    async def preview_adoption(self) -> Adoption | None:
        """Return what a first start would take over, without doing it; None where there is nothing to adopt."""
        return await self.registry.preview_adoption()

    async def adopt(self) -> None:
        """Take over what another dispatcher left, at the very first start; see `DirectoryRegistry.adopt`."""
        await self.registry.adopt()

    async def claim(self, skip: Collection[int] = ()) -> Submission | None:
        """Take the oldest waiting submission; see `SubmissionStore.claim`."""
        while True:
            rows = await self._database.fetch(
                """
                UPDATE submissions SET state = 'sent_to_training', state_at = ? WHERE id = (
                    SELECT id FROM submissions
                    WHERE state = 'new' AND name <> ? AND id NOT IN (SELECT value FROM json_each(?))
                    ORDER BY place LIMIT 1
                ) RETURNING *
                """,
                (clock.wall(), self._sandbox_dir, json.dumps(list(skip))),
            )
            if not rows:
                return None
            submission = _submission(rows[0])
            folder = self.submission_dir(submission)
            try:
                is_there = folder.is_dir()
            except OSError as error:
                # A file system that fails (a network's) says nothing of what is there.
                await self.release(submission.id)
                raise StoreError(f"{folder}: {error.strerror}") from error
            if is_there:
                return submission
            await self.registry.forget(submission.id, submission.name)

    async def claim_named(self, name: str) -> Submission | None:
        """Claim one; see `SubmissionStore.claim_named`."""
        await self._arrivals.admit(name)
        rows = await self._database.fetch(
            """
            UPDATE submissions SET state = 'sent_to_training', state_at = ? WHERE name = ? AND state = 'new'
            RETURNING *
            """,
            (clock.wall(), (await self.get(name)).name),
        )
        return _submission(rows[0]) if rows else None

    async def release(self, submission_id: int) -> None:
        """Put back; see `SubmissionStore.release`."""
        await self._move(submission_id, SubmissionState.NEW)
        self.changed.set()

    async def release_unheld(self, held: Collection[int]) -> Sequence[Submission]:
        """Put back what nobody holds; see `SubmissionStore.release_unheld`."""
        rows = await self._database.fetch(
            """
            UPDATE submissions SET state = 'new', state_at = ?
            WHERE state IN ('sent_to_training', 'training', 'tested') AND id NOT IN (SELECT value FROM json_each(?))
            RETURNING *
            """,
            (clock.wall(), json.dumps(list(held))),
        )
        self.changed.set()
        return [_submission(row) for row in rows]

    async def set_training(self, submission_id: int) -> None:
        """Say `training`."""
        await self._move(submission_id, SubmissionState.TRAINING)

    async def set_tested(self, submission_id: int) -> None:
        """Say `tested`."""
        await self._move(submission_id, SubmissionState.TESTED)

    async def set_scored(self, submission_id: int, scores: Scores, *, max_rss_bytes: int | None = None) -> None:
        """Keep scores and say `scored`, at once."""
        del max_rss_bytes
        await self._move(submission_id, SubmissionState.SCORED, scores=dump_scores(scores))

    async def set_failed(
        self, submission_id: int, state: SubmissionState, error_msg: str, *, max_rss_bytes: int | None = None
    ) -> None:
        """Say that it failed, and why; drops older scores."""
        del max_rss_bytes
        await self._move(submission_id, state, error_msg)

    async def requeue(self, submission_id: int) -> None:
        """Put a submission that has ended at the end of the queue."""
        rows = await self._database.fetch(
            """
            UPDATE submissions SET state = 'new', state_at = :now, queued_at = :now, error_msg = '', scores = NULL,
                place = (SELECT max(place) + 1 FROM submissions)
            WHERE id = :id AND state IN ('scored', 'training_error', 'checking_error') RETURNING name
            """,
            {"now": clock.wall(), "id": submission_id},
        )
        if not rows:
            await self._expect(submission_id, SubmissionState.NEW)
        self.changed.set()

    async def _move(
        self, submission_id: int, state: SubmissionState, error_msg: str = "", *, scores: str | None = None
    ) -> None:
        """Make one transition; one that was made already is left as it is."""
        before = [old for old, new in TRANSITIONS.items() if state in new and not old.is_final]
        rows = await self._database.fetch(
            """
            UPDATE submissions SET state = ?, state_at = ?, error_msg = ?, scores = ?
            WHERE id = ? AND state IN (SELECT value FROM json_each(?)) RETURNING id
            """,
            (state, clock.wall(), error_msg, scores, submission_id, json.dumps(before)),
        )
        if not rows:
            await self._expect(submission_id, state)

    async def _expect(self, submission_id: int, state: SubmissionState) -> None:
        rows = await self._database.fetch("SELECT state FROM submissions WHERE id = ?", (submission_id,))
        # A row that is gone was forgotten with its folder: there is nobody left to tell.
        if rows and rows[0]["state"] != state:
            raise TransitionRefusedError(submission_id, rows[0]["state"], state)

    async def get(self, name: str) -> Submission:
        """Return one submission; see `SubmissionStore.get`."""
        try:
            rows = await self._database.fetch("SELECT * FROM submissions WHERE name = ?", (name,))
        except UnicodeEncodeError:
            rows = []
        if rows:
            return _submission(rows[0])
        names = [row["name"] for row in await self._database.fetch("SELECT name FROM submissions")]
        raise UnknownSubmissionError(name, difflib.get_close_matches(name, names, n=3))

    async def list(self, states: Collection[SubmissionState] | None = None) -> Sequence[Submission]:
        """Return submissions; see `SubmissionStore.list`."""
        wanted = json.dumps(list(SubmissionState if states is None else states))
        rows = await self._database.fetch(
            """
            SELECT * FROM submissions WHERE state IN (SELECT value FROM json_each(?))
            ORDER BY state = 'new', CASE state WHEN 'new' THEN place ELSE id END
            """,
            (wanted,),
        )
        return [_submission(row) for row in rows]

    async def counts(self) -> Mapping[SubmissionState, int]:
        """Return how many submissions are in each state."""
        rows = await self._database.fetch("SELECT state, count(*) AS n FROM submissions GROUP BY state")
        found = {row["state"]: row["n"] for row in rows}
        return {state: found.get(state, 0) for state in SubmissionState}

    async def history(self, submission_id: int) -> Sequence[tuple[SubmissionState, float]]:
        """Return every transition with its time."""
        rows = await self._database.fetch(
            "SELECT state, at FROM transitions WHERE submission_id = ? ORDER BY rowid", (submission_id,)
        )
        return [(SubmissionState(row["state"]), row["at"]) for row in rows]

    async def scores(self) -> Mapping[int, Scores]:
        """Return the scores of every scored submission."""
        rows = await self._database.fetch("SELECT id, scores FROM submissions WHERE state = 'scored' ORDER BY id")
        return {row["id"]: load_scores(row["scores"]) for row in rows}

    async def scores_of(self, submission_id: int) -> Scores:
        """Return the scores of one submission."""
        rows = await self._database.fetch(
            "SELECT scores FROM submissions WHERE id = ? AND state = 'scored'", (submission_id,)
        )
        return load_scores(rows[0]["scores"]) if rows else {}


def _submission(row: Row) -> Submission:
    return Submission(
        id=row["id"],
        name=row["name"],
        state=SubmissionState(row["state"]),
        queued_at=row["queued_at"],
        state_at=row["state_at"],
        error_msg=row["error_msg"],
    )
