"""A start after a crash: whatever the last daemon left comes to one end, and nothing runs twice at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from rampd import clock
from rampd.announcements import Announcements
from rampd.conclusion import STAGING_PREFIX
from rampd.errors import StoreError, WorkerLostError
from rampd.lifecycle import Parked, attempt_submission
from rampd.orders import Order, Orders
from rampd.recovery import recover
from rampd.states import Outcome, RequestKind, Step, SubmissionState
from rampd.stores.directory import DirectoryStore
from rampd.testing.workers import FakeAllocation
from support.event import (
    Crash,
    EventRoom,
    attempt_once,
    bad_run,
    begin,
    carry_on,
    fail_times,
    fake,
    find,
    good_run,
    hung_run,
    recovered,
    run_out,
    run_to_the_one_end,
    serve_out,
)

if TYPE_CHECKING:
    from rampd.event import Event
    from rampd.models import Attempt, Job, Submission

    Record = dict[str, Any]


BEFORE_THE_LAUNCH = ["store.claim", "journal.open_attempt", "worker.setup", "journal.record_allocation"]
WHILE_IT_RUNS = [
    "worker.launch_submission",
    "journal.record_launch",
    "store.set_training",
    "worker.wait",
    "worker.collect_results",
]
AFTER_THE_DECISION = ["journal.decide", "store.set_tested", "store.set_scored", "worker.teardown", "journal.close"]


@pytest.mark.parametrize("resumable", [False, True])
@pytest.mark.parametrize("last", [*BEFORE_THE_LAUNCH, *WHILE_IT_RUNS, *AFTER_THE_DECISION])
async def test_a_crash_after_any_step_leads_to_one_end(
    room: EventRoom, monkeypatch: pytest.MonkeyPatch, log_records: list[Record], last: str, resumable: bool
) -> None:
    """Killed after any step, a submission is scored once by the next daemon, and its runs never overlap."""
    room.resumable = resumable
    room.submit("one", good_run(0.01))
    async with room.opened() as event:
        fail_times(monkeypatch, event, last, error=Crash, after=True)
        with pytest.raises(Crash):
            await attempt_once(event)
        launches = len(fake(event).launches)
    async with room.opened() as event:
        await run_to_the_one_end(event, "one")
        launches += len(fake(event).launches)
    assert launches == (2 if last in WHILE_IT_RUNS and not resumable else 1)
    assert room.outside == {}
    assert [path.name for path in room.predictions.iterdir()] == ["one"]
    assert len(find(log_records, "submission.finished", outcome="ok")) == 1


@pytest.mark.parametrize("resumable", [False, True])
async def test_a_crash_before_the_decision_forgets_what_was_judged(
    room: EventRoom, monkeypatch: pytest.MonkeyPatch, resumable: bool
) -> None:
    """Predictions that were kept and never decided on are made anew, by the same run or by another."""
    room.resumable = resumable
    room.submit("one", good_run())
    async with room.opened() as event:
        fail_times(monkeypatch, event, "journal.decide", error=Crash)
        with pytest.raises(Crash):
            await attempt_once(event)
        assert len(list(room.predictions.iterdir())) == 1
    async with room.opened() as event:
        await run_out(event)
        assert (await event.store.get("one")).state is SubmissionState.SCORED
        assert len(await event.journal.attempts()) == (1 if resumable else 2)
    assert [path.name for path in room.predictions.iterdir()] == ["one"]


async def test_a_first_start_finds_nothing(room: EventRoom, log_records: list[Record]) -> None:
    """Without a past there is nothing to recover, and nothing to say."""
    async with room.opened() as event:
        assert await recovered(event) == []
    assert log_records == []


@pytest.mark.parametrize(
    ("run", "state", "outcome"),
    [
        (bad_run(), SubmissionState.TRAINING_ERROR, Outcome.PARTICIPANT_ERROR),
        (good_run(raises={"wait": [WorkerLostError("gone")]}), SubmissionState.NEW, Outcome.LOST_HOST),
    ],
)
async def test_a_decision_is_never_taken_again(
    room: EventRoom, monkeypatch: pytest.MonkeyPatch, run: Any, state: SubmissionState, outcome: Outcome
) -> None:
    """What was decided before the crash is made true after it, without another run."""
    room.submit("one", run)
    async with room.opened() as event:
        fail_times(monkeypatch, event, "journal.decide", error=Crash, after=True)
        with pytest.raises(Crash):
            await attempt_once(event)
    async with room.opened() as event:
        await recovered(event)
        assert (await event.store.get("one")).state is state
        assert [attempt.outcome for attempt in await event.journal.attempts()] == [outcome]
        assert fake(event).launches == []


async def test_what_runs_is_ended_before_anything_else(room: EventRoom, log_records: list[Record]) -> None:
    """A run of the last daemon is reclaimed before its submission may run again."""
    room.submit("one", hung_run())
    async with room.opened() as event:
        attempt = await _launch(event)
    async with room.opened() as event:
        await recovered(event)
        assert (await event.store.get("one")).state is SubmissionState.NEW
    assert room.outside == {}
    events = [record["event"] for record in log_records]
    assert events.index("worker.reclaimed") < events.index("submission.retried")
    assert find(log_records, "worker.reclaimed", what=attempt.id)
    (retried,) = find(log_records, "submission.retried")
    assert (retried["outcome"], retried["counted"], retried["attempt"]) == ("interrupted", False, 1)
    assert (retried["submission"], retried["worker_type"]) == ("one", "fake")


async def _launch(event: Event) -> Attempt:
    """Bring an attempt to `launched`, and leave it there."""
    submission, attempt = await begin(event)
    job = event.job(submission, attempt)
    allocation = await event.worker.setup(job)
    await event.journal.record_allocation(attempt.id, allocation.model_dump_json())
    allocation = await event.worker.launch_submission(job, allocation)
    await event.store.set_training(submission.id)
    return await event.journal.record_launch(attempt.id, allocation.model_dump_json())


async def test_a_claim_without_an_attempt_is_put_back(room: EventRoom, log_records: list[Record]) -> None:
    """A submission that was claimed and never begun waits again, and no attempt is counted."""
    room.submit("one")
    async with room.opened() as event:
        await event.store.claim()
        assert await recovered(event) == []
        assert (await event.store.get("one")).state is SubmissionState.NEW
        assert await event.journal.attempts() == []
    assert find(log_records, "submission.recovered", submission="one")


async def test_a_submission_that_takes_the_daemon_down_comes_to_an_end(
    room: EventRoom, log_records: list[Record]
) -> None:
    """Ten kills cost nothing; one that comes again and again is the platform's failure at last."""
    room.worker["max_attempts"] = 1
    room.submit("one", hung_run())
    async with room.opened() as event:
        for _ in range(10):
            await begin(event)
            await recovered(event)
            assert (await event.store.get("one")).state is SubmissionState.NEW
        await begin(event)
        await recovered(event)
        assert (await event.store.get("one")).state is SubmissionState.CHECKING_ERROR
    (finished,) = find(log_records, "submission.finished")
    assert (finished["outcome"], finished["attempts"]) == ("platform_error", 11)


