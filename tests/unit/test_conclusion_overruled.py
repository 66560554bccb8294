"""Submissions that somebody else moves in the store while they run: its word stands, and nothing waits for ever."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from rampd.announcements import Announcements
from rampd.conclusion import cancel_unrun, persist
from rampd.errors import StoreError, TransitionRefusedError, WorkerLostError
from rampd.requests import Requests
from rampd.states import Outcome, RequestKind, SubmissionState
from support.event import (
    PATIENCE_S,
    Crash,
    EventRoom,
    attempt_once,
    bad_run,
    closed,
    fail_times,
    fake,
    find,
    good_run,
    hurry,
    recovered,
    serve_out,
    served,
    states_of,
)
from support.store_room import until

if TYPE_CHECKING:
    from pathlib import Path

    from rampd.event import Event
    from rampd.testing.workers import FakeRun

    Record = dict[str, Any]

BY_HAND = "ended by hand"
REFUSED = TransitionRefusedError(1, SubmissionState.TRAINING_ERROR, SubmissionState.TESTED)


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EventRoom:
    """Return an event where nothing that fails is waited for."""
    hurry(monkeypatch)
    return EventRoom(tmp_path)


async def refuse(_: int) -> None:
    """Be a store that says no."""
    raise REFUSED


async def end_by_hand(event: Event, name: str = "one") -> None:
    """Have somebody else end a submission that runs."""
    submission = await event.store.get(name)
    await event.store.set_failed(submission.id, SubmissionState.CHECKING_ERROR, BY_HAND)


@pytest.mark.parametrize(
    ("run", "end"),
    [
        (good_run(), (Outcome.OK, True)),
        (bad_run(log=b"x"), (Outcome.PARTICIPANT_ERROR, True)),
        (good_run(raises={"wait": [WorkerLostError("gone")]}), (Outcome.LOST_HOST, False)),
    ],
    ids=["good", "bad", "put back"],
)
async def test_an_outcome_that_the_store_refuses_is_dropped_and_said_once(
    room: EventRoom, log_records: list[Record], run: FakeRun, end: tuple[Outcome, bool]
) -> None:
    """The attempt is closed with what it came to, its slot is free, and what was done by hand stands."""
    room.submit("one", run)
    async with room.opened() as event:
        worker = fake(event)
        worker.stands_in = "wait"
        attempting = asyncio.ensure_future(attempt_once(event))
        await worker.reached.wait()
        await end_by_hand(event)
        worker.go_on.set()
        assert (await asyncio.wait_for(attempting, PATIENCE_S)).outcome is end[0]
        submission = await event.store.get("one")
        assert (submission.state, submission.error_msg) == (SubmissionState.CHECKING_ERROR, BY_HAND)
        assert await closed(event) == [end]
        assert await event.journal.unannounced() == []
    (overruled,) = find(log_records, "submission.overruled", outcome=end[0], found="checking_error")
    assert "is checking_error and cannot become" in overruled["error"]
    assert (overruled["scores"] is not None) == (end[0] is Outcome.OK)
    for name in ("submission.finished", "submission.retried", "store.unavailable"):
        assert find(log_records, name) == []


async def test_a_slot_is_given_back(room: EventRoom) -> None:
    """The next submission runs on the slot of one whose end cannot be written."""
    room.dispatcher["n_workers"] = 1
    room.submit("one")
    async with room.opened() as event:
        worker = fake(event)
        worker.stands_in = "wait"
        serving = asyncio.ensure_future(serve_out(event))
        await worker.reached.wait()
        await end_by_hand(event)
        room.submit("two")
        await event.store.scan()
        worker.go_on.set()
        assert await serving == 0
        assert await states_of(event) == {"one": "checking_error", "two": "scored"}


async def test_a_run_that_cannot_be_told_is_nobodys_fault(
    room: EventRoom, monkeypatch: pytest.MonkeyPatch, log_records: list[Record]
) -> None:
    """A refused `training` neither ends the run nor charges the platform with it: the outcome finds the same."""
    room.submit("one")
    async with room.opened() as event:
        launch = fake(event).launch_submission

        async def launch_then_end(*arguments: Any) -> Any:
            await end_by_hand(event)
            return await launch(*arguments)

        monkeypatch.setattr(event.worker, "launch_submission", launch_then_end)
        assert (await asyncio.wait_for(attempt_once(event), PATIENCE_S)).outcome is Outcome.OK
        assert await closed(event) == [(Outcome.OK, True)]
    assert len(find(log_records, "submission.overruled")) == 1
    assert find(log_records, "store.unavailable") == []


async def test_a_start_is_not_kept_by_it(
    room: EventRoom, monkeypatch: pytest.MonkeyPatch, log_records: list[Record]
) -> None:
    """What was ended by hand between a decision and its writing, while the daemon was down, keeps no event."""
    room.submit("one")
    async with room.opened() as event:
        fail_times(monkeypatch, event, "store.confirm", error=Crash)
        with pytest.raises(Crash):
            await attempt_once(event)
        await end_by_hand(event)
    async with room.opened() as event:
        await asyncio.wait_for(recovered(event), PATIENCE_S)
        assert await closed(event) == [(Outcome.OK, True)]
        assert await states_of(event) == {"one": "checking_error"}
        assert await event.journal.unannounced() == []
    assert len(find(log_records, "submission.overruled", submission="one", attempt=1)) == 1


async def test_a_cancel_of_it_is_answered(room: EventRoom) -> None:
    """Whoever cancels what another daemon took at that moment has an answer, and the daemon goes on."""
    room.submit("one")
    async with room.opened() as event:
        waiting = await event.store.get("one")
        assert await event.store.claim() is not None
        await event.store.set_training(waiting.id)
        await event.store.set_failed(waiting.id, SubmissionState.TRAINING_ERROR, BY_HAND)
        ending = cancel_unrun(event, waiting, announcements=Announcements(event.journal))
        await asyncio.wait_for(ending, PATIENCE_S)
        assert (await event.store.get("one")).error_msg == BY_HAND
        assert await event.journal.unfinished() == []


async def test_a_retry_that_the_store_refuses_is_refused(room: EventRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """A submission that somebody else took between the look and the retry is no outage."""
    room.submit("one", bad_run())
    async with room.opened() as event:
        await attempt_once(event)
        request = await event.journal.request(RequestKind.RETRY, "one")
        monkeypatch.setattr(event.store, "requeue", refuse)
        await Requests(event, {}, announcements=Announcements(event.journal)).answer()
        answered = await event.journal.get_request(request)
        assert (answered.accepted, answered.answer) == (False, str(REFUSED))


async def test_a_claim_that_cannot_be_put_back_any_more_keeps_nobody(
    room: EventRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was claimed, not journaled, and ended by somebody else since is not put back before every other claim."""
    room.submit("one")
    async with room.opened() as event:
        fail_times(monkeypatch, event, "journal.open_attempt")
        release = event.store.release

        async def end_then_release(submission_id: int) -> None:
            await end_by_hand(event)
            monkeypatch.setattr(event.store, "release", release)
            raise StoreError("away")

        monkeypatch.setattr(event.store, "release", end_then_release)
        async with served(event):
            await until(lambda: event.store.release == release)
            room.submit("two")
            await event.store.scan()
            await until(lambda: fake(event).launches, what="the launch of another")
        assert await states_of(event) == {"one": "checking_error", "two": "scored"}


async def test_persist_repeats_nothing_that_is_refused(log_records: list[Record]) -> None:
    """A store that works and says no has been asked once, and nothing is said of an outage."""
    tries: list[int] = []

    async def write() -> None:
        tries.append(1)
        raise REFUSED

    with pytest.raises(TransitionRefusedError):
        await persist(write, "a state")
    assert len(tries) == 1
    assert log_records == []


async def test_persist_ends_where_an_outage_ends_in_a_refusal(
    monkeypatch: pytest.MonkeyPatch, log_records: list[Record]
) -> None:
    """A store that was away, and says no when it is back, is not asked for ever either."""
    hurry(monkeypatch)
    errors: list[Exception] = [StoreError("away"), StoreError("away"), REFUSED]

    async def write() -> None:
        raise errors.pop(0)

    with pytest.raises(TransitionRefusedError):
        await asyncio.wait_for(persist(write, "a state"), PATIENCE_S)
    assert len(find(log_records, "store.unavailable")) == 1
    assert len(find(log_records, "store.recovered")) == 1
