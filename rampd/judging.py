"""What the end of a run means: whose fault it was, what a participant may see, and whether it is tried again."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tenacity import wait_random_exponential

from rampd import ramp_test
from rampd.errors import BadResultsError, IncompleteResultsError
from rampd.models import Verdict
from rampd.states import Outcome

if TYPE_CHECKING:
    from pathlib import Path

    from rampd.config import WorkerConfig
    from rampd.journal import Failures
    from rampd.models import Exit, Job, Results

CANCELLED_MESSAGE = "Cancelled by the organizers."
TIMEOUT_STATUS = 124
"""What timeout(1) ends with, and what RAMP's board expects of a timed-out submission."""
LONGEST_BACKOFF_S = 60.0
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_FULL_BYTES = 1 << 20
"""Less room than this on the disk of a run that failed is why it failed."""
FREE_INTERRUPTIONS = 10
"""So many stops of the daemon in a row cost a submission nothing; from then on each counts as an attempt."""


def judge_run(job: Job, results: Results, *, staging: Path, config: WorkerConfig) -> Verdict:
    """Say what a run that ended by itself means. Blocking: reads and copies files.

    Parameters
    ----------
    job
        The attempt.
    results
        What its worker brought back; untrusted.
    staging
        Where a complete training_output is kept; it exists afterwards if and only if the outcome is ok.
    config
        The bounds on what is kept.

    Raises
    ------
    ResultsError
        This machine could not keep the results.
    """
    results = _readable(results)
    run_exit, output = results.exit, results.training_output
    match results.outcome:
        case Outcome.TIMEOUT:
            return judge_timeout(job, results, run_exit)
        case Outcome.PLATFORM_ERROR:
            reason = f"the worker could not have the results: {results.message.rpartition(chr(10))[2][:500]}"
            return Verdict(
                Outcome.PLATFORM_ERROR, run_exit.status, results.message, reason, exit=run_exit, is_last_word=True
            )
    unkept = results.refused
    if run_exit.status == 0 and output is not None:
        try:
            scores = ramp_test.keep_training_output(
                output, staging, max_bytes=config.max_output_bytes, max_files=config.max_output_files
            )
        except IncompleteResultsError as error:
            unkept = f"{ramp_test.explain_exit(run_exit, has_output=True)} {error.reason}"
        except BadResultsError as error:
            unkept = error.reason
        else:
            return Verdict(Outcome.OK, 0, scores=scores, exit=run_exit, output_inode=staging.stat().st_ino)
    traceback = participant_traceback(job, results) or results.message
    if results.outcome is None and _failed_before_training(job, results, traceback):
        reason = f"ramp-test failed before it came to the submission: {traceback.rstrip().rpartition(chr(10))[2][:500]}"
        return Verdict(Outcome.PLATFORM_ERROR, run_exit.status, reason=reason, exit=run_exit)
    if results.outcome is None and (full := _full_disk(job, results, traceback)):
        return Verdict(Outcome.PLATFORM_ERROR, run_exit.status, reason=full, exit=run_exit)
    parts = [part for part in (traceback, unkept) if part]
    message = "\n".join(parts) or ramp_test.explain_exit(run_exit, has_output=output is not None)
    return Verdict(Outcome.PARTICIPANT_ERROR, run_exit.status, message, exit=run_exit)


def _failed_before_training(job: Job, results: Results, traceback: str) -> bool:
    """Say whether ramp-test broke on the kit, the data or the environment: before it made a training_output.

    rampwf makes `training_output/fold_0` before it runs a line of the submission (rampwf/utils/testing.py), so a
    traceback without either of them is the platform's.
    """
    return (
        results.exit.signal is None
        and results.exit.status != 0
        and results.training_output is None
        and not results.refused
        and bool(traceback)
        and f"submissions/{job.submission}" not in traceback
    )


