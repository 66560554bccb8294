"""Whether a loop moves: it beats at every turn, and says what it waits for where it rests."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Pulse:
    """One loop's. What beats and what feels run on the same event loop."""

    def __init__(self) -> None:
        self._beaten = asyncio.Event()
        self._rests_rightly: Callable[[], bool] | None = None

    def beat(self) -> None:
        """Say that the loop has come round."""
        self._beaten.set()

    @contextmanager
    def resting(self, rightly: Callable[[], bool]) -> Iterator[None]:
        """Say that the loop waits, and how somebody else can see that there is nothing for it to do."""
        self._beaten.set()
        self._rests_rightly = rightly
        try:
            yield
        finally:
            self._rests_rightly = None

    async def felt(self, poke: Callable[[], None]) -> None:
        """Return once the loop rests rightly, or has come round after `poke`; never, if it is stuck."""
        if self._rests_rightly is not None and self._rests_rightly():
            return
        self._beaten.clear()
        poke()
        await self._beaten.wait()
