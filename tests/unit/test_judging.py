"""What the end of a run means, and whether it is tried again."""

from __future__ import annotations

import errno
import signal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rampd.config import WorkerConfig
from rampd.errors import ResultsError
from rampd.journal import Failures
from rampd.judging import (
    FINAL,
    FREE_INTERRUPTIONS,
    Prospect,
    backoff_s,
    judge_run,
    judge_timeout,
    last_word,
    weigh,
)
from rampd.models import Exit, Results, Verdict
from rampd.states import Outcome
from rampd.testing.workers import make_job
from support.training_output import build_training_output

if TYPE_CHECKING:
    from pathlib import Path

    from rampd.models import Job

NO_FAILURES = Failures(counted=0, interrupted_in_a_row=0)
RETRYABLE = [Outcome.LOST_HOST, Outcome.PLATFORM_ERROR, Outcome.NO_CAPACITY, Outcome.INTERRUPTED]


class Case:
    """One run below a folder."""

    def __init__(self, root: Path) -> None:
        self.job: Job = make_job(root, "good", timeout_s=60.5)
        self.staging = root / "staging"
        self.output = self.job.attempt_dir / "submissions" / "good" / "training_output"
        self.job.log_path.parent.mkdir(parents=True)

    def judge(self, status: int | None = 0, *, has_output: bool = True, log: str = "", **config: Any) -> Verdict:
        """Judge a run that ended so."""
        return self.judge_exit(Exit(status), has_output=has_output, log=log, **config)

    def judge_exit(self, how: Exit, *, has_output: bool = True, log: str = "", **config: Any) -> Verdict:
        """Judge a run that ended so."""
        self.job.log_path.write_text(log, encoding="utf-8")
        results = Results(how, self.output if has_output else None, self.job.log_path)
        worker = WorkerConfig.model_validate({"worker_type": "fake", **config})
        return judge_run(self.job, results, staging=self.staging, config=worker)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """Return a run."""
    return Case(tmp_path)


def traceback(path: str, last: str = "ValueError: no") -> str:
    """Return a log with a traceback through `path`."""
    return f'Training ...\nTraceback (most recent call last):\n  File "{path}", line 3, in fit\n    no\n{last}\n'


def test_a_complete_output_is_ok(case: Case) -> None:
    """Scores and predictions are kept, and the folder is known by its inode."""
    build_training_output(case.output)
    verdict = case.judge()
    assert (verdict.outcome, verdict.exit_status, verdict.error_msg) == (Outcome.OK, 0, "")
    assert verdict.scores is not None
    assert set(verdict.scores) == {"acc", "nll"}
    assert (case.staging / "fold_0" / "y_pred_train.npz").is_file()
    assert verdict.output_inode == case.staging.stat().st_ino


def test_status_0_without_output_ended_itself(case: Case) -> None:
    """sys.exit(0) is no success."""
    verdict = case.judge(has_output=False)
    assert (verdict.outcome, verdict.exit_status) == (Outcome.PARTICIPANT_ERROR, 0)
    assert "left no training_output" in verdict.error_msg
    assert not case.staging.exists()


def test_an_incomplete_output_says_what_is_missing(case: Case) -> None:
    """os._exit(0) in the second fold is told apart from a good run."""
    build_training_output(case.output)
    (case.output / "fold_1" / "scores.csv").unlink()
    verdict = case.judge()
    assert verdict.outcome is Outcome.PARTICIPANT_ERROR
    assert "incomplete training_output" in verdict.error_msg
    assert "fold_1" in verdict.error_msg
    assert not case.staging.exists()


@pytest.mark.parametrize("bound", [{"max_output_bytes": 100}, {"max_output_files": 2}])
def test_an_output_over_its_bounds_is_refused(case: Case, bound: dict[str, Any]) -> None:
    """A participant's output that is too large is the participant's, and nothing of it is kept."""
    build_training_output(case.output)
    verdict = case.judge(**bound)
    assert verdict.outcome is Outcome.PARTICIPANT_ERROR
    assert verdict.error_msg
    assert not case.staging.exists()


