"""The way of one submission: what each end of a run comes to in the store, the journal, the folders and the log."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from rampd import clock, lifecycle
from rampd.errors import (
    ResultsError,
    WorkerError,
    WorkerLostError,
    WorkerSetupError,
    WorkerUnavailableError,
)
from rampd.models import Exit
from rampd.states import Outcome, Step, SubmissionState
from rampd.testing.workers import FakeRun
from support.event import (
    EventRoom,
    attempt_once,
    bad_run,
    closed,
    fail_times,
    fake,
    find,
    good_run,
    history_of,
    hung_run,
)

if TYPE_CHECKING:
    from typing import Any

    Record = dict[str, Any]

TRACEBACK = b"""Traceback (most recent call last):
  File "submissions/one/estimator.py", line 3, in fit
    raise ValueError("no")
ValueError: no
"""


async def test_ok_is_scored(room: EventRoom) -> None:
    """A good run goes through all states, and its scores are kept."""
    room.submit("one")
    async with room.opened() as event:
        conclusion = await attempt_once(event)
        assert (conclusion.outcome, conclusion.final) == (Outcome.OK, True)
        assert await history_of(event) == ["new", "sent_to_training", "training", "tested", "scored"]
        (scores,) = (await event.store.scores()).values()
        assert scores["acc"]["test"].mean == pytest.approx(0.965)
        assert (await event.store.get("one")).error_msg == ""
        assert await closed(event) == [(Outcome.OK, True)]


async def test_ok_swaps_the_predictions_in_whole(room: EventRoom) -> None:
    """What an older attempt left is replaced, not mixed, and nothing hidden stays beside it."""
    room.submit("one")
    async with room.opened() as event:
        (room.predictions / "one" / "fold_9").mkdir(parents=True)
        await attempt_once(event)
    assert [path.name for path in room.predictions.iterdir()] == ["one"]
    assert {path.name for path in (room.predictions / "one").iterdir()} == {"fold_0", "fold_1", "bagged_scores.csv"}


async def test_the_finished_record_has_every_field(room: EventRoom, log_records: list[Record]) -> None:
    """The canonical line says all there is to know of a submission."""
    room.submit("one", good_run(0.02))
    room.runs["one"].exit = Exit(0, max_rss_bytes=1000, log_bytes=20)
    async with room.opened() as event:
        await attempt_once(event)
        submission = await event.store.get("one")
    (finished,) = find(log_records, "submission.finished")
    assert finished["run_s"] > 0
    for figure in ("queued_s", "setup_s", "run_s", "collect_s"):
        assert 0 <= finished[figure] < 10
    expected = {
        "outcome": "ok",
        "state": "scored",
        "exit_status": 0,
        "attempts": 1,
        "max_rss_bytes": 1000,
        "log_bytes": 20,
        "log_path": str(event.settings.ramp.logs_dir / "one" / "log"),
        "reason": None,
        "event_name": "iris",
        "submission": "one",
        "submission_id": submission.id,
        "worker_type": "fake",
        "attempt": 1,
    }
    assert {key: finished[key] for key in expected} == expected
    assert "replayed" not in finished


async def test_the_records_of_a_good_run(room: EventRoom, log_records: list[Record]) -> None:
    """Started once, scored, finished: in this order, and nothing else."""
    room.submit("one")
    async with room.opened() as event:
        await attempt_once(event)
    assert [record["event"] for record in log_records] == [
        "submission.detected",
        "submission.queued",
        "submission.started",
        "submission.scored",
        "submission.finished",
    ]


async def test_a_participant_error_shows_the_traceback(room: EventRoom, log_records: list[Record]) -> None:
    """The participant's fault is final at once, and the traceback is theirs."""
    room.submit("one", bad_run(log=b"...\n" + TRACEBACK))
    async with room.opened() as event:
        conclusion = await attempt_once(event)
        assert conclusion.final
        submission = await event.store.get("one")
        assert submission.state is SubmissionState.TRAINING_ERROR
        assert submission.error_msg == TRACEBACK.decode().strip()
        assert await closed(event) == [(Outcome.PARTICIPANT_ERROR, True)]
    (finished,) = find(log_records, "submission.finished")
    assert (finished["outcome"], finished["state"], finished["exit_status"]) == (
        "participant_error",
        "training_error",
        1,
    )


