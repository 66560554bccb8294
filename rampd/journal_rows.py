"""The rows of the journal as records, and the other way round."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rampd.errors import HOW_TO_RESTORE, JournalCorruptError
from rampd.models import Attempt, Exit, StepScore, Verdict
from rampd.states import Outcome, RequestKind, Step

if TYPE_CHECKING:
    from rampd.database import Row


@dataclass(frozen=True, slots=True)
class Request:
    """What an operator asked for. Times are seconds since the epoch."""

    id: int
    kind: RequestKind
    submission: str
    requested_at: float
    answered_at: float | None = None
    answer: str | None = None
    accepted: bool | None = None


@dataclass(frozen=True, slots=True)
class Failures:
    """What a submission's earlier attempts came to, since the operator last started its count anew."""

    counted: int
    """Attempts that count against max_attempts."""
    interrupted_in_a_row: int
    """How many of the last ones the daemon's own end cut short."""
    no_capacity_in_a_row: int = 0
    """How many of the last ones found nothing to run on."""
    lost: int = 0
    """Attempts that lost their host."""


@dataclass(frozen=True, slots=True)
class LatestAttempt:
    """The latest attempt of a submission, in short."""

    number: int
    worker_type: str
    launched_at: float | None
    """Wall clock, seconds since the epoch."""
    outcome: str | None
    reason: str | None
    """What the operator should know of its end."""
    allocation: str | None = None
    """The worker's own JSON while the run lasts."""


def request_of(row: Row) -> Request:
    """Return what a row of `requests` says."""
    accepted = row["accepted"]
    return Request(
        id=row["id"],
        kind=RequestKind(row["kind"]),
        submission=row["submission"],
        requested_at=row["requested_at"],
        answered_at=row["answered_at"],
        answer=row["answer"],
        accepted=None if accepted is None else bool(accepted),
    )


def attempt_of(row: Row) -> Attempt:
    """Return what a row of `attempts` says.

    Raises
    ------
    JournalCorruptError
        It says what nobody wrote.
    """
    try:
        return _attempt_of(row)
    except (ValueError, TypeError, KeyError) as error:
        where = f"the journal's row of {row['submission']!r}, attempt {row['number']}"
        raise JournalCorruptError(f"{where}: is damaged ({error}). {HOW_TO_RESTORE}") from error


def _attempt_of(row: Row) -> Attempt:
    return Attempt(
        id=row["id"],
        submission=row["submission"],
        submission_id=row["submission_id"],
        number=row["number"],
        worker_type=row["worker_type"],
        step=Step(row["step"]),
        opened_at=row["opened_at"],
        allocation=row["allocation"],
        launched_at=row["launched_at"],
        launched_boottime_s=row["launched_boottime_s"],
        boot_id=row["boot_id"],
        outcome=Outcome(row["outcome"]) if row["outcome"] else None,
        verdict=_verdict_of(row["verdict"]) if row["verdict"] else None,
        final=bool(row["final"]),
        finished=json.loads(row["finished"]) if row["finished"] else {},
    )


def _verdict_of(text: str) -> Verdict:
    fields = json.loads(text)
    fields["outcome"] = Outcome(fields["outcome"])
    if fields["exit"] is not None:
        fields["exit"] = Exit(**fields["exit"])
    if fields["scores"] is not None:
        fields["scores"] = {
            score: {step: StepScore(**figures) for step, figures in steps.items()}
            for score, steps in fields["scores"].items()
        }
    return Verdict(**fields)
