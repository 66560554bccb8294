"""The worker: each submission is a job, and all that is needed to find it again is in its allocation."""

from __future__ import annotations

import asyncio
import hashlib
import math
import shlex
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, NoReturn

from pydantic import Field

import rampd
from rampd_slurm.commands import NAMES, JobState, Slurm, SlurmError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

WAITING: Final = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"})
UNKNOWN: Final = "UNKNOWN"
"""Ours: nobody could be asked, or nobody knows yet."""
ACTIVE: Final = WAITING | {
    UNKNOWN,
    "RUNNING",
    "COMPLETING",
    "SUSPENDED",
    "STOPPED",
    "SIGNALING",
    "STAGE_OUT",
    "RESIZING",
}
"""Every other state is a job's last one (squeue(1), "Job state codes")."""
ENDED_BY_ITSELF: Final = frozenset({"COMPLETED", "FAILED"})
_INVALID: Final = ("invalid", "not available", "not permitted", "more processors requested")
"""What sbatch says of a request that no waiting will mend."""
_STOP_S: Final = 60.0
"""Slurm sends KILL 30 s after TERM (slurm.conf, KillWait)."""
_SIGTERM, _SIGKILL = 15, 9
_TIMEOUT_STATUS = 124


class SlurmConfig(rampd.WorkerConfig):
    """The `worker` section of worker_type slurm."""

    conda_env: Path
    """The prefix whose bin/ramp-test runs, as the cluster's nodes see it."""
    partition: str | None = None
    """The partition; null: the cluster's default."""
    sbatch_options: list[str] = Field(default_factory=list)
    """Further options of sbatch, a list."""
    slurm_bin: Path | None = None
    """The folder of Slurm's commands; null: they are on PATH."""
    lost_after: float = Field(default=120.0, gt=0)
    """Seconds for which neither squeue nor sacct may know of a job before it counts as lost."""


class SlurmAllocation(rampd.Allocation):
    """What finds a job again."""

    attempt_id: str
    submission: str
    job_id: str | None = None

    def whereabouts(self) -> Mapping[str, str | int | float | bool | None]:
        """Return the job, for `submission.started` and `rampctl status`."""
        return {"host": f"slurm job {self.job_id}"}


