"""The journal: the attempts that this daemon holds, and what the operator asked for. Always SQLite, always local.

A row is committed before anything happens outside the process, so that a later process knows what may exist. The
journal knows nothing of what a worker's allocation means, and nothing of RAMP's states.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

from rampd import clock
from rampd.database import Database
from rampd.errors import StoreError
from rampd.journal_rows import Failures, LatestAttempt, Request, attempt_of, request_of
from rampd.journal_schema import LATER_COLUMNS, SCHEMA
from rampd.states import Outcome, Step

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from contextlib import AsyncExitStack
    from pathlib import Path

    from rampd.database import Row
    from rampd.models import Attempt, Submission, Verdict
    from rampd.states import RequestKind


ATTEMPTS_KEPT: Final = 50
"""So many of a submission's newest attempts are kept whatever they came to; of the older ones those that count."""
REQUESTS_KEPT: Final = 1000
"""So many of the newest requests are kept; of the older ones those that wait for an answer."""


class Journal:
    """One event's journal.

    Parameters
    ----------
    path
        The SQLite file, in the event's state_dir.
    """

    def __init__(self, path: Path) -> None:
        self._database = Database(path, schema=SCHEMA, later_columns=LATER_COLUMNS)

    async def open(self, stack: AsyncExitStack, *, create: bool = True) -> None:
        """Open the file; see `Database.open`."""
        await self._database.open(stack, create=create)

    async def open_attempt(self, submission: Submission, worker_type: str) -> Attempt:
        """Give a submission its next attempt, with a number one above all that any of its name ever had.

        By the name: readers of the log deduplicate on it, and a folder that went and came again has a new id.
        """
        (row,) = await self._database.fetch(
            """
            INSERT INTO attempts (id, submission, submission_id, number, worker_type, step, opened_at, after_cancel)
            SELECT :id, :name, :submission_id, coalesce(max(number), 0) + 1, :worker_type, :step, :now, (
                SELECT coalesce(max(id), 0) FROM requests
                WHERE kind = 'cancel' AND submission = :name AND accepted = 1
            )
            FROM attempts WHERE submission = :name
            RETURNING *
            """,
            {
                "id": secrets.token_hex(8),
                "name": submission.name,
                "submission_id": submission.id,
                "worker_type": worker_type,
                "step": Step.OPENED,
                "now": clock.wall(),
            },
        )
        return attempt_of(row)

    async def record_beginning(self, attempt_id: str, allocation: str) -> None:
        """Keep what `setup` is about to make (the worker's JSON); the attempt stays `opened` until it has made it."""
        await self._advance("allocation = :allocation", attempt_id, {"allocation": allocation}, "opened", "opened")

    async def record_allocation(self, attempt_id: str, allocation: str) -> None:
        """Keep what finds the attempt's allocation again (the worker's JSON)."""
        await self._advance(
            "allocation = :allocation, step = 'set_up'", attempt_id, {"allocation": allocation}, "opened", "set_up"
        )

    async def record_launch(self, attempt_id: str, allocation: str) -> Attempt:
        """Say that the run exists, and since when. A repeated launch keeps the first one's time."""
        row = await self._advance(
            """
            allocation = :allocation, step = 'launched',
            launched_at = coalesce(launched_at, :wall),
            launched_boottime_s = coalesce(launched_boottime_s, :boottime),
            boot_id = coalesce(boot_id, :boot_id)
            """,
            attempt_id,
            {
                "allocation": allocation,
                "wall": clock.wall(),
                "boottime": clock.boottime(),
                "boot_id": clock.boot_id(),
            },
            "set_up",
            "launched",
        )
        return attempt_of(row)

    async def decide(
        self, attempt_id: str, verdict: Verdict, *, final: bool, finished: Mapping[str, object]
    ) -> Attempt:
        """Commit the attempt's one outcome. The first call decides; a later one returns what was decided.

        Parameters
        ----------
        attempt_id
            The attempt, at any step.
        verdict
            How it ended.
        final
            Whether that is the submission's last word.
        finished
            The fields of its canonical log line.
        """
        rows = await self._database.fetch(
            """
            UPDATE attempts SET step = 'decided', outcome = :outcome, verdict = :verdict, final = :final,
                finished = :finished
            WHERE id = :id AND step IN ('opened', 'set_up', 'launched') RETURNING *
            """,
            {
                "id": attempt_id,
                "outcome": verdict.outcome,
                "verdict": json.dumps(asdict(verdict)),
                "final": int(final),
                "finished": json.dumps(finished),
            },
        )
        return attempt_of(rows[0]) if rows else await self._get(attempt_id)

    async def close(self, attempt: Attempt) -> None:
        """Say that the outcome is true everywhere and nothing of the attempt is left.

        What is in the store by now (scores, the participant's message) goes: the journal stays small. So do attempts
        that say nothing about a submission's failures, but for its newest.

        Parameters
        ----------
        attempt
            As `decide` returned it; one from before that is looked up.
        """
        if attempt.verdict is None:
            attempt = await self._get(attempt.id)
        kept = replace(attempt.verdict, scores=None, error_msg="", output_inode=None) if attempt.verdict else None
        values = {"verdict": json.dumps(asdict(kept)) if kept else None}
        await self._advance("step = 'closed', verdict = :verdict", attempt.id, values, "decided", "closed")
        if attempt.number > ATTEMPTS_KEPT:
            await self._database.run(
                """
                DELETE FROM attempts WHERE submission_id = ? AND number <= ? AND step = 'closed' AND final = 0
                    AND outcome IN ('interrupted', 'no_capacity')
                """,
                (attempt.submission_id, attempt.number - ATTEMPTS_KEPT),
            )

    async def _advance(self, assignments: str, attempt_id: str, values: dict[str, Any], before: str, after: str) -> Row:
        rows = await self._database.fetch(
            f"UPDATE attempts SET {assignments} WHERE id = :id AND step IN (:before, :after) RETURNING *",  # noqa: S608 -- our own words
            {**values, "id": attempt_id, "before": before, "after": after},
        )
        if not rows:
            found = await self._get(attempt_id)
            raise StoreError(f"attempt {attempt_id} is {found.step} and cannot become {after}")
        return rows[0]

    async def _get(self, attempt_id: str) -> Attempt:
        rows = await self._database.fetch("SELECT * FROM attempts WHERE id = ?", (attempt_id,))
        if not rows:
            raise StoreError(f"the journal has no attempt {attempt_id}")
        return attempt_of(rows[0])

    async def is_cancelled(self, attempt: Attempt) -> bool:
        """Return whether the operator's cancel was accepted while an attempt was under way.

        That is one later than the latest at its opening: by their numbers, since clocks are set. Only an attempt of
        an earlier rampd, which noted none, is held against the time.
        """
        rows = await self._database.fetch(
            """
            SELECT 1 FROM requests JOIN attempts USING (submission)
            WHERE attempts.id = ? AND kind = 'cancel' AND accepted = 1
                AND CASE WHEN after_cancel IS NULL THEN answered_at >= opened_at ELSE requests.id > after_cancel END
            LIMIT 1
            """,
            (attempt.id,),
        )
        return bool(rows)

    async def mark_announced(self, attempt_ids: Collection[str]) -> None:
        """Remember that the canonical lines of these attempts were written."""
        await self._database.run(
            # With its line written the line's fields have served.
            "UPDATE attempts SET announced = 1, finished = NULL WHERE id IN (SELECT value FROM json_each(?))",
            (json.dumps(list(attempt_ids)),),
        )

    async def unfinished(self) -> list[Attempt]:
        """Return the attempts that are not closed, oldest first."""
        rows = await self._database.fetch("SELECT * FROM attempts WHERE step <> 'closed' ORDER BY opened_at, number")
        return [attempt_of(row) for row in rows]

    async def unannounced(self) -> list[Attempt]:
        """Return the decided final attempts whose canonical line may not have been written, oldest first."""
        rows = await self._database.fetch("SELECT * FROM attempts WHERE final = 1 AND announced = 0 ORDER BY opened_at")
        return [attempt_of(row) for row in rows]

    async def attempts(self, submission_id: int | None = None) -> list[Attempt]:
        """Return all attempts, or those of one submission, oldest first."""
        if submission_id is None:
            rows = await self._database.fetch("SELECT * FROM attempts ORDER BY opened_at, number")
        else:
            rows = await self._database.fetch(
                "SELECT * FROM attempts WHERE submission_id = ? ORDER BY number", (submission_id,)
            )
        return [attempt_of(row) for row in rows]

    async def latest_attempts(self) -> dict[int, LatestAttempt]:
        """Return as much of each submission's latest attempt as a table shows, by the submission's id."""
        rows = await self._database.fetch(
            """
            SELECT submission_id, max(number), worker_type, launched_at, outcome, verdict, allocation
            FROM attempts GROUP BY submission_id
            """
        )
        # Not by SQLite's ->>: before 3.42 it has no NaN, which scores may be.
        return {
            row[0]: LatestAttempt(
                number=row[1],
                worker_type=row[2],
                launched_at=row[3],
                outcome=row[4],
                reason=json.loads(row[5])["reason"] if row[5] else None,
                allocation=row[6] if row[4] is None else None,
            )
            for row in rows
        }

    async def failures(self, submission_id: int) -> Failures:
        """Return what the decided attempts of a submission came to since its count was last started anew."""
        rows = await self._database.fetch(
            """
            SELECT outcome FROM attempts
            WHERE submission_id = :id AND outcome IS NOT NULL
              AND number > coalesce((SELECT since_number FROM counts WHERE submission_id = :id), 0)
            ORDER BY number DESC
            """,
            {"id": submission_id},
        )
        outcomes = [Outcome(row["outcome"]) for row in rows]
        return Failures(
            counted=sum(outcome.is_counted for outcome in outcomes),
            interrupted_in_a_row=_run_length(outcomes, Outcome.INTERRUPTED),
            no_capacity_in_a_row=_run_length(outcomes, Outcome.NO_CAPACITY),
            lost=outcomes.count(Outcome.LOST_HOST),
        )

    async def start_count_anew(self, submission_id: int) -> None:
        """Forget a submission's failures so far: the operator's retry. Attempt numbers go on."""
        await self._database.run(
            """
            INSERT OR REPLACE INTO counts
            SELECT :id, coalesce(max(number), 0) FROM attempts WHERE submission_id = :id
            """,
            {"id": submission_id},
        )

    async def set_backoff(self, submission_id: int, until: float) -> None:
        """Keep a submission from being claimed until a time (seconds since the epoch)."""
        await self._database.run("INSERT OR REPLACE INTO backoffs VALUES (?, ?)", (submission_id, until))

    async def clear_backoff(self, submission_id: int) -> None:
        """Let a submission be claimed again."""
        await self._database.run("DELETE FROM backoffs WHERE submission_id = ?", (submission_id,))

    async def backoffs(self) -> dict[int, float]:
        """Return until when each submission that backs off does so (seconds since the epoch), by its id."""
        return {row[0]: row[1] for row in await self._database.fetch("SELECT submission_id, until FROM backoffs")}

    async def request(self, kind: RequestKind, submission: str) -> int:
        """Ask for something; the same request that is still pending is not doubled. Return its id.

        The last word counts: of `cancel`, `retry` and `cancel` again the first is answered as out of date.
        """
        async with self._database.transaction() as transaction:
            await transaction.fetch(
                """
                UPDATE requests SET answered_at = :now, answer = 'it was asked for again, later', accepted = 0
                WHERE kind = :kind AND submission = :submission AND answered_at IS NULL AND id < (
                    SELECT max(id) FROM requests WHERE submission = :submission AND answered_at IS NULL
                )
                """,
                {"kind": kind, "submission": submission, "now": clock.wall()},
            )
            (row,) = await transaction.fetch(
                """
                INSERT INTO requests (kind, submission, requested_at) VALUES (?, ?, ?)
                ON CONFLICT (kind, submission) WHERE answered_at IS NULL DO UPDATE SET kind = kind RETURNING id
                """,
                (kind, submission, clock.wall()),
            )
        return int(row["id"])

    async def pending_requests(self) -> list[Request]:
        """Return what was not answered yet, oldest first."""
        rows = await self._database.fetch("SELECT * FROM requests WHERE answered_at IS NULL ORDER BY id")
        return [request_of(row) for row in rows]

    async def answer(self, request_id: int, answer: str, *, accepted: bool) -> None:
        """Answer a request; the first answer stands."""
        await self._database.run(
            "UPDATE requests SET answered_at = ?, answer = ?, accepted = ? WHERE id = ? AND answered_at IS NULL",
            (clock.wall(), answer, int(accepted), request_id),
        )
        await self._database.run(
            "DELETE FROM requests WHERE answered_at IS NOT NULL AND id <= ?", (request_id - REQUESTS_KEPT,)
        )

    async def get_request(self, request_id: int) -> Request:
        """Return one request.

        Raises
        ------
        StoreError
            There is none of that id.
        """
        rows = await self._database.fetch("SELECT * FROM requests WHERE id = ?", (request_id,))
        if not rows:
            raise StoreError(f"the journal has no request {request_id}")
        return request_of(rows[0])

    async def put(self, key: str, value: object) -> None:
        """Keep a fact for other processes (JSON)."""
        await self._database.run("INSERT OR REPLACE INTO facts VALUES (?, ?)", (key, json.dumps(value)))

    async def get(self, key: str) -> Any:
        """Return a fact, or None."""
        rows = await self._database.fetch("SELECT value FROM facts WHERE key = ?", (key,))
        return json.loads(rows[0]["value"]) if rows else None

    async def facts(self) -> dict[str, Any]:
        """Return every fact."""
        return {row["key"]: json.loads(row["value"]) for row in await self._database.fetch("SELECT * FROM facts")}

    async def delete(self, key: str) -> None:
        """Drop a fact; silent if there is none."""
        await self._database.run("DELETE FROM facts WHERE key = ?", (key,))


def _run_length(outcomes: list[Outcome], outcome: Outcome) -> int:
    length = 0
    while length < len(outcomes) and outcomes[length] is outcome:
        length += 1
    return length


__all__ = ["Failures", "Journal", "LatestAttempt", "Request"]
