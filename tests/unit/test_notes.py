"""What the dispatcher tells people in the journal: true while it stands there, and gone when it is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rampd.errors import WorkerUnavailableError
from rampd.event import WAKE_FILE
from rampd.states import RequestKind
from support.event import EventRoom, fact_of, good_run, hurry, served
from support.store_room import until

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EventRoom:
    """Return an event that is served until it is told to stop."""
    hurry(monkeypatch)
    return EventRoom(tmp_path, dispatcher={"hunger_policy": "sleep"})


async def test_what_a_killed_daemon_told_is_taken_back(room: EventRoom) -> None:
    """It had no time to do so itself, and nobody else would: status would say it for as long as nothing happens."""
    async with room.opened() as event:
        await event.journal.put("no_capacity", {"since": 1.0, "next_try": 2.0})
        await event.journal.put("settling", {"since": 1.0, "count": 3})
        async with served(event):
            assert {"no_capacity", "settling"}.isdisjoint(await event.journal.facts())


async def test_a_cancelled_submission_lacks_no_capacity(room: EventRoom) -> None:
    """With the last one that waited for something to run on, the fact goes as well."""
    room.submit("one", good_run(raises={"setup": [WorkerUnavailableError("none free")] * 10_000}))
    async with room.opened() as event, served(event) as dispatcher:
        await fact_of(event, "no_capacity")
        await event.journal.request(RequestKind.CANCEL, "one")
        (event.settings.dispatcher.state_dir / WAKE_FILE).touch()
        await until(lambda: not dispatcher._backoffs and not dispatcher.running)
        for _ in range(1000):
            if (await event.journal.get("no_capacity")) is None:
                break
        else:
            pytest.fail("it still stands there")
        assert (await event.store.get("one")).state.is_final
