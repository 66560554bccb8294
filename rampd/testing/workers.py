"""A worker that runs nothing, and the contract that every worker keeps."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from rampd.copying import copy_submission
from rampd.errors import WorkerLostError
from rampd.files import remove_tree
from rampd.models import Exit, Job, Results
from rampd.workers.base import Allocation, Worker, WorkerContext

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from rampd.config import WorkerConfig


class FakeAllocation(Allocation):
    """What finds a fake run again."""

    attempt_id: str
    submission: str
    attempt_dir: str
    pid: int | None = None

    def whereabouts(self) -> Mapping[str, str | int | float | bool | None]:
        """Return the pid that was made up."""
        return {"pid": self.pid}


@dataclass(slots=True)
class FakeRun:
    """What the fake does for one submission, by its name.

    `raises` maps a step's method name to the errors it raises, first call first; once they are used up it works.
    """

    duration_s: float = 1.0
    exit: Exit = field(default_factory=lambda: Exit(0))
    write_output: Callable[[Path], None] | None = None
    """Fills training_output; without it there is none."""
    log: bytes = b""
    raises: dict[str, list[BaseException]] = field(default_factory=dict)


class FakeWorker(Worker[FakeAllocation]):
    """Runs nothing, takes the time it is told to, and remembers every call.

    Its runs live in `outside`, which stands for the world outside the process: hand the same dictionary to a second
    worker and it finds them again, as after a daemon's restart.
    """

    allocation_model = FakeAllocation

    def __init__(
        self,
        config: WorkerConfig,
        context: WorkerContext,
        *,
        runs: dict[str, FakeRun] | None = None,
        outside: dict[str, asyncio.Future[Exit]] | None = None,
        resumable: bool = False,
    ) -> None:
        super().__init__(config, context)
        self.runs = runs if runs is not None else {}
        self.outside = outside if outside is not None else {}
        self.resumable = resumable  # type: ignore[misc] # a fake is both
        self.calls: list[tuple[str, str]] = []
        self.launches: list[str] = []

    def _called(self, step: str, attempt_id: str, submission: str) -> FakeRun:
        self.calls.append((step, attempt_id))
        run = self.runs.setdefault(submission, FakeRun())
        errors = run.raises.get(step)
        if errors:
            raise errors.pop(0)
        return run

    async def check(self) -> None:
        """Raise what `runs['']` says for `check`."""
        self._called("check", "", "")

    async def setup(self, job: Job) -> FakeAllocation:
        """Copy the submission."""
        self._called("setup", job.attempt_id, job.submission)
        target = job.attempt_dir / "submissions" / job.submission
        target.parent.mkdir(parents=True)
        copy_submission(job.submission_dir, target, max_bytes=1 << 20, max_files=100)
        return FakeAllocation(attempt_id=job.attempt_id, submission=job.submission, attempt_dir=str(job.attempt_dir))

    async def launch_submission(self, job: Job, allocation: FakeAllocation) -> FakeAllocation:
        """Begin to take time."""
        run = self._called("launch_submission", job.attempt_id, job.submission)
        if job.attempt_id not in self.outside:
            self.launches.append(job.attempt_id)
            future = asyncio.get_running_loop().create_future()
            self.outside[job.attempt_id] = future
            asyncio.get_running_loop().call_later(run.duration_s, _finish, future, run.exit)
            job.log_path.parent.mkdir(parents=True, exist_ok=True)
            job.log_path.write_bytes(run.log)
        return allocation.model_copy(update={"pid": 1})

    def _future(self, allocation: FakeAllocation) -> asyncio.Future[Exit]:
        try:
            return self.outside[allocation.attempt_id]
        except KeyError:
            raise WorkerLostError(f"no run of attempt {allocation.attempt_id}") from None

    async def is_submission_finished(self, allocation: FakeAllocation) -> bool:
        """Say whether its time is over."""
        return self._future(allocation).done()

    async def exit_of(self, allocation: FakeAllocation) -> Exit:
        """Return what the script says."""
        return self._future(allocation).result()

    async def wait(self, allocation: FakeAllocation) -> Exit:
        """Wait until its time is over."""
        self._called("wait", allocation.attempt_id, allocation.submission)
        return await asyncio.shield(self._future(allocation))

    async def stop(self, allocation: FakeAllocation) -> Exit:
        """End it as a TERM would."""
        self._called("stop", allocation.attempt_id, allocation.submission)
        future = self._future(allocation)
        _finish(future, Exit(143, signal=15))
        return future.result()

    async def collect_results(self, job: Job, allocation: FakeAllocation) -> Results:
        """Write what the script says and return it."""
        run = self._called("collect_results", job.attempt_id, job.submission)
        output: Path | None = None
        if run.write_output is not None:
            output = job.attempt_dir / "submissions" / job.submission / "training_output"
            if not output.exists():
                run.write_output(output)
        return Results(self._future(allocation).result(), output, job.log_path)

    async def teardown(self, allocation: FakeAllocation) -> None:
        """Forget the run."""
        self._called("teardown", allocation.attempt_id, allocation.submission)
        future = self.outside.pop(allocation.attempt_id, None)
        if future is not None:
            future.cancel()
        remove_tree(self.context.state_dir / "attempts" / allocation.attempt_id)

    async def reclaim(self, keep: Collection[str]) -> list[str]:
        """End what is not kept."""
        gone = [attempt_id for attempt_id in self.outside if attempt_id not in keep]
        for attempt_id in gone:
            self.outside.pop(attempt_id).cancel()
        return gone


def _finish(future: asyncio.Future[Exit], how: Exit) -> None:
    if not future.done():
        future.set_result(how)


def make_job(root: Path, name: str = "good", *, attempt: int = 1, timeout_s: float = 60.0) -> Job:
    """Return a job below `root` whose submission has one file, `estimator.py`."""
    submission_dir = root / "submissions" / name
    submission_dir.mkdir(parents=True, exist_ok=True)
    (submission_dir / "estimator.py").write_text(f"# {name}\n", encoding="utf-8")
    kit_dir, data_dir = root / "kit", root / "data"
    for folder in (kit_dir, data_dir):
        folder.mkdir(exist_ok=True)
    (kit_dir / "problem.py").touch()
    attempt_id = f"{name}{attempt:04x}"
    return Job(
        event_name="event",
        submission=name,
        submission_id=1,
        attempt=attempt,
        attempt_id=attempt_id,
        submission_dir=submission_dir,
        attempt_dir=root / "state" / "attempts" / attempt_id,
        kit_dir=kit_dir,
        data_dir=data_dir,
        log_path=root / "logs" / name / "log",
        timeout_s=timeout_s,
        n_threads=None,
    )


class WorkerContract(ABC):
    """What every worker promises. Subclass it in a test module, and give it the two hooks.

    The job `good` must end with status 0 soon, `bad` with status 1, and `hangs` must run until it is stopped. A status
    may be None until results are collected.
    """

    pytestmark = pytest.mark.asyncio
    patience_s: ClassVar[float] = 20.0

    @abstractmethod
    def open_worker(self, root: Path) -> AbstractAsyncContextManager[Worker[Any]]:
        """Give an open worker whose context lies below `root` (kit, data, state); close it afterwards."""

    @abstractmethod
    def is_alive(self, worker: Worker[Any], allocation: Any) -> bool:
        """Return whether anything of a run is still there, looked at from outside the worker."""

    async def _launched(self, worker: Worker[Any], job: Job) -> Any:
        return await worker.launch_submission(job, await worker.setup(job))

    async def test_a_run_goes_through_its_five_steps(self, tmp_path: Path) -> None:
        """Setup, launch, wait, collect and teardown bring a good submission to status 0."""
        job = make_job(tmp_path, "good")
        async with asyncio.timeout(self.patience_s), self.open_worker(tmp_path) as worker:
            allocation = await self._launched(worker, job)
            ended = await worker.wait(allocation)
            assert ended.status in (0, None)
            assert await worker.is_submission_finished(allocation)
            assert await worker.exit_of(allocation) == ended
            results = await worker.collect_results(job, allocation)
            assert results.exit == ended if ended.status is not None else results.exit.status == 0
            await worker.teardown(allocation)
            assert not job.attempt_dir.exists()

    async def test_a_failing_submission_has_its_status(self, tmp_path: Path) -> None:
        """The exit status is ramp-test's own."""
        job = make_job(tmp_path, "bad")
        async with asyncio.timeout(self.patience_s), self.open_worker(tmp_path) as worker:
            allocation = await self._launched(worker, job)
            assert (await worker.wait(allocation)).status in (1, None)
            assert (await worker.collect_results(job, allocation)).exit.status == 1
            await worker.teardown(allocation)

    async def test_an_allocation_survives_json(self, tmp_path: Path) -> None:
        """What the journal keeps is all that is needed to find the run again."""
        job = make_job(tmp_path, "good")
        async with asyncio.timeout(self.patience_s), self.open_worker(tmp_path) as worker:
            launched = await self._launched(worker, job)
            allocation = worker.allocation_model.model_validate_json(launched.model_dump_json())
            assert allocation == launched
            assert (await worker.wait(allocation)).status in (0, None)
            assert (await worker.collect_results(job, allocation)).exit.status == 0
            await worker.teardown(allocation)

    async def test_launching_twice_launches_once(self, tmp_path: Path) -> None:
        """The second launch of one attempt finds the first one's run."""
        job = make_job(tmp_path, "hangs")
        async with asyncio.timeout(self.patience_s), self.open_worker(tmp_path) as worker:
            first = await self._launched(worker, job)
            assert await worker.launch_submission(job, first) == first
            await worker.teardown(first)
            assert not self.is_alive(worker, first)

    async def test_stop_ends_a_run_and_may_be_repeated(self, tmp_path: Path) -> None:
        """A stopped run is finished, and its results can still be asked for."""
        job = make_job(tmp_path, "hangs")
        async with asyncio.timeout(self.patience_s), self.open_worker(tmp_path) as worker:
            allocation = await self._launched(worker, job)
            assert not await worker.is_submission_finished(allocation)
            stopped = await worker.stop(allocation)
            assert stopped.status != 0
            assert not self.is_alive(worker, allocation)
            assert await worker.stop(allocation) == stopped
            assert (await worker.collect_results(job, allocation)).exit == stopped
            await worker.teardown(allocation)

    async def test_cancelling_a_wait_does_not_end_the_run(self, tmp_path: Path) -> None:
        """A daemon that stops waiting has not stopped the submission."""
        job = make_job(tmp_path, "hangs")
        async with asyncio.timeout(self.patience_s), self.open_worker(tmp_path) as worker:
            allocation = await self._launched(worker, job)
            waiting = asyncio.ensure_future(worker.wait(allocation))
            await asyncio.wait({waiting}, timeout=0.05)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert not await worker.is_submission_finished(allocation)
            await worker.teardown(allocation)

    async def test_teardown_is_legal_from_every_state_and_twice(self, tmp_path: Path) -> None:
        """After setup, while running, after the end, and again: teardown is silent and leaves nothing."""
        async with asyncio.timeout(self.patience_s), self.open_worker(tmp_path) as worker:
            only_set_up = make_job(tmp_path, "good", attempt=1)
            allocation = await worker.setup(only_set_up)
            await worker.teardown(allocation)
            await worker.teardown(allocation)
            assert not only_set_up.attempt_dir.exists()
            running = make_job(tmp_path, "hangs", attempt=2)
            allocation = await self._launched(worker, running)
            await worker.teardown(allocation)
            assert not self.is_alive(worker, allocation)
            await worker.teardown(allocation)
            assert not running.attempt_dir.exists()

    async def test_attempts_never_share_a_folder(self, tmp_path: Path) -> None:
        """What one attempt writes into its copy is not seen by another, nor by what the participant sent."""
        first, second = make_job(tmp_path, "good", attempt=1), make_job(tmp_path, "good", attempt=2)
        async with asyncio.timeout(self.patience_s), self.open_worker(tmp_path) as worker:
            allocations = [await worker.setup(first), await worker.setup(second)]
            assert first.attempt_dir.exists()
            assert second.attempt_dir.exists()
            assert not first.attempt_dir.samefile(second.attempt_dir)
            for allocation in allocations:
                await worker.teardown(allocation)
        assert [path.name for path in first.submission_dir.iterdir()] == ["estimator.py"]

    async def test_reclaim_ends_what_is_not_kept(self, tmp_path: Path) -> None:
        """Reclaim leaves kept attempts alone and ends the others, and a second look finds nothing more."""
        kept, lost = make_job(tmp_path, "hangs", attempt=1), make_job(tmp_path, "hangs", attempt=2)
        async with asyncio.timeout(self.patience_s), self.open_worker(tmp_path) as worker:
            kept_allocation = await self._launched(worker, kept)
            lost_allocation = await self._launched(worker, lost)
            assert await worker.reclaim({kept.attempt_id})
            assert not self.is_alive(worker, lost_allocation)
            assert self.is_alive(worker, kept_allocation)
            assert await worker.reclaim({kept.attempt_id}) == []
            await worker.teardown(kept_allocation)
            await worker.teardown(lost_allocation)


