"""Which Dask worker runs the next submission: one that has a free seat, and on whose host everything is there.

Dask's scheduler places a task at once, behind others if it must, and does not move it when a Dask worker comes free:
so rampd hands a submission over only when there is a seat for it, and says which. That is also why there need be no
more Dask workers than submissions that run at once.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import structlog

from rampd import clock
from rampd.errors import WorkerError, WorkerSetupError
from rampd.workers.dask_transfer import split

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from rampd.workers.dask_cluster import Cluster
    from rampd.workers.dask_facts import DaskWorkerFacts

log = structlog.get_logger("rampd.workers.dask")

_LOOKED_S = 60.0
"""How long a host where everything was there is believed to be so."""
_ENDED_KEPT = 1000


class Seats:
    """The seats of a cluster, and which of them are taken.

    Parameters
    ----------
    cluster
        The cluster.
    look
        The request that looks for everything that a submission needs.
    interval_s
        How often to look again while other clients have all seats, in seconds.
    """

    def __init__(self, cluster: Cluster, look: Mapping[str, Any], interval_s: float) -> None:
        self._cluster = cluster
        self._look = look
        self.interval_s = interval_s
        self.taken: dict[str, str] = {}
        """Dask worker by key, of this event's own runs."""
        self._ended: OrderedDict[str, None] = OrderedDict()
        """Keys that gave their seat back: the scheduler may count them for a moment longer."""
        self._choosing = asyncio.Lock()
        self._freed = asyncio.Event()
        self._fit: dict[str, float] = {}
        """When everything was last seen to be there, by Dask worker."""
        self._unfit: dict[str, WorkerSetupError] = {}
        self._workers: Mapping[str, DaskWorkerFacts] = {}
        self._is_full = False
        self._warned: set[str] = set()

    async def check(self) -> None:
        """Look whether any Dask worker could run submissions.

        Raises
        ------
        WorkerSetupError
            There is none, or what every submission needs is on no host.
        WorkerUnavailableError
            The scheduler does not answer.
        """
        await self._fitting()

    async def take(self, key: str) -> DaskWorkerFacts:
        """Return a Dask worker with a free seat, which is taken under `key`, waiting for one.

        Raises
        ------
        WorkerSetupError, WorkerUnavailableError
            As `check`, also while waiting.
        """
        async with self._choosing:  # first come, first served
            while True:
                fitting = await self._fitting()
                chosen = self._choose(fitting, await self._cluster.processing())
                if chosen is not None:
                    self.taken[key] = chosen.address
                    self._is_full = False
                    return chosen
                if not self._is_full:
                    self._is_full = True
                    log.info("dask.full", workers=len(fitting), seats=sum(one.seats for one in fitting))
                await self._something_changes()

    def _choose(
        self, fitting: Sequence[DaskWorkerFacts], processing: Mapping[str, Collection[str]]
    ) -> DaskWorkerFacts | None:
        """Return the Dask worker that has least to do, on the host that has least to do; None where all are taken."""
        ours: dict[str, int] = {}
        for address in self.taken.values():
            ours[address] = ours.get(address, 0) + 1
        load = {}
        for one in fitting:
            others = [
                key for key in processing.get(one.address, ()) if key not in self.taken and key not in self._ended
            ]
            rampd = sum(str(key).startswith("rampd-") for key in others)
            load[one.address] = (ours.get(one.address, 0) + rampd, len(others) - rampd)
        by_host: dict[str, int] = {}
        for one in fitting:
            by_host[one.host] = by_host.get(one.host, 0) + load[one.address][0]
        free = [one for one in fitting if load[one.address][0] < one.seats]
        return min(free, key=lambda one: (load[one.address][1], by_host[one.host], load[one.address][0]), default=None)

    async def _something_changes(self) -> None:
        """Wait until a seat is given back, a Dask worker comes or goes, or it is time to look at others' tasks."""
        self._freed.clear()
        waiting = {asyncio.ensure_future(self._freed.wait()), asyncio.ensure_future(self._cluster.changed.wait())}
        try:
            await asyncio.wait(waiting, timeout=self.interval_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waiting:
                one.cancel()
            await asyncio.wait(waiting)

    def keep(self, key: str, address: str) -> None:
        """Take a seat whether it is free or not: for a run that goes on anyway."""
        self.taken[key] = address

    def give_back(self, key: str) -> None:
        """Give a seat back. Idempotent."""
        if self.taken.pop(key, None) is None:
            return
        self._ended[key] = None
        if len(self._ended) > _ENDED_KEPT:
            self._ended.popitem(last=False)
        self._freed.set()

    def look_again(self) -> None:
        """Believe nothing of what was seen on the hosts."""
        self._fit.clear()

    async def _fitting(self) -> list[DaskWorkerFacts]:
        """Return the Dask workers on whose host everything is there, by a look once a minute at most."""
        self._workers = workers = await self._cluster.workers()
        if not workers:
            raise WorkerSetupError(
                f"worker.dask_scheduler: {self._cluster.address} has no workers; start one with "
                f"`dask worker {self._cluster.address} --nthreads 1 --resources slot=1`"
            )
        now = clock.boottime()
        unseen = [address for address in workers if now - self._fit.get(address, -_LOOKED_S) >= _LOOKED_S]
        if unseen:
            await self._look_at(unseen, workers)
        self._warn(workers)
        fitting = [one for address, one in workers.items() if address in self._fit]
        if not fitting:
            raise next(
                (error for address, error in self._unfit.items() if address in workers),
                WorkerSetupError(f"worker.dask_scheduler: no worker of {self._cluster.address} answers"),
            )
        return fitting

    async def _look_at(self, addresses: Sequence[str], workers: Mapping[str, DaskWorkerFacts]) -> None:
        answers = await self._cluster.ask(addresses, dict(self._look))
        now = clock.boottime()
        for address in addresses:
            self._fit.pop(address, None)
        self._unfit = {address: error for address, error in self._unfit.items() if address in workers}
        for address, answer in answers.items():
            one = workers[address]
            try:
                head, _ = split(answer)
            except WorkerError as error:
                head = {"error": str(error)}
            if "prefix" in head:
                self._fit[address] = now
                self._unfit.pop(address, None)
                continue
            missing = head.get("missing") or head.get("error") or "it gave no answer"
            existing = [str(name) for name in head.get("existing", ())]
            self._unfit[address] = WorkerSetupError(f"{missing} on {one.host} (Dask worker {address})", existing)

    def _warn(self, workers: Mapping[str, DaskWorkerFacts]) -> None:
        """Say once what is not as it should be, of each Dask worker that is used all the same or left out."""
        if self._fit:  # else the event is held, which says it all
            for address, error in self._unfit.items():
                self._say(f"{address} {error}", f"not used: {error}")
        if slotless := [one.address for one in workers.values() if not one.slots]:
            self._say("slots", _slotless(slotless))

    def _say(self, what: str, message: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            log.warning("dask.warned", message=message)

    def warnings(self) -> list[str]:
        """Return what an operator should know, by what was last seen."""
        slotless = [one.address for one in self._workers.values() if not one.slots]
        unfit = [f"not used: {error}" for error in self._unfit.values()] if self._fit else []
        return [*unfit, *([_slotless(slotless)] if slotless else [])]

    def describe(self) -> Mapping[str, object]:
        """Return how much there is, by what was last seen."""
        workers = self._cluster.known_workers()
        return {
            "dask_workers": len(workers),
            "hosts": len({one.host for one in workers}),
            "seats": sum(one.seats for one in workers),
        }


def _slotless(addresses: Sequence[str]) -> str:
    shown = ", ".join(addresses[:3]) + (f" and {len(addresses) - 3} more" if len(addresses) > 3 else "")  # noqa: PLR2004
    return (
        f"Dask workers without the resource slot ({shown}): rampd gives each one submission at a time, but tasks of "
        "others may run beside it; start them with --nthreads 1 --resources slot=1"
    )
