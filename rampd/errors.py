"""The errors of the house. Each is a sentence that tells the operator what happened and what to do.

Third-party errors are translated into these once, at the edge where they occur, with ``raise … from``.
Whether something is tried again is a class attribute, never a match on a message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from rampd.states import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rampd.states import SubmissionState


HOW_TO_RESTORE: Final = (
    "Submissions and predictions are untouched. Restore the file (with its -wal) from a backup, or move it away to "
    "start anew from the folders"
)


class RampdError(Exception):
    """Base of every error that rampd raises on purpose."""


class ConfigError(RampdError):
    """A config cannot be used.

    Attributes
    ----------
    problems
        One line a problem: file, key path, what was found, what is allowed. Never a secret's value.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class LockedError(RampdError):
    """Another daemon holds the event's state_dir."""

    def __init__(self, state_dir: Path, holder: str = "another rampd") -> None:
        super().__init__(f"{state_dir}: {holder} serves this event; stop it first (only one daemon an event)")
        self.state_dir = state_dir


class StoreError(RampdError):
    """The submission store or the journal could not be read or written. What was not written is tried again."""


class TransitionRefusedError(StoreError):
    """A submission is in a state from which there is no way to the one asked for. Trying again changes nothing.

    The store is well, and has written nothing: somebody else (a person, another program) has moved the submission.

    Attributes
    ----------
    submission_id
        The submission.
    before
        The state that it was found in.
    after
        The state that it cannot come to from there.
    """

    def __init__(self, submission_id: int, before: str, after: SubmissionState) -> None:
        super().__init__(f"submission {submission_id} is {before} and cannot become {after}")
        self.submission_id = submission_id
        self.before = before
        self.after = after


class SupersededError(RampdError):
    """Another daemon has claimed the submission since: its outcome counts, this one's is dropped."""

    def __init__(self, submission: str) -> None:
        super().__init__(f"{submission} was claimed by another daemon meanwhile; its outcome counts")
        self.submission = submission


class JournalCorruptError(RampdError):
    """The journal's or the store's file is damaged; it must be restored or moved away by a person."""


class UnknownSubmissionError(RampdError):
    """No submission of that name is known to the event."""

    def __init__(self, name: str, close: Sequence[str] = ()) -> None:
        hint = f"; did you mean {', '.join(close)}?" if close else "; `rampctl status` lists what there is"
        super().__init__(f"no submission named {name!r}{hint}")
        self.name = name


class SubmissionRefusedError(RampdError):
    """A folder is not a submission. `reason` is a stable word for the log, the message is for people."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class WorkerError(RampdError):
    """A worker could not do its part; nothing here is ever charged to a participant."""

    outcome: ClassVar[Outcome] = Outcome.PLATFORM_ERROR


class WorkerUnavailableError(WorkerError):
    """There is nothing to run on at the moment. Tried again with backoff, not counted as an attempt."""

    outcome = Outcome.NO_CAPACITY


class WorkerSetupError(WorkerError):
    """The whole event cannot run: no environment, no ramp-test, no kit. The event is held, nothing is counted.

    Attributes
    ----------
    missing
        What was looked for, in one sentence.
    existing
        What there is instead, so that the operator sees the misspelling.
    """

    def __init__(self, missing: str, existing: Sequence[str] = ()) -> None:
        there = f"; there is: {', '.join(existing)}" if existing else ""
        super().__init__(missing + there)
        self.missing = missing
        self.existing = tuple(existing)


class WorkerLostError(WorkerError):
    """The run, or the machine under it, is gone. Tried again, and counted."""

    outcome = Outcome.LOST_HOST


class WorkerInterruptedError(WorkerError):
    """The daemon has to stop, and the worker gave up what it was doing. Put back, and not counted."""

    outcome = Outcome.INTERRUPTED


class ResultsError(WorkerError):
    """Results could not be fetched or kept because of the platform (a full disk, a read-only folder)."""


class BadResultsError(RampdError):
    """What ramp-test left behind is not a training_output. This one is the participant's.

    Attributes
    ----------
    reason
        One sentence that a participant may see.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class IncompleteResultsError(BadResultsError):
    """ramp-test did not finish what it was doing: something belongs in its training_output that is not there."""