def test_a_traceback_comes_before_why_the_output_is_refused(case: Case) -> None:
    """Both are said where there are both."""
    build_training_output(case.output)
    (case.output / "fold_1" / "scores.csv").unlink()
    message = case.judge(log=traceback("submissions/good/estimator.py")).error_msg
    assert message.index("ValueError: no") < message.index("incomplete")


def test_a_failure_of_the_submission_is_the_participants(case: Case) -> None:
    """A traceback through the submission is shown, without the folders of this machine."""
    log = traceback(f"{case.job.attempt_dir}/submissions/good/estimator.py")
    verdict = case.judge(1, has_output=False, log=log)
    assert (verdict.outcome, verdict.exit_status) == (Outcome.PARTICIPANT_ERROR, 1)
    assert 'File "submissions/good/estimator.py", line 3' in verdict.error_msg
    assert str(case.job.attempt_dir) not in verdict.error_msg


def test_a_failure_of_the_kit_is_the_platforms(case: Case) -> None:
    """A traceback that never came to the submission is the operator's to see, not charged to anybody."""
    log = traceback("/srv/ramp-kits/iris/problem.py", "FileNotFoundError: train.csv")
    verdict = case.judge(1, has_output=False, log=log)
    assert (verdict.outcome, verdict.error_msg) == (Outcome.PLATFORM_ERROR, "")
    assert verdict.reason == "ramp-test failed before it came to the submission: FileNotFoundError: train.csv"


def test_a_failure_after_training_began_is_the_participants(case: Case) -> None:
    """Predictions of a wrong shape raise in the kit, but the submission made them."""
    case.output.mkdir(parents=True)
    log = traceback("/srv/ramp-kits/iris/problem.py")
    assert case.judge(1, log=log).outcome is Outcome.PARTICIPANT_ERROR


def test_a_status_without_a_traceback_is_the_participants(case: Case) -> None:
    """sys.exit(2) has a sentence that says so."""
    verdict = case.judge(2, has_output=False)
    assert verdict.outcome is Outcome.PARTICIPANT_ERROR
    assert "status 2" in verdict.error_msg


def test_a_killed_submission_hears_of_memory(case: Case) -> None:
    """A SIGKILL that is not ours is most likely the kernel's."""
    verdict = case.judge_exit(Exit(137, signal=signal.SIGKILL), has_output=False)
    assert (verdict.outcome, verdict.exit_status) == (Outcome.PARTICIPANT_ERROR, 137)
    assert "memory" in verdict.error_msg


def test_a_signal_after_the_kits_traceback_is_the_participants(case: Case) -> None:
    """What ended by a signal did not end by what it printed."""
    log = traceback("/srv/ramp-kits/iris/problem.py")
    verdict = case.judge_exit(Exit(139, signal=signal.SIGSEGV), has_output=False, log=log)
    assert verdict.outcome is Outcome.PARTICIPANT_ERROR


def test_the_verdict_keeps_how_the_run_ended(case: Case) -> None:
    """Memory and log size are the canonical line's."""
    how = Exit(1, max_rss_bytes=5, log_bytes=6)
    assert case.judge_exit(how, has_output=False).exit == how


def test_results_that_cannot_be_kept_are_the_platforms(case: Case) -> None:
    """A predictions folder that cannot be written is nobody's fault but ours."""
    build_training_output(case.output)
    case.staging.parent.joinpath("file").touch()
    case.staging = case.staging.parent / "file" / "staging"
    with pytest.raises(ResultsError):
        case.judge()


def test_a_timeout_says_how_long_it_was_given(case: Case) -> None:
    """The sentence that RAMP's participants know, with 124."""
    stopped = Exit(143, signal=15)
    verdict = judge_timeout(case.job, None, stopped)
    assert (verdict.outcome, verdict.exit_status, verdict.exit) == (Outcome.TIMEOUT, 124, stopped)
    assert verdict.error_msg == "Worker killed due to timeout after 60.5s."


