"""Runs that go on where no daemon looks: what became of them meanwhile, and what earlier ones tell a later one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from rampd import clock
from rampd.errors import WorkerLostError, WorkerUnavailableError
from rampd.models import Exit
from rampd.states import Outcome, SubmissionState
from support.event import EventRoom, begin, carry_on, fake, find, good_run, hurry, recovered, run_out

if TYPE_CHECKING:
    from pathlib import Path

    from rampd.models import Job

    Record = dict[str, Any]


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EventRoom:
    """Return an event whose runs outlive their daemon."""
    hurry(monkeypatch)
    return EventRoom(tmp_path, resumable=True)


async def launched_and_left(room: EventRoom) -> None:
    """Have a daemon launch `one`, and end."""
    room.submit("one", good_run(1000.0))
    async with room.opened() as event:
        submission, attempt = await begin(event)
        allocation = await event.worker.setup(event.job(submission, attempt))
        await event.journal.record_allocation(attempt.id, allocation.model_dump_json())
        allocation = await event.worker.launch_submission(event.job(submission, attempt), allocation)
        await event.journal.record_launch(attempt.id, allocation.model_dump_json())


@pytest.mark.parametrize("has_ended", [True, False])
async def test_a_deadline_that_nobody_saw(room: EventRoom, monkeypatch: pytest.MonkeyPatch, has_ended: bool) -> None:
    """A run that ended in time while no daemon looked is taken as it ended; one that goes on is over its time."""
    await launched_and_left(room)
    if has_ended:
        room.finish()
    now = clock.boottime
    monkeypatch.setattr(clock, "boottime", lambda: now() + 10_000)
    async with room.opened() as event:
        await run_out(event)
        expected = SubmissionState.SCORED if has_ended else SubmissionState.TRAINING_ERROR
        assert (await event.store.get("one")).state is expected


async def test_a_timeout_on_the_far_side_is_one(room: EventRoom, log_records: list[Record]) -> None:
    """What the far side ended at its deadline is a timeout, not a failure with some status."""
    await launched_and_left(room)
    for run in room.outside.values():
        run.set_result(Exit(124, timed_out=True))
    async with room.opened() as event:
        await run_out(event)
        assert "killed due to timeout" in (await event.store.get("one")).error_msg
    (finished,) = find(log_records, "submission.finished")
    assert (finished["outcome"], finished["exit_status"]) == ("timeout", 124)


async def test_a_job_knows_how_many_hosts_were_lost(room: EventRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only lost hosts are counted, and only of this submission."""
    seen: list[int] = []
    room.submit("one")
    room.runs["one"].raises["setup"] = [
        WorkerLostError("gone"),
        WorkerUnavailableError("full"),
        WorkerLostError("gone"),
    ]
    async with room.opened() as event:
        setup = fake(event).setup

        async def noting(job: Job) -> Any:
            seen.append(job.lost_before)
            return await setup(job)

        monkeypatch.setattr(event.worker, "setup", noting)
        outcomes = []
        for _ in range(4):
            submission, attempt = await begin(event)
            outcomes.append((await carry_on(event, submission, attempt)).outcome)
    assert seen == [0, 1, 1, 2]
    assert outcomes[-1] is Outcome.OK


async def test_a_start_goes_on_where_nothing_can_be_reclaimed_now(
    room: EventRoom, monkeypatch: pytest.MonkeyPatch, log_records: list[Record]
) -> None:
    """A worker that reclaims again later does not end the daemon when it cannot at its start; any other does."""

    async def away(_: object) -> list[str]:
        raise WorkerUnavailableError("nobody answers")

    async with room.opened() as event:
        monkeypatch.setattr(event.worker, "reclaim", away)
        with pytest.raises(WorkerUnavailableError):
            await recovered(event)
        monkeypatch.setattr(type(event.worker), "reclaim_interval_s", 600.0)
        assert await recovered(event) == []
    assert find(log_records, "worker.lost")[0]["error"] == "reclaim failed: nobody answers"


async def test_what_was_refused_is_the_participants(room: EventRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training_output that a worker would not bring back is no platform fault, whatever the status was."""
    room.submit("one")
    async with room.opened() as event:
        collect = fake(event).collect_results

        async def refusing(*arguments: Any) -> Any:
            return replace(await collect(*arguments), training_output=None, refused="it was refused: 'x' is a link.")

        monkeypatch.setattr(event.worker, "collect_results", refusing)
        submission, attempt = await begin(event)
        assert (await carry_on(event, submission, attempt)).outcome is Outcome.PARTICIPANT_ERROR
        assert (await event.store.get("one")).error_msg == "it was refused: 'x' is a link."
