"""Runs submissions on this machine: `ramp-test` of a conda environment, or of a plain virtual environment."""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from rampd import clock, ramp_test
from rampd.config import WorkerConfig
from rampd.copying import UnsafeTreeError, copy_submission
from rampd.errors import WorkerError, WorkerLostError, WorkerSetupError
from rampd.files import folder_below, remove_tree
from rampd.models import Exit, Job, Results
from rampd.workers import containment
from rampd.workers.base import Allocation, Worker, WorkerContext
from rampd.workers.conda_environments import CondaEnvironments
from rampd.workers.containment import Containment, Identity, identity_of
from rampd.workers.local_runs import LocalRun, LocalRuns

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from contextlib import AsyncExitStack

    from rampd.workers.supervisor import Spec

log = structlog.get_logger("rampd.workers.conda")

_STOP_S = 5.0 + 5.0
"""TERM, 5 s, KILL, and as long again for what the kernel needs to end it all."""
_NICENESS = 10


class CondaConfig(WorkerConfig):
    """The `worker` section of worker_type conda."""

    conda_env: str = "base"
    """The environment whose ramp-test runs: a name, or a path to a prefix (a plain virtual environment serves too)."""


class CondaAllocation(Allocation):
    """A run on this machine. A pid alone names no process: its start time goes with it."""

    attempt_id: str
    attempt_dir: str
    prefix: str
    pid: int | None = None
    start_time: int | None = None
    boot_id: str | None = None

    def whereabouts(self) -> Mapping[str, str | int | float | bool | None]:
        """Return the pid of the run's supervisor."""
        return {"pid": self.pid}


