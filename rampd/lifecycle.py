"""The way of one submission: the five steps of a worker, their deadline, and what their end means.

This is the one state diagram of the house::

    opened -> set_up -> launched -> decided -> closed
                                       |
              ok: predictions swapped in, tested, scored
              participant_error, timeout: training_error
              lost_host, no_capacity, platform_error, interrupted: back to new, or checking_error
              cancelled: checking_error

`attempt_submission` takes an attempt from whatever step the journal knows to its one outcome, and has
`rampd.conclusion` make that true. A worker never decides anything here, and nothing here knows which worker it is.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, assert_never

import structlog

from rampd import clock, judging
from rampd.conclusion import conclude, finished_fields, persist, staging_dir
from rampd.errors import StoreError, SupersededError, TransitionRefusedError, WorkerError, WorkerSetupError
from rampd.models import Verdict
from rampd.orders import Order, OrderedError
from rampd.states import Outcome, Step, SubmissionState

if TYPE_CHECKING:
    from rampd.announcements import Announcements
    from rampd.event import Event
    from rampd.models import Attempt, Exit, Job, Results, Submission
    from rampd.orders import Orders
    from rampd.workers.base import Allocation

log = structlog.get_logger("rampd.lifecycle")

_LATE_S = 0.05
"""Later than this a deadline is only noticed by a process that stood still, or that took a run over."""
_HEARING_S = 5.0
"""How long such a process waits, at most, for word of a run that ended meanwhile."""
_TELL_S = 5.0
"""For how long a run that has ended waits for the store to hear that it had begun; then the outcome says so first."""
_LONGEST_NAP_S = 30.0
"""asyncio's timers stand still while the machine sleeps, CLOCK_BOOTTIME does not: look again at least so often."""


class Parked(Exception):  # noqa: N818 -- no error: the run goes on, and the next daemon takes it over
    """The daemon stops while a resumable run goes on."""


class _DeadlineError(Exception):
    """The run is over its time. No TimeoutError: a worker's own time-outs are something else."""


