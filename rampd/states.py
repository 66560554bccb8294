"""States, steps and outcomes: the words that the whole house shares.

Pure data. `SubmissionState` belongs to the store and speaks RAMP's words; `Step` belongs to the journal and
says how far an attempt got; `Outcome` says how an attempt ended and whose fault it was.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final, assert_never

if TYPE_CHECKING:
    from collections.abc import Mapping


class SubmissionState(StrEnum):
    """Where a submission stands, in the words of RAMP's database (ramp-database, `model/submission.py`)."""

    NEW = "new"  # waiting; also a submission that was put back after a platform fault
    SENT_TO_TRAINING = "sent_to_training"  # claimed: a slot is its own, nothing runs yet
    TRAINING = "training"  # its process exists
    TESTED = "tested"  # ramp-test ended well, its output is in predictions_dir
    SCORED = "scored"  # final: the scores are stored
    TRAINING_ERROR = "training_error"  # final: the participant's fault, a timeout included
    CHECKING_ERROR = "checking_error"  # final: the platform's fault, or cancelled by the organizers

    @property
    def is_final(self) -> bool:
        """Whether nothing more happens to the submission by itself."""
        return self in FINAL_STATES


FINAL_STATES: Final = frozenset(
    {SubmissionState.SCORED, SubmissionState.TRAINING_ERROR, SubmissionState.CHECKING_ERROR}
)

# The one table of legal transitions. Final states go back to `new` only by the operator's word (`rampctl retry`,
# `rampctl submit --replace`); `new` goes straight to `checking_error` when a cancelled or held submission ends.
TRANSITIONS: Final[Mapping[SubmissionState, frozenset[SubmissionState]]] = {
    SubmissionState.NEW: frozenset({SubmissionState.SENT_TO_TRAINING, SubmissionState.CHECKING_ERROR}),
    SubmissionState.SENT_TO_TRAINING: frozenset(
        {
            SubmissionState.NEW,
            SubmissionState.TRAINING,
            SubmissionState.CHECKING_ERROR,
        }
    ),
    SubmissionState.TRAINING: frozenset(
        {
            SubmissionState.NEW,
            SubmissionState.TESTED,
            SubmissionState.TRAINING_ERROR,
            SubmissionState.CHECKING_ERROR,
        }
    ),
    SubmissionState.TESTED: frozenset({SubmissionState.SCORED, SubmissionState.CHECKING_ERROR}),
    SubmissionState.SCORED: frozenset({SubmissionState.NEW}),
    SubmissionState.TRAINING_ERROR: frozenset({SubmissionState.NEW}),
    SubmissionState.CHECKING_ERROR: frozenset({SubmissionState.NEW}),
}


class Step(StrEnum):
    """The last step of an attempt that the journal has committed, in order."""

    OPENED = "opened"  # the attempt has its number; nothing exists outside the process yet
    SET_UP = "set_up"  # the worker's allocation is known
    LAUNCHED = "launched"  # the submission's process was started; the deadline counts from here
    DECIDED = "decided"  # the one outcome is committed; what follows is repeated until it is done
    CLOSED = "closed"  # the store knows, the worker's allocation is torn down


class Outcome(StrEnum):
    """How an attempt ended, and so whose fault it was."""

    OK = "ok"  # ramp-test left a complete training_output
    PARTICIPANT_ERROR = "participant_error"  # the submission failed by itself
    TIMEOUT = "timeout"  # it ran longer than worker.timeout
    LOST_HOST = "lost_host"  # the run, or the machine under it, is gone
    NO_CAPACITY = "no_capacity"  # there was nothing to run it on
    PLATFORM_ERROR = "platform_error"  # anything else that the participant cannot help
    CANCELLED = "cancelled"  # the organizers' word
    INTERRUPTED = "interrupted"  # the daemon itself was stopped or killed; never a final outcome

    @property
    def is_retryable(self) -> bool:
        """Whether the submission goes back to `new` while it has attempts left."""
        match self:
            case Outcome.LOST_HOST | Outcome.NO_CAPACITY | Outcome.PLATFORM_ERROR | Outcome.INTERRUPTED:
                return True
            case Outcome.OK | Outcome.PARTICIPANT_ERROR | Outcome.TIMEOUT | Outcome.CANCELLED:
                return False
            case _:
                assert_never(self)

    @property
    def is_counted(self) -> bool:
        """Whether the attempt counts against `worker.max_attempts`."""
        match self:
            case Outcome.LOST_HOST | Outcome.PLATFORM_ERROR:
                return True
            case (
                Outcome.OK
                | Outcome.PARTICIPANT_ERROR
                | Outcome.TIMEOUT
                | Outcome.NO_CAPACITY
                | Outcome.CANCELLED
                | Outcome.INTERRUPTED
            ):
                return False
            case _:
                assert_never(self)

    @property
    def final_state(self) -> SubmissionState:
        """The state of a submission whose last attempt ended so."""
        match self:
            case Outcome.OK:
                return SubmissionState.SCORED
            case Outcome.PARTICIPANT_ERROR | Outcome.TIMEOUT:
                return SubmissionState.TRAINING_ERROR
            case (
                Outcome.LOST_HOST
                | Outcome.NO_CAPACITY
                | Outcome.PLATFORM_ERROR
                | Outcome.CANCELLED
                | Outcome.INTERRUPTED
            ):
                return SubmissionState.CHECKING_ERROR
            case _:
                assert_never(self)


class RequestKind(StrEnum):
    """What an operator may ask of a daemon through the journal."""

    CANCEL = "cancel"
    RETRY = "retry"


class HungerPolicy(StrEnum):
    """What a dispatcher does when nothing is waiting. `null` in a config means the same as `sleep`."""

    SLEEP = "sleep"  # wait for the next submission
    EXIT = "exit"  # end the event once everything is done