async def test_a_training_error_removes_older_predictions(room: EventRoom) -> None:
    """A leaderboard must not show predictions of a submission that failed."""
    room.submit("one", bad_run(log=TRACEBACK))
    async with room.opened() as event:
        (room.predictions / "one" / "fold_0").mkdir(parents=True)
        await attempt_once(event)
    assert list(room.predictions.iterdir()) == []


async def test_a_platform_failure_leaves_older_predictions(room: EventRoom) -> None:
    """What an older attempt earned is not the platform's to take away."""
    room.worker["max_attempts"] = 1
    room.submit("one", good_run(raises={"setup": [WorkerError("no")]}))
    async with room.opened() as event:
        (room.predictions / "one" / "fold_0").mkdir(parents=True)
        await attempt_once(event)
    assert [path.name for path in room.predictions.iterdir()] == ["one"]


async def test_a_timeout_has_status_124_and_says_so(room: EventRoom, log_records: list[Record]) -> None:
    """A run over its time is stopped, and the participant is told where it was and how long it was given."""
    room.worker["timeout"] = 0.05
    room.submit("one", hung_run(log=TRACEBACK))
    async with room.opened() as event:
        await attempt_once(event)
        submission = await event.store.get("one")
        assert submission.state is SubmissionState.TRAINING_ERROR
        assert submission.error_msg.startswith("Traceback")
        assert submission.error_msg.endswith("ValueError: no\nWorker killed due to timeout after 0.05s.")
        assert await closed(event) == [(Outcome.TIMEOUT, True)]
        assert [step for step, _ in fake(event).calls].count("stop") == 1
    (finished,) = find(log_records, "submission.finished")
    assert (finished["outcome"], finished["exit_status"]) == ("timeout", 124)
    assert finished["run_s"] >= 0.05
    assert find(log_records, "submission.timed_out", timeout_s=0.05)


async def test_a_timeout_stands_without_results(room: EventRoom, log_records: list[Record]) -> None:
    """A host that is lost while its over-long run is collected costs the traceback, no more."""
    room.worker["timeout"] = 0.05
    room.submit("one", hung_run(raises={"collect_results": [WorkerLostError("gone")]}))
    async with room.opened() as event:
        await attempt_once(event)
        assert (await event.store.get("one")).error_msg == "Worker killed due to timeout after 0.05s."
        assert await closed(event) == [(Outcome.TIMEOUT, True)]
    assert find(log_records, "worker.lost", error="gone")


@pytest.mark.parametrize(
    "case",
    [
        (WorkerLostError("the host is gone"), Outcome.LOST_HOST, True, "worker.lost"),
        (WorkerUnavailableError("no host is free"), Outcome.NO_CAPACITY, False, "worker.setup_failed"),
        (WorkerError("it broke"), Outcome.PLATFORM_ERROR, True, "worker.setup_failed"),
        (ResultsError("the disk is full"), Outcome.PLATFORM_ERROR, True, "worker.setup_failed"),
    ],
)
@pytest.mark.parametrize("step", ["setup", "launch_submission", "wait", "collect_results"])
async def test_a_worker_error_puts_it_back(
    room: EventRoom, log_records: list[Record], step: str, case: tuple[WorkerError, Outcome, bool, str]
) -> None:
    """Whatever step it comes from, the submission waits again with a backoff, and nothing of the attempt is left."""
    error, outcome, counted, warning = case
    room.submit("one", good_run(raises={step: [error]}))
    async with room.opened() as event:
        conclusion = await attempt_once(event)
        assert (conclusion.outcome, conclusion.final) == (outcome, False)
        submission = await event.store.get("one")
        assert (submission.state, submission.error_msg) == (SubmissionState.NEW, "")
        assert await closed(event) == [(outcome, False)]
        assert submission.id in await event.journal.backoffs()
    (retried,) = find(log_records, "submission.retried")
    expected = {
        "reason": str(error),
        "outcome": outcome,
        "delay_s": conclusion.delay_s,
        "counted": counted,
        "exit_status": None,
        "attempts": 1,
        "attempt": 1,
        "submission": "one",
    }
    assert {key: retried[key] for key in expected} == expected
    assert find(log_records, warning, error=str(error), outcome=outcome)
    assert conclusion.delay_s > 0
    assert not find(log_records, "submission.finished")
    assert list(room.predictions.iterdir()) == []


