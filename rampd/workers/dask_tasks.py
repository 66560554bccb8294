"""The tasks that an event has on a Dask cluster: each under its key, known to have begun, waited for, forgotten.

It knows keys and bytes, and how a task outlives connections and daemons; submissions are the business of
`rampd.workers.dask`, the connection that of `rampd.workers.dask_cluster`.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rampd.errors import WorkerError, WorkerLostError, WorkerUnavailableError
from rampd.workers.dask_facts import sentence
from rampd.workers.dask_run import TOPIC

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from rampd.workers.dask_cluster import Cluster, Future
    from rampd.workers.dask_facts import DaskWorkerFacts

ASK_S = 30.0
_LOOK_S = 0.5


class Tasks:
    """The tasks of one event.

    Parameters
    ----------
    cluster
        Where they run; not open yet.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._futures: dict[str, Future[bytes]] = {}
        """Of the client that there is: a new one asks again for what runs."""
        self._started: dict[str, asyncio.Future[int | None]] = {}
        cluster.subscribe(TOPIC, self._heard_start)
        cluster.when_lost(self._futures.clear)

    def _heard_start(self, event: tuple[float, Mapping[str, Any]]) -> None:
        message = event[1] if isinstance(event[1], dict) else {}
        pid = message.get("pid")
        self.note_start(str(message.get("attempt")), pid if isinstance(pid, int) else None)

    def note_start(self, attempt_id: str, pid: int | None) -> None:
        """Take in that the process of an attempt exists, as whom."""
        started = self._started.get(attempt_id)
        if started is not None and not started.done():
            started.set_result(pid)

    async def submit(self, key: str, worker: DaskWorkerFacts, request: dict[str, Any]) -> None:
        """Give a Dask worker something to run, and have the scheduler keep it under its key for a later daemon."""
        client = self._cluster.here()
        future = self._futures[key] = self._cluster.run(key, worker, request)
        try:
            async with asyncio.timeout(ASK_S):
                await client.publish_dataset(future, name=key, override=True)
        except (OSError, TimeoutError, RuntimeError, ValueError, KeyError) as error:
            raise self._cluster.silent(error) from error

    async def published(self) -> Collection[str]:
        """Return the keys that the scheduler keeps, whoever's they are."""
        self._cluster.here()
        names = await self._cluster.call("publish_list")
        return [name for name in names if isinstance(name, str)]

    async def _future(self, key: str) -> Future[bytes]:
        """Return the future of a key, taken over from an earlier client if need be.

        Raises
        ------
        WorkerLostError
            The scheduler does not know it.
        """
        future = self._futures.get(key)
        if future is None:
            if key not in await self.published():
                raise WorkerLostError(
                    f"the Dask scheduler {self._cluster.address} was restarted: it has forgotten the run"
                )
            future = self._futures[key] = self._cluster.take_over(key)
        return future

    async def is_done(self, key: str) -> bool:
        """Return whether what was submitted under a key has ended.

        Raises
        ------
        WorkerLostError
            The scheduler does not know it, or its Dask worker is gone.
        """
        self._cluster.here()
        states = await self._cluster.call("get_task_status", keys=[key])
        state = states.get(key) if isinstance(states, dict) else None
        if state in (None, "lost", "no-worker", "forgotten"):
            raise WorkerLostError(f"the run is gone (its task is {state or 'unknown'} to the Dask scheduler)")
        return state in ("memory", "erred")

    def expect_start(self, attempt_id: str) -> asyncio.Future[int | None]:
        """Return what is done, with its pid, when the process of an attempt exists."""
        return self._started.setdefault(attempt_id, asyncio.get_running_loop().create_future())

    async def result(self, key: str, address: str, *, patience_s: Callable[[], float]) -> bytes:
        """Wait for what was submitted under a key, through lost connections, and return its bytes.

        Parameters
        ----------
        key
            As it was submitted.
        address
            The Dask worker that has it.
        patience_s
            For how long to wait for a scheduler that cannot be reached, in seconds from now.

        Raises
        ------
        WorkerLostError
            The Dask worker is gone, the scheduler forgot the run, or it cannot be reached for too long.
        """
        while True:
            if not await self._cluster.wait_until_up(max(0.0, patience_s())):
                raise WorkerLostError(
                    f"the Dask scheduler {self._cluster.address} could not be reached in time: {self._cluster.error}"
                )
            # Before we look whether it is there: nothing may come between the two.
            leaving = self._cluster.leaving(address)
            try:
                future = await self._future(key)
                if address not in await self._cluster.workers():
                    raise WorkerLostError(f"the Dask worker {address} is gone")
            except WorkerUnavailableError:
                await asyncio.sleep(_LOOK_S)
                continue
            found = await self._first_of(future, leaving, address)
            if found is not None:
                return found
            self._futures.pop(key, None)
            # A future that was cancelled under us: the connection broke, and this client is about to notice.
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._cluster.lost.wait()

    async def _first_of(self, future: Future[bytes], leaving: asyncio.Event, address: str) -> bytes | None:
        got = asyncio.ensure_future(_result_of(future))
        left = asyncio.ensure_future(leaving.wait())
        down = asyncio.ensure_future(self._cluster.lost.wait())
        try:
            await asyncio.wait({got, left, down}, return_when=asyncio.FIRST_COMPLETED)
            if got.done():
                return got.result()
            if left.done():
                raise WorkerLostError(f"the Dask worker {address} is gone")
            return None
        finally:
            for waiting in (got, left, down):
                waiting.cancel()
            await asyncio.wait({got, left, down})
            if got.done() and not got.cancelled():
                got.exception()

    async def forget(self, keys: Collection[str]) -> None:
        """Let the scheduler forget keys, so that it never runs them again; a run that goes on is not ended by that."""
        if not keys:
            return
        client = self._cluster.here()
        try:
            async with asyncio.timeout(ASK_S):
                for key in keys:
                    # By force, whoever may still hold it: a future that a traceback keeps alive is enough for Dask to
                    # run a task again when its worker is back. Unpublishing waits until the scheduler has read that;
                    # before distributed 2026.7 it does not, and what dies in between lets go of the key as well.
                    future = self._futures.pop(key, None) or self._cluster.future_of(key)
                    await client.cancel([future], force=True, reason="rampd is done with it")
                    await client.unpublish_dataset(key)
        except (OSError, TimeoutError, RuntimeError) as error:
            raise self._cluster.silent(error) from error

    def has_ended(self, attempt_id: str) -> None:
        """Let go of what was kept for an attempt."""
        self._started.pop(attempt_id, None)


async def _result_of(future: Future[bytes]) -> bytes | None:
    """Return a future's bytes; None if it was cancelled, which a lost connection does.

    Raises
    ------
    WorkerError
        The task itself failed: Dask could not even call what was sent.
    """
    try:
        result = await future.result()
    except (OSError, TimeoutError) as error:
        raise WorkerLostError(f"the result could not be fetched: {sentence(error)}") from error
    except asyncio.CancelledError:
        raise
    except Exception as error:
        if future.cancelled():
            return None
        raise WorkerError(f"the Dask worker could not run the task: {sentence(error)}") from error
    if not isinstance(result, bytes):
        raise WorkerError("the Dask worker returned something that is not ours")
    return result
