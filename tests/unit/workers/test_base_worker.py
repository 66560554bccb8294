from __future__ import annotations

import logging
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from rampd import BaseWorker, _get_traceback
from rampd.workers.base_worker import STATUSES

if TYPE_CHECKING:
    from collections.abc import Callable


class Worker(BaseWorker):
    """Notes what is called; `ends_after` looks its run has ended."""

    ends_after = 2
    interrupted = False

    def __init__(self, config: dict[str, Any], submission: str) -> None:
        super().__init__(config, submission)
        self.calls: list[str] = []

    def setup(self) -> None:
        """Note it."""
        self.calls.append("setup")
        super().setup()

    def launch_submission(self) -> None:
        """Note it."""
        self.calls.append("launch_submission")
        super().launch_submission()

    def collect_results(self) -> tuple[int, str]:
        """Note it."""
        super().collect_results()
        self.calls.append("collect_results")
        self.status = "collected"
        return 3, "why"

    def teardown(self) -> None:
        """Note it, and the status it was called in."""
        self.calls.append(f"teardown {self._status}")
        super().teardown()

    def _is_submission_finished(self) -> bool:
        self.calls.append("look")
        return self.calls.count("look") >= self.ends_after

    def _is_submission_interrupted(self) -> bool:
        return self.interrupted


@pytest.fixture
def worker() -> Worker:
    """Return one that was made."""
    return Worker({"timeout": 60, "key": 1}, "one")


def test_the_way_of_its_status(worker: Worker) -> None:
    """Each `super()` call brings it to the next documented status; a look at a running one is a look at the run."""
    assert worker.status == "initialized"
    worker.setup()
    assert worker.status == "setup"
    assert worker.time_since_last_status_check() is None
    worker.launch_submission()
    assert worker.status == "running"
    since = worker.time_since_last_status_check()
    assert since is not None
    assert since >= 0
    assert worker.status == "finished"
    worker.collect_results()
    worker.teardown()
    assert worker.status == "killed"
    assert worker.calls.count("look") == 2


@pytest.mark.parametrize("status", STATUSES)
def test_every_documented_status_can_be_set(worker: Worker, status: str) -> None:
    """The nine of the documentation, and no others."""
    worker.status = status
    assert worker._status == status


def test_no_other_status_can_be_set(worker: Worker) -> None:
    """The error names those that there are, and nothing changes."""
    with pytest.raises(ValueError, match="'done' is no status of a worker; there are initialized, setup, error"):
        worker.status = "done"
    assert worker.status == "initialized"


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        (lambda _: None, "was not set up"),
        (lambda worker: worker.setup(), "no submission was launched: call launch_sub"),
    ],
)
def test_nothing_is_collected_of_what_was_not_launched(
    worker: Worker, prepare: Callable[[Worker], None], sentence: str
) -> None:
    """The base class says which method was left out."""
    prepare(worker)
    with pytest.raises(ValueError, match=sentence):
        worker.collect_results()


def test_an_interruption_comes_before_the_end(worker: Worker) -> None:
    """A run that was interrupted is to be tried again, whatever else is true of it."""
    worker.launch_submission()
    worker.interrupted = True
    assert worker.status == "retry"
    assert "look" not in worker.calls


def test_a_command_that_fails_while_looking_is_an_interruption(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other machine went away."""

    def fail() -> bool:
        raise subprocess.CalledProcessError(255, "ssh")

    worker.launch_submission()
    monkeypatch.setattr(worker, "_is_submission_finished", fail)
    assert worker.status == "retry"


def test_a_timeout_found_while_looking_stays_one(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a look at the run finds to be over its time has not finished by itself, though it has ended now."""

    def end_it() -> bool:
        worker.status = "timeout"
        return True

    worker.launch_submission()
    monkeypatch.setattr(worker, "_is_submission_finished", end_it)
    assert worker.status == "timeout"


def test_check_timeout(worker: Worker) -> None:
    """Nothing is over its time before it was launched, nor within it; then the status says so."""
    worker.timeout = 0
    assert worker.check_timeout() is None
    worker.launch_submission()
    worker.timeout = 60
    assert worker.check_timeout() is None
    worker.timeout = -1
    assert worker.check_timeout() is True
    assert worker.status == "timeout"


def test_the_timeout_is_the_configs() -> None:
    """In seconds, 7200 where there is none; an object may set its own."""
    assert Worker({"timeout": 60}, "one").timeout == 60
    assert Worker({}, "one").timeout == 7200


def test_a_key_that_is_missing(worker: Worker) -> None:
    """`_check_config_name` names it, and those that there are; never a value."""
    worker._check_config_name(worker.config, "key")
    with pytest.raises(ValueError, match="needs the key 'conda_env'; its config has timeout, key"):
        worker._check_config_name(worker.config, "conda_env")


@pytest.mark.parametrize(
    ("text", "found"),
    [("", ""), ("no", "no"), ("a\nTraceback x\nTraceback y", "Traceback x\nTraceback y"), ("Traceback", "Traceback")],
)
def test_get_traceback(text: str, found: str) -> None:
    """From the first word Traceback on, as a method and as a function."""
    assert _get_traceback(text) == found
    assert BaseWorker._get_traceback(text) == found


def test_it_is_written_without_a_look(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever logs it does not look at the run by that."""
    worker.launch_submission()
    with caplog.at_level(logging.INFO):
        logging.getLogger("test").info("%r %s", worker, worker)
    assert caplog.messages == ['Worker(one): status="running" Worker(one): status="running"']
    assert "look" not in worker.calls


def test_launch_runs_it_alone(worker: Worker) -> None:
    """From setup to teardown, waiting for the run's end, and what was collected comes back."""
    assert worker.launch(time_between_collection=0) == (3, "why")
    steps = ["setup", "launch_submission", "look", "look", "collect_results", "teardown collected"]
    assert worker.calls == steps


def test_launch_tears_down_what_fails(worker: Worker) -> None:
    """A run that is interrupted is an error, after everything was given back."""
    worker.interrupted = True
    with pytest.raises(RuntimeError, match="could not run the submission"):
        worker.launch(time_between_collection=0)
    assert worker.calls[-1] == "teardown retry"


def test_launch_ends_at_the_timeout(worker: Worker) -> None:
    """A run that does not end is collected when its time is over."""
    worker.ends_after = 10**9
    worker.timeout = 0
    assert worker.launch(time_between_collection=0) == (3, "why")