async def test_an_unexpected_exception_is_reported_and_the_platforms(
    room: EventRoom, log_records: list[Record]
) -> None:
    """A worker's bug is in the log with its traceback, and costs the participant nothing."""
    room.submit("one", good_run(raises={"wait": [KeyError("oops")]}))
    async with room.opened() as event:
        conclusion = await attempt_once(event)
        assert (conclusion.outcome, conclusion.final) == (Outcome.PLATFORM_ERROR, False)
        assert await closed(event) == [(Outcome.PLATFORM_ERROR, False)]
    (failed,) = find(log_records, "lifecycle.failed")
    assert failed["exception"]
    assert failed["submission"] == "one"


@pytest.mark.parametrize("error", [WorkerError("no"), OSError("no"), KeyError("oops")])
async def test_a_failing_teardown_changes_nothing(room: EventRoom, error: Exception, log_records: list[Record]) -> None:
    """An allocation that cannot be given back is left to the next start; the outcome stands."""
    room.submit("one", good_run(raises={"teardown": [error]}))
    async with room.opened() as event:
        conclusion = await attempt_once(event)
        assert conclusion.final
        (attempt,) = await event.journal.attempts()
        assert attempt.step is Step.CLOSED
        assert (await event.store.get("one")).state is SubmissionState.SCORED
    assert find(log_records, "worker.lost") or find(log_records, "lifecycle.failed")
    assert find(log_records, "submission.finished", outcome="ok")


async def test_platform_failures_end_after_max_attempts(room: EventRoom, log_records: list[Record]) -> None:
    """After so many counted failures the platform gives up, and the participant learns only that it was not them."""
    room.worker["max_attempts"] = 2
    secret = WorkerLostError("10.0.0.7 does not answer")
    room.submit("one", good_run(raises={"wait": [secret, secret]}))
    async with room.opened() as event:
        assert not (await attempt_once(event)).final
        assert (await attempt_once(event)).final
        submission = await event.store.get("one")
        assert submission.state is SubmissionState.CHECKING_ERROR
        assert "10.0.0.7" not in submission.error_msg
        assert submission.error_msg
        assert await closed(event) == [(Outcome.LOST_HOST, False), (Outcome.LOST_HOST, True)]
    (finished,) = find(log_records, "submission.finished")
    assert (finished["outcome"], finished["state"], finished["attempts"]) == ("lost_host", "checking_error", 2)
    assert finished["reason"] == "10.0.0.7 does not answer"


async def test_lack_of_capacity_is_never_counted(room: EventRoom) -> None:
    """A submission waits for a host as long as it takes."""
    room.worker["max_attempts"] = 2
    room.submit("one", good_run(raises={"setup": [WorkerUnavailableError("none free")] * 5}))
    async with room.opened() as event:
        for _ in range(5):
            assert not (await attempt_once(event)).final
        assert (await attempt_once(event)).outcome is Outcome.OK


async def test_a_missing_environment_costs_no_attempt(room: EventRoom) -> None:
    """What every submission lacks is handed to the dispatcher as a hold, and this one simply waits."""
    error = WorkerSetupError("no environment iris", ["base"])
    room.worker["max_attempts"] = 1
    room.submit("one", good_run(raises={"setup": [error]}))
    async with room.opened() as event:
        conclusion = await attempt_once(event)
        assert conclusion.hold is error
        assert not conclusion.final
        assert (await event.store.get("one")).state is SubmissionState.NEW


