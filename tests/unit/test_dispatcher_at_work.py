"""What a daemon asks of a dispatcher while it runs: new settings, closing, a pulse, a share of what runs at once."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from rampd import clock
from rampd.dispatcher import Dispatcher
from rampd.errors import WorkerLostError
from rampd.slots import Slots
from rampd.states import SubmissionState
from rampd.testing.workers import FakeRun
from support.event import PATIENCE_S, EventRoom, good_run, hung_run, hurry, served
from support.store_room import until

if TYPE_CHECKING:
    from pathlib import Path

    from rampd.event import Event


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EventRoom:
    """Return an event that ends when nothing is left, and where nothing that fails is waited for."""
    hurry(monkeypatch)
    return EventRoom(tmp_path)


async def states(event: Event) -> dict[str, str]:
    """Return each submission's state."""
    return {one.name: one.state.value for one in await event.store.list()}


async def test_a_clock_that_is_put_back_meanwhile_lengthens_no_backoff(
    room: EventRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour back while a submission backs off: it goes on all the same, and the deadline is as it was."""
    hurry(monkeypatch, backoff_s=0.1)
    room.submit("one", FakeRun(raises={"launch_submission": [WorkerLostError("gone")]}))
    real = clock.wall
    async with room.opened() as event, served(event) as dispatcher:
        await until(lambda: bool(dispatcher._backoffs))
        monkeypatch.setattr(clock, "wall", lambda: real() - 3600)
        await until(lambda: not dispatcher._backoffs)
        await until(lambda: dispatcher.finished == 1)


async def test_new_settings_hold_for_what_starts_from_then_on(room: EventRoom) -> None:
    """More slots at once; what runs keeps its timeout, and the next has the new one."""
    room.dispatcher |= {"n_workers": 1, "hunger_policy": "sleep"}
    room.worker["timeout"] = 60
    for name in ("one", "two", "three"):
        room.submit(name, hung_run())
    async with room.opened() as event, served(event) as dispatcher:
        await until(lambda: bool(room.outside))
        room.dispatcher["n_workers"] = 2
        room.worker["timeout"] = 0.05
        dispatcher.reload(room.settings())
        await until(lambda: dispatcher.finished == 2)
        assert await states(event) == {"one": "training", "two": "training_error", "three": "training_error"}
        room.finish()
        await until(lambda: dispatcher.running == 0)
        assert (await event.store.get("one")).state is not SubmissionState.TRAINING_ERROR


async def test_a_dispatcher_that_is_closed_waits_for_what_runs(room: EventRoom) -> None:
    """However long it takes; nothing more is claimed, and a stop ends the waiting."""
    room.dispatcher |= {"n_workers": 1, "shutdown_grace": 0}
    room.submit("one", hung_run())
    room.submit("two")
    async with room.opened() as event:
        dispatcher = Dispatcher(event)
        serving = asyncio.ensure_future(dispatcher.run())
        await until(lambda: bool(room.outside))
        dispatcher.close()
        await asyncio.sleep(0.05)
        assert (serving.done(), dispatcher.is_closing) == (False, True)
        room.finish()
        await asyncio.wait_for(serving, PATIENCE_S)
        assert (await states(event))["two"] == "new"


async def test_a_stop_ends_the_patience_of_a_close(room: EventRoom) -> None:
    """What runs is put back after shutdown_grace."""
    room.dispatcher |= {"n_workers": 1, "shutdown_grace": 0}
    room.submit("one", hung_run())
    async with room.opened() as event:
        dispatcher = Dispatcher(event)
        serving = asyncio.ensure_future(dispatcher.run())
        await until(lambda: bool(room.outside))
        dispatcher.close()
        await asyncio.sleep(0.01)
        dispatcher.stop()
        await asyncio.wait_for(serving, PATIENCE_S)
        assert await states(event) == {"one": "new"}


async def test_the_pump_shows_that_it_moves(room: EventRoom) -> None:
    """Idle, with every slot taken, and after its end."""
    room.dispatcher |= {"n_workers": 1, "hunger_policy": "sleep"}
    async with room.opened() as event:
        async with served(event) as dispatcher:
            await asyncio.wait_for(dispatcher.pulse(), PATIENCE_S)
            room.submit("one", hung_run())
            await until(lambda: bool(room.outside))
            await asyncio.wait_for(dispatcher.pulse(), PATIENCE_S)
            room.finish()
        await asyncio.wait_for(dispatcher.pulse(), PATIENCE_S)


async def test_a_pump_that_stands_still_shows_nothing(room: EventRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that never comes back, a look at a hold that hangs: no proof, no ping."""
    room.dispatcher |= {"n_workers": 2, "hunger_policy": "sleep"}
    async with room.opened() as event, served(event) as dispatcher:
        stuck, go_on = asyncio.Event(), asyncio.Event()

        async def hang() -> bool:
            stuck.set()
            await go_on.wait()
            return True

        monkeypatch.setattr(dispatcher._hold, "look", hang)
        feeling = asyncio.ensure_future(dispatcher.pulse())
        await stuck.wait()
        await asyncio.wait_for(feeling, PATIENCE_S)  # that turn had begun: it is the next one that does not come
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(dispatcher.pulse(), 0.1)
        go_on.set()
        await asyncio.wait_for(dispatcher.pulse(), PATIENCE_S)


async def test_a_start_is_told(room: EventRoom) -> None:
    """Whoever listens hears of it at once, not only when the next one may start."""
    room.dispatcher |= {"n_workers": 1, "hunger_policy": "sleep"}
    room.submit("one", hung_run())
    running: list[int] = []
    async with room.opened() as event:
        dispatcher = Dispatcher(event, on_activity=lambda: running.append(dispatcher.running))
        serving = asyncio.ensure_future(dispatcher.run())
        await until(lambda: bool(room.outside))
        assert running[-1] == 1
        room.finish()
        dispatcher.stop()
        await asyncio.wait_for(serving, PATIENCE_S)
        assert running[-1] == 0


async def test_two_events_take_turns_at_one_slot(tmp_path: Path) -> None:
    """However long one's queue is, and nobody waits for an event that has nothing to run."""
    rooms = [EventRoom(tmp_path / name) for name in ("long", "short", "idle")]
    for room in rooms:
        room.root.mkdir()
        room.dispatcher |= {"n_workers": 2, "hunger_policy": "sleep"}
    for number in range(6):
        rooms[0].submit(f"long{number}", good_run(0.02))
    for number in range(2):
        rooms[1].submit(f"short{number}", good_run(0.02))
    shared = Slots(1)
    shared.take()  # nobody runs before both queue up for it
    async with AsyncExitStack() as stack:
        dispatchers = []
        for room in rooms:
            event = await stack.enter_async_context(room.opened())
            dispatchers.append(Dispatcher(event, shared=shared))
        serving = [asyncio.ensure_future(dispatcher.run()) for dispatcher in dispatchers]
        await until(lambda: len(shared._waiters) == 2, what="the two that wait")
        shared.release()
        most = 0
        while sum(dispatcher.finished for dispatcher in dispatchers) < 8:
            most = max(most, sum(dispatcher.running for dispatcher in dispatchers))
            # The short queue is done before the long one is half way: they take turns.
            if dispatchers[1].finished < 2:
                assert dispatchers[0].finished <= 4
            await asyncio.sleep(0.001)
        for dispatcher in dispatchers:
            dispatcher.stop()
        await asyncio.wait(serving, timeout=PATIENCE_S)
        assert (most, shared.taken) == (1, 0)
