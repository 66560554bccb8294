"""The rows that folders become: asked for by name, by what waits and page by page, never all at once."""

from __future__ import annotations

import sqlite3
import tracemalloc
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from rampd.states import SubmissionState
from rampd.stores.arrivals import Arrival

if TYPE_CHECKING:
    from rampd.stores.directory import DirectoryStore
    from support.store_room import StoreRoom


def _end(room: StoreRoom, pattern: str, state: SubmissionState = SubmissionState.SCORED) -> None:
    with closing(sqlite3.connect(room.root / "submissions.sqlite3", isolation_level=None)) as connection:
        connection.execute("UPDATE submissions SET state = ? WHERE name GLOB ?", (state, pattern))


async def test_only_the_names_asked_for_are_known(room: StoreRoom) -> None:
    """With what their rows say; a name that is no text has no row and is no trouble."""
    for name in ("one", "two", "three"):
        room.make(name)
    async with room.opened() as store:
        await store.scan()
        _end(room, "two")
        known = await store.registry.known(["one", "two", "four", "\udcff", "' OR 1=1 --"])
        two = await store.get("two")
    assert {name: row.state for name, row in known.items()} == {
        "one": SubmissionState.NEW,
        "two": SubmissionState.SCORED,
    }
    assert known["two"].id == two.id
    assert known["two"].fingerprint


async def test_what_waits_is_told_from_what_runs_and_what_ended(room: StoreRoom) -> None:
    """Only the waiting ones can go with their folders."""
    for name in ("ended", "running", "waiting"):
        room.make(name)
    async with room.opened() as store:
        await store.scan()
        _end(room, "ended")
        _end(room, "running", SubmissionState.TRAINING)
        assert await store.registry.waiting() == {"waiting": (await store.get("waiting")).id}


async def test_ended_ones_come_page_by_page(room: StoreRoom) -> None:
    """By name, each once, in whichever final state; none that waits or runs."""
    for number in range(8):
        room.make(f"s{number}")
    async with room.opened() as store:
        await store.scan()
        for name, state in (("s[1-4]", "scored"), ("s6", "training_error"), ("s7", "checking_error"), ("s5", "tested")):
            _end(room, name, SubmissionState(state))
        pages, after = [], ""
        while page := await store.registry.ended(after, 2):
            pages.append(list(page))
            after = max(page)
    assert pages == [["s1", "s2"], ["s3", "s4"], ["s6", "s7"]]


async def test_a_look_takes_no_more_memory_where_many_have_ended(room: StoreRoom) -> None:
    """Six times the ended submissions, one peak: a daemon that serves an event for months stays as small."""
    async with room.opened(rescan_interval_s=3600.0) as store:
        peaks = []
        for first, last in ((0, 1000), (1000, 6000)):
            for number in range(first, last):
                room.make(f"s{number:05d}")
            await store.scan()
            _end(room, "*")
            await store.scan()  # what is kept from the first look on is no part of the peak
            peaks.append(await _peak(store))
    assert peaks[1] < 1.5 * peaks[0], peaks


async def _peak(store: DirectoryStore) -> int:
    """Return the bytes that a look takes at most."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        await store.scan()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


async def test_a_look_registers_all_or_nothing(room: StoreRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is one transaction."""
    for name in ("one", "two"):
        room.make(name)
    async with room.opened() as store:
        register = store.registry.register

        async def fail_in_the_middle(found: list[Arrival]) -> set[str]:
            broken = Arrival("three", None, 0.0)  # type: ignore[arg-type] # NOT NULL in the database
            return await register([*found, broken])

        monkeypatch.setattr(store.registry, "register", fail_in_the_middle)
        with pytest.raises(sqlite3.IntegrityError):
            await store.scan()
        assert await store.list() == []
        assert not store.changed.is_set()
