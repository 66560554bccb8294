from __future__ import annotations

from typing import TYPE_CHECKING

from rampd.operations.status import look_at_event
from rampd.workers.conda import CondaAllocation
from support.event import EventRoom, begin

if TYPE_CHECKING:
    from pathlib import Path


async def test_where_a_submission_runs(tmp_path: Path) -> None:
    """While an attempt lasts, its place is shown by the names of the log stream; before and after, none is."""
    room = EventRoom(tmp_path)
    room.submit("one")
    async with room.opened() as event:
        settings = event.settings
        assert (await look_at_event(settings)).submissions[0].where == {}
        submission = await event.store.claim()
        assert submission is not None
        attempt = await event.journal.open_attempt(submission, "conda")
        allocation = CondaAllocation(attempt_id=attempt.id, attempt_dir="x", prefix="x", pid=42)
        await event.journal.record_allocation(attempt.id, allocation.model_dump_json())
        await event.journal.record_launch(attempt.id, allocation.model_dump_json())
        assert (await look_at_event(settings)).submissions[0].where == {"pid": 42}


async def test_a_place_that_nobody_can_read(tmp_path: Path) -> None:
    """The allocation of a plug-in that is gone, or of another version of it, is no reason to show nothing at all."""
    room = EventRoom(tmp_path)
    room.submit("one")
    async with room.opened() as event:
        _, attempt = await begin(event)
        await event.journal.record_allocation(attempt.id, '{"unheard": "of"}')
        assert attempt.worker_type == "fake"
        assert (await look_at_event(event.settings)).submissions[0].where == {}
        room.submit("two")
        await event.store.scan()
        second = await event.store.claim()
        assert second is not None
        other = await event.journal.open_attempt(second, "conda")
        await event.journal.record_allocation(other.id, '{"unheard": "of"}')
        assert [one.where for one in (await look_at_event(event.settings)).submissions] == [{}, {}]
