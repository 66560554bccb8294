"""A held event: nothing starts, nobody is blamed, and it runs again by itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from rampd import clock
from rampd.announcements import Announcements
from rampd.errors import WorkerLostError, WorkerSetupError
from rampd.hold import Hold
from rampd.requests import Requests
from rampd.states import Outcome, RequestKind, Step, SubmissionState
from rampd.systemd import Notifier, watch_over
from rampd.testing.workers import FakeRun
from support.event import (
    PATIENCE_S,
    EventRoom,
    begin,
    fact_of,
    fail_times,
    fake,
    find,
    good_run,
    hung_run,
    hurry,
    recovered,
    serve_out,
    served,
)
from support.store_room import until

if TYPE_CHECKING:
    from pathlib import Path

    from rampd.event import Event

    Record = dict[str, Any]

MISSING = "no environment iris"


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EventRoom:
    """Return an event where a hold is looked at again at once."""
    hurry(monkeypatch, check_s=0.02)
    return EventRoom(tmp_path)


def missing(room: EventRoom, times: int = 10_000, what: str = MISSING) -> None:
    """Have the environment be missing for so many looks."""
    room.runs[""] = FakeRun(raises={"check": [WorkerSetupError(what, ["base", "irsi"])] * times})


def hold_of(event: Event) -> Hold:
    """Return a hold of its own."""
    return Hold(event, announcements=Announcements(event.journal))


async def test_a_held_event_starts_nothing(room: EventRoom, log_records: list[Record]) -> None:
    """Submissions stay new, without an attempt, for as long as the environment is missing."""
    missing(room)
    room.submit("one")
    async with room.opened() as event:
        async with served(event):
            await until(lambda: len(fake(event).calls) > 5)
        assert (await event.store.get("one")).state is SubmissionState.NEW
        assert await event.journal.attempts() == []
        assert {step for step, _ in fake(event).calls} == {"check"}
    assert not find(log_records, "submission.retried")


async def test_a_held_event_is_said_once(room: EventRoom, log_records: list[Record]) -> None:
    """However often it is looked at, one record names what is missing and what there is instead."""
    missing(room)
    room.submit("one")
    async with room.opened() as event, served(event):
        await until(lambda: len(fake(event).calls) > 3)
    (held,) = find(log_records, "event.held")
    assert held["missing"] == MISSING
    assert held["existing"] == ["base", "irsi"]
    assert (held["event_name"], held["timeout_s"]) == ("iris", None)


async def test_another_cause_is_said_as_well(room: EventRoom, log_records: list[Record]) -> None:
    """What is mended half-way shows what is missing next; the hold began with the first cause."""
    async with room.opened() as event:
        hold = hold_of(event)
        await hold.set(WorkerSetupError("no environment"))
        first = await event.journal.get("held")
        await hold.set(WorkerSetupError("no ramp-test"))
        second = await event.journal.get("held")
    assert [record["missing"] for record in find(log_records, "event.held")] == ["no environment", "no ramp-test"]
    assert first["since"] == second["since"]
    assert second["missing"] == "no ramp-test"


async def test_it_runs_when_the_environment_appears(room: EventRoom, log_records: list[Record]) -> None:
    """The event is released by itself, and serves what waited."""
    missing(room, times=3)
    room.submit("one")
    async with room.opened() as event:
        assert await serve_out(event) == 0
        assert (await event.store.get("one")).state is SubmissionState.SCORED
        assert await event.journal.get("held") is None
    (released,) = find(log_records, "event.released")
    assert released["held_s"] >= 0.02
    assert len(find(log_records, "event.held")) == 1


async def test_an_attempt_may_find_it_out(room: EventRoom, log_records: list[Record]) -> None:
    """An environment that goes away between the look and the run holds the event; the attempt costs nothing."""
    room.worker["max_attempts"] = 1
    room.submit("one", good_run(raises={"setup": [WorkerSetupError(MISSING)]}))
    async with room.opened() as event:
        assert await serve_out(event) == 0
        attempts = await event.journal.attempts()
        assert [attempt.outcome for attempt in attempts] == [Outcome.INTERRUPTED, Outcome.OK]
    assert len(find(log_records, "event.held", missing=MISSING)) == 1
    assert len(find(log_records, "submission.retried", counted=False)) == 1
    assert len(find(log_records, "event.released")) == 1


async def test_the_fact_is_for_people(room: EventRoom) -> None:
    """What is missing, what there is, since when, and when it is looked for again stand in the journal."""
    missing(room)
    room.submit("one")
    async with room.opened() as event, served(event):
        fact = await fact_of(event, "held")
        assert (fact["missing"], fact["existing"]) == (MISSING, ["base", "irsi"])
        assert fact["since"] <= clock.wall() <= fact["next_try"] + 1


async def test_a_fact_of_the_last_daemon_is_forgotten(room: EventRoom) -> None:
    """A hold is found out anew at each start."""
    async with room.opened() as event:
        await event.journal.put("held", {"missing": "something"})
        assert await serve_out(event) == 0
        assert await event.journal.get("held") is None


async def test_the_hold_stands_without_its_fact(room: EventRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal that is away takes the fact, not the hold, nor the release."""
    missing(room, times=1)
    async with room.opened() as event:
        hold = hold_of(event)
        fail_times(monkeypatch, event, "journal.put")
        assert not await hold.look()
        assert hold.is_on
        fail_times(monkeypatch, event, "journal.delete")
        await asyncio.sleep(0.02)
        assert await hold.look()
        assert not hold.is_on


