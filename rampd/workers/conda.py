"""Runs submissions on this machine: `ramp-test` of a conda environment, or of a plain virtual environment."""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from rampd import clock, ramp_test
from rampd.config import WorkerConfig
from rampd.errors import WorkerError, WorkerLostError, WorkerSetupError
from rampd.files import UnsafeTreeError, copy_submission, remove_tree
from rampd.models import Exit, Job, Results
from rampd.workers import containment
from rampd.workers.base import Allocation, Worker, WorkerContext
from rampd.workers.conda_environments import CondaEnvironments
from rampd.workers.containment import Containment, Identity

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping
    from contextlib import AsyncExitStack

log = structlog.get_logger("rampd.workers.conda")

_STOP_S = 5.0 + 5.0
"""TERM, 5 s, KILL, and as long again for what the kernel needs to end it all."""


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


@dataclass(slots=True)
class _Run:
    """The handle of a run that this process started: a cache, since nobody else could wait for it."""

    process: asyncio.subprocess.Process
    marker: str
    said: list[str] = field(default_factory=list)
    ending: asyncio.Task[Exit] | None = None


class CondaWorker(Worker[CondaAllocation]):
    """Runs each submission in a private copy, under a supervisor of its own, with nothing of ours in its environment.

    A run dies with the daemon: the next one starts it anew.
    """

    config: CondaConfig
    config_model = CondaConfig
    allocation_model = CondaAllocation

    def __init__(
        self, config: WorkerConfig, context: WorkerContext, *, containment: Containment | None = None
    ) -> None:
        super().__init__(config, context)
        self._environments = CondaEnvironments(context.deployment_dir)
        self._containment = containment
        self._identity: Identity | None = None
        self._runs: dict[str, _Run] = {}

    async def open(self, stack: AsyncExitStack) -> None:
        """Find out how runs can be contained; warn of what is not.

        Raises
        ------
        WorkerSetupError
            worker.run_as cannot be had.
        """
        self._identity = containment.identity_of(self.config.run_as)
        containment.compile_supervisor()
        if self._containment is None:
            self._containment = await containment.probe()
        stack.push_async_callback(self._end_all)
        message = self._uncontained()
        if message:
            log.warning("worker.uncontained", message=message)

    def _uncontained(self) -> str:
        if self._identity is not None:
            return ""
        who = "root: they can read and change everything on this machine"
        if os.geteuid() != 0:
            who = "the daemon's own user: they can read its config and one another"
        return f"submissions run as {who}; start the daemon as root with worker.run_as naming a user of their own"

    def describe(self) -> Mapping[str, object]:
        """Return how runs are contained, and as whom they run."""
        return {
            "containment": self._containment,
            "run_as": self._identity.name if self._identity else None,
            "conda_env": self.config.conda_env,
        }

    async def check(self) -> None:
        """Look for the environment, its ramp-test, the kit and the data; see `Worker.check`."""
        await self._prefix()
        kit, data = self.context.kit_dir, self.context.data_dir
        if not (kit / "problem.py").is_file():
            raise WorkerSetupError(f"ramp.kit_dir: there is no {kit / 'problem.py'}", _folders_beside(kit))
        if not data.is_dir():
            raise WorkerSetupError(f"ramp.data_dir: there is no folder {data}", _folders_beside(data))

    async def _prefix(self) -> Path:
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
            await asyncio.to_thread(self._make_folders, job)
        except UnsafeTreeError as error:
            raise WorkerError(f"{job.submission_dir} changed while it was copied: {error}") from error
        except OSError as error:
            raise WorkerError(f"{error.filename}: cannot be written: {error.strerror}") from error
        return CondaAllocation(attempt_id=job.attempt_id, attempt_dir=str(job.attempt_dir), prefix=str(prefix))

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
        running = self._runs.get(job.attempt_id)
        if running is not None:
            return _with_process(allocation, running.process.pid)
        prefix = Path(allocation.prefix)
        argv = containment.supervised(
            self._contained(),
            ramp_test.argv(prefix, job, job.attempt_dir / "submissions"),
            log_path=job.log_path,
            max_log_bytes=self.config.max_log_bytes,
            identity=self._identity,
        )
        marker = str(job.attempt_dir)
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=self._environment(job, prefix, marker),
                cwd=job.attempt_dir,
                start_new_session=True,
            )
        except OSError as error:
            raise WorkerError(f"the supervisor could not be started: {error.strerror}") from error
        run = _Run(process, marker)
        self._runs[job.attempt_id] = run
        try:
            await self._wait_for_start(run, prefix)
        except BaseException:
            await asyncio.shield(self._kill(run))
            del self._runs[job.attempt_id]
            raise
        run.ending = asyncio.create_task(self._wait_for_end(run), name=f"ending of {job.submission}")
        return _with_process(allocation, process.pid)

    def _contained(self) -> Containment:
        if self._containment is None:
            raise WorkerError("the worker is not open")
        return self._containment

    def _environment(self, job: Job, prefix: Path, marker: str) -> dict[str, str]:
        user = self._identity.name if self._identity else pwd.getpwuid(os.geteuid()).pw_name
        environment = containment.base_environment(
            home=job.attempt_dir / "home",
            temporary=job.attempt_dir / "tmp",
            user=user,
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

    async def _wait_for_start(self, run: _Run, prefix: Path) -> None:
        """Read the supervisor's first word.

        Raises
        ------
        WorkerSetupError
            ramp-test cannot be executed.
        WorkerLostError
            The supervisor ended without a word of its own.
        """
        async for line in _lines(run.process):
            if line == "started":
                return
            if line.startswith("failed "):
                reason = os.strerror(int(line.removeprefix("failed ")))
                raise WorkerSetupError(f"{prefix}/bin/ramp-test cannot be executed: {reason}")
            run.said.append(line)
        raise WorkerLostError(f"the supervisor did not start: {' '.join(run.said)[:500] or 'it said nothing'}")

    async def _wait_for_end(self, run: _Run) -> Exit:
        """Read the supervisor's last word, and make sure that nothing is left.

        Raises
        ------
        WorkerLostError
            It was killed: how the submission ended is not known.
        """
        ended: Exit | None = None
        async for line in _lines(run.process):
            if line.startswith("ended "):
                ended = _parse_end(line)
            else:
                run.said.append(line)
        await run.process.wait()
        if ended is None:
            await asyncio.to_thread(containment.kill_marked, run.marker)
            said = f" ({' '.join(run.said)[:500]})" if run.said else ""
            raise WorkerLostError(f"the run's supervisor was killed{said}")
        return ended

    def _run_of(self, allocation: CondaAllocation) -> _Run:
        run = self._runs.get(allocation.attempt_id)
        if run is None or run.ending is None:
            raise WorkerLostError(f"the run of attempt {allocation.attempt_id} went with the daemon that started it")
        return run

    async def is_submission_finished(self, allocation: CondaAllocation) -> bool:
        """Return whether the run has ended; see `Worker.is_submission_finished`."""
        ending = self._run_of(allocation).ending
        return ending is not None and ending.done()

    async def exit_of(self, allocation: CondaAllocation) -> Exit:
        """Return how the run ended; see `Worker.exit_of`."""
        return await self.wait(allocation)

    async def wait(self, allocation: CondaAllocation) -> Exit:
        """Return when the run's supervisor has reported; nothing is polled."""
        ending = self._run_of(allocation).ending
        assert ending is not None  # noqa: S101 -- _run_of looked
        return await asyncio.shield(ending)

    async def stop(self, allocation: CondaAllocation) -> Exit:
        """End the run with its whole process tree; see `Worker.stop`."""
        run = self._run_of(allocation)
        ending = run.ending
        assert ending is not None  # noqa: S101 -- _run_of looked
        if not ending.done():
            _tell(run, b"stop\n")
            await asyncio.wait({ending}, timeout=_STOP_S)
        if not ending.done():
            await self._kill(run)
            await asyncio.wait({ending})
        try:
            return ending.result()
        except WorkerLostError:
            # It was we who killed it, or somebody else did: it has ended either way.
            return Exit(128 + signal.SIGKILL, signal.SIGKILL)

    async def _kill(self, run: _Run) -> None:
        """End a run without asking: the supervisor's group, its namespace with it, and whatever carries its marker."""
        with suppress(ProcessLookupError):
            os.killpg(run.process.pid, signal.SIGKILL)
        _hang_up(run)
        await run.process.wait()
        if self._containment is Containment.SUBREAPER:
            await asyncio.to_thread(containment.kill_marked, run.marker)

    async def collect_results(self, job: Job, allocation: CondaAllocation) -> Results:
        """Return where log and training_output are: they are here already."""
        output = job.attempt_dir / "submissions" / job.submission / "training_output"
        ended = await self.stop(allocation)
        return Results(ended, output if output.is_dir() and not output.is_symlink() else None, job.log_path)

    async def teardown(self, allocation: CondaAllocation) -> None:
        """End what runs and remove the attempt's folder; see `Worker.teardown`."""
        run = self._runs.pop(allocation.attempt_id, None)
        if run is not None:
            if run.ending is not None and not run.ending.done():
                await self._kill(run)
            await self._forget(run)
        await asyncio.to_thread(remove_tree, self._attempts_dir / allocation.attempt_id)

    async def _forget(self, run: _Run) -> None:
        _hang_up(run)
        if run.ending is not None:
            await asyncio.wait({run.ending})
            if not run.ending.cancelled():
                run.ending.exception()

    async def _end_all(self) -> None:
        """End every run when the worker closes; the daemon has put them back, or is exiting at once."""
        for run in list(self._runs.values()):
            await self._kill(run)
            await self._forget(run)
        self._runs.clear()

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


def _with_process(allocation: CondaAllocation, pid: int) -> CondaAllocation:
    found = {"pid": pid, "start_time": containment.start_time_of(pid), "boot_id": clock.boot_id()}
    return allocation.model_copy(update=found) if allocation.pid is None else allocation


def _folders_beside(path: Path) -> list[str]:
    with suppress(OSError):
        return sorted(other.name for other in path.parent.iterdir() if other.is_dir())[:20]
    return []


async def _lines(process: asyncio.subprocess.Process) -> AsyncIterator[str]:
    stream = process.stdout
    assert stream is not None  # noqa: S101 -- it was asked for
    while True:
        try:
            line = await stream.readline()
        except ValueError:  # a line beyond the reader's limit: nothing that the supervisor says
            continue
        if not line:
            return
        yield line.decode("utf-8", "replace").rstrip("\n")


def _parse_end(line: str) -> Exit:
    status, number, max_rss_bytes, log_bytes, capped, log_errno = (int(word) for word in line.split()[1:])
    if log_errno:
        log.warning(
            "worker.lost",
            error=f"the log could not be written: {os.strerror(log_errno)}",
            outcome=WorkerError.outcome,
        )
    return Exit(
        status=status,
        signal=number or None,
        max_rss_bytes=max_rss_bytes or None,
        log_bytes=log_bytes,
        log_capped=bool(capped),
    )


def _tell(run: _Run, word: bytes) -> None:
    stdin = run.process.stdin
    if stdin is not None and not stdin.is_closing():
        stdin.write(word)


def _hang_up(run: _Run) -> None:
    """Let go of the lifeline: a supervisor that is still there kills everything, and itself."""
    stdin = run.process.stdin
    if stdin is not None and not stdin.is_closing():
        stdin.close()
