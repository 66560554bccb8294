"""What the operator asks for: cancel and retry, in every state of a submission."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from rampd import clock
from rampd.announcements import Announcements
from rampd.errors import StoreError, WorkerLostError
from rampd.event import WAKE_FILE
from rampd.orders import Orders, Run
from rampd.requests import Requests
from rampd.states import Outcome, RequestKind, Step, SubmissionState
from support.event import (
    Crash,
    EventRoom,
    attempt_once,
    bad_run,
    fail_times,
    fake,
    find,
    good_run,
    hung_run,
    hurry,
    serve_out,
    served,
)
from support.store_room import until

if TYPE_CHECKING:
    from pathlib import Path

    from rampd.event import Event
    from rampd.journal import Request

    Record = dict[str, Any]


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EventRoom:
    """Return an event where nothing that fails is waited for."""
    hurry(monkeypatch)
    return EventRoom(tmp_path, dispatcher={"hunger_policy": "sleep", "shutdown_grace": 0})


async def ask(event: Event, kind: RequestKind, name: str = "one") -> Request:
    """Ask while nobody serves the event; return the request as it was answered."""
    request_id = await event.journal.request(kind, name)
    await Requests(event, {}, announcements=Announcements(event.journal)).answer()
    return await event.journal.get_request(request_id)


async def ask_running(event: Event, kind: RequestKind, name: str = "one") -> Request:
    """Ask a dispatcher that runs; wait for its answer."""
    request_id = await event.journal.request(kind, name)
    (event.settings.dispatcher.state_dir / WAKE_FILE).touch()
    for _ in range(1000):
        request = await event.journal.get_request(request_id)
        if request.answered_at is not None:
            break
        await until(lambda: True)
    return request


async def state(event: Event, name: str = "one") -> SubmissionState:
    """Return a submission's state."""
    return (await event.store.get(name)).state


async def test_a_waiting_submission_is_cancelled(room: EventRoom, log_records: list[Record]) -> None:
    """It never runs, its participant is told by whom it was ended, and there is one line and one attempt of it."""
    room.submit("one")
    async with room.opened() as event:
        request = await ask(event, RequestKind.CANCEL)
        assert (request.accepted, request.answer) == (True, "it was waiting and will not run")
        submission = await event.store.get("one")
        assert submission.state is SubmissionState.CHECKING_ERROR
        assert submission.error_msg == "Cancelled by the organizers."
        (attempt,) = await event.journal.attempts()
        assert (attempt.outcome, attempt.final, attempt.step) == (Outcome.CANCELLED, True, Step.CLOSED)
        assert fake(event).calls == []
    assert len(find(log_records, "submission.finished", outcome="cancelled", submission="one", attempt=1)) == 1
    assert len(find(log_records, "submission.cancelled", submission="one", attempt=1)) == 1


async def test_a_running_submission_is_cancelled(room: EventRoom, log_records: list[Record]) -> None:
    """Its run is stopped, and the slot is free for the next one."""
    room.dispatcher["n_workers"] = 1
    room.submit("one", hung_run())
    async with room.opened() as event, served(event) as dispatcher:
        await until(lambda: room.outside)
        request = await ask_running(event, RequestKind.CANCEL)
        assert request.accepted
        await until(lambda: dispatcher.finished == 1)
        assert await state(event) is SubmissionState.CHECKING_ERROR
        room.submit("two")
        await until(lambda: dispatcher.finished == 2)
    (finished,) = find(log_records, "submission.finished", outcome="cancelled")
    assert (finished["exit_status"], finished["state"]) == (143, "checking_error")
    assert len(find(log_records, "submission.cancelled", submission="one")) == 1


async def test_a_cancel_that_comes_too_late_is_told_so(room: EventRoom) -> None:
    """A run that has ended by itself counts, and who wants it cancelled is not promised anything else."""
    room.submit("one")
    async with room.opened() as event:
        worker = fake(event)
        worker.stands_in = "collect_results"
        async with served(event) as dispatcher:
            await worker.reached.wait()
            request = await ask_running(event, RequestKind.CANCEL)
            assert request.answer == "its run has just ended: what came of it stands, and it is not tried again"
            worker.go_on.set()
            await until(lambda: dispatcher.finished == 1)
        assert await state(event) is SubmissionState.SCORED


