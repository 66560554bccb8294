"""A conda worker below a test's folder, whose ramp-test is a few lines of sh or Python that the test gives."""

from __future__ import annotations

import asyncio
import dataclasses
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from rampd.testing import make_job
from rampd.workers.base import WorkerContext
from rampd.workers.conda import CondaConfig, CondaWorker
from rampd.workers.containment import Containment
from support.daemon import processes_marked
from support.requirements import give_up
from support.store_room import until
from support.stub_environment import StubEnvironment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rampd.models import Exit, Job
    from rampd.workers.conda import CondaAllocation

KINDS = (pytest.param(None, id="namespace"), pytest.param(Containment.SUBREAPER, id="subreaper"))
"""What a `containment` may be: the best that works here, which must be a namespace; and what works everywhere."""
PATIENCE_S = 30.0


def warm_up_uvloop() -> None:
    """Have libuv open the one pipe that it keeps for the whole life of a process, so that no test seems to."""
    uvloop.new_event_loop().close()


@dataclass(frozen=True, slots=True)
class CondaRoom(StubEnvironment):
    """The folders of one event below `root`, and its environment.

    Its name is to be in the command line or the environment of all that runs here, so that `alive` finds it.
    """

    containment: Containment | None

    def job(self, name: str = "one", *, attempt: int = 1, n_threads: int | None = None) -> Job:
        """Return a job, with a submission of one file."""
        return dataclasses.replace(make_job(self.root, name, attempt=attempt), n_threads=n_threads)

    def worker(self, **settings: Any) -> CondaWorker:
        """Return a worker that is not open yet, its section's other keys given."""
        config = CondaConfig.model_validate({"worker_type": "conda", "conda_env": str(self.prefix), **settings})
        (self.root / "state" / "attempts").mkdir(parents=True, exist_ok=True)
        context = WorkerContext(
            event_name="event",
            deployment_dir=self.root,
            kit_dir=self.root / "kit",
            data_dir=self.root / "data",
            state_dir=self.root / "state",
            time_between_collection_s=0.05,
        )
        return CondaWorker(config, context, containment=self.containment)

    @asynccontextmanager
    async def opened(self, **settings: Any) -> AsyncIterator[CondaWorker]:
        """Give an open worker, and close it."""
        worker = self.worker(**settings)
        async with AsyncExitStack() as stack:
            await worker.open(stack)
            found = worker.describe()["containment"]
            if self.containment is None and found is Containment.SUBREAPER:
                give_up("needs a kernel that grants PID namespaces")
            assert self.containment in (None, found)
            async with asyncio.timeout(PATIENCE_S):
                yield worker

    async def run(self, worker: CondaWorker, job: Job) -> tuple[Exit, bytes]:
        """Take a job from setup to teardown; return how it ended, and its log."""
        async with self.launched(worker, job) as allocation:
            return await worker.wait(allocation), job.log_path.read_bytes()

    async def output(self, worker: CondaWorker, job: Job) -> str:
        """Run a job that must end with status 0; return what it printed."""
        ended, log = await self.run(worker, job)
        assert ended.status == 0, log
        return log.decode()

    @asynccontextmanager
    async def launched(self, worker: CondaWorker, job: Job) -> AsyncIterator[CondaAllocation]:
        """Give the allocation of a job that runs, and tear it down."""
        allocation = await worker.setup(job)
        try:
            yield await worker.launch_submission(job, allocation)
        finally:
            await worker.teardown(allocation)

    async def printed(self, job: Job, text: bytes, *, count: int = 1) -> bytes:
        """Wait until a text is in the log; return the log."""
        path = job.log_path
        await until(lambda: path.exists() and path.read_bytes().count(text) >= count, what=f"{text!r} in the log")
        return path.read_bytes()

    def alive(self) -> list[int]:
        """Return the pids of what runs here."""
        return processes_marked(str(self.root))