class _LostClaimError(Exception):
    """Another daemon has claimed the submission: this run is in vain."""


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What the dispatcher learns of an attempt that is over."""

    outcome: Outcome
    final: bool
    delay_s: float = 0.0
    """How long the submission backs off, unless it was final."""
    hold: WorkerSetupError | None = None
    """Set when the whole event cannot run."""


@dataclass(slots=True)
class _Timings:
    """How long each part took, in seconds; None where it was not reached by this process."""

    setup_s: float | None = None
    run_s: float | None = None
    collect_s: float | None = None


@dataclass(slots=True)
class _Progress:
    """What one attempt has reached in this process."""

    job: Job
    orders: Orders
    attempt: Attempt
    allocation: Allocation | None = None
    timings: _Timings = field(default_factory=_Timings)
    hold: WorkerSetupError | None = None
    was_taken_over: bool = False
    """Whether an earlier daemon launched the run."""
    is_told: bool = False
    """Whether the store says `training`."""


async def attempt_submission(
    event: Event,
    submission: Submission,
    attempt: Attempt,
    orders: Orders,
    *,
    announcements: Announcements,
) -> Conclusion:
    """Take one attempt to its end.

    Parameters
    ----------
    event
        The event's rooms, open.
    submission
        Claimed from the store.
    attempt
        Its row in the journal, at whatever step before `decided`.
    orders
        Through which it may be cancelled or interrupted.
    announcements
        Remembers whose canonical line was written.

    Returns
    -------
    Conclusion
        Journaled, stored and logged. A submission's failure never escapes.

    Raises
    ------
    Parked
        The daemon stops and the run goes on without it.
    """
    job = event.job(submission, attempt)
    if attempt.number > 1:
        earlier = await persist(partial(event.journal.failures, submission.id), "earlier attempts")
        job = replace(job, lost_before=earlier.lost)
    progress = _Progress(job, orders, attempt)
    verdict = await _reach_verdict(event, progress)
    prospect = judging.FINAL
    if verdict.outcome.is_retryable:
        failures = await persist(partial(event.journal.failures, submission.id), "earlier attempts")
        prospect = judging.weigh(verdict, failures, max_attempts=event.settings.worker.max_attempts)
    if prospect.final:
        verdict = judging.last_word(verdict)
    timings = progress.timings
    finished = finished_fields(
        event,
        submission,
        progress.attempt,
        verdict,
        final=prospect.final,
        setup_s=timings.setup_s,
        run_s=timings.run_s,
        collect_s=timings.collect_s,
    )
    decided = await persist(
        partial(event.journal.decide, attempt.id, verdict, final=prospect.final, finished=finished), "an outcome"
    )
    await conclude(
        event,
        replace(submission, state=SubmissionState.TRAINING) if progress.is_told else submission,
        decided,
        announcements=announcements,
        allocation=progress.allocation,
        delay_s=prospect.delay_s,
    )
    return Conclusion(verdict.outcome, prospect.final, prospect.delay_s, progress.hold)


async def _reach_verdict(event: Event, progress: _Progress) -> Verdict:
    try:
        return await _run_and_judge(event, progress)
    except Parked:
        raise
    except WorkerSetupError as error:
        # Not this submission's fault and not this attempt's: the event is held, and the attempt costs nothing.
        progress.hold = error
        return Verdict(Outcome.INTERRUPTED, None, reason=str(error))
    except WorkerError as error:
        return _platform_verdict(error.outcome, error)
    except StoreError as error:
        return _platform_verdict(Outcome.PLATFORM_ERROR, error)
    except Exception as error:
        log.exception("lifecycle.failed")
        return _platform_verdict(Outcome.PLATFORM_ERROR, error)


async def _run_and_judge(event: Event, progress: _Progress) -> Verdict:
    try:
        await _run(event, progress)
    except OrderedError as ordered:
        return await _obey(event, progress, ordered.order)
    except _DeadlineError:
        return await _time_out(event, progress)
    except _LostClaimError:
        await _stop(event, progress)
        return Verdict(Outcome.INTERRUPTED, None, reason="another daemon has claimed it, and runs it")
    progress.orders.has_ended = True
    return await _judge(event, progress)


def _platform_verdict(outcome: Outcome, error: Exception) -> Verdict:
    reason = str(error) or type(error).__name__
    log.warning("worker.lost" if outcome is Outcome.LOST_HOST else "worker.setup_failed", error=reason, outcome=outcome)
    return Verdict(outcome, None, reason=reason)


async def _run(event: Event, progress: _Progress) -> None:
    """Go through setup, launch and wait, skipping what is journaled already.

    Raises
    ------
    OrderedError, _DeadlineError, _LostClaimError, WorkerError, StoreError
    """
    worker, journal = event.worker, event.journal
    job, orders, attempt = progress.job, progress.orders, progress.attempt
    allocation: Any
    if attempt.step is Step.OPENED or attempt.allocation is None:
        begun = clock.boottime()
        progress.allocation = allocation = await orders.obeyed(worker.setup(job))
        await journal.record_allocation(attempt.id, allocation.model_dump_json())
        progress.timings.setup_s = clock.boottime() - begun
    else:
        progress.allocation = allocation = worker.allocation_model.model_validate_json(attempt.allocation)
    if attempt.step is Step.LAUNCHED:
        progress.was_taken_over = True
        log.info("submission.resumed", **allocation.whereabouts())
    else:
        progress.allocation = allocation = await orders.obeyed(worker.launch_submission(job, allocation))
        progress.attempt = await journal.record_launch(attempt.id, allocation.model_dump_json())
        log.info("submission.started", **allocation.whereabouts())
    # A run that was taken over as well: the last daemon may have been killed before it said so. A store that is away
    # keeps nobody from running.
    telling = asyncio.ensure_future(persist(partial(event.store.set_training, job.submission_id), "a state"))
    try:
        try:
            await _wait(event, progress, allocation)
        finally:
            progress.timings.run_s = _running_for_s(progress.attempt)
        await asyncio.wait({telling}, timeout=_TELL_S)
    finally:
        telling.cancel()
        await asyncio.wait({telling})
        progress.is_told = not telling.cancelled() and telling.exception() is None
    # Then the outcome is told, or is not wanted.
    with suppress(asyncio.CancelledError, SupersededError, TransitionRefusedError):
        telling.result()


async def _wait(event: Event, progress: _Progress, allocation: Allocation) -> None:
    """Wait for the run's end, until the deadline that counts from the journaled launch."""
    waiting: asyncio.Future[Exit] = asyncio.ensure_future(event.worker.wait(allocation))
    try:
        while not waiting.done():
            left_s = progress.job.timeout_s - _running_for_s(progress.attempt)
            if left_s < -_LATE_S:
                # This process stood still (stopped, or the machine slept): what ended in time is not late because of
                # that, and word of it may be under way.
                await progress.orders.obeyed(_nap(waiting, min(-left_s, _HEARING_S)))
                if waiting.done():
                    break
            if left_s <= 0 and not await _has_ended_unseen(event, progress, allocation):
                raise _DeadlineError
            if event.store.is_lost(progress.job.submission_id):
                raise _LostClaimError
            await progress.orders.obeyed(_nap(waiting, _LONGEST_NAP_S if left_s <= 0 else min(left_s, _LONGEST_NAP_S)))
        if waiting.result().timed_out:
            raise _DeadlineError
    finally:
        if not waiting.done():
            waiting.cancel()
            await asyncio.wait({waiting})
        if not waiting.cancelled():
            waiting.exception()  # heard above, or overtaken by an order or the deadline: asyncio need not complain