class SlurmWorker(rampd.Worker[SlurmAllocation]):
    """Runs submissions as jobs."""

    config: SlurmConfig
    config_model = SlurmConfig
    allocation_model = SlurmAllocation
    resumable: ClassVar[bool] = True
    reclaim_interval_s: ClassVar[float | None] = 600.0

    def __init__(self, config: rampd.WorkerConfig, context: rampd.WorkerContext) -> None:
        super().__init__(config, context)
        self._slurm = Slurm(self.config.slurm_bin, fresh_s=context.time_between_collection_s * 0.9)
        self._unknown_since: dict[str, float] = {}
        """Since when nobody knows of a job: a cache, which a later process may begin anew."""

    def describe(self) -> Mapping[str, object]:
        """Return what `daemon.started` says of us."""
        return {"partition": self.config.partition}

    async def check(self) -> None:
        """Look for the four commands and for the kit."""
        for name in NAMES:
            if shutil.which(self._slurm.path(name)) is None:
                raise rampd.WorkerSetupError(f"worker.slurm_bin: there is no command {self._slurm.path(name)}")
        if not (self.context.kit_dir / "problem.py").is_file():
            raise rampd.WorkerSetupError(f"ramp.kit_dir: there is no {self.context.kit_dir / 'problem.py'}")

    # -- names and places

    @property
    def _mark(self) -> str:
        """How the names of this event's jobs begin; two daemons may serve events of one name."""
        place = hashlib.sha256(str(self.context.state_dir).encode()).hexdigest()[:8]
        return f"rampd-{self.context.event_name}-{place}-"

    def _folder(self, attempt_id: str) -> Path:
        return self.context.state_dir / "attempts" / attempt_id

    # -- the five steps

    async def setup(self, job: rampd.Job) -> SlurmAllocation:
        """Make the attempt's folder: the private copy of the submission, and the job's script."""
        making = asyncio.ensure_future(asyncio.to_thread(self._make_folder, job))
        try:
            await asyncio.shield(making)
        except asyncio.CancelledError:
            # A thread cannot be cancelled: what it makes is removed once it is made.
            await asyncio.wait({making})
            await asyncio.to_thread(rampd.remove_tree, job.attempt_dir)
            raise
        except OSError as error:
            raise rampd.WorkerError(f"{error.filename}: cannot be written: {error.strerror}") from error
        return SlurmAllocation(attempt_id=job.attempt_id, submission=job.submission)

    def _make_folder(self, job: rampd.Job) -> None:
        try:
            job.log_path.parent.mkdir(parents=True, exist_ok=True)
            submissions = job.attempt_dir / "submissions"
            submissions.mkdir(parents=True)
            rampd.copy_submission(
                job.submission_dir,
                submissions / job.submission,
                max_bytes=self.config.max_output_bytes,
                max_files=self.config.max_output_files,
            )
            script = job.attempt_dir / "job.sh"
            script.write_text(self._script(job, submissions), encoding="utf-8")
            script.chmod(0o755)
        except BaseException:
            rampd.remove_tree(job.attempt_dir)
            raise

    def _script(self, job: rampd.Job, submissions: Path) -> str:
        lines = ["#!/bin/bash", f"cd {shlex.quote(str(job.attempt_dir))} || exit 1"]
        if job.n_threads is not None:
            lines += [f"export {name}_NUM_THREADS={job.n_threads}" for name in ("OMP", "MKL", "OPENBLAS")]
        lines += [f"export {name}={shlex.quote(text)}" for name, text in self.config.env.items() if text is not None]
        command = shlex.join(rampd.ramp_test_argv(self.config.conda_env, job, submissions))
        return "\n".join(
            [
                *lines,
                # What it prints beyond the bound is read, and thrown away: a pipe that is closed would end it.
                f"{command} 2>&1 | {{ head -c {int(self.config.max_log_bytes)}; cat >/dev/null; }}",
                "status=${PIPESTATUS[0]}",
                # In place at once or not at all: whoever looks while it is written sees nothing.
                "echo $status >exit_status.new && mv exit_status.new exit_status",
                "exit $status",
                "",
            ]
        )

    async def launch_submission(self, job: rampd.Job, allocation: SlurmAllocation) -> SlurmAllocation:
        """Hand the job in, unless that was done, and return once it runs: the deadline counts from then."""
        job_id = allocation.job_id
        if job_id is None:
            handed_in = job.attempt_dir / "handed_in"
            name = f"{self._mark}{job.attempt_id}"
            try:
                # Only where an earlier process came so far can there be a job that nobody wrote down.
                job_id = await self._slurm.named(name) if handed_in.exists() else None
                handed_in.touch()
                job_id = job_id or await self._slurm.submit(self._options(job, name))
            except SlurmError as error:
                self._refuse(error)
        launched = allocation.model_copy(update={"job_id": job_id})
        # The first look is a new one: the last may be older than the job.
        state = await self._state_of(launched, anew=True)
        while state in WAITING or state == UNKNOWN:
            await asyncio.sleep(self.context.time_between_collection_s)
            state = await self._state_of(launched)
        self._raise_if_lost(launched, state)
        return launched

    def _options(self, job: rampd.Job, name: str) -> list[str]:
        minutes = math.ceil(job.timeout_s / 60) + 5  # the daemon's own deadline comes first
        partition = [f"--partition={self.config.partition}"] if self.config.partition else []
        return [
            f"--job-name={name}",
            f"--output={str(job.log_path).replace('%', '%%')}",
            "--open-mode=truncate",
            "--export=NONE",  # nothing of the daemon's environment
            "--no-requeue",  # what is tried again is rampd's to decide
            f"--time={minutes}",
            *partition,
            *self.config.sbatch_options,
            str(job.attempt_dir / "job.sh"),
        ]

    def _refuse(self, error: SlurmError) -> NoReturn:
        if any(word in str(error).lower() for word in _INVALID):
            raise rampd.WorkerSetupError(f"the cluster refuses the event's jobs: {error}") from error
        raise rampd.WorkerUnavailableError(f"the cluster takes no job: {error}") from error

    async def _state_of(self, allocation: SlurmAllocation, *, anew: bool = False) -> str:
        """Return a job's state.

        Raises
        ------
        WorkerLostError
            For `lost_after` nobody knew of it.
        """
        job_id = str(allocation.job_id)
        try:
            known: JobState | None = (await self._slurm.queue(anew=anew)).get(job_id)
        except SlurmError:
            return UNKNOWN  # never infer from a look that failed that something is gone
        if known is None:
            # squeue forgets a job some minutes after its end (slurm.conf, MinJobAge).
            try:
                accounted = await self._slurm.accounted(job_id)
            except SlurmError:
                accounted = None
            if accounted is not None and accounted.state not in ACTIVE:
                self._unknown_since.pop(job_id, None)
                return accounted.state
            if self._status_file(allocation).exists():
                return "COMPLETED"
            since = self._unknown_since.setdefault(job_id, time.monotonic())
            if time.monotonic() - since > self.config.lost_after:
                del self._unknown_since[job_id]
                raise rampd.WorkerLostError(f"neither squeue nor sacct knows of Slurm job {job_id}")
            return UNKNOWN
        self._unknown_since.pop(job_id, None)
        return known.state

    def _status_file(self, allocation: SlurmAllocation) -> Path:
        return self._folder(allocation.attempt_id) / "exit_status"

    def _raise_if_lost(self, allocation: SlurmAllocation, state: str) -> None:
        ended = state in ENDED_BY_ITSELF or state in {"TIMEOUT", "OUT_OF_MEMORY"} or state in ACTIVE
        if not ended and not self._was_stopped(allocation):
            raise rampd.WorkerLostError(f"Slurm job {allocation.job_id} ended as {state}")

    def _was_stopped(self, allocation: SlurmAllocation) -> bool:
        return (self._folder(allocation.attempt_id) / "stopped").exists()

    async def is_submission_finished(self, allocation: SlurmAllocation) -> bool:
        """Ask for the job's state; see `rampd.Worker.is_submission_finished`."""
        state = await self._state_of(allocation)
        self._raise_if_lost(allocation, state)
        return state not in ACTIVE

    async def exit_of(self, allocation: SlurmAllocation) -> rampd.Exit:
        """Return how the job ended: by ramp-test's own status, or by what Slurm says of its end."""
        if self._was_stopped(allocation):
            return rampd.Exit(128 + _SIGTERM, _SIGTERM)
        state = await self._state_of(allocation)
        if state == "OUT_OF_MEMORY":
            return rampd.Exit(128 + _SIGKILL, _SIGKILL)
        if state == "TIMEOUT":
            return rampd.Exit(_TIMEOUT_STATUS)
        try:
            return rampd.Exit(int(self._status_file(allocation).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return await self._accounted_exit(allocation)

    async def _accounted_exit(self, allocation: SlurmAllocation) -> rampd.Exit:
        """Return what the accounting says of a job whose script itself was killed. It may lag behind the queue."""
        deadline = time.monotonic() + self.config.lost_after
        while time.monotonic() < deadline:
            try:
                accounted = await self._slurm.accounted(str(allocation.job_id))
            except SlurmError:
                accounted = None
            if accounted is not None and accounted.state not in ACTIVE:
                if accounted.signal:
                    return rampd.Exit(128 + accounted.signal, accounted.signal)
                return rampd.Exit(accounted.status)
            await asyncio.sleep(self.context.time_between_collection_s)
        raise rampd.WorkerLostError(f"nobody knows how Slurm job {allocation.job_id} ended")

    async def stop(self, allocation: SlurmAllocation) -> rampd.Exit:
        """Cancel the job, and wait until it has ended; see `rampd.Worker.stop`."""
        if allocation.job_id is None:
            await self._cancel(allocation)
            return rampd.Exit(None)
        if await self._state_of(allocation, anew=True) in ACTIVE:
            (self._folder(allocation.attempt_id) / "stopped").touch()
            await self._cancel(allocation)
        return await self.exit_of(allocation)

    async def _cancel(self, allocation: SlurmAllocation) -> None:
        """Cancel whatever runs for an attempt, by its name: of a job that was handed in the id may not be known."""
        name = f"{self._mark}{allocation.attempt_id}"
        try:
            async with asyncio.timeout(_STOP_S):
                while alive := await self._alive(name):
                    await self._slurm.run("scancel", *alive)
                    await asyncio.sleep(min(0.2, self.context.time_between_collection_s))
        except TimeoutError:
            raise rampd.WorkerError(f"Slurm job {allocation.job_id} does not end; cancel it by hand") from None
        except SlurmError as error:
            raise rampd.WorkerError(f"Slurm job {allocation.job_id} cannot be cancelled: {error}") from error

    async def _alive(self, name: str) -> list[str]:
        jobs = (await self._slurm.queue(anew=True)).values()
        return [job.job_id for job in jobs if job.name == name and job.state in ACTIVE]

    async def collect_results(self, job: rampd.Job, allocation: SlurmAllocation) -> rampd.Results:
        """Return where log and training_output are: on a file system that is ours as well."""
        ended = await self.exit_of(allocation)
        output = job.attempt_dir / "submissions" / job.submission / "training_output"
        is_over_its_limit = ended.status == _TIMEOUT_STATUS and not self._status_file(allocation).exists()
        return rampd.Results(
            ended,
            output if output.is_dir() and not output.is_symlink() else None,
            job.log_path,
            outcome=rampd.Outcome.TIMEOUT if is_over_its_limit else None,
        )

    async def teardown(self, allocation: SlurmAllocation) -> None:
        """Cancel what runs, and remove the attempt's folder."""
        folder = self._folder(allocation.attempt_id)
        if (folder / "handed_in").exists():
            await self._cancel(allocation)
        await asyncio.to_thread(rampd.remove_tree, folder)

    async def reclaim(self, keep: Collection[str]) -> list[str]:
        """Cancel jobs of ours, and remove folders, that belong to no attempt any more."""
        try:
            jobs = [job for job in (await self._slurm.queue(anew=True)).values() if job.state in ACTIVE]
        except SlurmError as error:
            raise rampd.WorkerError(f"what runs on the cluster is not known: {error}") from error
        attempts = self.context.state_dir / "attempts"
        folders = await asyncio.to_thread(lambda: sorted(path.name for path in attempts.glob("*")))
        reclaimed = []
        for job in jobs:
            attempt_id = job.name.removeprefix(self._mark)
            if job.name.startswith(self._mark) and attempt_id not in keep:
                await self._cancel(SlurmAllocation(attempt_id=attempt_id, submission="", job_id=job.job_id))
                reclaimed.append(f"Slurm job {job.job_id}")
        for name in folders:
            if name not in keep:
                await asyncio.to_thread(rampd.remove_tree, attempts / name)
                reclaimed.append(f"folder {name}")
        return reclaimed
