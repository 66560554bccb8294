"""The board's words for states, and ours."""

from __future__ import annotations

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


def state_of(raw: str) -> SubmissionState:
    """Return a board's state in our words."""
    try:
        return SubmissionState(raw)
    except ValueError:
        return _OTHER_STATES.get(raw, SubmissionState.CHECKING_ERROR)


def words_of(states: Collection[SubmissionState]) -> list[str]:
    """Return states in the board's words, older ones included."""
    return [*states, *(raw for raw, state in _OTHER_STATES.items() if state in states and state.is_final)]
