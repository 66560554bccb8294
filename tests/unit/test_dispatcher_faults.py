"""A dispatcher whose store, journal or tasks fail, and what the next one finds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from rampd import clock
from rampd.dispatcher import Dispatcher
from rampd.errors import JournalCorruptError
from rampd.event import WAKE_FILE
from rampd.states import Outcome, RequestKind, Step, SubmissionState
from support.event import (
    PATIENCE_S,
    Crash,
    EventRoom,
    attempt_once,
    fail_times,
    fake,
    find,
    good_run,
    hung_run,
    recovered,
    serve_out,
    states_of,
)
from support.store_room import until

if TYPE_CHECKING:
    Record = dict[str, Any]


async def test_a_store_that_is_away_is_said_once(
    room: EventRoom, monkeypatch: pytest.MonkeyPatch, log_records: list[Record]
) -> None:
    """Claiming goes on when the store works again: one record at each end, however often it failed."""
    room.submit("one")
    async with room.opened() as event:
        failures = fail_times(monkeypatch, event, "store.claim", 4)
        assert await serve_out(event) == 0
        assert len(failures) == 4
        assert await states_of(event) == {"one": "scored"}
    (unavailable,) = find(log_records, "store.unavailable")
    assert unavailable["delay_s"] == 0.02
    assert len(find(log_records, "store.recovered")) == 1


@pytest.mark.parametrize("step", ["journal.unfinished", "store.get", "store.release_unheld"])
@pytest.mark.parametrize("after", [False, True])
async def test_a_store_that_goes_away_at_the_start_is_waited_for(
    room: EventRoom, monkeypatch: pytest.MonkeyPatch, step: str, after: bool
) -> None:
    """What the last daemon left is taken up when the store is there again, and no daemon ends for it."""
    room.submit("one")
    async with room.opened() as event:
        fail_times(monkeypatch, event, "worker.wait", error=Crash)
        with pytest.raises(Crash):
            await attempt_once(event)
    async with room.opened() as event:
        failures = fail_times(monkeypatch, event, step, 3, after=after)
        assert await serve_out(event) == 0
        assert len(failures) == 3
        assert await states_of(event) == {"one": "scored"}
        outcomes = [(one.outcome, one.final) for one in await event.journal.attempts()]
        assert outcomes == [(Outcome.INTERRUPTED, False), (Outcome.OK, True)]


async def test_a_claim_that_cannot_be_journaled_is_put_back(room: EventRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """No submission stays claimed without an attempt."""
    room.submit("one")
    async with room.opened() as event:
        fail_times(monkeypatch, event, "journal.open_attempt", 2)
        assert await serve_out(event) == 0
        assert await states_of(event) == {"one": "scored"}
        assert [attempt.number for attempt in await event.journal.attempts()] == [1]


async def test_a_claim_that_can_neither_be_journaled_nor_put_back_is_put_back_later(
    room: EventRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full for both costs time, not the submission: the event does not end before it has run."""
    room.submit("one")
    async with room.opened() as event:
        fail_times(monkeypatch, event, "journal.open_attempt", 1)
        fail_times(monkeypatch, event, "store.release", 3)
        assert await serve_out(event) == 0
        assert await states_of(event) == {"one": "scored"}


