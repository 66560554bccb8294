"""At start: every attempt that the last daemon left unfinished is resumed, concluded or put back.

A first start, a start after a crash and a start after a reboot are this same code: it finds nothing, or something.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from rampd.conclusion import (
    STAGING_PREFIX,
    bound_fields,
    cancel_unrun,
    conclude,
    finished_fields,
    persist,
)
from rampd.errors import UnknownSubmissionError, WorkerError
from rampd.files import remove_tree
from rampd.judging import CANCELLED_MESSAGE, last_word, weigh
from rampd.models import Submission, Verdict
from rampd.states import Outcome, Step, SubmissionState

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from rampd.announcements import Announcements
    from rampd.event import Event
    from rampd.models import Attempt
    from rampd.workers.base import Worker

log = structlog.get_logger("rampd.recovery")


async def recover(event: Event, *, announcements: Announcements) -> list[tuple[Submission, Attempt]]:
    """Bring journal, store, folders and the outside into agreement. Repeatable: killed half-way, it starts again.

    Parameters
    ----------
    event
        Open; no submission of it may be running in this process yet.
    announcements
        Remembers whose canonical line was written.

    Returns
    -------
    list of (Submission, Attempt)
        The runs that go on, for the dispatcher to wait for.
    """
    await _replay(event, announcements=announcements)
    unfinished = await event.journal.unfinished()
    resumable = [attempt for attempt in unfinished if _is_resumable(event, attempt)]
    decided = [attempt for attempt in unfinished if attempt.step is Step.DECIDED]
    # Nothing may run twice at once: what is left of the last daemon's runs ends before anything else happens.
    await _reclaim(event, {attempt.id for attempt in resumable})
    going_on: list[tuple[Submission, Attempt]] = []
    for attempt in unfinished:
        submission = await _submission_of(event, attempt)
        with structlog.contextvars.bound_contextvars(**bound_fields(event, submission, attempt)):
            if attempt in resumable:
                going_on.append((submission, attempt))
            elif attempt in decided:
                await conclude(event, submission, attempt, announcements=announcements)
                if not attempt.final and await persist(partial(event.journal.is_cancelled, attempt), "a request"):
                    await persist(partial(cancel_unrun, event, submission, announcements=announcements), "an outcome")
            else:
                await _interrupt(event, submission, attempt, announcements=announcements)
    for put_back in await event.store.release_unheld({submission.id for submission, _ in going_on}):
        log.info("submission.recovered", submission=put_back.name, submission_id=put_back.id)
    if event.settings.board is None:
        # A lost journal's; on a board another daemon has the predictions of its attempts there as well.
        keep = {attempt.id for _, attempt in going_on}
        await asyncio.to_thread(_remove_stale_staging, event.settings.ramp.predictions_dir, keep)
    return going_on


async def reclaim_now_and_then(worker: Worker[Any], held: Collection[str]) -> None:
    """Have what nobody holds any more ended, for ever: a teardown that failed, or what an earlier daemon left.

    Parameters
    ----------
    worker
        Says in `reclaim_interval_s` how often.
    held
        The attempts that have a task; looked at anew each time.
    """
    while worker.reclaim_interval_s is not None:
        await asyncio.sleep(worker.reclaim_interval_s)
        try:
            for reclaimed in await worker.reclaim(held):
                log.info("worker.reclaimed", what=reclaimed)
        except WorkerError as error:
            log.warning("worker.lost", error=f"reclaim failed: {error}", outcome=error.outcome)
        except Exception:
            # A worker's own mistake costs the event neither what runs nor the next look.
            log.exception("lifecycle.failed")


async def _reclaim(event: Event, keep: Collection[str]) -> None:
    """Have the worker end what nobody holds.

    One that cannot be asked now (its cloud does not answer, say) is asked again while the daemon runs, where it says
    how often; until then what nobody holds stands idle, and nothing of it is begun a second time.
    """
    try:
        for reclaimed in await event.worker.reclaim(keep):
            log.info("worker.reclaimed", what=reclaimed)
    except WorkerError as error:
        if event.worker.reclaim_interval_s is None:
            raise
        log.warning("worker.lost", error=f"reclaim failed: {error}", outcome=error.outcome)


def _is_resumable(event: Event, attempt: Attempt) -> bool:
    # Only the kind of worker that wrote an allocation can read it; the config may name another one now.
    same_kind = attempt.worker_type == event.settings.worker.worker_type
    has_begun = attempt.allocation is not None and attempt.step in (Step.OPENED, Step.SET_UP, Step.LAUNCHED)
    return event.worker.resumable and same_kind and has_begun


async def _submission_of(event: Event, attempt: Attempt) -> Submission:
    """Return the submission of an attempt; one that the store forgot (its folder went) is stood in for."""
    try:
        return await event.store.get(attempt.submission)
    except UnknownSubmissionError:
        return Submission(
            id=attempt.submission_id,
            name=attempt.submission,
            state=SubmissionState.TRAINING,
            queued_at=attempt.opened_at,
            state_at=attempt.opened_at,
        )


async def _interrupt(event: Event, submission: Submission, attempt: Attempt, *, announcements: Announcements) -> None:
    verdict = Verdict(Outcome.INTERRUPTED, None, reason="the daemon was killed, or the machine went down")
    if await persist(partial(event.journal.is_cancelled, attempt), "a request"):
        log.info("submission.cancelled")
        verdict = Verdict(Outcome.CANCELLED, None, CANCELLED_MESSAGE)
    failures = await persist(partial(event.journal.failures, submission.id), "earlier attempts")
    # A submission that takes the whole daemon down each time must come to an end as well.
    final = weigh(verdict, failures, max_attempts=event.settings.worker.max_attempts).final
    if final:
        verdict = last_word(verdict)
    finished = finished_fields(event, submission, attempt, verdict, final=final)
    decided = await persist(
        partial(event.journal.decide, attempt.id, verdict, final=final, finished=finished), "an outcome"
    )
    await conclude(event, submission, decided, announcements=announcements)


def _remove_stale_staging(predictions_dir: Path, keep: Collection[str]) -> None:
    """Remove predictions that were never decided on: their attempts are over."""
    if not predictions_dir.is_dir():
        return
    for folder in predictions_dir.glob(f"{STAGING_PREFIX}*"):
        if folder.name.removeprefix(STAGING_PREFIX) not in keep:
            remove_tree(folder)


async def _replay(event: Event, *, announcements: Announcements) -> None:
    """Write again each canonical line that may not have been written; readers deduplicate.

    An attempt that is decided but not closed is concluded by `recover`, which writes its line.
    """
    for attempt in await event.journal.unannounced():
        if attempt.step is not Step.CLOSED:
            continue
        submission = await _submission_of(event, attempt)
        log.info(
            "submission.finished",
            **bound_fields(event, submission, attempt),
            **attempt.finished,
            replayed=True,
            on_written=announcements.expected(attempt.id),
        )