class ResumableWorkerContract(WorkerContract):
    """What a worker promises besides whose runs outlive the daemon (`Worker.resumable`).

    `open_worker` is called again with the same root, while the first worker is closed: as a daemon that starts anew.
    """

    @abstractmethod
    async def lose(self, worker: Worker[Any], allocation: Any) -> None:
        """Have a run, or the machine under it, vanish without a trace of how it ended."""

    async def test_it_says_that_it_is_resumable(self, tmp_path: Path) -> None:
        """The recovery asks the class."""
        async with asyncio.timeout(self.patience_s), self.open_worker(tmp_path) as worker:
            assert worker.resumable

    async def test_a_run_outlives_its_worker(self, tmp_path: Path) -> None:
        """The next worker finds a run that goes on, can stop it, and starts nothing."""
        job = make_job(tmp_path, "hangs")
        async with asyncio.timeout(self.patience_s):
            async with self.open_worker(tmp_path) as worker:
                launched = await self._launched(worker, job)
            async with self.open_worker(tmp_path) as worker:
                allocation = worker.allocation_model.model_validate_json(launched.model_dump_json())
                assert self.is_alive(worker, allocation)
                assert not await worker.is_submission_finished(allocation)
                assert (await worker.stop(allocation)).status != 0
                assert not self.is_alive(worker, allocation)
                await worker.teardown(allocation)

    async def test_a_run_that_ended_meanwhile_has_its_results(self, tmp_path: Path) -> None:
        """Nobody watched it end, and its status is known all the same."""
        job = make_job(tmp_path, "bad")
        async with asyncio.timeout(self.patience_s):
            async with self.open_worker(tmp_path) as worker:
                allocation = await self._launched(worker, job)
                await worker.wait(allocation)
            async with self.open_worker(tmp_path) as worker:
                await worker.wait(allocation)
                assert (await worker.collect_results(job, allocation)).exit.status == 1
                await worker.teardown(allocation)

    async def test_a_launch_that_was_not_journaled_is_found(self, tmp_path: Path) -> None:
        """A daemon killed between the launch and its commit launches again, and finds the first one's run."""
        job = make_job(tmp_path, "hangs")
        async with asyncio.timeout(self.patience_s):
            async with self.open_worker(tmp_path) as worker:
                set_up = await worker.setup(job)
                launched = await worker.launch_submission(job, set_up)
            async with self.open_worker(tmp_path) as worker:
                assert await worker.launch_submission(job, set_up) == launched
                await worker.teardown(launched)
                assert not self.is_alive(worker, launched)

    async def test_the_next_worker_reclaims_what_nobody_keeps(self, tmp_path: Path) -> None:
        """A run whose attempt is not known any more ends, and one that is kept goes on."""
        kept, lost = make_job(tmp_path, "hangs", attempt=1), make_job(tmp_path, "hangs", attempt=2)
        async with asyncio.timeout(self.patience_s):
            async with self.open_worker(tmp_path) as worker:
                kept_allocation = await self._launched(worker, kept)
                lost_allocation = await self._launched(worker, lost)
            async with self.open_worker(tmp_path) as worker:
                assert await worker.reclaim({kept.attempt_id})
                assert not self.is_alive(worker, lost_allocation)
                assert self.is_alive(worker, kept_allocation)
                await worker.teardown(kept_allocation)

    async def test_a_lost_run_is_said_to_be_lost(self, tmp_path: Path) -> None:
        """It is neither waited for for ever, nor taken for one that ended; and its teardown is silent."""
        job = make_job(tmp_path, "hangs")
        async with asyncio.timeout(self.patience_s), self.open_worker(tmp_path) as worker:
            allocation = await self._launched(worker, job)
            await self.lose(worker, allocation)
            with pytest.raises(WorkerLostError):
                await worker.wait(allocation)
            await worker.teardown(allocation)
            assert not job.attempt_dir.exists()