async def test_a_journal_that_fails_once_leaves_no_attempt_open(
    room: EventRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt that was opened is run, though its backoff could not be cleared: none is left open."""
    room.submit("one")
    async with room.opened() as event:
        (submission,) = await event.store.list()
        await event.journal.set_backoff(submission.id, clock.wall() - 1)
        fail_times(monkeypatch, event, "journal.clear_backoff")
        assert await serve_out(event) == 0
        assert await event.journal.unfinished() == []


async def test_a_bug_in_one_task_costs_the_others_nothing(
    room: EventRoom, monkeypatch: pytest.MonkeyPatch, log_records: list[Record]
) -> None:
    """The slot is given back, the bug is reported, and the next start finds the attempt."""
    room.dispatcher["n_workers"] = 1
    room.submit("one")
    async with room.opened() as event:
        fail_times(monkeypatch, event, "journal.decide", error=KeyError)
        room.submit("two")
        await event.store.scan()
        await serve_out(event)
        assert await states_of(event) == {"one": "training", "two": "scored"}
    assert len(find(log_records, "lifecycle.failed", submission="one")) == 1
    async with room.opened() as event:
        await serve_out(event)
        assert await states_of(event) == {"one": "scored", "two": "scored"}


async def test_what_a_crash_left_is_served_first(room: EventRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted submission keeps its place before those that came after it."""
    room.dispatcher["n_workers"] = 1
    room.submit("one", good_run(0.01))
    async with room.opened() as event:
        fail_times(monkeypatch, event, "worker.wait", error=Crash)
        with pytest.raises(Crash):
            await attempt_once(event)
    room.submit("two")
    async with room.opened() as event:
        await serve_out(event)
        done = await event.store.list({SubmissionState.SCORED})
        assert [submission.name for submission in sorted(done, key=lambda one: one.state_at)] == ["one", "two"]


async def test_a_dispatcher_that_is_cancelled_leaves_nothing_running(room: EventRoom) -> None:
    """A daemon that exits at once ends its tasks; the next start puts back what they held."""
    room.submit("one", hung_run())
    async with room.opened() as event:
        serving = asyncio.ensure_future(Dispatcher(event).run())
        await until(lambda: room.outside)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        (attempt,) = await event.journal.unfinished()
        assert attempt.step is Step.LAUNCHED


async def test_a_start_that_cannot_go_on_can_be_stopped(
    room: EventRoom, monkeypatch: pytest.MonkeyPatch, log_records: list[Record]
) -> None:
    """While the last daemon's outcome cannot be written, a stop ends the daemon; the next start writes it."""
    room.submit("one")
    async with room.opened() as event:
        fail_times(monkeypatch, event, "journal.close", error=Crash)
        with pytest.raises(Crash):
            await attempt_once(event)
    async with room.opened() as event:
        with monkeypatch.context() as patch:
            failures = fail_times(patch, event, "journal.close", 1_000_000)
            dispatcher = Dispatcher(event)
            serving = asyncio.ensure_future(dispatcher.run())
            await until(lambda: len(failures) > 2)
            dispatcher.stop()
            assert await asyncio.wait_for(serving, PATIENCE_S) == 0
            assert not dispatcher.ready.is_set()
    async with room.opened() as event:
        await serve_out(event)
        assert [(one.step, one.outcome) for one in await event.journal.attempts()] == [(Step.CLOSED, Outcome.OK)]


async def test_a_damaged_store_is_named(room: EventRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends a dispatcher is what its daemon says, not that some task of its had some error."""
    room.submit("one")
    async with room.opened() as event:
        fail_times(monkeypatch, event, "store.claim", error=JournalCorruptError)
        with pytest.raises(JournalCorruptError, match="the disk is full"):
            await serve_out(event)


async def test_a_cancel_that_waits_for_the_store_keeps_the_daemon_neither_from_moving_nor_from_stopping(
    room: EventRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watchdog hears of the pump all the while, and a stop waits for it no longer than for a run."""
    monkeypatch.setattr("rampd.dispatcher._INTERRUPTION_S", 0.2)
    room.dispatcher |= {"hunger_policy": "sleep", "n_workers": 1, "shutdown_grace": 0.05}
    room.submit("long", hung_run())
    async with room.opened() as event:
        dispatcher = Dispatcher(event)
        serving = asyncio.ensure_future(dispatcher.run())
        await until(lambda: fake(event).launches)
        failures = fail_times(monkeypatch, event, "store.set_failed", 1_000_000)
        request = await event.journal.request(RequestKind.CANCEL, "other")
        room.submit("other")
        await event.store.scan()
        (event.settings.dispatcher.state_dir / WAKE_FILE).touch()
        await until(lambda: failures)
        dispatcher._slots.resize(2)  # the pump wants to claim, and cannot before the cancel is through
        for _ in range(5):
            await asyncio.wait_for(dispatcher.pulse(), PATIENCE_S)
        dispatcher.stop()
        assert await asyncio.wait_for(serving, PATIENCE_S) == 0
        assert (await event.journal.get_request(request)).accepted is None
    async with room.opened() as event:
        await asyncio.wait_for(recovered(event), PATIENCE_S)
        assert await states_of(event) == {"long": "new", "other": "checking_error"}
