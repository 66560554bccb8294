"""What runs next: slots, order, the hunger policy, stopping, backoffs, drains."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from rampd import clock
from rampd.dispatcher import Dispatcher
from rampd.errors import WorkerLostError, WorkerSetupError, WorkerUnavailableError
from rampd.event import WAKE_FILE
from rampd.states import Outcome, RequestKind, Step
from rampd.testing.workers import FakeRun
from support.event import (
    EventRoom,
    SlowWorker,
    fact_of,
    fail_times,
    fake,
    find,
    good_run,
    hung_run,
    hurry,
    serve_out,
    served,
    states_of,
)
from support.store_room import until

if TYPE_CHECKING:
    from rampd.event import Event

    Record = dict[str, Any]


def started(records: list[Record]) -> list[str]:
    """Return whose runs began, in order."""
    return [record["submission"] for record in find(records, "submission.started")]


def wake(event: Event) -> None:
    """Touch the file that an operator's command touches."""
    (event.settings.dispatcher.state_dir / WAKE_FILE).touch()


async def test_never_more_than_n_workers_at_once(room: EventRoom) -> None:
    """All slots are used, and no more than them."""
    for index in range(7):
        room.submit(f"s{index}", good_run(0.03))
    async with room.opened() as event:
        assert await serve_out(event) == 0
        assert fake(event).most_at_once == 2
        assert set((await states_of(event)).values()) == {"scored"}


async def test_first_come_first_served(room: EventRoom, log_records: list[Record]) -> None:
    """Submissions start in the order in which they came."""
    room.dispatcher["n_workers"] = 1
    names = ["c", "a", "b"]
    async with room.opened() as event:
        for name in names:
            room.submit(name)
            await event.store.scan()
        await serve_out(event)
    assert started(log_records) == names


async def test_exit_waits_for_what_backs_off(room: EventRoom) -> None:
    """Hunger policy exit ends only when each submission has its final state."""
    room.submit("one", good_run(raises={"setup": [WorkerLostError("gone"), WorkerUnavailableError("none free")]}))
    async with room.opened() as event:
        assert await serve_out(event) == 0
        assert await states_of(event) == {"one": "scored"}
        assert [attempt.number for attempt in await event.journal.attempts()] == [1, 2, 3]


async def test_exit_waits_for_what_settles(room: EventRoom) -> None:
    """A folder that is still being written is not left behind."""
    room.dispatcher["settle_time"] = 0.2
    folder = room.root / "events" / "iris" / "submissions" / "slow"
    folder.mkdir(parents=True)
    (folder / "estimator.py").touch()
    room.runs["slow"] = good_run()
    async with room.opened() as event:
        assert await serve_out(event) == 0
        assert await states_of(event) == {"slow": "scored"}


async def test_exit_has_status_1_where_the_event_is_held(room: EventRoom) -> None:
    """An event that could not run anything has not succeeded, though nothing waits."""
    room.runs[""] = FakeRun(raises={"check": [WorkerSetupError("no environment")] * 1000})
    async with room.opened() as event:
        assert await serve_out(event) == 1


async def test_sleep_waits_for_the_next_one(room: EventRoom) -> None:
    """Hunger policy sleep serves what comes later, and ends by `stop`."""
    room.dispatcher["hunger_policy"] = "sleep"
    async with room.opened() as event, served(event) as dispatcher:
        room.submit("late")
        await until(lambda: dispatcher.finished == 1)
        assert await states_of(event) == {"late": "scored"}


async def test_stop_drains(room: EventRoom) -> None:
    """What runs is given its time, and nothing more is claimed."""
    room.dispatcher.update(n_workers=1, hunger_policy="sleep", shutdown_grace=5)
    room.submit("running", hung_run())
    async with room.opened() as event:
        room.submit("waiting")
        await event.store.scan()
        async with served(event) as dispatcher:
            await until(lambda: room.outside)
            dispatcher.stop()
            asyncio.get_running_loop().call_later(0.05, room.finish)
        assert await states_of(event) == {"running": "scored", "waiting": "new"}
        assert dispatcher.running == 0


async def test_stop_interrupts_after_shutdown_grace(room: EventRoom) -> None:
    """What does not end in time is put back, and its attempt is closed before the dispatcher ends."""
    room.dispatcher.update(hunger_policy="sleep", shutdown_grace=0.05)
    room.submit("one", hung_run())
    async with room.opened() as event:
        async with served(event):
            await until(lambda: room.outside)
        assert await states_of(event) == {"one": "new"}
        (attempt,) = await event.journal.attempts()
        assert (attempt.outcome, attempt.step) == (Outcome.INTERRUPTED, Step.CLOSED)
    assert room.outside == {}