def test_a_timeout_shows_where_it_was(case: Case) -> None:
    """A traceback that it left comes first."""
    case.job.log_path.write_text(traceback("submissions/good/estimator.py", "KeyboardInterrupt"), encoding="utf-8")
    verdict = judge_timeout(case.job, Results(Exit(143), None, case.job.log_path), None)
    assert verdict.error_msg.endswith("KeyboardInterrupt\nWorker killed due to timeout after 60.5s.")
    assert verdict.error_msg.startswith("Traceback")


@pytest.mark.parametrize("outcome", [one for one in Outcome if one not in RETRYABLE])
def test_what_is_decided_is_final(outcome: Outcome) -> None:
    """A participant's end, and the organizers', is never tried again."""
    assert weigh(Verdict(outcome, None), NO_FAILURES, max_attempts=3) == FINAL


@pytest.mark.parametrize("outcome", [Outcome.LOST_HOST, Outcome.PLATFORM_ERROR])
@pytest.mark.parametrize(("earlier", "final"), [(0, False), (1, False), (2, True), (3, True)])
def test_counted_failures_end_at_max_attempts(outcome: Outcome, earlier: int, final: bool) -> None:
    """The third of three is the last."""
    prospect = weigh(Verdict(outcome, None), Failures(earlier, 0), max_attempts=3)
    assert prospect.final is final
    assert (prospect.delay_s > 0) is not final


def test_no_capacity_is_tried_for_ever() -> None:
    """However often, it is never the last, and the delay is bounded."""
    failures = Failures(counted=2, interrupted_in_a_row=0, no_capacity_in_a_row=1000)
    prospect = weigh(Verdict(Outcome.NO_CAPACITY, None), failures, max_attempts=3)
    assert not prospect.final
    assert 0.5 <= prospect.delay_s <= 60


@pytest.mark.parametrize(
    ("in_a_row", "counted", "max_attempts", "final"),
    [
        (0, 0, 1, False),
        (FREE_INTERRUPTIONS - 1, 0, 1, False),
        (FREE_INTERRUPTIONS, 0, 1, True),
        (FREE_INTERRUPTIONS, 0, 2, False),
        (FREE_INTERRUPTIONS, 1, 2, True),
        (FREE_INTERRUPTIONS + 1, 0, 2, True),
    ],
)
def test_interruptions_are_free_up_to_ten_in_a_row(in_a_row: int, counted: int, max_attempts: int, final: bool) -> None:
    """From the eleventh on each counts like a failure; none of them delays the next attempt."""
    verdict = Verdict(Outcome.INTERRUPTED, None)
    prospect = weigh(verdict, Failures(counted, in_a_row), max_attempts=max_attempts)
    assert prospect == Prospect(final=final, delay_s=0.0)


def test_a_failure_after_interruptions_counts_once() -> None:
    """Interruptions that came before something else are no longer in a row."""
    prospect = weigh(Verdict(Outcome.LOST_HOST, None), Failures(0, FREE_INTERRUPTIONS + 5), max_attempts=2)
    assert not prospect.final


@pytest.mark.parametrize("outcome", list(Outcome))
def test_interrupted_is_nobodys_last_word(outcome: Outcome) -> None:
    """An interruption that is final is the platform's failure; every other outcome stands."""
    expected = Outcome.PLATFORM_ERROR if outcome is Outcome.INTERRUPTED else outcome
    verdict = last_word(Verdict(outcome, 3, reason="why"))
    assert (verdict.outcome, verdict.exit_status, verdict.reason) == (expected, 3, "why")


@given(tries=st.integers(-5, 10_000), longest_s=st.floats(1, 1000))
def test_a_backoff_has_its_bounds(tries: int, longest_s: float) -> None:
    """Never nothing, never more than the longest, whatever the number."""
    assert 0.5 <= backoff_s(tries, longest_s=longest_s) <= longest_s


def test_backoffs_grow() -> None:
    """Later tries wait longer, on the average."""
    means = [sum(backoff_s(tries) for _ in range(300)) for tries in (1, 4, 7)]
    assert means[0] < means[1] < means[2]