async def _has_ended_unseen(event: Event, progress: _Progress, allocation: Allocation) -> bool:
    """Say whether a run that was taken over after its time had ended by itself before, while no daemon looked."""
    return progress.was_taken_over and await progress.orders.obeyed(event.worker.is_submission_finished(allocation))


async def _nap(waiting: asyncio.Future[Exit], longest_s: float) -> None:
    await asyncio.wait({waiting}, timeout=longest_s)


def _running_for_s(attempt: Attempt) -> float:
    """Return for how long an attempt has been running: by CLOCK_BOOTTIME, or by the wall clock after a reboot."""
    if attempt.launched_boottime_s is not None and attempt.boot_id == clock.boot_id():
        return clock.boottime() - attempt.launched_boottime_s
    if attempt.launched_at is not None:
        return max(0.0, clock.wall() - attempt.launched_at)
    return 0.0


async def _judge(event: Event, progress: _Progress) -> Verdict:
    begun = clock.boottime()
    try:
        results = await event.worker.collect_results(progress.job, progress.allocation)
        return await asyncio.to_thread(
            judging.judge_run,
            progress.job,
            results,
            staging=staging_dir(event, progress.job.attempt_id),
            config=event.settings.worker,
        )
    finally:
        progress.timings.collect_s = clock.boottime() - begun


async def _obey(event: Event, progress: _Progress, order: Order) -> Verdict:
    match order:
        case Order.CANCEL:
            stopped = await _stop(event, progress)
            log.info("submission.cancelled")
            status = stopped.status if stopped else None
            return Verdict(Outcome.CANCELLED, status, judging.CANCELLED_MESSAGE, exit=stopped)
        case Order.INTERRUPT:
            if event.worker.resumable and progress.allocation is not None:
                raise Parked
            await _stop(event, progress)
            return Verdict(Outcome.INTERRUPTED, None, reason="the daemon was stopped")
        case _:
            assert_never(order)


async def _time_out(event: Event, progress: _Progress) -> Verdict:
    job = progress.job
    log.info("submission.timed_out", timeout_s=job.timeout_s)
    stopped = await _stop(event, progress)
    results: Results | None = None
    try:
        results = await event.worker.collect_results(job, progress.allocation)
    except WorkerError as error:
        # The timeout stands; only its traceback is missing.
        log.warning("worker.lost", error=str(error), outcome=error.outcome)
    return await asyncio.to_thread(judging.judge_timeout, job, results, stopped)


async def _stop(event: Event, progress: _Progress) -> Exit | None:
    """End the run if there is one; a worker that cannot even say so is left to `teardown` and `reclaim`."""
    if progress.allocation is None:
        return None
    try:
        return await event.worker.stop(progress.allocation)
    except WorkerError as error:
        log.warning("worker.lost", error=str(error), outcome=error.outcome)
        return None
