"""Removing what runs left on the Dask workers' hosts: at a teardown, when a host is back, and at a reclaim."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rampd.errors import WorkerError, WorkerUnavailableError
from rampd.workers.dask_transfer import split

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from contextlib import AsyncExitStack

    from rampd.workers.dask_cluster import Cluster
    from rampd.workers.dask_tasks import Tasks

_REMOVE_S = 15.0
"""KILL, the removal of a folder, and the way there and back."""
_RECONNECT_S = 5.0
_ASK_AGAIN_S = 0.05
_GATHER_S = 1.0
"""For how long fences are let stand, to be taken away together."""
_LAST_S = 5.0


class NotRemovedError(WorkerUnavailableError):
    """Something could not be removed in time, though its Dask worker was told to end and remove it."""


class Sweeper:
    """Removes attempts from the hosts of a cluster.

    Parameters
    ----------
    cluster, tasks
        The cluster, and what runs there.
    request
        Makes a request of the remote part.
    key_of
        Gives the key of an attempt's task.
    """

    def __init__(
        self, cluster: Cluster, tasks: Tasks, request: Callable[..., dict[str, Any]], key_of: Callable[[str], str]
    ) -> None:
        self._cluster = cluster
        self._tasks = tasks
        self._request = request
        self._key_of = key_of
        self._left: dict[str, tuple[str, str]] = {}
        """Attempts still to be removed: the Dask worker's address, and its host."""
        self._fenced: dict[str, str] = {}
        """Those of them of which nothing is left but the fence: the Dask worker's address."""
        self._is_fenced = asyncio.Event()

    async def open(self, stack: AsyncExitStack) -> None:
        """Begin to look after hosts that come back; ended by `stack`."""
        tasks = {
            asyncio.create_task(self._sweep(), name="dask sweep"),
            asyncio.create_task(self._take_fences_away(), name="dask fences"),
        }

        async def end() -> None:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            with suppress(WorkerError, TimeoutError):  # the next daemon's reclaim finds them as well
                async with asyncio.timeout(_LAST_S):
                    await self._unfence()

        stack.push_async_callback(end)

    async def remove(self, attempt_id: str, address: str, host: str, *, is_fence_only: bool) -> None:
        """End an attempt's run and remove it, now or as soon as the scheduler, or somebody on its host, is back.

        Where it is known that nothing but its fence is left, that goes soon, with others'.

        Raises
        ------
        WorkerUnavailableError
            Not now.
        """
        self._left[attempt_id] = address, host
        if not await self._cluster.wait_until_up(_RECONNECT_S):
            raise WorkerUnavailableError(f"the Dask scheduler cannot be reached: {self._cluster.error}")
        if not is_fence_only:
            await self._remove_left(attempt_id)
            return
        await self._tasks.forget([self._key_of(attempt_id)])
        self._fenced[attempt_id] = address
        self._is_fenced.set()

    async def _take_fences_away(self) -> None:
        while True:
            await self._is_fenced.wait()
            await asyncio.sleep(_GATHER_S)
            self._is_fenced.clear()
            with suppress(WorkerError, TimeoutError):
                await self._unfence()

    async def _unfence(self) -> None:
        """Take the fences of forgotten tasks away, all at once; those of who does not answer are left to the sweep."""
        fenced, self._fenced = self._fenced, {}
        if not fenced:
            return
        there = set(await self._cluster.workers())
        answers = await self._cluster.ask(
            there.intersection(fenced.values()), self._request("unfence", attempts=list(fenced))
        )
        for attempt_id, address in fenced.items():
            if address in answers and "error" not in split(answers[address])[0]:
                self._left.pop(attempt_id, None)

    async def _sweep(self) -> None:
        """Remove what could not be removed as soon as somebody is back on its host."""
        while True:
            await self._cluster.changed.wait()
            for attempt_id in list(self._left):
                with suppress(WorkerError, TimeoutError):
                    await self._remove_left(attempt_id)

    async def _remove_left(self, attempt_id: str) -> None:
        # In this order: without its fence, a task that the scheduler still wants would be run again.
        await self._tasks.forget([self._key_of(attempt_id)])
        where = self._left.get(attempt_id)
        if where is None or await self._remove(attempt_id, *where):
            self._left.pop(attempt_id, None)

    async def _remove(self, attempt_id: str, address: str, host: str) -> bool:
        """End and remove an attempt on its host: by its own Dask worker, or by another one that is there.

        Returns
        -------
        bool
            False where none is there; the run's keeper has ended it, and its fence is left.

        Raises
        ------
        NotRemovedError, WorkerUnavailableError
            Not in time; not now.
        """
        request = self._request("remove", attempt=attempt_id)
        try:
            async with asyncio.timeout(_REMOVE_S):
                while True:
                    workers = await self._cluster.workers()
                    if address not in workers:
                        address = next((one.address for one in workers.values() if one.host == host), "")
                    if not address:
                        return False
                    answers = await self._cluster.ask([address], request)
                    if address in answers and split(answers[address])[0].get("gone"):
                        return True
                    await asyncio.sleep(_ASK_AGAIN_S)
        except TimeoutError as error:
            where = f"{host} (Dask worker {address}) within {_REMOVE_S:g} s"
            raise NotRemovedError(f"attempt {attempt_id} cannot be removed on {where}") from error

    async def reclaim(self, keep: Collection[str]) -> list[str]:
        """End and remove every attempt of this event's that is not in `keep`; return what it was.

        Raises
        ------
        WorkerError
            The cluster cannot be asked.
        NotRemovedError
            Something is not removed in time; everything else was.
        """
        await self._unfence()
        # First what is outside, then what is held: what was begun meanwhile is not taken for lost.
        prefix = self._key_of("")
        published = [key for key in await self._tasks.published() if key.startswith(prefix)]
        workers = await self._cluster.workers()
        answers = await self._cluster.ask(None, self._request("list"))
        stale: dict[tuple[str, str], str] = {}
        for address, answer in answers.items():
            head, _ = split(answer)
            host = workers[address].host if address in workers else address
            for attempt_id in map(str, head.get("attempts", ())):
                # Of the Dask workers of one host, the one that runs it knows best how to end it.
                if attempt_id in head.get("active", ()) or (attempt_id, host) not in stale:
                    stale[attempt_id, host] = address
        # In this order: without its fence, a task that the scheduler still wants would be run again.
        gone = [key for key in published if key.removeprefix(prefix) not in keep]
        await self._tasks.forget(gone)
        reclaimed = []
        failed: NotRemovedError | None = None
        for (attempt_id, host), address in stale.items():
            if attempt_id in keep:
                continue
            try:
                await self._remove(attempt_id, address, host)
            except NotRemovedError as error:
                failed = failed or error
                continue
            reclaimed.append(f"attempt {attempt_id} on {host}")
        if failed is not None:
            raise failed
        return reclaimed + [f"task {key}" for key in gone]