async def test_a_submission_that_backs_off_is_cancelled(room: EventRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that waits for its next attempt is waiting like any other."""
    hurry(monkeypatch, backoff_s=50)
    room.submit("one", good_run(raises={"setup": [WorkerLostError("gone")]}))
    async with room.opened() as event:
        await attempt_once(event)
        assert (await ask(event, RequestKind.CANCEL)).accepted
        assert [one.outcome for one in await event.journal.attempts()] == [Outcome.LOST_HOST, Outcome.CANCELLED]


async def test_what_has_ended_is_not_cancelled(room: EventRoom, log_records: list[Record]) -> None:
    """Scores stand; the refusal says what the submission is instead."""
    room.submit("one")
    async with room.opened() as event:
        await attempt_once(event)
        request = await ask(event, RequestKind.CANCEL)
        assert (request.accepted, request.answer) == (False, "it has ended already (scored)")
        assert await state(event) is SubmissionState.SCORED
    assert len(find(log_records, "request.refused", kind="cancel", submission="one", answer=request.answer)) == 1


@pytest.mark.parametrize("kind", list(RequestKind))
async def test_an_unknown_name_is_refused_with_the_nearest(
    room: EventRoom, kind: RequestKind, log_records: list[Record]
) -> None:
    """A misspelt name is shown what there is."""
    room.submit("random_forest")
    async with room.opened() as event:
        request = await ask(event, kind, "randomforest")
        assert request.accepted is False
        assert "random_forest" in (request.answer or "")
        assert await event.journal.pending_requests() == []
    assert len(find(log_records, "request.refused", kind=kind)) == 1


@pytest.mark.parametrize("run", [good_run, bad_run])
async def test_what_has_ended_is_tried_again(room: EventRoom, run: Any) -> None:
    """It joins the end of the queue without its old scores and message, and its attempts are numbered on."""
    room.submit("one", run())
    async with room.opened() as event:
        await attempt_once(event)
        room.submit("two")
        await event.store.scan()
        assert (await ask(event, RequestKind.RETRY)).accepted
        waiting = await event.store.list({SubmissionState.NEW})
        assert [submission.name for submission in waiting] == ["two", "one"]
        assert waiting[1].error_msg == ""
        assert await event.store.scores() == {}
        await attempt_once(event)
        await attempt_once(event)
        assert [one.number for one in await event.journal.attempts(waiting[1].id)] == [1, 2]


async def test_a_retry_starts_the_count_anew(room: EventRoom) -> None:
    """A submission that used up its attempts has all of them again."""
    room.worker["max_attempts"] = 2
    room.submit("one", good_run(raises={"setup": [WorkerLostError("gone")] * 4}))
    async with room.opened() as event:
        assert not (await attempt_once(event)).final
        assert (await attempt_once(event)).final
        await ask(event, RequestKind.RETRY)
        assert not (await attempt_once(event)).final
        assert (await attempt_once(event)).final
        assert await state(event) is SubmissionState.CHECKING_ERROR


async def test_a_retry_ends_a_backoff(room: EventRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """A waiting submission runs at once by the operator's word."""
    hurry(monkeypatch, backoff_s=50)
    room.submit("one", good_run(raises={"setup": [WorkerLostError("gone")]}))
    async with room.opened() as event, served(event) as dispatcher:
        await until(lambda: dispatcher._backoffs)
        request = await ask_running(event, RequestKind.RETRY)
        assert request.answer == "it is waiting already, without delay and with all its attempts"
        await until(lambda: dispatcher.finished == 1)
        assert await event.journal.backoffs() == {}


async def test_a_running_submission_is_not_tried_again(room: EventRoom, log_records: list[Record]) -> None:
    """A run that goes on is not doubled."""
    room.submit("one", hung_run())
    async with room.opened() as event, served(event):
        await until(lambda: room.outside)
        request = await ask_running(event, RequestKind.RETRY)
        assert (request.accepted, request.answer) == (False, "it is running; cancel it first, or wait for its end")
        assert len(fake(event).launches) == 1
    assert len(find(log_records, "request.refused", kind="retry")) == 1


async def test_what_was_asked_while_no_daemon_ran_comes_first(room: EventRoom) -> None:
    """A submission that was cancelled before the start does not run."""
    room.dispatcher["hunger_policy"] = "exit"
    room.submit("one")
    async with room.opened() as event:
        await event.journal.request(RequestKind.CANCEL, "one")
        assert await serve_out(event) == 0
        assert await state(event) is SubmissionState.CHECKING_ERROR
        assert fake(event).launches == []


async def test_requests_are_answered_in_their_order(room: EventRoom) -> None:
    """Cancel, then retry: the submission runs in the end."""
    room.dispatcher["hunger_policy"] = "exit"
    room.submit("one")
    async with room.opened() as event:
        for kind in (RequestKind.CANCEL, RequestKind.RETRY):
            await event.journal.request(kind, "one")
        assert await serve_out(event) == 0
        assert await state(event) is SubmissionState.SCORED
        assert [one.outcome for one in await event.journal.attempts()] == [Outcome.CANCELLED, Outcome.OK]


@pytest.mark.parametrize("write", ["journal.answer", "store.requeue", "journal.start_count_anew"])
async def test_an_answer_that_was_cut_short_is_given_again(
    room: EventRoom, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    """A request stays pending until it is answered; answered twice, it has one effect."""
    room.submit("one")
    async with room.opened() as event:
        await attempt_once(event)
        error = Crash if write == "journal.answer" else StoreError
        fail_times(monkeypatch, event, write, after=True, error=error)
        with pytest.raises(error):
            await ask(event, RequestKind.RETRY)
        request = await ask(event, RequestKind.RETRY)
        assert request.accepted
        assert await event.journal.pending_requests() == []
        assert await state(event) is SubmissionState.NEW


@pytest.mark.parametrize("kind", list(RequestKind))
async def test_an_answer_that_cannot_be_written_at_once_stays_the_answer(
    room: EventRoom, monkeypatch: pytest.MonkeyPatch, kind: RequestKind
) -> None:
    """What was done is not asked for again: a cancel would be refused as too late, a retry might run twice."""
    room.submit("one", bad_run())
    async with room.opened() as event:
        if kind is RequestKind.RETRY:
            await attempt_once(event)
        failures = fail_times(monkeypatch, event, "journal.answer", 3)
        request = await ask(event, kind)
        assert (request.accepted, len(failures)) == (True, 3)


async def test_a_cancel_that_could_not_be_journaled_is_given_again(
    room: EventRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal that is away for a moment leaves no attempt behind that nobody closes."""
    room.submit("one")
    async with room.opened() as event:
        fail_times(monkeypatch, event, "journal.decide", 2)
        assert (await ask(event, RequestKind.CANCEL)).accepted
        assert await event.journal.unfinished() == []
        assert await state(event) is SubmissionState.CHECKING_ERROR


async def test_released_ids_are_those_of_accepted_retries(room: EventRoom) -> None:
    """The dispatcher learns whose backoff is over, and of nobody else's."""
    for name in ("one", "two"):
        room.submit(name)
    async with room.opened() as event:
        ids = {submission.name: submission.id for submission in await event.store.list()}
        for submission_id in ids.values():
            await event.journal.set_backoff(submission_id, clock.wall() + 1000)
        await event.journal.request(RequestKind.RETRY, "one")
        await event.journal.request(RequestKind.CANCEL, "two")
        await event.journal.request(RequestKind.RETRY, "three")
        requests = Requests(event, {}, announcements=Announcements(event.journal))
        assert await requests.answer() == [ids["one"]]
        assert set(await event.journal.backoffs()) == {ids["two"]}


async def test_a_cancel_that_comes_late_is_obeyed_all_the_same(room: EventRoom, log_records: list[Record]) -> None:
    """An attempt that failed for the platform's reasons, and is being torn down, is not followed by another."""
    room.submit("one", good_run(raises={"collect_results": [WorkerLostError("gone")]}))
    async with room.opened() as event, served(event) as dispatcher:
        fake(event).stands_in = "teardown"
        await fake(event).reached.wait()
        request = await ask_running(event, RequestKind.CANCEL)
        assert request.accepted
        assert request.answer is not None
        assert request.answer.endswith("it is not tried again")
        fake(event).go_on.set()
        await until(lambda: dispatcher.finished == 1)
        assert await state(event) is SubmissionState.CHECKING_ERROR
        attempts = await event.journal.attempts()
        assert [one.outcome for one in attempts] == [Outcome.LOST_HOST, Outcome.CANCELLED]
    assert len(find(log_records, "submission.finished", outcome="cancelled")) == 1


async def test_what_has_just_ended_is_no_run(room: EventRoom) -> None:
    """Between the end of a run's task and its being noticed, an answer looks at the store as it is then."""
    room.submit("one")
    async with room.opened() as event:
        await attempt_once(event)
        ended = asyncio.ensure_future(asyncio.sleep(0))
        await ended
        run = Run(await event.store.get("one"), Orders(), ended)
        requests = Requests(event, {"one": run}, announcements=Announcements(event.journal))
        request_id = await event.journal.request(RequestKind.RETRY, "one")
        await requests.answer()
        assert (await event.journal.get_request(request_id)).accepted
        assert await state(event) is SubmissionState.NEW


async def test_what_lost_its_folder_is_not_tried_again(room: EventRoom) -> None:
    """It would be forgotten at once, with its scores; so the retry is refused, and says why."""
    room.submit("one")
    async with room.opened() as event:
        await attempt_once(event)
        shutil.rmtree(event.settings.ramp.submissions_dir / "one")
        request = await ask(event, RequestKind.RETRY)
        assert request.accepted is False
        assert "its folder is gone" in (request.answer or "")
        assert await state(event) is SubmissionState.SCORED
