from __future__ import annotations

import os
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from rampd.database import Database
from rampd.errors import UnknownSubmissionError
from rampd.operations.status import look_at_event, states_of
from rampd.state_lock import StateLock
from rampd.states import SubmissionState
from rampd.workers.conda import CondaAllocation
from support.event import EventRoom, begin

if TYPE_CHECKING:
    from contextlib import AsyncExitStack
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


async def test_what_an_earlier_daemon_left_is_not_the_present_ones(tmp_path: Path) -> None:
    """Whoever holds the event without a word of its own (`rampctl run`, a daemon that starts) is shown by its pid."""
    async with EventRoom(tmp_path).opened() as event:
        settings = event.settings
        await event.journal.put("daemon", {"pid": 1, "run": "earlier", "n_workers": 3})
        await event.journal.put("held", {"missing": "no iris", "since": 1.0, "next_try": 2.0})
        await event.journal.put("drained", {"since": 1.0})
    with StateLock(settings.dispatcher.state_dir):
        found = await look_at_event(settings)
    assert found.daemon == {"pid": os.getpid()}
    assert found.held is None
    assert found.drained == {"since": 1.0}


async def test_a_daemon_introduces_itself(tmp_path: Path) -> None:
    """What it left in the journal is shown while it holds the event."""
    introduced = {"pid": os.getpid(), "run": "present", "n_workers": 3}
    async with EventRoom(tmp_path).opened() as event:
        settings = event.settings
        await event.journal.put("daemon", introduced)
    with StateLock(settings.dispatcher.state_dir):
        assert (await look_at_event(settings)).daemon == introduced
    assert (await look_at_event(settings)).daemon is None


async def test_following_a_submission_opens_its_event_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening reads the files whole, which a look every fifth of a second must not."""
    room = EventRoom(tmp_path)
    room.submit("one")
    async with room.opened() as event:
        opens: list[object] = []
        opened = Database.open

        async def counted(database: Database, stack: AsyncExitStack, *, create: bool = True) -> None:
            opens.append(database)
            await opened(database, stack, create=create)

        monkeypatch.setattr(Database, "open", counted)
        async with aclosing(states_of(event.settings, "one")) as states:
            assert [await anext(states) for _ in range(10)] == [SubmissionState.NEW] * 10
            await event.store.claim()
            assert await anext(states) is SubmissionState.SENT_TO_TRAINING
    assert len(opens) == 2  # the store and the journal


async def test_a_submission_can_be_followed_before_a_daemon_has_seen_it(tmp_path: Path) -> None:
    """It is new; afterwards it is what the store says; one that there is not is said to be unknown."""
    room = EventRoom(tmp_path)
    room.submit("one")
    settings = room.settings()
    async with aclosing(states_of(settings, "one")) as states:
        assert await anext(states) is SubmissionState.NEW
        async with room.opened() as event:
            room.submit("two")
            async with aclosing(states_of(settings, "two")) as others:
                assert await anext(others) is SubmissionState.NEW
            await begin(event)
            assert await anext(states) is SubmissionState.SENT_TO_TRAINING
    with pytest.raises(UnknownSubmissionError):
        await anext(states_of(settings, "three"))