class CondaWorker(Worker[CondaAllocation]):
    """Runs each submission in a private copy, under a supervisor of its own, with nothing of ours in its environment.

    A run dies with the daemon: the next one starts it anew.
    """

    config: CondaConfig
    config_model = CondaConfig
    allocation_model = CondaAllocation
    live_keys = Worker.live_keys | {"conda_env"}

    def __init__(self, config: WorkerConfig, context: WorkerContext, *, containment: Containment | None = None) -> None:
        super().__init__(config, context)
        self._environments = CondaEnvironments(context.deployment_dir)
        self._local = LocalRuns(containment)
        self._identity: Identity | None = None
        self._user = ""
        self._runs: dict[str, LocalRun] = {}
        """Handles of what this process started, by attempt: a cache, since nobody else could wait for it."""

    async def open(self, stack: AsyncExitStack) -> None:
        """Find out how runs can be contained; warn of what is not.

        Raises
        ------
        WorkerSetupError
            worker.run_as cannot be had.
        WorkerError
            Runs cannot be started at all.
        """
        self._identity = identity_of(self.config.run_as)
        self._user = self._identity.name if self._identity else pwd.getpwuid(os.geteuid()).pw_name
        await self._local.open(stack, changes_user=self._identity is not None)
        for message in self.warnings():
            log.warning("worker.uncontained", message=message)

    def warnings(self) -> Sequence[str]:
        """Return what the platform does not protect from submissions."""
        if self._identity is not None:
            return ()
        who = "root: they can read and change everything on this machine"
        if os.geteuid() != 0:
            who = "the daemon's own user: they can read its config and one another"
        return (f"submissions run as {who}; start the daemon as root with worker.run_as naming a user of their own",)

    def describe(self) -> Mapping[str, object]:
        """Return how runs are contained, and as whom they run."""
        return {
            "containment": self._local.containment,
            "run_as": self._identity.name if self._identity else None,
            "conda_env": self.config.conda_env,
        }

    async def check(self) -> None:
        """Look for the environment, its ramp-test, the kit and the data; see `Worker.check`."""
        await self._prefix()
        kit, data = self.context.kit_dir, self.context.data_dir
        with _looking("ramp.kit_dir"):
            if not (kit / "problem.py").is_file():
                raise WorkerSetupError(f"ramp.kit_dir: there is no {kit / 'problem.py'}", _folders_beside(kit))
        with _looking("ramp.data_dir"):
            if not data.is_dir():
                raise WorkerSetupError(f"ramp.data_dir: there is no folder {data}", _folders_beside(data))

    async def _prefix(self) -> Path:
        with _looking("worker.conda_env"):
            prefix = await self._environments.prefix_of(self.config.conda_env)
        executable = prefix / "bin" / "ramp-test"
        if not os.access(executable, os.X_OK):
            raise WorkerSetupError(
                f"worker.conda_env: {prefix} has no bin/ramp-test; install ramp-workflow into it",
                self._environments.existing(),
            )
        return prefix

    async def setup(self, job: Job) -> CondaAllocation:
        """Make the attempt's folder, with a private copy of the submission; see `Worker.setup`."""
        prefix = await self._prefix()
        try:
            await self._copy(job)
        except UnsafeTreeError as error:
            raise WorkerError(f"{job.submission_dir} changed while it was copied: {error}") from error
        except OSError as error:
            raise WorkerError(f"{error.filename}: cannot be written: {error.strerror}") from error
        return CondaAllocation(attempt_id=job.attempt_id, attempt_dir=str(job.attempt_dir), prefix=str(prefix))

    async def _copy(self, job: Job) -> None:
        """Have the folders made in a thread; a cancelled call returns when the thread has ended, and leaves nothing."""
        making = asyncio.ensure_future(asyncio.to_thread(self._make_folders, job))
        try:
            await asyncio.shield(making)
        except asyncio.CancelledError:
            await asyncio.wait({making})
            if making.exception() is None:  # else it has tidied up itself
                await asyncio.to_thread(remove_tree, job.attempt_dir)
            raise

    def _make_folders(self, job: Job) -> None:
        identity = self._identity
        try:
            job.log_path.parent.mkdir(parents=True, exist_ok=True)
            job.attempt_dir.mkdir(mode=0o700)
            for name in ("home", "tmp", "submissions"):
                (job.attempt_dir / name).mkdir(mode=0o700)
            copy_submission(
                job.submission_dir,
                job.attempt_dir / "submissions" / job.submission,
                max_bytes=self.config.max_output_bytes,
                max_files=self.config.max_output_files,
                owner=(identity.uid, identity.gid) if identity else None,
            )
            if identity is not None:
                for path in (job.attempt_dir, *job.attempt_dir.iterdir()):
                    os.chown(path, identity.uid, identity.gid)
        except BaseException:
            remove_tree(job.attempt_dir)
            raise

    async def launch_submission(self, job: Job, allocation: CondaAllocation) -> CondaAllocation:
        """Start ramp-test under its supervisor; see `Worker.launch_submission`."""
        run = self._runs.get(job.attempt_id)
        if run is None:
            prefix, marker = Path(allocation.prefix), str(job.attempt_dir)
            identity = self._identity
            spec: Spec = {
                "key": job.attempt_id,
                "command": ramp_test.argv(prefix, job, job.attempt_dir / "submissions"),
                "environment": self._environment(job, prefix, marker),
                "folder": str(job.attempt_dir),
                "log": str(job.log_path),
                "max_log_bytes": self.config.max_log_bytes,
                "niceness": _NICENESS,
                "identity": (identity.uid, identity.gid, list(identity.groups)) if identity else None,
            }
            self._runs[job.attempt_id] = run = await self._local.start(spec, marker=marker)
        return _with_process(allocation, run.pid)

    def _environment(self, job: Job, prefix: Path, marker: str) -> dict[str, str]:
        environment = containment.base_environment(
            home=job.attempt_dir / "home",
            temporary=job.attempt_dir / "tmp",
            user=self._user,
            n_threads=job.n_threads,
        )
        environment["PATH"] = f"{prefix}/bin:/usr/local/bin:/usr/bin:/bin"
        if (prefix / "conda-meta").is_dir():
            environment |= {"CONDA_PREFIX": str(prefix), "CONDA_DEFAULT_ENV": self.config.conda_env}
        else:
            environment["VIRTUAL_ENV"] = str(prefix)
        for name, text in self.config.env.items():
            value = os.environ.get(name) if text is None else text
            if value is not None and not (containment.is_withheld(name) and text is None):
                environment[name] = value
        environment[containment.MARKER] = marker
        return environment

    def _run_of(self, allocation: CondaAllocation) -> LocalRun:
        run = self._runs.get(allocation.attempt_id)
        if run is None:
            raise WorkerLostError(f"the run of attempt {allocation.attempt_id} went with the daemon that started it")
        return run

    async def is_submission_finished(self, allocation: CondaAllocation) -> bool:
        """Return whether the run has ended; see `Worker.is_submission_finished`."""
        return self._run_of(allocation).gone.is_set()

    async def exit_of(self, allocation: CondaAllocation) -> Exit:
        """Return how the run ended; see `Worker.exit_of`."""
        return await self.wait(allocation)

    async def wait(self, allocation: CondaAllocation) -> Exit:
        """Return when the run's supervisor has reported; nothing is polled."""
        return await self._run_of(allocation).wait()

    async def stop(self, allocation: CondaAllocation) -> Exit:
        """End the run with its whole process tree; see `Worker.stop`."""
        run = self._run_of(allocation)
        if not run.gone.is_set():
            await self._local.stop(run)
            with suppress(TimeoutError):
                async with asyncio.timeout(_STOP_S):
                    await run.gone.wait()
        await self._local.kill(run)
        try:
            return await run.wait()
        except WorkerLostError:
            # It was we who killed it, or somebody else did: it has ended either way.
            return Exit(128 + signal.SIGKILL, signal.SIGKILL)

    async def collect_results(self, job: Job, allocation: CondaAllocation) -> Results:
        """Return where log and training_output are: they are here already."""
        ended = await self.stop(allocation)
        output = folder_below(job.attempt_dir, "submissions", job.submission, "training_output")
        return Results(ended, output, job.log_path)

    async def teardown(self, allocation: CondaAllocation) -> None:
        """End what runs and remove the attempt's folder; see `Worker.teardown`."""
        run = self._runs.get(allocation.attempt_id)
        if run is not None:
            await self._local.kill(run)
            self._runs.pop(allocation.attempt_id, None)
        await asyncio.to_thread(remove_tree, self._attempts_dir / allocation.attempt_id)

    @property
    def _attempts_dir(self) -> Path:
        return self.context.state_dir / "attempts"

    async def reclaim(self, keep: Collection[str]) -> list[str]:
        """End processes and remove folders that an earlier daemon of this event left; see `Worker.reclaim`."""
        return await asyncio.to_thread(self._reclaim, frozenset(keep))

    def _reclaim(self, keep: frozenset[str]) -> list[str]:
        folder = self._attempts_dir
        kept = frozenset(str(folder / attempt_id) for attempt_id in keep)
        killed = containment.kill_marked(f"{folder}/", keep=kept)
        reclaimed = [f"process {pid}" for pid in killed]
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if path.name not in keep:
                remove_tree(path)
                reclaimed.append(f"folder {path.name}")
        for attempt_id in [attempt_id for attempt_id in self._runs if attempt_id not in keep]:
            del self._runs[attempt_id]
        return reclaimed


def _with_process(allocation: CondaAllocation, pid: int | None) -> CondaAllocation:
    if pid is None or allocation.pid is not None:
        return allocation
    found = {"pid": pid, "start_time": containment.start_time_of(pid), "boot_id": clock.boot_id()}
    return allocation.model_copy(update=found)


@contextmanager
def _looking(key: str) -> Iterator[None]:
    """Turn a folder that the daemon's user may not look into, or that its file system fails for, into a held event."""
    try:
        yield
    except OSError as error:
        raise WorkerSetupError(f"{key}: {error.filename} cannot be looked at: {error.strerror}") from error


def _folders_beside(path: Path) -> list[str]:
    with suppress(OSError):
        return sorted(other.name for other in path.parent.iterdir() if other.is_dir())[:20]
    return []
