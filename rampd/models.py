"""The records that travel between floors. Pure data: nothing here does I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rampd.states import Outcome, Step, SubmissionState


@dataclass(frozen=True, slots=True)
class Submission:
    """A row of the store.

    Times are seconds since the epoch (UTC).
    """

    id: int
    name: str
    state: SubmissionState
    queued_at: float
    """When it joined the queue; a requeued submission keeps this, and so its place."""
    state_at: float
    """When it took its present state."""
    error_msg: str = ""


@dataclass(frozen=True, slots=True)
class StepScore:
    """One score type at one step (train, valid or test). NaN and infinities occur and are kept."""

    mean: float
    std: float
    """Over the folds, ddof 0, as ramp-workflow prints it."""
    bagged: float | None
    """Of the last bag; None for train, which ramp-workflow does not bag."""


Scores = dict[str, dict[str, StepScore]]
"""score type -> step (train, valid, test) -> its figures; test is missing where there is no test set."""


@dataclass(frozen=True, slots=True)
class FoldFigures:
    """What ramp-test measured on one fold. What a kit without a test set has not is missing."""

    scores: Mapping[str, Mapping[str, float]]
    """score type -> step (train, valid, test) -> value."""
    times_s: Mapping[str, float]
    """step -> seconds."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything that a training_output says in numbers."""

    folds: Sequence[FoldFigures]
    """In the order of their numbers."""
    bags: Mapping[str, Mapping[str, Sequence[float]]]
    """score type -> step (valid, test) -> the score of each bag; the last one counts."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker needs to know of one attempt."""

    event_name: str
    submission: str
    submission_id: int
    attempt: int
    """1, 2, …: counts every attempt that was ever opened for the submission."""
    attempt_id: str
    """Random hexadecimal; the mark that everything belonging to this attempt carries."""
    submission_dir: Path
    """What the participant sent. Never written to."""
    attempt_dir: Path
    """Private to this attempt. Made by the worker's `setup`, removed by its `teardown`."""
    kit_dir: Path
    data_dir: Path
    log_path: Path
    """`logs_dir/<name>/log`: the run's whole output, written while it runs."""
    timeout_s: float
    n_threads: int | None
    lost_before: int = 0
    """How many of its submission's attempts before this one lost their host."""
    recorded: str | None = None
    """What an earlier `setup` of this very attempt recorded before its daemon ended, as the worker's JSON; None at a
    first setup."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How the submission's process ended, as far as is known."""

    status: int | None
    """ramp-test's exit status; 128+n where signal n ended it; None where there was none to be had."""
    signal: int | None = None
    """The signal that ended it, if one did."""
    max_rss_bytes: int | None = None
    """Peak resident memory of its largest process."""
    log_bytes: int | None = None
    """What it printed; the log may hold less, see `log_capped`."""
    log_capped: bool = False
    timed_out: bool = False
    """Whether the far side ended it at its timeout, while nobody here looked."""
    log_errno: int | None = None
    """Why the log could not be written to its end."""


@dataclass(frozen=True, slots=True)
class Results:
    """What a worker brings back. `training_output` is untrusted and not looked into yet."""

    exit: Exit
    training_output: Path | None
    log_path: Path | None
    outcome: Outcome | None = None
    """The worker's own word for a run that did not end well, where its contract has one: participant_error, timeout or
    platform_error, which is final then. None: it is judged by what there is."""
    message: str = ""
    """What a participant may read of a failure that left no traceback."""
    refused: str = ""
    """Why there is no training_output although the run left one, as a sentence that a participant may see."""
    run_dir: Path | None = None
    """The attempt's folder where it ran, if that was not `Job.attempt_dir`."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The one outcome of an attempt, as the journal keeps it."""

    outcome: Outcome
    exit_status: int | None
    error_msg: str = ""
    """What a participant may see."""
    reason: str = ""
    """What the operator sees: why it is retried, or what broke."""
    scores: Scores | None = None
    exit: Exit | None = None
    output_inode: int | None = None
    """The inode of the folder of checked predictions: a rename keeps it, so a swap that was made is recognized."""
    is_last_word: bool = False
    """Whether it is final although its outcome may be tried again."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that `rampctl check` looked at."""

    name: str
    is_ok: bool
    detail: str
    """What was found; what to do about it where it is not ok."""
    is_warning: bool = False
    """It works, and somebody should know all the same."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A row of the journal."""

    id: str
    submission: str
    submission_id: int
    number: int
    worker_type: str
    step: Step
    opened_at: float
    """Wall clock, seconds since the epoch."""
    allocation: str | None = None
    """The worker's own JSON."""
    launched_at: float | None = None
    """Wall clock, for after a reboot."""
    launched_boottime_s: float | None = None
    """CLOCK_BOOTTIME at launch; means something only under the same `boot_id`."""
    boot_id: str | None = None
    outcome: Outcome | None = None
    verdict: Verdict | None = None
    final: bool = False
    """Whether the outcome is the submission's last word (else it was put back to `new`)."""
    finished: Mapping[str, object] = field(default_factory=dict)
    """The fields of the attempt's one canonical log line."""