@pytest.mark.parametrize("write", ["journal.decide", "journal.close", "store.set_tested", "store.set_scored"])
@pytest.mark.parametrize("after", [False, True])
async def test_a_write_of_the_end_is_repeated(
    room: EventRoom, monkeypatch: pytest.MonkeyPatch, log_records: list[Record], write: str, after: bool
) -> None:
    """A store that is away while an outcome is written delays it, whether the write had been made or not."""
    room.submit("one")
    async with room.opened() as event:
        failures = fail_times(monkeypatch, event, write, 3, after=after)
        assert (await attempt_once(event)).outcome is Outcome.OK
        assert len(failures) == 3
        assert await history_of(event) == ["new", "sent_to_training", "training", "tested", "scored"]
        assert await closed(event) == [(Outcome.OK, True)]
        assert (room.predictions / "one" / "fold_0").is_dir()
    assert len(find(log_records, "store.unavailable")) == 1
    assert len(find(log_records, "store.recovered")) == 1
    assert len(find(log_records, "submission.finished")) == 1


@pytest.mark.parametrize("write", ["journal.failures", "journal.set_backoff", "store.release"])
async def test_a_write_that_puts_back_is_repeated(room: EventRoom, monkeypatch: pytest.MonkeyPatch, write: str) -> None:
    """A store that is away while a submission is put back delays that, too."""
    room.submit("one", good_run(raises={"wait": [WorkerLostError("gone")]}))
    async with room.opened() as event:
        failures = fail_times(monkeypatch, event, write, 3)
        assert (await attempt_once(event)).outcome is Outcome.LOST_HOST
        assert len(failures) == 3
        assert (await event.store.get("one")).state is SubmissionState.NEW
        assert await closed(event) == [(Outcome.LOST_HOST, False)]


@pytest.mark.parametrize("write", ["journal.record_allocation", "journal.record_launch"])
@pytest.mark.parametrize("after", [False, True])
async def test_a_run_that_cannot_be_journaled_is_ended_and_tried_again(
    room: EventRoom, monkeypatch: pytest.MonkeyPatch, write: str, after: bool
) -> None:
    """Nothing may run that a later process could not find: it ends, and the next attempt does well."""
    room.submit("one")
    async with room.opened() as event:
        fail_times(monkeypatch, event, write, after=after)
        assert (await attempt_once(event)).outcome is Outcome.PLATFORM_ERROR
        assert await closed(event) == [(Outcome.PLATFORM_ERROR, False)]
        assert (await attempt_once(event)).outcome is Outcome.OK


async def test_a_run_without_output_is_the_participants(room: EventRoom) -> None:
    """Status 0 without a training_output is a submission that ended the process itself."""
    room.submit("one", FakeRun(duration_s=0.0))
    async with room.opened() as event:
        assert (await attempt_once(event)).outcome is Outcome.PARTICIPANT_ERROR
        assert "no training_output" in (await event.store.get("one")).error_msg


@pytest.mark.parametrize(
    ("run", "outcome"), [(good_run(0.15), Outcome.OK), (hung_run(), Outcome.TIMEOUT)], ids=["ended", "hangs"]
)
async def test_what_ended_while_the_process_stood_still_is_not_late(
    room: EventRoom, monkeypatch: pytest.MonkeyPatch, run: FakeRun, outcome: Outcome
) -> None:
    """A daemon that was stopped beyond a deadline hears first what came meanwhile; what still runs is over its time."""
    monkeypatch.setattr(lifecycle, "_LONGEST_NAP_S", 0.02)
    monkeypatch.setattr(lifecycle, "_HEARING_S", 0.5)
    real = clock.boottime
    room.worker["timeout"] = 60
    room.submit("one", run)
    async with room.opened() as event:
        attempting = asyncio.ensure_future(attempt_once(event))
        while not room.outside:  # noqa: ASYNC110 -- the fake's world sets no event
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.03)
        monkeypatch.setattr(clock, "boottime", lambda: real() + 3600)
        assert (await attempting).outcome is outcome