async def test_it_is_looked_at_no_more_often_than_said(room: EventRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever wakes the dispatcher up, a look at the environment has its interval."""
    hurry(monkeypatch, check_s=1000)
    missing(room)
    async with room.opened() as event:
        hold = hold_of(event)
        for _ in range(5):
            assert not await hold.look()
        assert len(fake(event).calls) == 1


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (WorkerLostError("the cloud does not answer"), "the cloud does not answer"),
        (RuntimeError("a bug"), "RuntimeError: a bug"),
    ],
)
async def test_a_look_that_fails_holds_the_event(
    room: EventRoom, log_records: list[Record], error: Exception, told: str
) -> None:
    """What runs goes on, nothing is claimed, and it is looked again: a plug-in's bad moment is not the event's end."""
    room.dispatcher |= {"hunger_policy": "sleep", "n_workers": 2}
    room.submit("long", hung_run())
    async with room.opened() as event, served(event) as dispatcher:
        worker = fake(event)
        await until(lambda: worker.launches)
        room.runs[""] = FakeRun(raises={"check": [error] * 3})
        room.submit("one")
        await until(lambda: (dispatcher.finished, dispatcher.running) == (1, 1), what="one end")
        room.finish()
    (held,) = find(log_records, "event.held")
    assert held["missing"] == f"the worker cannot look whether submissions can run: {told}"
    assert len(find(log_records, "event.released")) == 1


async def test_hold_timeout_ends_what_waits(room: EventRoom, log_records: list[Record]) -> None:
    """Held for too long, waiting submissions end as the platform's failure, each with one attempt and one line."""
    missing(room)
    room.dispatcher["hold_timeout"] = 0.1
    for name in ("one", "two"):
        room.submit(name)
    async with room.opened() as event:
        assert await serve_out(event) == 1
        for name in ("one", "two"):
            submission = await event.store.get(name)
            assert submission.state is SubmissionState.CHECKING_ERROR
            assert submission.error_msg
            assert MISSING not in submission.error_msg
            (attempt,) = await event.journal.attempts(submission.id)
            assert (attempt.outcome, attempt.final, attempt.step) == (Outcome.PLATFORM_ERROR, True, Step.CLOSED)
    finished = find(log_records, "submission.finished", outcome="platform_error", exit_status=None)
    assert {record["submission"] for record in finished} == {"one", "two"}
    assert all(record["reason"].startswith(f"held for 0.1 s: {MISSING}") for record in finished)
    assert all(record["queued_s"] >= 0.1 for record in finished)


class Pings(Notifier):
    """A watchdog's pings, each as how many submissions had ended by then."""

    def __init__(self, ends: list[Record], watchdog_s: float) -> None:
        super().__init__(watchdog_s=watchdog_s)
        self.ends = ends
        self.seen: list[int] = []

    def ping(self) -> None:
        """Note it."""
        self.seen.append(sum(record["event"] == "submission.finished" for record in self.ends))


async def test_ending_thousands_does_not_pass_for_standing_still(room: EventRoom, log_records: list[Record]) -> None:
    """The watchdog hears of the pump all the while, and a stop need not wait for the last of the queue."""
    missing(room)
    room.dispatcher["hold_timeout"] = 0.01
    for number in range(2000):
        room.submit(f"s{number}")
    pings = Pings(log_records, watchdog_s=0.03)
    async with room.opened() as event:
        async with served(event) as dispatcher:
            watching = asyncio.ensure_future(watch_over(pings, dispatcher.pulse))
            # Without a beat there is no ping between the first end and the last.
            await until(lambda: len({ends for ends in pings.seen if 0 < ends < 1000}) > 20, what="a living pump")
            watching.cancel()
        counts = await event.store.counts()
        assert counts[SubmissionState.NEW] > 0
        assert await event.journal.unfinished() == []


async def test_a_store_that_is_away_while_they_end_does_not_pass_for_standing_still(
    room: EventRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An end that waits for the database keeps nobody from anything, and costs no daemon."""
    missing(room)
    room.dispatcher["hold_timeout"] = 0.01
    room.submit("one")
    async with room.opened() as event:
        failures = fail_times(monkeypatch, event, "store.set_failed", 50)
        async with served(event) as dispatcher:
            await until(lambda: failures)
            for _ in range(5):
                await asyncio.wait_for(dispatcher.pulse(), PATIENCE_S)
            assert len(failures) < 50
            await until(lambda: len(failures) == 50)
        assert (await event.store.get("one")).state is SubmissionState.CHECKING_ERROR


async def test_hold_timeout_counts_from_the_beginning_of_the_hold(room: EventRoom) -> None:
    """Before its time is over nothing that waits is ended."""
    missing(room)
    room.dispatcher["hold_timeout"] = 1000.0
    room.submit("one")
    async with room.opened() as event:
        async with served(event):
            await until(lambda: len(fake(event).calls) > 3)
        assert (await event.store.get("one")).state is SubmissionState.NEW


async def test_hold_timeout_ends_nobody_whose_attempt_has_not_ended(room: EventRoom, log_records: list[Record]) -> None:
    """What was put back while its run is still torn down waits for that: a second attempt beside it is never opened."""
    room.dispatcher |= {"hold_timeout": 0.01, "n_workers": 2}
    room.submit("one", good_run(raises={"wait": [WorkerLostError("gone")]}))
    async with room.opened() as event:
        worker = fake(event)
        worker.stands_in = "teardown"
        serving = asyncio.ensure_future(serve_out(event))
        await asyncio.wait_for(worker.reached.wait(), PATIENCE_S)
        missing(room)
        event.store.changed.set()
        looks = len(worker.calls)
        await until(lambda: len(worker.calls) > looks + 3)
        assert (await event.store.get("one")).state is SubmissionState.NEW
        worker.go_on.set()
        assert await serving == 1
        attempts = [(one.outcome, one.final) for one in await event.journal.attempts()]
    assert attempts == [(Outcome.LOST_HOST, False), (Outcome.PLATFORM_ERROR, True)]
    ends = [one["event"] for one in log_records if one["event"] in ("submission.retried", "submission.finished")]
    assert ends == ["submission.retried", "submission.finished"]


async def test_a_journal_that_is_away_ends_nobody_twice(room: EventRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """An end that cannot be journaled at once leaves no attempt open that a restart would stumble over."""
    missing(room)
    room.dispatcher["hold_timeout"] = 0.05
    room.submit("one")
    async with room.opened() as event:
        fail_times(monkeypatch, event, "journal.decide", 2)
        assert await serve_out(event) == 1
        assert [attempt.step for attempt in await event.journal.attempts()] == [Step.CLOSED]


async def test_an_end_that_was_cut_short_is_made_good(room: EventRoom) -> None:
    """A daemon that was killed between opening and deciding such an attempt has lost nothing."""
    room.submit("one")
    async with room.opened() as event:
        submission, _ = await begin(event)
        await event.store.release(submission.id)
        await recovered(event)
        assert (await event.store.get("one")).state is SubmissionState.NEW
        assert await event.journal.unfinished() == []


async def test_nobody_is_ended_twice(room: EventRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the operator cancels while a hold's timeout ends everybody has one end."""
    missing(room)
    room.dispatcher["hold_timeout"] = 0.01
    room.submit("one")
    async with room.opened() as event:
        hold = hold_of(event)
        listed = event.store.list

        async def list_then_cancel(*arguments: Any) -> Any:
            found = await listed(*arguments)
            await event.journal.request(RequestKind.CANCEL, "one")
            await Requests(event, {}, announcements=Announcements(event.journal)).answer()
            return found

        assert not await hold.look()
        await asyncio.sleep(0.05)
        monkeypatch.setattr(event.store, "list", list_then_cancel)
        assert not await hold.look()
        assert [attempt.outcome for attempt in await event.journal.attempts()] == [Outcome.CANCELLED]
