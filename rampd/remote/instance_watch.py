"""One look at all instances for everybody who waits: DescribeInstances is asked once an interval, however many wait."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from contextlib import AsyncExitStack

    from rampd.remote.instances import Instance


class InstanceWatch:
    """Shares looks.

    Parameters
    ----------
    look
        Returns the instances, by id.
    interval_s
        Looks begin at least so far apart.
    """

    def __init__(self, look: Callable[[], Awaitable[Mapping[str, Instance]]], *, interval_s: float) -> None:
        self._look = look
        self.interval_s = interval_s
        self._not_before = 0.0
        self._to_come: asyncio.Task[Mapping[str, Instance]] | None = None
        self._tasks: set[asyncio.Task[Mapping[str, Instance]]] = set()

    async def open(self, stack: AsyncExitStack) -> None:
        """Have what is under way ended with `stack`."""
        stack.push_async_callback(self._close)

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def seen(self) -> Mapping[str, Instance]:
        """Return what a look sees that begins after this call; all who ask meanwhile share it.

        Raises
        ------
        WorkerError
            EC2 could not be asked; everybody who waits is told.
        """
        if self._to_come is None:
            self._to_come = asyncio.create_task(self._look_soon(), name="aws/instances")
            self._tasks.add(self._to_come)
            self._to_come.add_done_callback(self._forget)
        # Shielded: it is not one caller's, and it is bounded in time.
        return await asyncio.shield(self._to_come)

    async def _look_soon(self) -> Mapping[str, Instance]:
        clock = asyncio.get_running_loop().time
        try:
            await asyncio.sleep(max(0.0, self._not_before - clock()))
        finally:
            self._to_come = None  # who asks from now on wants a later look
        self._not_before = clock() + self.interval_s
        return await self._look()

    def _forget(self, task: asyncio.Task[Mapping[str, Instance]]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited has it; where nobody did, nobody minds
