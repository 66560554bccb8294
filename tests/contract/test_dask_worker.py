"""The Dask worker keeps the contract that every worker keeps, over a real cluster."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rampd.errors import WorkerSetupError
from rampd.testing import WorkerContract, make_job
from rampd.workers.base import Worker, WorkerContext
from rampd.workers.dask import DaskWorker
from rampd.workers.dask_allocation import DaskAllocation
from rampd.workers.dask_config import DaskConfig
from support.daemon import processes_marked
from support.dask import DaskCluster, dask_section
from support.deployment import Deployment
from support.store_room import until
from support.stub_environment import BY_NAME

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """Give a cluster of two workers on two hosts."""
    with DaskCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.scheduler()
        cluster.worker("127.0.0.2")
        cluster.worker("127.0.0.3")
        yield cluster


async def there(worker: DaskWorker, *, workers: int = 1) -> None:
    """Wait until the cluster has so many workers that can run submissions."""

    async def is_there() -> bool:
        try:
            await worker.check()
        except WorkerSetupError as error:
            if "cannot be reached" in str(error) or "no workers" in str(error):
                return False
            raise
        return int(str(worker.describe()["dask_workers"])) >= workers

    async with asyncio.timeout(60):
        while not await is_there():  # noqa: ASYNC110 -- nobody tells
            await asyncio.sleep(0.05)


class TestDaskWorker(WorkerContract):
    """A stub environment whose ramp-test goes by the submission's name, on the Dask workers' hosts."""

    patience_s = 60.0

    @pytest.fixture(autouse=True)
    def cluster_of_the_module(self, cluster: DaskCluster, dask_is_warm: None) -> None:
        """Have the cluster there."""
        self.cluster = cluster

    @asynccontextmanager
    async def open_worker(self, root: Path) -> AsyncIterator[Worker[Any]]:
        """Give one that is connected."""
        deployment = Deployment(root / "deployment")
        deployment.make_stub_environment(BY_NAME)
        (root / "state" / "attempts").mkdir(parents=True)
        for folder in (root / "kit", root / "data"):
            folder.mkdir(exist_ok=True)
        (root / "kit" / "problem.py").touch()
        config = DaskConfig.model_validate(dask_section(self.cluster, conda_env=str(deployment.environment)))
        context = WorkerContext(
            event_name="event",
            deployment_dir=root,
            kit_dir=root / "kit",
            data_dir=root / "data",
            state_dir=root / "state",
            time_between_collection_s=0.05,
        )
        worker = DaskWorker(config, context)
        async with AsyncExitStack() as stack:
            await worker.open(stack)
            await there(worker, workers=2)
            yield worker
        await until(lambda: not self.cluster.left_on("127.0.0.2") + self.cluster.left_on("127.0.0.3"))

    def is_alive(self, worker: Worker[Any], allocation: DaskAllocation) -> bool:
        """Look for processes that carry the attempt's mark on its host: the kernel's own word."""
        mark = f"RAMPD_ATTEMPT={self.cluster.root}/scratch-{allocation.host}/"
        return any(allocation.attempt_id in word for pid in processes_marked(mark) for word in _environment(pid))

    async def test_a_later_process_takes_a_run_over(self, tmp_path: Path) -> None:
        """A second worker that knows nothing but the journaled allocation waits for the run and has its status."""
        job = make_job(tmp_path, "hangs")
        async with asyncio.timeout(self.patience_s), self.open_worker(tmp_path) as first:
            launched = await first.launch_submission(job, await first.setup(job))
            assert isinstance(first, DaskWorker)
            second = DaskWorker(first.config, first.context)
            async with AsyncExitStack() as stack:
                await second.open(stack)
                allocation = DaskAllocation.model_validate_json(launched.model_dump_json())
                assert await second.reclaim({job.attempt_id}) == []
                assert not await second.is_submission_finished(allocation)
                stopped = await second.stop(allocation)
                assert stopped.signal == 15
                await second.teardown(allocation)
                assert not self.is_alive(second, allocation)


def _environment(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return []
