"""Remembers which canonical lines were written, so that the others are written again at the next start."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from rampd.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rampd.journal import Journal

_GATHER_S = 0.2
"""One commit serves all lines of this span; a crash within it costs a repeated line, never a lost one."""
_RETRY_S = 5.0


class Announcements:
    """Collects attempt ids from the log's writer thread and journals them in batches."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._loop = asyncio.get_running_loop()
        self._expected: set[str] = set()
        self._written: list[str] = []
        self._changed = asyncio.Event()

    def expected(self, attempt_id: str) -> Callable[[], None]:
        """Return what is to be called, from any thread, once the attempt's line was written."""
        self._expected.add(attempt_id)
        return partial(self._from_thread, attempt_id)

    def _from_thread(self, attempt_id: str) -> None:
        with suppress(RuntimeError):  # the loop is closed: the line is written again, which readers expect
            self._loop.call_soon_threadsafe(self._add, attempt_id)

    def _add(self, attempt_id: str) -> None:
        self._expected.discard(attempt_id)
        self._written.append(attempt_id)
        self._changed.set()

    async def run(self) -> None:
        """Journal what was written, until cancelled."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(_GATHER_S)
            await self.flush()

    async def settle(self, *, patience_s: float = 1.0) -> None:
        """Wait until every expected line was written and journaled, at most `patience_s` (a reader may stall)."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while self._expected:
                    self._changed.clear()
                    await self._changed.wait()
        await self.flush()

    async def flush(self) -> None:
        """Journal what was written so far."""
        self._changed.clear()
        batch, self._written = self._written, []
        if not batch:
            return
        try:
            await self._journal.mark_announced(batch)
        except StoreError:
            self._written = batch + self._written
            self._loop.call_later(_RETRY_S, self._changed.set)
