"""Which canonical lines were written: batched, journaled, and never forgotten."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from rampd import announcements as module
from rampd.announcements import Announcements
from rampd.errors import StoreError
from support.store_room import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection


class Batches:
    """Stands for the journal: keeps what is marked, or fails as often as it is told to."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.marked: list[list[str]] = []

    async def mark_announced(self, attempt_ids: Collection[str]) -> None:
        """Keep the batch."""
        if self.failures:
            self.failures -= 1
            raise StoreError("the disk is full")
        self.marked.append(sorted(attempt_ids))


def on(batches: Batches) -> Announcements:
    """Return announcements that are journaled there."""
    journal: Any = batches
    return Announcements(journal)


@asynccontextmanager
async def running(announcements: Announcements) -> AsyncIterator[None]:
    """Have them be journaled beside the block."""
    task = asyncio.ensure_future(announcements.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


@pytest.mark.looptime
async def test_lines_of_one_moment_are_one_commit() -> None:
    """What is written within a fifth of a second is journaled at once."""
    batches = Batches()
    announcements = on(batches)
    async with running(announcements):
        for attempt_id in ("a", "b"):
            announcements.expected(attempt_id)()
        await asyncio.sleep(0.1)
        announcements.expected("c")()
        await asyncio.sleep(0.2)
        assert batches.marked == [["a", "b", "c"]]
        announcements.expected("d")()
        await asyncio.sleep(0.3)
    assert batches.marked == [["a", "b", "c"], ["d"]]


async def test_the_writer_thread_may_say_so() -> None:
    """The call comes from another thread, and the loop journals it."""
    batches = Batches()
    announcements = on(batches)
    writer = threading.Thread(target=announcements.expected("a"))
    writer.start()
    await announcements.settle(patience_s=30)
    writer.join()
    assert batches.marked == [["a"]]


async def test_a_closed_loop_is_no_error() -> None:
    """A line that is written after the daemon's end is written again at the next start; nobody minds."""

    def write_late() -> None:
        async def expect() -> Any:
            return on(Batches()).expected("a")

        asyncio.run(expect())()

    await asyncio.to_thread(write_late)


@pytest.mark.looptime
async def test_settle_waits_for_what_is_expected() -> None:
    """At the end, lines that are on their way are waited for."""
    batches = Batches()
    announcements = on(batches)
    written = announcements.expected("a")
    asyncio.get_running_loop().call_later(0.5, written)
    await announcements.settle()
    assert batches.marked == [["a"]]


@pytest.mark.looptime
async def test_settle_is_patient_for_a_second_only() -> None:
    """A reader that stalls holds no daemon up; what was written is journaled, the rest is not."""
    batches = Batches()
    announcements = on(batches)
    announcements.expected("written")()
    announcements.expected("stalled")
    begun = asyncio.get_running_loop().time()
    await announcements.settle()
    assert asyncio.get_running_loop().time() - begun == pytest.approx(1.0)
    assert batches.marked == [["written"]]


async def test_nothing_written_is_no_commit() -> None:
    """The journal is left alone where there is nothing to say."""
    batches = Batches()
    await on(batches).settle()
    assert batches.marked == []


@pytest.mark.looptime
async def test_a_journal_that_is_away_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that could not be journaled goes with a later one, though no further line comes."""
    batches = Batches(failures=2)
    announcements = on(batches)
    async with running(announcements):
        announcements.expected("a")()
        await asyncio.sleep(module._RETRY_S)
        assert batches.marked == []
        await asyncio.sleep(module._RETRY_S * 2 + 1)
    assert batches.marked == [["a"]]


async def test_a_failed_batch_is_not_lost_by_the_end() -> None:
    """What failed before is journaled with the rest when the dispatcher ends."""
    batches = Batches(failures=1)
    announcements = on(batches)
    announcements.expected("a")()
    await until(lambda: announcements._written)
    await announcements.flush()
    announcements.expected("b")()
    await announcements.settle()
    assert batches.marked == [["a", "b"]]
