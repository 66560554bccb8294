"""The board's words for submissions, their states and sizes, and ours."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from rampd.states import SubmissionState

if TYPE_CHECKING:
    from collections.abc import Collection

_OTHER_STATES: Final = {
    "checked": SubmissionState.TESTED,
    "trained": SubmissionState.TESTED,
    "validated": SubmissionState.TESTED,
    "validating_error": SubmissionState.TRAINING_ERROR,
    "testing_error": SubmissionState.TRAINING_ERROR,
}
"""What older dispatchers have left in the board (ramp_database/model/submission.py, `submission_states`)."""

_NAME = re.compile(r"submission_([0-9]{9,10})")
_MOST = 1 << 31
"""PostgreSQL's integer ends here."""


def name_of(submission_id: int) -> str:
    """Return the name of a submission's folder (ramp_database/model/submission.py, `Submission.path`)."""
    return f"submission_{submission_id:09d}"


def id_of(name: str) -> int | None:
    """Return the id of a submission whose folder has this name; None for a name that no submission can have."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match and int(match[1]) < _MOST else None


def state_of(raw: str) -> SubmissionState:
    """Return a board's state in our words."""
    try:
        return SubmissionState(raw)
    except ValueError:
        return _OTHER_STATES.get(raw, SubmissionState.CHECKING_ERROR)


def words_of(states: Collection[SubmissionState]) -> list[str]:
    """Return states in the board's words, older ones included."""
    return [*states, *(raw for raw, state in _OTHER_STATES.items() if state in states and state.is_final)]


def mib_of(size_bytes: int | None) -> float | None:
    """Return a size as the board has it: what it calls MB is what memory_profiler calls MB, 2**20 bytes."""
    return size_bytes / (1 << 20) if size_bytes is not None else None
