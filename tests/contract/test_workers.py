"""Every worker keeps the contract."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from rampd.config import WorkerConfig
from rampd.models import Exit
from rampd.testing import FakeAllocation, FakeRun, FakeWorker, WorkerContract, make_job
from rampd.workers.base import Worker, WorkerContext
from rampd.workers.conda import CondaAllocation, CondaConfig, CondaWorker
from rampd.workers.containment import Containment, marked_processes
from rampd.workers.plug_in_config import PlugInConfig
from rampd.workers.stray_processes import processes_naming
from rampd.workers.threaded import ThreadedAllocation, adapted
from support.aws import AwsRoom
from support.deployment import Deployment
from support.plug_ins import LocalWorker
from support.requirements import needs_root
from support.sshd import name_of
from support.store_room import until
from support.stub_environment import BY_NAME

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rampd.workers.aws_allocation import AwsAllocation


def _context(root: Path) -> WorkerContext:
    state_dir = root / "state"
    (state_dir / "attempts").mkdir(parents=True, exist_ok=True)
    return WorkerContext(
        event_name="event",
        deployment_dir=root,
        kit_dir=root / "kit",
        data_dir=root / "data",
        state_dir=state_dir,
        time_between_collection_s=0.05,
    )


class TestFakeWorker(WorkerContract):
    """The fake that lifecycle tests lean on is as strict as the real ones."""

    @asynccontextmanager
    async def open_worker(self, root: Path) -> AsyncIterator[Worker[Any]]:
        """Give one whose runs go by their names."""
        runs = {
            "good": FakeRun(duration_s=0.01),
            "bad": FakeRun(duration_s=0.01, exit=Exit(1)),
            "hangs": FakeRun(duration_s=1000.0),
        }
        yield FakeWorker(WorkerConfig(worker_type="fake"), _context(root), runs=runs)

    def is_alive(self, worker: Worker[Any], allocation: FakeAllocation) -> bool:
        """Look into the fake's outside world."""
        assert isinstance(worker, FakeWorker)
        run = worker.outside.get(allocation.attempt_id)
        return run is not None and not run.done()


class CondaWorkerContract(WorkerContract):
    """A stub environment whose ramp-test goes by the submission's name."""

    containment: ClassVar[Containment | None]
    expected: ClassVar[Containment]

    @asynccontextmanager
    async def open_worker(self, root: Path) -> AsyncIterator[Worker[Any]]:
        """Give one whose launcher runs."""
        deployment = Deployment(root / "deployment")
        deployment.make_stub_environment(BY_NAME)
        config = CondaConfig(worker_type="conda", conda_env=str(deployment.environment))
        worker = CondaWorker(config, _context(root), containment=self.containment)
        async with AsyncExitStack() as stack:
            await worker.open(stack)
            assert worker.describe()["containment"] is self.expected
            yield worker

    def is_alive(self, worker: Worker[Any], allocation: CondaAllocation) -> bool:
        """Look for processes that carry the attempt's mark: the kernel's own word."""
        return bool(marked_processes(allocation.attempt_dir))

    async def test_a_second_launch_starts_no_process(self, tmp_path: Path) -> None:
        """The processes of an attempt that is launched twice are those of the first launch."""
        job = make_job(tmp_path, "hangs")
        async with asyncio.timeout(self.patience_s), self.open_worker(tmp_path) as worker:
            allocation = await worker.launch_submission(job, await worker.setup(job))
            await until(lambda: _names(allocation) == ["ramp-test", "sleep", "sleep"], what="its children")
            running = set(marked_processes(allocation.attempt_dir))
            await worker.launch_submission(job, allocation)
            assert set(marked_processes(allocation.attempt_dir)) == running
            await worker.teardown(allocation)


def _names(allocation: CondaAllocation) -> list[str]:
    pids = marked_processes(allocation.attempt_dir)
    return sorted(Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip() for pid in pids)


class TestCondaWorkerInNamespace(CondaWorkerContract):
    """As root, each run is in a PID namespace of its own."""

    containment = None
    expected = Containment.PID_NAMESPACE

    @pytest.fixture(autouse=True)
    def as_root(self) -> None:
        """Another user gets another kind of namespace, where the kernel allows it."""
        needs_root()


class TestCondaWorkerWithSubreaper(CondaWorkerContract):
    """Where no namespace can be had, the supervisor adopts what its run leaves."""

    containment = Containment.SUBREAPER
    expected = Containment.SUBREAPER


class TestThreadedWorker(WorkerContract):
    """A synchronous plug-in in its thread keeps the contract of those that were written for it."""

    @asynccontextmanager
    async def open_worker(self, root: Path) -> AsyncIterator[Worker[Any]]:
        """Give one that runs a plug-in of a few lines."""
        self.attempts = root / "state" / "attempts"
        worker = adapted(LocalWorker)(PlugInConfig(worker_type="local"), _context(root))
        async with AsyncExitStack() as stack:
            await worker.open(stack)
            yield worker

    def is_alive(self, worker: Worker[Any], allocation: ThreadedAllocation) -> bool:
        """Look for processes that name the attempt's folder."""
        return bool(processes_naming(self.attempts / allocation.attempt_id))


class TestAwsWorker(WorkerContract):
    """Each run is on an instance of its own: a moto instance whose machine is a real sshd."""

    patience_s = 60.0

    @asynccontextmanager
    async def open_worker(self, root: Path) -> AsyncIterator[Worker[Any]]:
        """Give one whose cloud is its own."""
        with AwsRoom(root / "cloud") as self.room:
            async with self.room.opened(state_root=root) as worker:
                yield worker

    def is_alive(self, worker: Worker[Any], allocation: AwsAllocation) -> bool:
        """Look for the run's processes on its machine, and whether the machine is there."""
        assert allocation.instance_id is not None
        machine = self.room.machines[allocation.instance_id]
        return any(name_of(process) == "sleep" for process in machine.processes())
