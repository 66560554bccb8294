"""Making a decided attempt true outside the journal: predictions, store, log. Repeated after a crash until it is."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
from tenacity import AsyncRetrying, retry_if_exception, wait_random_exponential

from rampd import clock
from rampd.errors import ResultsError, StoreError, SupersededError, TransitionRefusedError, WorkerError
from rampd.files import remove_tree, swap_into_place
from rampd.judging import CANCELLED_MESSAGE
from rampd.models import Verdict
from rampd.states import Outcome, SubmissionState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from rampd.announcements import Announcements
    from rampd.event import Event
    from rampd.models import Attempt, Scores, Submission
    from rampd.workers.base import Allocation

T = TypeVar("T")

log = structlog.get_logger("rampd.conclusion")

STAGING_PREFIX = ".rampd-"
_AFTER_TRAINING = (SubmissionState.SCORED, SubmissionState.TRAINING_ERROR)
"""What a store lets follow `training` alone."""


def staging_dir(event: Event, attempt_id: str) -> Path:
    """Return where an attempt's predictions wait: hidden, beside their final place, so that one rename moves them."""
    return event.settings.ramp.predictions_dir / f"{STAGING_PREFIX}{attempt_id}"


async def conclude(
    event: Event,
    submission: Submission,
    attempt: Attempt,
    *,
    announcements: Announcements,
    allocation: Allocation | None = None,
    delay_s: float = 0.0,
) -> None:
    """Make a decided attempt's outcome true, and close it. Repeatable at any point.

    Writes that fail are tried again until they succeed: the outcome is journaled, so nothing is lost meanwhile. What
    the store refuses, since another daemon or a person has moved the submission, is dropped instead: the store's word
    stands, the outcome is the journal's and the log's alone, and no slot waits for what will never come true.

    Parameters
    ----------
    event, submission, attempt
        The attempt must be decided.
    announcements
        Remembers whose canonical line was written.
    allocation
        Where it is known; else the journaled one.
    delay_s
        For how long a submission that was not final backs off.
    """
    verdict = attempt.verdict
    if verdict is None:
        raise ValueError(f"attempt {attempt.id} is not decided")
    is_dropped = False
    try:
        if attempt.final:
            await _write_final(event, submission, attempt, verdict)
        else:
            await _put_back(event, submission, attempt, delay_s)
    except SupersededError as error:
        is_dropped = True
        log.warning("submission.superseded", reason=str(error), outcome=verdict.outcome)
    except TransitionRefusedError as error:
        is_dropped = True
        log.error(  # noqa: TRY400 -- the sentence says it all
            "submission.overruled",
            error=str(error),
            outcome=verdict.outcome,
            found=error.before,
            exit_status=verdict.exit_status,
            scores=None if verdict.scores is None else _plain(verdict.scores),
        )
    if is_dropped:
        await persist(partial(asyncio.to_thread, _remove, [staging_dir(event, attempt.id)]), "predictions")
    await _tear_down(event, attempt, allocation)
    if is_dropped:
        # Whoever's word counts writes the canonical line; none is missing here.
        await persist(partial(event.journal.mark_announced, [attempt.id]), "an attempt's end")
    await persist(partial(event.journal.close, attempt), "an attempt's end")
    if is_dropped:
        return
    if attempt.final:
        log.info("submission.finished", **attempt.finished, on_written=announcements.expected(attempt.id))
        return
    log.warning(
        "submission.retried",
        reason=verdict.reason,
        outcome=verdict.outcome,
        delay_s=delay_s,
        counted=verdict.outcome.is_counted,
        exit_status=verdict.exit_status,
        attempts=attempt.number,
    )


async def _put_back(event: Event, submission: Submission, attempt: Attempt, delay_s: float) -> None:
    await persist(partial(asyncio.to_thread, _remove, [staging_dir(event, attempt.id)]), "predictions")
    if delay_s > 0:
        await persist(partial(event.journal.set_backoff, submission.id, clock.wall() + delay_s), "a backoff")
    await persist(partial(event.store.release, submission.id), "a submission put back")


async def _write_final(event: Event, submission: Submission, attempt: Attempt, verdict: Verdict) -> None:
    store = event.store
    predictions = event.settings.ramp.predictions_dir / submission.name
    staging = staging_dir(event, attempt.id)
    max_rss_bytes = verdict.exit.max_rss_bytes if verdict.exit else None
    await persist(partial(store.confirm, submission.id), "a claim")
    if submission.state is SubmissionState.SENT_TO_TRAINING and verdict.outcome.final_state in _AFTER_TRAINING:
        # The store was away while it ran, or the daemon was killed before it could say so.
        await persist(partial(store.set_training, submission.id), "a state")
    if verdict.outcome is Outcome.OK:
        scores = verdict.scores or {}
        await persist(partial(asyncio.to_thread, _swap, staging, predictions, verdict.output_inode), "predictions")
        if submission.state is not SubmissionState.SCORED:  # it is, after a crash between the scores and the close
            await persist(partial(store.set_tested, submission.id), "a state")
        await persist(partial(store.set_scored, submission.id, scores, max_rss_bytes=max_rss_bytes), "scores")
        log.info("submission.scored", scores=_plain(scores))
        return
    # A final training_error leaves no predictions behind, an older attempt's neither.
    state = verdict.outcome.final_state
    stale = [staging, predictions] if state is SubmissionState.TRAINING_ERROR else [staging]
    await persist(partial(asyncio.to_thread, _remove, stale), "predictions")
    await persist(
        partial(store.set_failed, submission.id, state, _shown(verdict), max_rss_bytes=max_rss_bytes), "a state"
    )