def test_a_workers_own_word_counts(case: Case) -> None:
    """A timeout, or results that could not be had, are what the worker says they are; the second is final."""
    results = Results(Exit(124), None, case.job.log_path, outcome=Outcome.TIMEOUT, message="slow")
    config = WorkerConfig(worker_type="fake")
    verdict = judge_run(case.job, results, staging=case.staging, config=config)
    assert (verdict.outcome, verdict.exit_status) == (Outcome.TIMEOUT, 124)
    assert verdict.error_msg == "slow\nWorker killed due to timeout after 60.5s."
    results = Results(Exit(2), None, case.job.log_path, outcome=Outcome.PLATFORM_ERROR, message="a\nb")
    verdict = judge_run(case.job, results, staging=case.staging, config=config)
    assert (verdict.outcome, verdict.error_msg) == (Outcome.PLATFORM_ERROR, "a\nb")
    assert verdict.reason == "the worker could not have the results: b"
    assert weigh(verdict, NO_FAILURES, max_attempts=3) == FINAL


def test_a_worker_that_vouches_for_a_failure(case: Case) -> None:
    """What would pass for a failure of ramp-test's own is the participant's where the worker says so."""
    log = 'Traceback (most recent call last):\n  File "/kit/problem.py", line 1\nImportError: no\n'
    case.job.log_path.write_text(log, encoding="utf-8")
    config = WorkerConfig(worker_type="fake")
    for outcome, expected in ((None, Outcome.PLATFORM_ERROR), (Outcome.PARTICIPANT_ERROR, Outcome.PARTICIPANT_ERROR)):
        results = Results(Exit(1), None, case.job.log_path, outcome=outcome)
        assert judge_run(case.job, results, staging=case.staging, config=config).outcome is expected


@pytest.mark.parametrize("said", ["OSError: [Errno 28] No space left on device", "cp: x: Disk quota exceeded"])
def test_a_disk_that_is_full_is_no_participants_fault(case: Case, said: str) -> None:
    """Whoever filled it: it is tried again, as often as anything that the platform failed."""
    case.output.mkdir(parents=True)
    verdict = case.judge(1, log=f"{traceback('submissions/good/estimator.py')}{said}\n")
    assert verdict.outcome is Outcome.PLATFORM_ERROR
    assert "no room on a disk" in verdict.reason


def test_a_log_that_met_a_full_disk_says_so_without_words(case: Case) -> None:
    """What the run said of it could not be written either."""
    case.output.mkdir(parents=True)
    verdict = case.judge_exit(Exit(1, log_errno=errno.ENOSPC))
    assert (verdict.outcome, "log could not be written" in verdict.reason) == (Outcome.PLATFORM_ERROR, True)


def test_a_disk_without_room_is_seen(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where nobody says anything."""
    case.output.mkdir(parents=True)
    monkeypatch.setattr("rampd.judging._FULL_BYTES", 1 << 62)
    verdict = case.judge(1, log=traceback("submissions/good/estimator.py"))
    assert (verdict.outcome, verdict.reason.endswith("is full")) == (Outcome.PLATFORM_ERROR, True)


def test_a_good_run_on_a_full_disk_is_a_good_run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its output is whole: nothing was lost."""
    monkeypatch.setattr("rampd.judging._FULL_BYTES", 1 << 62)
    build_training_output(case.output)
    assert case.judge().outcome is Outcome.OK


@pytest.mark.parametrize("outcome", [Outcome.TIMEOUT, Outcome.PARTICIPANT_ERROR, Outcome.PLATFORM_ERROR, None])
def test_a_plug_ins_words_can_be_stored_whatever_they_are(case: Case, outcome: Outcome | None) -> None:
    """No database takes half a character or a NUL, and an outcome that cannot be written would keep the event down."""
    text = f"said \udcff\0{'x' * (1 << 17)}"
    results = Results(Exit(1), None, case.job.log_path, outcome=outcome, message=text, refused="too \udcff large")
    config = WorkerConfig.model_validate({"worker_type": "fake"})
    verdict = judge_run(case.job, results, staging=case.staging, config=config)
    told = verdict.error_msg.encode("utf-8")
    assert b"\0" not in told
    assert 0 < len(told) < 1 << 17
    verdict.reason.encode("utf-8")