async def test_stop_parks_what_can_be_resumed(room: EventRoom, log_records: list[Record]) -> None:
    """A resumable run goes on, the next dispatcher takes it over, and gives it its slot before anybody else."""
    room.resumable = True
    room.dispatcher.update(n_workers=1, shutdown_grace=0)
    room.submit("one", hung_run())
    async with room.opened() as event:
        room.submit("two")
        await event.store.scan()
        async with served(event):
            await until(lambda: room.outside)
        assert await states_of(event) == {"one": "training", "two": "new"}
    async with room.opened() as event:
        async with served(event) as dispatcher:
            await until(lambda: find(log_records, "submission.resumed"))
            await asyncio.sleep(0.05)
            assert await states_of(event) == {"one": "training", "two": "new"}
            room.finish()
            await until(lambda: dispatcher.finished == 2)
        assert fake(event).most_at_once == 1
    assert started(log_records) == ["one", "two"]


async def test_a_backoff_is_respected(
    room: EventRoom, monkeypatch: pytest.MonkeyPatch, log_records: list[Record]
) -> None:
    """A submission that backs off lets the others pass, and runs as soon as its time is over."""
    hurry(monkeypatch, backoff_s=1.0)
    room.dispatcher["n_workers"] = 1
    room.submit("one", good_run(raises={"setup": [WorkerLostError("gone")]}))
    async with room.opened() as event:
        room.submit("two")
        await event.store.scan()
        begun = clock.boottime()
        await serve_out(event)
        assert 1.0 <= clock.boottime() - begun < 5
        assert await event.journal.backoffs() == {}
    assert started(log_records) == ["two", "one"]