def _plain(scores: Scores) -> dict[str, Any]:
    return {
        score: {
            step: {"mean": figures.mean, "std": figures.std, "bagged": figures.bagged}
            for step, figures in steps.items()
        }
        for score, steps in scores.items()
    }


def _shown(verdict: Verdict) -> str:
    """Return what a participant may see of a failure: never what the platform stumbled over."""
    if verdict.error_msg or verdict.outcome.final_state is not SubmissionState.CHECKING_ERROR:
        return verdict.error_msg
    return "The platform failed, not the submission; the organizers can retry it."


def _swap(staging: Path, predictions: Path, inode: int | None) -> None:
    """Swap predictions in, once: renames keep the inode, so a folder that is in place already is recognized."""
    try:
        if not (predictions.exists() and predictions.stat().st_ino == inode):
            swap_into_place(staging, predictions)
        remove_tree(staging)
    except OSError as error:
        raise ResultsError(f"{predictions}: {error.strerror}") from error


def _remove(folders: list[Path]) -> None:
    try:
        for folder in folders:
            remove_tree(folder)
    except OSError as error:
        raise ResultsError(f"{error.filename}: {error.strerror}") from error


async def _tear_down(event: Event, attempt: Attempt, allocation: Allocation | None) -> None:
    """Give the allocation back. What cannot be given back now is reclaimed at the next start."""
    try:
        if allocation is None and attempt.allocation is not None:
            allocation = event.worker.allocation_model.model_validate_json(attempt.allocation)
        if allocation is not None:
            await event.worker.teardown(allocation)
    except (WorkerError, OSError) as error:
        log.warning("worker.lost", error=f"teardown failed: {error}", outcome=Outcome.PLATFORM_ERROR)
    except Exception:
        # The outcome stands, whatever the worker stumbles over, and whichever worker wrote the allocation.
        log.exception("lifecycle.failed")


async def persist(write: Callable[[], Awaitable[T]], what: str) -> T:
    """Repeat a write until it succeeds, with jittered backoff up to 10 s.

    Raises
    ------
    TransitionRefusedError
        The store works, and will never do it.
    asyncio.CancelledError
        The daemon exits at once; what was not written is in the journal, or was not promised to anybody.
    """
    try:
        return await write()
    except (StoreError, ResultsError) as error:
        if not _may_work_later(error):
            raise
        log.error("store.unavailable", error=f"{what} could not be written: {error}")  # noqa: TRY400 -- the sentence says it all
    since = clock.boottime()
    try:
        async for again in AsyncRetrying(
            retry=retry_if_exception(_may_work_later),
            wait=wait_random_exponential(multiplier=0.2, max=10),
            reraise=True,
        ):
            with again:
                result = await write()
    except TransitionRefusedError:
        log.info("store.recovered", down_s=clock.boottime() - since)  # it answers again, though it says no
        raise
    log.info("store.recovered", down_s=clock.boottime() - since)
    return result


def _may_work_later(error: BaseException) -> bool:
    return isinstance(error, (StoreError, ResultsError)) and not isinstance(error, TransitionRefusedError)


async def decide_unrun(event: Event, submission: Submission, verdict: Verdict, *, announcements: Announcements) -> None:
    """End a waiting submission without running it (cancelled, or the event was held too long).

    It gets an attempt of its own, so that every final state has exactly one outcome in the journal.
    """
    attempt = await event.journal.open_attempt(submission, event.settings.worker.worker_type)
    finished = finished_fields(event, submission, attempt, verdict, final=True)
    # Until it is written: an attempt that is left open would put the submission back at the next start.
    decided = await persist(
        partial(event.journal.decide, attempt.id, verdict, final=True, finished=finished), "an outcome"
    )
    with structlog.contextvars.bound_contextvars(**bound_fields(event, submission, attempt)):
        if verdict.outcome is Outcome.CANCELLED:
            log.info("submission.cancelled")
        await conclude(event, submission, decided, announcements=announcements)


async def cancel_unrun(event: Event, submission: Submission, *, announcements: Announcements) -> None:
    """End a waiting submission by the organizers' word; see `decide_unrun`."""
    verdict = Verdict(Outcome.CANCELLED, None, CANCELLED_MESSAGE)
    await decide_unrun(event, submission, verdict, announcements=announcements)


def finished_fields(
    event: Event, submission: Submission, attempt: Attempt, verdict: Verdict, *, final: bool, **timings: float | None
) -> dict[str, object]:
    """Return the fields of an attempt's canonical line, as they are journaled with its outcome."""
    run_exit = verdict.exit
    return {
        "outcome": verdict.outcome,
        "state": verdict.outcome.final_state if final else SubmissionState.NEW,
        "exit_status": verdict.exit_status,
        "queued_s": max(0.0, attempt.opened_at - submission.queued_at),
        "setup_s": timings.get("setup_s"),
        "run_s": timings.get("run_s"),
        "collect_s": timings.get("collect_s"),
        "attempts": attempt.number,
        "max_rss_bytes": run_exit.max_rss_bytes if run_exit else None,
        "log_bytes": run_exit.log_bytes if run_exit else None,
        "log_path": str(event.job(submission, attempt).log_path),
        "reason": verdict.reason or None,
    }


def bound_fields(event: Event, submission: Submission, attempt: Attempt) -> dict[str, object]:
    """Return what every record of an attempt carries."""
    return {
        "event_name": event.settings.ramp.event_name,
        "submission": submission.name,
        "submission_id": submission.id,
        "worker_type": event.settings.worker.worker_type,
        "attempt": attempt.number,
    }
