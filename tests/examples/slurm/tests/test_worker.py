"""The worker against stand-ins for Slurm's commands: rampd's own contract, and every fault that a cluster has."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from rampd_slurm import SlurmAllocation, SlurmConfig, SlurmWorker, commands
from stand_ins import Cluster

import rampd
from rampd.testing import ResumableWorkerContract, make_job

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

_RAMP_TEST = """#!/bin/sh
echo "$2 runs"
case "$2" in
  good) mkdir "$8/$2/training_output" ;;
  bad) exit 1 ;;
  hangs) sleep 1000 ;;
  killed) kill -9 $$ ;;
  flood) head -c 100000 /dev/zero ;;
esac
"""


def _worker(root: Path, **settings: Any) -> tuple[Cluster, SlurmWorker]:
    cluster = Cluster(root / "cluster")
    cluster.install()
    ramp_test = root / "environment" / "bin" / "ramp-test"
    ramp_test.parent.mkdir(parents=True, exist_ok=True)
    ramp_test.write_text(_RAMP_TEST, encoding="utf-8")
    ramp_test.chmod(0o755)
    given = {"worker_type": "slurm", "conda_env": root / "environment", "slurm_bin": cluster.bin, "lost_after": 0.5}
    (root / "state" / "attempts").mkdir(parents=True, exist_ok=True)
    context = rampd.WorkerContext(
        event_name="event",
        deployment_dir=root,
        kit_dir=root / "kit",
        data_dir=root / "data",
        state_dir=root / "state",
        time_between_collection_s=0.1,
    )
    return cluster, SlurmWorker(SlurmConfig(**{**given, **settings}), context)


class TestContract(ResumableWorkerContract):
    """It keeps what rampd asks of every worker, and of those whose runs outlive the daemon."""

    cluster: Cluster
    patience_s = 60.0

    @pytest.fixture(autouse=True)
    def _ends(self) -> Iterator[None]:
        yield
        self.cluster.close()

    @asynccontextmanager
    async def open_worker(self, root: Path) -> AsyncIterator[rampd.Worker[Any]]:
        """Give one whose cluster is a folder."""
        self.cluster, worker = _worker(root)
        yield worker

    def is_alive(self, worker: rampd.Worker[Any], allocation: SlurmAllocation) -> bool:
        """Ask the kernel for the job's process."""
        return self.cluster.is_alive(allocation.job_id)

    async def lose(self, worker: rampd.Worker[Any], allocation: SlurmAllocation) -> None:
        """Have the cluster forget the job."""
        assert allocation.job_id is not None
        self.cluster.end(allocation.job_id, "CANCELLED")
        self.cluster.forget(allocation.job_id)


@pytest.fixture
def cluster_and_worker(tmp_path: Path) -> Iterator[tuple[Cluster, SlurmWorker]]:
    """Give both, and end what runs."""
    cluster, worker = _worker(tmp_path)
    yield cluster, worker
    cluster.close()


async def _launched(worker: SlurmWorker, job: rampd.Job) -> SlurmAllocation:
    return await worker.launch_submission(job, await worker.setup(job))


async def _results(worker: SlurmWorker, job: rampd.Job) -> rampd.Results:
    async with asyncio.timeout(30):
        allocation = await _launched(worker, job)
        await worker.wait(allocation)
        return await worker.collect_results(job, allocation)


@pytest.mark.asyncio
async def test_a_good_job(cluster_and_worker: tuple[Cluster, SlurmWorker], tmp_path: Path) -> None:
    """Its log is the event's, its output is found, and the limit it has of the cluster is beyond the event's."""
    cluster, worker = cluster_and_worker
    job = make_job(tmp_path, "good", timeout_s=90)
    results = await _results(worker, job)
    assert results.exit == rampd.Exit(0)
    assert results.training_output is not None
    assert job.log_path.read_text(encoding="utf-8") == "good runs\n"
    (there,) = cluster.jobs().values()
    assert "--time=7" in there["options"]


@pytest.mark.asyncio
async def test_its_log_is_bounded(tmp_path: Path) -> None:
    """A job that prints without end is not ended by that, and fills no disk."""
    cluster, worker = _worker(tmp_path, max_log_bytes=1000)
    job = make_job(tmp_path, "flood")
    assert (await _results(worker, job)).exit.status == 0
    assert job.log_path.stat().st_size == 1000
    cluster.close()