async def test_a_backoff_is_respected_where_slots_are_free(room: EventRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot that waits for work does not take what was put back a moment ago."""
    hurry(monkeypatch, backoff_s=0.15)
    room.submit("one", good_run(raises={"setup": [WorkerLostError("gone")]}))
    async with room.opened() as event:
        await serve_out(event)
        first, second = await event.journal.attempts()
        assert second.opened_at - first.opened_at >= 0.15


async def test_an_attempt_ends_before_the_next_begins(room: EventRoom) -> None:
    """While an attempt is being torn down, its submission is not run again in another slot."""
    room.submit("one", good_run(raises={"wait": [WorkerUnavailableError("taken away")]}))
    async with room.opened() as event, served(event) as dispatcher:
        worker = fake(event)
        worker.stands_in = "teardown"
        await worker.reached.wait()
        await asyncio.sleep(0.1)
        assert len(await event.journal.attempts()) == 1
        worker.go_on.set()
        await until(lambda: dispatcher.finished == 1)
        assert worker.most_at_once == 1


async def test_a_backoff_outlives_the_daemon(room: EventRoom) -> None:
    """A restart is no way around a backoff."""
    room.submit("one")
    async with room.opened() as event:
        (submission,) = await event.store.list()
        until_wall = clock.wall() + 0.15
        await event.journal.set_backoff(submission.id, until_wall)
        await serve_out(event)
        (attempt,) = await event.journal.attempts()
        assert attempt.opened_at >= until_wall


@pytest.mark.parametrize("why", ["cancelled", "drained", "held"])
async def test_a_backoff_that_is_over_keeps_nobody_busy(
    room: EventRoom, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """A submission that could run and may not costs no look after look."""
    hurry(monkeypatch, backoff_s=0.1, check_s=1000)
    room.dispatcher["hunger_policy"] = "sleep"
    room.submit("one", good_run(raises={"setup": [WorkerLostError("gone")]}))
    async with room.opened() as event, served(event) as dispatcher:
        await until(lambda: dispatcher._backoffs)
        if why == "cancelled":
            await event.journal.request(RequestKind.CANCEL, "one")
        elif why == "drained":
            await event.journal.put("drained", {"since": 0})
        else:
            room.runs[""] = FakeRun(raises={"check": [WorkerSetupError("no environment")]})
        wake(event)
        await asyncio.sleep(0.15)
        looks: list[float | None] = []
        look = dispatcher._until_next_look_s

        def counted() -> float | None:
            looks.append(look())
            return looks[-1]

        monkeypatch.setattr(dispatcher, "_until_next_look_s", counted)
        await asyncio.sleep(0.1)
        assert len(looks) < 3


async def test_a_drained_event_claims_nothing(room: EventRoom, log_records: list[Record]) -> None:
    """By the operator's word nothing is claimed, until it is taken back while the daemon runs."""
    room.submit("one")
    async with room.opened() as event:
        await event.journal.put("drained", {"since": 0})
        async with served(event) as dispatcher:
            await asyncio.sleep(0.05)
            assert await states_of(event) == {"one": "new"}
            await event.journal.delete("drained")
            wake(event)
            await until(lambda: dispatcher.finished == 1)
    assert [one["event"] for one in log_records if one["event"].startswith("event.")] == [
        "event.drained",
        "event.resumed",
    ]


async def test_a_drain_lets_end_what_runs(room: EventRoom, log_records: list[Record]) -> None:
    """Draining stops nothing."""
    room.dispatcher["n_workers"] = 1
    room.submit("one", hung_run())
    async with room.opened() as event:
        room.submit("two")
        await event.store.scan()
        async with served(event) as dispatcher:
            await until(lambda: room.outside)
            await event.journal.put("drained", {"since": 0})
            wake(event)
            await until(lambda: find(log_records, "event.drained"))
            room.finish()
            await until(lambda: dispatcher.finished == 1)
            await asyncio.sleep(0.05)
            assert await states_of(event) == {"one": "scored", "two": "new"}


async def test_lack_of_capacity_is_told(room: EventRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why nothing runs stands in the journal while it is so, with its beginning."""
    hurry(monkeypatch, backoff_s=0.2)
    room.submit("one", good_run(raises={"setup": [WorkerUnavailableError("none free")]}))
    async with room.opened() as event:
        async with served(event) as dispatcher:
            fact = await fact_of(event, "no_capacity")
            assert abs(fact["next_try"] - fact["since"]) <= 0.2
            await until(lambda: dispatcher.finished == 1)
        assert await event.journal.get("no_capacity") is None


async def test_records_of_a_run_carry_its_names(room: EventRoom, log_records: list[Record]) -> None:
    """Every record of an attempt can be found by event, submission and attempt."""
    room.submit("one")
    async with room.opened() as event:
        await serve_out(event)
    names = {"event_name": "iris", "submission": "one", "attempt": 1, "worker_type": "fake"}
    for kind in ("submission.started", "submission.scored", "submission.finished"):
        assert len(find(log_records, kind, **names)) == 1


async def test_lines_are_journaled_before_the_end(room: EventRoom) -> None:
    """A dispatcher that ends as it should leaves no line to be repeated."""
    room.submit("one")
    async with room.opened() as event:
        await serve_out(event)
        assert await event.journal.unannounced() == []


async def test_what_nobody_holds_is_reclaimed_while_the_daemon_runs(
    room: EventRoom, monkeypatch: pytest.MonkeyPatch, log_records: list[Record]
) -> None:
    """A worker that asks for it has what was lost ended every interval; what runs is left alone."""
    room.dispatcher["hunger_policy"] = "sleep"
    monkeypatch.setattr(SlowWorker, "reclaim_interval_s", 0.02)
    room.submit("one", hung_run())
    async with room.opened() as event, served(event) as dispatcher:
        await until(lambda: dispatcher.running == 1, what="the run")
        await until(lambda: len(room.outside) == 1, what="the launch")
        (held,) = room.outside
        room.outside["lost"] = asyncio.get_running_loop().create_future()
        await until(lambda: bool(find(log_records, "worker.reclaimed", what="lost")), what="the reclaim")
        assert list(room.outside) == [held]
        room.finish()


@pytest.mark.parametrize(
    ("error", "said"), [(WorkerLostError, "worker.lost"), (OSError, "lifecycle.failed"), (KeyError, "lifecycle.failed")]
)
async def test_a_failing_reclaim_is_tried_again(
    room: EventRoom,
    monkeypatch: pytest.MonkeyPatch,
    log_records: list[Record],
    error: type[Exception],
    said: str,
) -> None:
    """A cloud that does not answer for a while stops nothing; a worker that stumbles neither."""
    room.dispatcher["hunger_policy"] = "sleep"
    monkeypatch.setattr(SlowWorker, "reclaim_interval_s", 0.02)
    async with room.opened() as event, served(event):
        failures = fail_times(monkeypatch, event, "worker.reclaim", 2, error=error)
        await until(lambda: len(failures) == 2, what="two failures")
        room.outside["lost"] = asyncio.get_running_loop().create_future()
        await until(lambda: not room.outside, what="the reclaim")
    assert len(find(log_records, said)) == 2


async def test_a_clock_that_was_put_back_lengthens_no_backoff(room: EventRoom) -> None:
    """A backoff that ends in a year was set when the clock was wrong: nobody waits for it."""
    room.submit("one")
    async with room.opened() as event:
        (submission,) = await event.store.list()
        await event.journal.set_backoff(submission.id, clock.wall() + 365 * 86400)
        assert await serve_out(event) == 0
        assert await states_of(event) == {"one": "scored"}


async def test_a_backoff_that_begins_while_a_claim_waits_is_respected(room: EventRoom) -> None:
    """A run that ends while the operator is answered has its backoff by the time the claim goes on."""
    room.submit("one")
    async with room.opened() as event:
        dispatcher = Dispatcher(event)
        (submission,) = await event.store.list()
        async with dispatcher._claiming:
            claiming = asyncio.ensure_future(dispatcher._claim_and_start())
            await asyncio.sleep(0)
            dispatcher._backoffs.set(submission.id, 50)
        assert await claiming is None
        assert await states_of(event) == {"one": "new"}
