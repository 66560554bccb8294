"""Facts for people, left in the journal: why nothing runs, for `rampctl status`. Everything goes on without them."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from rampd import clock
from rampd.errors import StoreError

if TYPE_CHECKING:
    from rampd.journal import Journal


class Notes:
    """What one event's dispatcher tells; each fact is written when it changes."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._no_capacity_since: float | None = None
        self._settling = 0
        self._settling_since: float | None = None

    async def forget(self) -> None:
        """Take back what the last daemon told, at a start: it may be true no more, and nobody else would."""
        for key in ("no_capacity", "settling"):
            await self._tell(key, None)

    async def no_capacity(self, next_try: float) -> None:
        """Say that there was nothing to run on, and when it is tried again (seconds since the epoch)."""
        since = self._no_capacity_since or clock.wall()
        await self._tell("no_capacity", {"since": since, "next_try": next_try})
        self._no_capacity_since = since

    async def capacity(self) -> None:
        """Say that there was something to run on, or that nobody waits for it."""
        if self._no_capacity_since is not None:
            self._no_capacity_since = None
            await self._tell("no_capacity", None)

    async def settling(self, count: int) -> None:
        """Say how many folders were seen that are not taken yet."""
        if count == self._settling:
            return
        self._settling = count
        if not count:
            self._settling_since = None
        elif self._settling_since is None:
            self._settling_since = clock.wall()
        await self._tell("settling", {"count": count, "since": self._settling_since} if count else None)

    async def _tell(self, key: str, fact: object | None) -> None:
        with suppress(StoreError):
            if fact is None:
                await self._journal.delete(key)
            else:
                await self._journal.put(key, fact)