def _full_disk(job: Job, results: Results, traceback: str) -> str:
    """Return the reason where a run failed because there was no room on a disk; empty where there was.

    A submission that fills the disk itself is not told from one that suffers from it: it is tried again as often as
    any that the platform failed, and no more.
    """
    said = f"{traceback}\n{ramp_test.end_of_log(results.log_path) if results.log_path else ''}"
    words = [os.strerror(number) for number in _NO_ROOM if os.strerror(number) in said]
    if results.exit.log_errno in _NO_ROOM:
        words.append(f"its log could not be written: {os.strerror(results.exit.log_errno or 0)}")
    with suppress(OSError):
        if shutil.disk_usage(job.attempt_dir).free < _FULL_BYTES:
            words.append(f"{job.attempt_dir.parent} is full")
    return f"there was no room on a disk while it ran: {words[0]}" if words else ""


def _readable(results: Results) -> Results:
    """Return results whose worker's own words are fit to be stored and shown, whatever a plug-in put into them."""
    message, refused = (ramp_test.shown_message(text) for text in (results.message, results.refused))
    return replace(results, message=message, refused=refused)


def judge_timeout(job: Job, results: Results | None, stopped: Exit | None) -> Verdict:
    """Say what a participant sees of a timeout: where it was, if that is known, and how long it was given."""
    message = ramp_test.timeout_message(job.timeout_s)
    results = _readable(results) if results else None
    traceback = participant_traceback(job, results) or results.message if results else ""
    if traceback:
        message = f"{traceback.rstrip()}\n{message}"
    return Verdict(Outcome.TIMEOUT, TIMEOUT_STATUS, message, exit=stopped)


def participant_traceback(job: Job, results: Results) -> str:
    """Return the traceback that a participant may see, without the paths of this machine; empty if there is none."""
    return ramp_test.error_message(
        training_output=results.training_output, log_path=results.log_path, hide=results.run_dir or job.attempt_dir
    )


@dataclass(frozen=True, slots=True)
class Prospect:
    """What becomes of a submission after an attempt."""

    final: bool
    delay_s: float = 0.0
    """For how long it backs off before the next attempt."""


FINAL = Prospect(final=True)


def weigh(verdict: Verdict, failures: Failures, *, max_attempts: int) -> Prospect:
    """Say whether an outcome is the submission's last word.

    Parameters
    ----------
    verdict
        Of the attempt that just ended.
    failures
        Of the attempts before it.
    max_attempts
        How many counted attempts a submission has.
    """
    outcome = verdict.outcome
    if not outcome.is_retryable or verdict.is_last_word:
        return FINAL
    interrupted = failures.interrupted_in_a_row + 1 if outcome is Outcome.INTERRUPTED else 0
    used = failures.counted + (1 if outcome.is_counted else 0) + max(0, interrupted - FREE_INTERRUPTIONS)
    if used >= max_attempts:
        return FINAL
    if outcome is Outcome.INTERRUPTED:
        return Prospect(final=False)
    tries = used if outcome.is_counted else failures.no_capacity_in_a_row + 1
    return Prospect(final=False, delay_s=backoff_s(tries))


def last_word(verdict: Verdict) -> Verdict:
    """Return a verdict that is final: an attempt that was interrupted once too often is the platform's failure."""
    if verdict.outcome is Outcome.INTERRUPTED:
        return replace(verdict, outcome=Outcome.PLATFORM_ERROR)
    return verdict


@dataclass(frozen=True, slots=True)
class _Tries:
    """As much of tenacity's RetryCallState as its wait strategies read."""

    attempt_number: int


def backoff_s(tries: int, *, longest_s: float = LONGEST_BACKOFF_S) -> float:
    """Return how long to wait after the `tries`-th failure in a row, in seconds: doubling, with jitter, capped."""
    wait = wait_random_exponential(multiplier=1, min=0.5, max=longest_s)
    return float(wait(_Tries(max(1, tries))))  # type: ignore[arg-type]