@pytest.mark.parametrize("state", ["NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "CANCELLED", "DEADLINE"])
@pytest.mark.asyncio
async def test_a_job_that_the_cluster_ended_is_lost(
    cluster_and_worker: tuple[Cluster, SlurmWorker], tmp_path: Path, state: str
) -> None:
    """No participant is charged with a node that failed, or with somebody else's scancel."""
    cluster, worker = cluster_and_worker
    allocation = await _launched(worker, make_job(tmp_path, "hangs"))
    assert allocation.job_id is not None
    cluster.end(allocation.job_id, state)
    with pytest.raises(rampd.WorkerLostError, match=f"Slurm job 1 ended as {state}"):
        await worker.wait(allocation)


@pytest.mark.asyncio
async def test_a_node_that_fails_at_once(cluster_and_worker: tuple[Cluster, SlurmWorker], tmp_path: Path) -> None:
    """It is lost in the launch already."""
    cluster, worker = cluster_and_worker
    cluster.fault(ends_as="NODE_FAIL")
    with pytest.raises(rampd.WorkerLostError, match="ended as NODE_FAIL"):
        await _launched(worker, make_job(tmp_path, "good"))


@pytest.mark.asyncio
async def test_too_much_memory(cluster_and_worker: tuple[Cluster, SlurmWorker], tmp_path: Path) -> None:
    """It is the participant's, as if the kernel had killed it."""
    cluster, worker = cluster_and_worker
    cluster.fault(ends_as="OUT_OF_MEMORY")
    results = await _results(worker, make_job(tmp_path, "good"))
    assert (results.exit, results.outcome) == (rampd.Exit(137, 9), None)


@pytest.mark.asyncio
async def test_the_clusters_own_limit(cluster_and_worker: tuple[Cluster, SlurmWorker], tmp_path: Path) -> None:
    """A job that the cluster ended for its time ran out of time."""
    cluster, worker = cluster_and_worker
    cluster.fault(ends_as="TIMEOUT")
    results = await _results(worker, make_job(tmp_path, "good"))
    assert (results.exit.status, results.outcome) == (124, rampd.Outcome.TIMEOUT)


@pytest.mark.parametrize("by_sacct", [False, True])
@pytest.mark.asyncio
async def test_a_job_that_squeue_forgot(
    cluster_and_worker: tuple[Cluster, SlurmWorker], tmp_path: Path, *, by_sacct: bool
) -> None:
    """Some minutes after its end only sacct knows of it, and where there is no sacct its own status file."""
    cluster, worker = cluster_and_worker
    job = make_job(tmp_path, "bad")
    allocation = await _launched(worker, job)
    await worker.wait(allocation)
    cluster.forget("1", by_sacct=by_sacct)
    await worker._slurm.queue(anew=True)
    assert await worker.is_submission_finished(allocation)
    assert (await worker.collect_results(job, allocation)).exit.status == 1


@pytest.mark.asyncio
async def test_the_accounting_lags(cluster_and_worker: tuple[Cluster, SlurmWorker], tmp_path: Path) -> None:
    """While sacct says that what has ended runs, it is asked again; a signal that it knows of counts."""
    cluster, worker = cluster_and_worker
    job = make_job(tmp_path, "hangs")
    allocation = await _launched(worker, job)
    cluster.fault(sacct="lag")
    cluster.end("1", "FAILED")
    cluster._update("1", code="0:11")
    waiting = asyncio.ensure_future(worker.wait(allocation))
    done, _ = await asyncio.wait({waiting}, timeout=0.2)
    assert not done
    cluster.fault()
    assert await waiting == rampd.Exit(139, 11)


@pytest.mark.asyncio
async def test_a_controller_that_is_down_loses_nothing(
    cluster_and_worker: tuple[Cluster, SlurmWorker], tmp_path: Path
) -> None:
    """Looks that fail say nothing of the job, for however long they do."""
    cluster, worker = cluster_and_worker
    allocation = await _launched(worker, make_job(tmp_path, "hangs"))
    cluster.fault(squeue="down", sacct="down")
    begun = time.monotonic()
    while time.monotonic() - begun < 3 * worker.config.lost_after:
        assert not await worker.is_submission_finished(allocation)
        await asyncio.sleep(0.02)
    with pytest.raises(rampd.WorkerError, match="what runs on the cluster is not known: squeue: slurm_load_jobs"):
        await worker.reclaim(())
    cluster.fault()
    assert (await worker.stop(allocation)).signal == 15


@pytest.mark.asyncio
async def test_time_in_the_queue_is_nobodys(cluster_and_worker: tuple[Cluster, SlurmWorker], tmp_path: Path) -> None:
    """The launch is over when the job runs, so that the deadline counts from then."""
    cluster, worker = cluster_and_worker
    cluster.fault(hold="all")
    job = make_job(tmp_path, "good")
    launching = asyncio.ensure_future(_launched(worker, job))
    done, _ = await asyncio.wait({launching}, timeout=0.5)
    assert not done
    await asyncio.to_thread(cluster.release)
    assert (await worker.wait(await launching)).status == 0


@pytest.mark.parametrize(
    ("fault", "error", "sentence"),
    [
        ("refuse", rampd.WorkerUnavailableError, "takes no job: sbatch: sbatch: error: Batch job submission failed"),
        ("invalid", rampd.WorkerSetupError, "refuses the event's jobs: sbatch: sbatch: error: invalid partition"),
        ("silent", rampd.WorkerUnavailableError, "sbatch did not answer within"),
        ("silent_but_runs", rampd.WorkerUnavailableError, "sbatch did not answer within"),
    ],
)
@pytest.mark.asyncio
async def test_a_job_that_is_not_taken(  # noqa: PLR0917 -- a table's row
    cluster_and_worker: tuple[Cluster, SlurmWorker],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    error: type[Exception],
    sentence: str,
) -> None:
    """What may be mended by waiting is tried again, what a person must mend holds the event, and nothing is left."""
    cluster, worker = cluster_and_worker
    cluster.fault(sbatch=fault)
    job = make_job(tmp_path, "hangs")
    allocation = await worker.setup(job)
    with monkeypatch.context() as patch:
        if fault.startswith("silent"):
            patch.setattr(commands, "PATIENCE_S", 1.0)
        with pytest.raises(error, match=sentence):
            await worker.launch_submission(job, allocation)
    await worker.teardown(allocation)
    assert not [job_id for job_id in cluster.jobs() if cluster.is_alive(job_id)]
    assert not job.attempt_dir.exists()


@pytest.mark.asyncio
async def test_a_missing_command_holds_the_event(tmp_path: Path) -> None:
    """The sentence names it."""
    _, worker = _worker(tmp_path, slurm_bin=tmp_path / "nowhere")
    make_job(tmp_path)
    with pytest.raises(rampd.WorkerSetupError, match=r"there is no command .*/nowhere/sbatch"):
        await worker.check()


@pytest.mark.asyncio
async def test_the_jobs_of_others_are_left_alone(
    cluster_and_worker: tuple[Cluster, SlurmWorker], tmp_path: Path
) -> None:
    """Reclaiming ends what carries this event's mark, not what an event of the same name elsewhere runs."""
    cluster, worker = cluster_and_worker
    elsewhere = SlurmWorker(worker.config, dataclasses.replace(worker.context, state_dir=tmp_path / "elsewhere"))
    (tmp_path / "elsewhere" / "attempts").mkdir(parents=True)
    job = dataclasses.replace(
        make_job(tmp_path, "hangs"), attempt_dir=tmp_path / "elsewhere" / "attempts" / "hangs0001"
    )
    allocation = await _launched(elsewhere, job)
    assert await worker.reclaim(()) == []
    assert cluster.is_alive(allocation.job_id)
    await elsewhere.teardown(allocation)


@pytest.mark.asyncio
async def test_one_look_serves_all(
    cluster_and_worker: tuple[Cluster, SlurmWorker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty runs that are looked at together cost the controller one question."""
    _, worker = cluster_and_worker
    allocation = await _launched(worker, make_job(tmp_path, "hangs"))
    worker._slurm._fresh_s = 60
    asked: list[str] = []
    run = worker._slurm.run

    async def counted(name: str, *words: str) -> str:
        asked.append(name)
        return await run(name, *words)

    monkeypatch.setattr(worker._slurm, "run", counted)
    await worker._slurm.queue(anew=True)
    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(worker.is_submission_finished(allocation))
    assert asked == ["squeue"]
