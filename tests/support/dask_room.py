"""A Dask worker of rampd's below a test's folder, over a real cluster, its ramp-test a few lines of sh or Python."""

from __future__ import annotations

import asyncio
import dataclasses
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rampd.errors import WorkerSetupError
from rampd.testing import make_job
from rampd.workers.base import WorkerContext
from rampd.workers.dask import DaskWorker
from rampd.workers.dask_config import DaskConfig
from support.daemon import processes_marked
from support.dask import DaskCluster, dask_section
from support.store_room import until
from support.stub_environment import StubEnvironment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rampd.models import Exit, Job
    from rampd.workers.dask_allocation import DaskAllocation

PATIENCE_S = 60.0


async def until_ready(worker: DaskWorker, *, workers: int = 1) -> None:
    """Wait until the cluster has so many Dask workers."""
    async with asyncio.timeout(PATIENCE_S):
        while int(str(worker.describe()["dask_workers"])) < workers:
            try:
                await worker.check()
            except WorkerSetupError as error:
                if "cannot be reached" not in str(error) and "no workers" not in str(error):
                    return
            await asyncio.sleep(0.05)


@dataclass(frozen=True, slots=True)
class DaskRoom(StubEnvironment):
    """The folders of one event below `root`, its environment, and the cluster that serves it."""

    cluster: DaskCluster

    def job(self, name: str = "one", *, attempt: int = 1, **more: Any) -> Job:
        """Return a job, with a submission of one file."""
        return dataclasses.replace(make_job(self.root, name, attempt=attempt), **more)

    def worker(self, **settings: Any) -> DaskWorker:
        """Return a worker that is not open yet, its section's other keys given."""
        section = dask_section(self.cluster, conda_env=str(self.prefix)) | settings
        (self.root / "state" / "attempts").mkdir(parents=True, exist_ok=True)
        context = WorkerContext(
            event_name="event",
            deployment_dir=self.root,
            kit_dir=self.root / "kit",
            data_dir=self.root / "data",
            state_dir=self.root / "state",
            time_between_collection_s=0.05,
        )
        return DaskWorker(DaskConfig.model_validate(section), context)

    @asynccontextmanager
    async def opened(self, *, workers: int = 1, **settings: Any) -> AsyncIterator[DaskWorker]:
        """Give an open worker, and close it; nothing may be left on any host afterwards."""
        self.job()
        worker = self.worker(**settings)
        async with AsyncExitStack() as stack:
            await worker.open(stack)
            await until_ready(worker, workers=workers)
            async with asyncio.timeout(PATIENCE_S):
                yield worker
        await until(lambda: not self.left(), what="nothing left on the hosts")

    def left(self) -> list[str]:
        """Return what is left on the hosts, folders and processes."""
        found = [str(path) for folder in self.cluster.root.glob("scratch-*") for path in folder.glob("rampd-*")]
        return found + [str(pid) for pid in self.runs()]

    def runs(self) -> list[int]:
        """Return the pids of everything that runs for a submission on any host, its keeper included."""
        return processes_marked(f"RAMPD_ATTEMPT={self.cluster.root}/")

    @asynccontextmanager
    async def launched(self, worker: DaskWorker, job: Job) -> AsyncIterator[DaskAllocation]:
        """Give the allocation of a job that runs, and tear it down."""
        allocation = await worker.setup(job)
        try:
            allocation = await worker.launch_submission(job, allocation)
            yield allocation
        finally:
            await worker.teardown(allocation)

    async def run(self, worker: DaskWorker, job: Job) -> tuple[Exit, bytes]:
        """Take a job from setup to teardown; return how it ended, and its log."""
        async with self.launched(worker, job) as allocation:
            ended = await worker.wait(allocation)
            await worker.collect_results(job, allocation)
            return ended, job.log_path.read_bytes()
