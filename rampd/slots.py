"""Slots: how many submissions run at once. A semaphore that can shrink while it is held, which asyncio's cannot."""

from __future__ import annotations

import asyncio
from collections import deque


class Slots:
    """A resizable semaphore, first come, first served.

    Parameters
    ----------
    size
        How many slots there are, at least 1.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._taken = 0
        self._waiters: deque[asyncio.Future[None]] = deque()

    @property
    def size(self) -> int:
        """How many slots there are."""
        return self._size

    @property
    def taken(self) -> int:
        """How many are taken; more than `size` for a while after it shrank."""
        return self._taken

    def resize(self, size: int) -> None:
        """Change how many slots there are. Nobody who has one loses it."""
        self._size = size
        self._wake()

    async def acquire(self) -> None:
        """Take a slot, waiting for one. A cancelled wait takes none."""
        if self._taken < self._size and not self._waiters:
            self._taken += 1
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            elif waiter.done() and not waiter.cancelled():
                # The slot was handed over in the same step of the loop as the cancellation: give it on.
                self.release()
            raise

    def take(self) -> None:
        """Take a slot whether there is one or not: for a run that goes on anyway."""
        self._taken += 1

    def release(self) -> None:
        """Give a slot back."""
        self._taken -= 1
        self._wake()

    def _wake(self) -> None:
        while self._waiters and self._taken < self._size:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._taken += 1
                waiter.set_result(None)