@pytest.mark.parametrize("last", ["worker.reclaim", "journal.decide", "store.release", "worker.teardown"])
async def test_a_recovery_that_is_killed_begins_again(
    room: EventRoom, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    """A crash inside the recovery is no worse than the first one."""
    room.submit("one", good_run(0.01))
    async with room.opened() as event:
        await _launch(event)
    async with room.opened() as event:
        fail_times(monkeypatch, event, last, error=Crash, after=True)
        with pytest.raises(Crash):
            await recovered(event)
    async with room.opened() as event:
        await run_out(event)
        assert (await event.store.get("one")).state is SubmissionState.SCORED
        assert [attempt.outcome for attempt in await event.journal.attempts()] == [Outcome.INTERRUPTED, Outcome.OK]


@pytest.mark.parametrize("write", ["journal.failures", "journal.decide", "store.release", "journal.close"])
async def test_a_store_that_is_away_delays_the_recovery(
    room: EventRoom, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    """Writes are repeated until they succeed."""
    room.submit("one")
    async with room.opened() as event:
        await begin(event)
        failures = fail_times(monkeypatch, event, write, 3)
        await recovered(event)
        assert len(failures) == 3
        assert (await event.store.get("one")).state is SubmissionState.NEW
        assert [attempt.step for attempt in await event.journal.attempts()] == [Step.CLOSED]


async def test_an_unwritten_line_is_written_again(room: EventRoom, log_records: list[Record]) -> None:
    """A canonical line that may be lost is repeated with all its fields, until one was surely written."""
    room.submit("one")
    async with room.opened() as event:
        submission, attempt = await begin(event)
        await attempt_submission(event, submission, attempt, Orders(), announcements=Announcements(event.journal))
        assert [left.id for left in await event.journal.unannounced()] == [attempt.id]
    async with room.opened() as event:
        await recovered(event)
        assert await event.journal.unannounced() == []
    async with room.opened() as event:
        await recovered(event)
    first, second = find(log_records, "submission.finished")
    assert second["replayed"] is True
    assert second["submission"] == "one"
    assert {key: second[key] for key in attempt_fields(first)} == attempt_fields(first)


def attempt_fields(record: Record) -> Record:
    """Return what a canonical line says of its attempt."""
    return {key: value for key, value in record.items() if key not in {"seq", "logger", "replayed"}}


async def test_predictions_that_were_never_decided_on_are_removed(room: EventRoom) -> None:
    """Staged predictions stay only where their run goes on."""
    room.resumable = True
    room.submit("one", hung_run())
    async with room.opened() as event:
        attempt = await _launch(event)
        for attempt_id in (attempt.id, "0123"):
            (room.predictions / f"{STAGING_PREFIX}{attempt_id}").mkdir()
        (room.predictions / "other").mkdir()
        await recovered(event)
    assert sorted(path.name for path in room.predictions.iterdir()) == [f"{STAGING_PREFIX}{attempt.id}", "other"]


async def test_a_submission_that_the_store_forgot_ends_all_the_same(room: EventRoom) -> None:
    """An attempt whose submission's folder went is closed, and keeps nobody from starting."""
    room.submit("one")
    async with room.opened() as event:
        submission, _ = await begin(event)
        assert isinstance(event.store, DirectoryStore)
        await event.store.registry.forget(submission.id, submission.name)
        assert await recovered(event) == []
        assert [attempt.step for attempt in await event.journal.attempts()] == [Step.CLOSED]


async def _park(event: Event) -> tuple[Submission, Attempt]:
    """Launch a run, and have the daemon's stop park it."""
    submission, attempt = await begin(event)
    orders = Orders()
    attempting = asyncio.ensure_future(carry_on(event, submission, attempt, orders))
    fake(event).stands_in = "wait"
    await fake(event).reached.wait()
    orders.give(Order.INTERRUPT)
    with pytest.raises(Parked):
        await attempting
    return submission, attempt


async def test_a_parked_run_is_taken_over(room: EventRoom, log_records: list[Record]) -> None:
    """A resumable run goes on under the next daemon: the same attempt, launched once, with its first launch's time."""
    room.resumable = True
    room.submit("one", good_run(0.05))
    async with room.opened() as event:
        await _park(event)
    parked_at = clock.boottime()
    async with room.opened() as event:
        ((submission, attempt),) = await recovered(event)
        assert attempt.launched_boottime_s is not None
        assert (attempt.step, submission.state) == (Step.LAUNCHED, SubmissionState.TRAINING)
        assert (await carry_on(event, submission, attempt)).outcome is Outcome.OK
        assert fake(event).launches == []
        assert [one.number for one in await event.journal.attempts()] == [1]
    assert len(find(log_records, "submission.started")) == 1
    assert len(find(log_records, "submission.resumed", submission="one", attempt=1)) == 1
    (finished,) = find(log_records, "submission.finished")
    assert finished["run_s"] >= parked_at - attempt.launched_boottime_s


async def test_a_parked_run_that_is_gone_is_tried_again(room: EventRoom) -> None:
    """A run that did not survive the time between two daemons is a lost host, and counted."""
    room.resumable = True
    room.submit("one", good_run(0.05))
    async with room.opened() as event:
        await _park(event)
    room.outside.clear()
    async with room.opened() as event:
        ((submission, attempt),) = await recovered(event)
        assert (await carry_on(event, submission, attempt)).outcome is Outcome.LOST_HOST
        assert (await event.store.get("one")).state is SubmissionState.NEW


@pytest.mark.parametrize("resumable", [False, True])
async def test_a_run_of_another_kind_of_worker_is_put_back(room: EventRoom, resumable: bool) -> None:
    """An allocation that this worker cannot read, the config naming another one now, keeps nobody from starting."""
    room.resumable = resumable
    room.submit("one")
    async with room.opened() as event:
        submission = await event.store.claim()
        assert submission is not None
        attempt = await event.journal.open_attempt(submission, "another")
        await event.journal.record_allocation(attempt.id, '{"host": "10.0.0.7"}')
        assert await recover(event, announcements=Announcements(event.journal)) == []
        assert (await event.store.get("one")).state is SubmissionState.NEW
        assert [one.outcome for one in await event.journal.attempts()] == [Outcome.INTERRUPTED]


async def test_a_setup_that_had_begun_is_taken_up(room: EventRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a setup recorded before the daemon ended is handed to the next setup of the same attempt."""
    room.resumable = True
    room.submit("one")
    seen: list[str | None] = []
    async with room.opened() as event:
        _, attempt = await begin(event)
        beginning = FakeAllocation(attempt_id=attempt.id, submission="one", attempt_dir="begun")
        await event.journal.record_beginning(attempt.id, beginning.model_dump_json())
    async with room.opened() as event:
        setup = fake(event).setup

        async def seeing(job: Job) -> FakeAllocation:
            seen.append(job.recorded)
            return await setup(job)

        monkeypatch.setattr(fake(event), "setup", seeing)
        await asyncio.wait_for(run_out(event), 5)
        assert seen == [beginning.model_dump_json()]
        assert [(one.id, one.outcome) for one in await event.journal.attempts()] == [(attempt.id, Outcome.OK)]


async def test_a_setup_that_had_begun_is_torn_down(room: EventRoom) -> None:
    """Where a run cannot be resumed, what a setup recorded is torn down, and the attempt begins anew."""
    room.submit("one")
    async with room.opened() as event:
        _, attempt = await begin(event)
        beginning = FakeAllocation(attempt_id=attempt.id, submission="one", attempt_dir="begun")
        await event.journal.record_beginning(attempt.id, beginning.model_dump_json())
    async with room.opened() as event:
        await asyncio.wait_for(run_out(event), 5)
        assert fake(event).calls.count(("teardown", attempt.id)) == 1
        outcomes = [one.outcome for one in await event.journal.attempts()]
        assert outcomes == [Outcome.INTERRUPTED, Outcome.OK]


async def test_only_a_setup_can_record(room: EventRoom) -> None:
    """An attempt whose allocation is known has no beginning any more."""
    room.submit("one")
    async with room.opened() as event:
        _, attempt = await begin(event)
        await event.journal.record_allocation(attempt.id, "{}")
        with pytest.raises(StoreError, match="cannot become opened"):
            await event.journal.record_beginning(attempt.id, "{}")


async def _accept_cancel(event: Event) -> None:
    """Have a cancel accepted, by a daemon that ends before it can obey."""
    request_id = await event.journal.request(RequestKind.CANCEL, "one")
    await event.journal.answer(request_id, "it is being stopped", accepted=True)


async def test_a_cancel_that_was_accepted_outlives_a_crash(room: EventRoom, log_records: list[Record]) -> None:
    """Whoever was told that a submission is being stopped does not find it run again."""
    room.submit("one", hung_run())
    async with room.opened() as event:
        await _launch(event)
        await _accept_cancel(event)
    async with room.opened() as event:
        await recovered(event)
        submission = await event.store.get("one")
        assert submission.state is SubmissionState.CHECKING_ERROR
        assert submission.error_msg == "Cancelled by the organizers."
    assert len(find(log_records, "submission.finished", outcome="cancelled", attempt=1)) == 1
    assert len(find(log_records, "submission.cancelled", submission="one", attempt=1)) == 1


async def test_a_cancel_that_was_accepted_stands_against_an_outcome_that_is_not_final(
    room: EventRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it run again where the attempt was decided already, and would have been followed by another."""
    room.submit("one", good_run(raises={"collect_results": [WorkerLostError("gone")]}))
    async with room.opened() as event:
        fail_times(monkeypatch, event, "worker.teardown", error=Crash)
        with pytest.raises(Crash):
            await attempt_once(event)
        await _accept_cancel(event)
    async with room.opened() as event:
        await recovered(event)
        assert (await event.store.get("one")).state is SubmissionState.CHECKING_ERROR
        outcomes = [attempt.outcome for attempt in await event.journal.attempts()]
        assert outcomes == [Outcome.LOST_HOST, Outcome.CANCELLED]


async def test_a_cancel_that_was_accepted_ends_a_run_that_goes_on(room: EventRoom) -> None:
    """A run that the next daemon takes over is stopped then."""
    room.resumable = True
    room.submit("one", hung_run())
    async with room.opened() as event:
        await _launch(event)
        await _accept_cancel(event)
    async with room.opened() as event:
        assert await serve_out(event) == 0
        assert (await event.store.get("one")).state is SubmissionState.CHECKING_ERROR
        assert [attempt.outcome for attempt in await event.journal.attempts()] == [Outcome.CANCELLED]


async def test_an_older_cancel_means_nothing_to_a_retry(room: EventRoom) -> None:
    """A cancel counts for the attempt that it was meant for, not for those that the operator asked for later."""
    room.submit("one", hung_run())
    async with room.opened() as event:
        await _accept_cancel(event)
        await _launch(event)
    async with room.opened() as event:
        await recovered(event)
        assert (await event.store.get("one")).state is SubmissionState.NEW
