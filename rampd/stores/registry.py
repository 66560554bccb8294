"""The rows of the embedded store, as `rampd.stores.arrivals` makes them of folders.

No question asked here is answered by more rows than there are names in it, or submissions that wait: an event that has
been served for months is looked at as cheaply as a new one.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import structlog

from rampd import clock
from rampd.states import SubmissionState
from rampd.stores.arrivals import Known
from rampd.stores.score_text import dump_scores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from rampd.database import Database, Row
    from rampd.stores.adoption import Adoption
    from rampd.stores.arrivals import Arrival, Rejection

log = structlog.get_logger("rampd.stores.directory")

_FINAL = json.dumps([state for state in SubmissionState if state.is_final])


class DirectoryRegistry:
    """Which folders have a row, and which were rejected.

    Parameters
    ----------
    database
        The store's.
    find_adoption
        Looks, blocking, for what another dispatcher left.
    """

    def __init__(self, database: Database, find_adoption: Callable[[], Adoption | None]) -> None:
        self.changed = asyncio.Event()
        self.scanned = asyncio.Event()
        self._database = database
        self._find_adoption = find_adoption

    async def preview_adoption(self) -> Adoption | None:
        """Return what a first start would take over, without doing it; None where there is nothing to adopt."""
        if await self._is_adopted():
            return None
        return await asyncio.to_thread(self._find_adoption)

    async def _is_adopted(self) -> bool:
        return bool(await self._database.fetch("SELECT 1 FROM facts WHERE key = 'adopted'"))

    async def adopt(self) -> None:
        """Take over what another dispatcher left, at the very first start: all of it in one transaction, or nothing."""
        if await self._is_adopted():
            return
        adoption = await asyncio.to_thread(self._find_adoption)
        now = clock.wall()
        async with self._database.transaction() as transaction:
            if adoption is not None:
                for place, found in enumerate(adoption.finished, start=1):
                    at, scores = found.finished_at, dump_scores(found.scores)
                    await transaction.fetch(
                        """
                        INSERT INTO submissions (name, state, queued_at, place, state_at, scores, fingerprint)
                        VALUES (?, ?, ?, ?, ?, ?, ?)
                        """,
                        (found.name, found.state, at, place, at, scores, found.fingerprint),
                    )
            await transaction.fetch("INSERT INTO facts VALUES ('adopted', ?)", (str(now),))
        if adoption is not None:
            log.info("event.adopted", scored=adoption.scored, training_error=adoption.training_error, new=adoption.new)

    async def known(self, names: Sequence[str]) -> Mapping[str, Known]:
        """Return what there is of these names; names that are no text have no row."""
        rows = await self._database.fetch(
            """
            SELECT name, id, state, fingerprint FROM submissions WHERE name IN (SELECT value FROM json_each(?))
            """,
            (json.dumps(names),),
        )
        return {row["name"]: _known(row) for row in rows}

    async def waiting(self) -> Mapping[str, int]:
        """Return the ids of what waits, by name."""
        rows = await self._database.fetch("SELECT name, id FROM submissions WHERE state = 'new'")
        return {row["name"]: row["id"] for row in rows}

    async def ended(self, after: str, limit: int) -> Mapping[str, Known]:
        """Return the next `limit` ended submissions after a name, by name."""
        rows = await self._database.fetch(
            """
            SELECT name, id, state, fingerprint FROM submissions
            WHERE name > ? AND state IN (SELECT value FROM json_each(?)) ORDER BY name LIMIT ?
            """,
            (after, _FINAL, limit),
        )
        return {row["name"]: _known(row) for row in rows}

    async def register(self, arrivals: Sequence[Arrival]) -> set[str]:
        """Put new submissions into the queue, in the order given; return the names that were known already."""
        now = clock.wall()
        async with self._database.transaction() as transaction:
            (waiting,) = await transaction.fetch("SELECT count(*) AS n FROM submissions WHERE state = 'new'")
            # One statement for all: each costs a journey to the database's thread.
            rows = await transaction.fetch(
                """
                INSERT INTO submissions (name, state, queued_at, place, state_at, fingerprint)
                SELECT value ->> 0, 'new', :now, (SELECT coalesce(max(place), 0) FROM submissions) + key + 1, :now,
                    value ->> 1
                FROM json_each(:arrivals) WHERE true ORDER BY key
                ON CONFLICT DO NOTHING RETURNING id, name
                """,
                {"now": now, "arrivals": json.dumps([(one.name, one.fingerprint) for one in arrivals])},
            )
        added = sorted((row["id"], row["name"]) for row in rows)
        for position, (submission_id, name) in enumerate(added, start=waiting["n"] + 1):
            bound = log.bind(submission=name, submission_id=submission_id)
            bound.info("submission.detected")
            bound.info("submission.queued", position=position)
        if added:
            self.changed.set()
        return {arrival.name for arrival in arrivals} - {name for _, name in added}

    async def forget(self, submission_id: int, name: str) -> None:
        """Drop a submission whose folder went before it was run."""
        rows = await self._database.fetch(
            "DELETE FROM submissions WHERE id = ? AND state IN ('new', 'sent_to_training') RETURNING id",
            (submission_id,),
        )
        if rows:
            log.info("submission.forgotten", submission=name, submission_id=submission_id)
            self.changed.set()

    async def note_change(self, submission_id: int, state: SubmissionState, found: Arrival) -> None:
        """Say once that a folder changed since it was run; what changed while it waited was run as it is now."""
        rows = await self._database.fetch(
            """
            UPDATE submissions SET fingerprint = ? WHERE id = ? RETURNING coalesce((
                SELECT max(at) FROM transitions WHERE submission_id = submissions.id AND state = 'sent_to_training'
            ), 0) AS claimed_at
            """,
            (found.fingerprint, submission_id),
        )
        if rows and found.newest >= rows[0]["claimed_at"]:
            log.warning("submission.changed", submission=found.name, submission_id=submission_id, state=state)

    async def rejections(self) -> dict[str, str]:
        """Return the stamps of what was rejected, by key."""
        return {row["name"]: row["stamp"] for row in await self._database.fetch("SELECT * FROM rejections")}

    async def reject(self, rejections: Sequence[Rejection]) -> None:
        """Say once of each thing that it is no submission."""
        async with self._database.transaction() as transaction:
            await transaction.run_many(
                "INSERT OR REPLACE INTO rejections VALUES (?, ?)", [(one.key, one.stamp) for one in rejections]
            )
        for one in rejections:
            log.warning("submission.rejected", name=one.shown, reason=one.reason, message=one.message)

    async def unreject(self, keys: Iterable[str]) -> None:
        """Forget rejected things that are gone."""
        await self._database.run(
            "DELETE FROM rejections WHERE name IN (SELECT value FROM json_each(?))", (json.dumps(list(keys)),)
        )


def _known(row: Row) -> Known:
    return Known(row["id"], SubmissionState(row["state"]), row["fingerprint"])
