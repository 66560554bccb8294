"""Runs on this machine as the daemon sees them: one launcher an event, and a handle for each run it started."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

import rampd
from rampd.errors import WorkerError, WorkerLostError, WorkerSetupError
from rampd.models import Exit
from rampd.workers.containment import Containment, kill_marked

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from rampd.workers.supervisor import Spec

log = structlog.get_logger("rampd.workers.local_runs")

_READY_S = 30.0
# -I keeps this user's variables and packages out, and with them an rampd that was found by PYTHONPATH or lies in the
# user's own site-packages: where ours is, is said, last on the path, so that nothing beside it hides a standard module.
_PROGRAM = "import sys; sys.path.append(sys.argv.pop(1)); from rampd.workers.launcher import main; main()"
_PACKAGES = Path(rampd.__file__).parent.parent


class LocalRun:
    """One run that this process started."""

    def __init__(self, spec: Spec, marker: str) -> None:
        self.key = spec["key"]
        self.command = spec["command"]
        self.folder = spec["folder"]
        self.marker = marker
        self.pid: int | None = None
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.gone = asyncio.Event()
        """Set once nothing of the run is left."""
        self._ended: Exit | None = None
        self._has_begun = False
        # What is heard of a run is heard in another task than the submission's own, whose names belong to it.
        self._log = log.bind(**structlog.contextvars.get_contextvars())

    def heard(self, word: str, rest: list[str]) -> None:
        """Take in a report of the launcher's or the supervisor's."""
        match word:
            case "pid":
                self.pid = int(rest[0])
            case "started":
                self._has_begun = True
            case "failed":
                self._fail_to_start(self._not_started(int(rest[0]), rest[1]))
            case "ended":
                self._ended = self._exit(rest)
        if self._has_begun and self.pid is not None and not self.started.done():
            self.started.set_result(None)

    def _fail_to_start(self, error: Exception) -> None:
        if not self.started.done():
            self.started.set_exception(error)

    def _not_started(self, number: int, step: str) -> WorkerError:
        program, why = self.command[0], os.strerror(number)
        if step == "process" or number in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
            return WorkerError(f"{program} could not be started: {why}")
        if step == "folder":
            return WorkerSetupError(f"the user that submissions run as cannot enter {self.folder}: {why}")
        if step == "user":
            return WorkerSetupError(f"a process cannot become the user that submissions run as: {why}")
        where = "itself, or the interpreter its first line names"
        return WorkerSetupError(f"{program} cannot be executed: {why} ({where})")

    def _exit(self, words: list[str]) -> Exit:
        status, number, max_rss_bytes, log_bytes, capped, log_errno = (int(word) for word in words)
        if log_errno:
            error = f"the log could not be written: {os.strerror(log_errno)}"
            self._log.warning("worker.lost", error=error, outcome=WorkerError.outcome)
        return Exit(
            status=status,
            signal=number or None,
            max_rss_bytes=max_rss_bytes or None,
            log_bytes=log_bytes,
            log_capped=bool(capped),
            log_errno=log_errno or None,
        )

    def lost(self) -> None:
        """Say that nothing is left and nothing more will be heard."""
        self._fail_to_start(WorkerLostError("the run's supervisor was killed, or could not be started"))
        self.gone.set()

    @property
    def has_ended(self) -> bool:
        """Whether its supervisor said how it ended, and so that nothing is left."""
        return self._ended is not None

    async def wait(self) -> Exit:
        """Return how the run ended, once it has.

        Raises
        ------
        WorkerLostError
            Its supervisor was killed: how the submission ended is not known.
        """
        await self.gone.wait()
        if self._ended is None:
            raise WorkerLostError("the run's supervisor was killed")
        return self._ended


class LocalRuns:
    """Starts runs through a launcher of its own, and starts that one again should it be killed.

    Parameters
    ----------
    containment
        How runs are contained; None: the best that works here.
    """

    def __init__(self, containment: Containment | None = None) -> None:
        self._modes = [containment] if containment is not None else [Containment.SUBREAPER]
        self._is_given = containment is not None
        self.containment = Containment.SUBREAPER
        """What is in force; known after `open`."""
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._cleaning: set[asyncio.Task[None]] = set()
        self._starting = asyncio.Lock()
        self._runs: dict[str, LocalRun] = {}

    async def open(self, stack: AsyncExitStack, *, changes_user: bool = False) -> None:
        """Start the launcher; its end, and that of everything it started, is registered on `stack`.

        Parameters
        ----------
        stack
            Closes it.
        changes_user
            Whether runs have a user of their own, which a user namespace made without privileges does not know.

        Raises
        ------
        WorkerError
            It cannot be started.
        """
        if not self._is_given:
            self._modes = [
                *([Containment.PID_NAMESPACE] if os.geteuid() == 0 else []),
                *([] if changes_user else [Containment.USER_AND_PID_NAMESPACE]),
                Containment.SUBREAPER,
            ]
        stack.push_async_callback(self._close)
        await self._ensure_launcher()

    async def _ensure_launcher(self) -> asyncio.subprocess.Process:
        async with self._starting:
            if self._process is not None and self._reading is not None and not self._reading.done():
                return self._process
            await self._close()
            try:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-I", "-c", _PROGRAM, str(_PACKAGES), *self._modes),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    env={"PATH": os.defpath},
                    start_new_session=True,
                )
            except OSError as error:
                raise WorkerError(f"the launcher of runs could not be started: {error.strerror}") from error
            self._process = process
            self.containment = await self._first_word(process)
            self._reading = asyncio.create_task(self._read(process), name="launcher")
            return process

    async def _first_word(self, process: asyncio.subprocess.Process) -> Containment:
        assert process.stdout is not None  # noqa: S101 -- it was asked for
        line = b""
        with suppress(TimeoutError):
            async with asyncio.timeout(_READY_S):
                line = await process.stdout.readline()
        word, _, mode = line.decode("ascii", "replace").strip().partition(" ")
        if word != "ready":
            raise WorkerError("the launcher of runs did not start; its own words are on standard error")
        return Containment(mode)

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None  # noqa: S101 -- it was asked for
        try:
            while line := await process.stdout.readline():
                key, word, *rest = line.decode("ascii").split()
                run = self._runs.get(key)
                if run is None:
                    continue
                if word == "gone":
                    self._is_gone(run)
                else:
                    run.heard(word, rest)
        finally:
            # The launcher's end is that of its supervisors' lifelines: they kill what they watch over.
            for run in list(self._runs.values()):
                self._is_gone(run)

    def _is_gone(self, run: LocalRun) -> None:
        self._runs.pop(run.key, None)
        cleaning = asyncio.create_task(self._clean_up(run), name="end of a run")
        self._cleaning.add(cleaning)
        cleaning.add_done_callback(self._cleaning.discard)

    async def _clean_up(self, run: LocalRun) -> None:
        """Make sure that nothing is left of a run whose supervisor did not say so itself."""
        try:
            if not run.has_ended:
                await asyncio.to_thread(kill_marked, run.marker)
        finally:
            run.lost()

    async def start(self, spec: Spec, *, marker: str) -> LocalRun:
        """Start a run and return once its process exists. A cancelled start leaves nothing behind.

        Parameters
        ----------
        spec
            What to run.
        marker
            The value of the variable by which its processes are known (see `containment.MARKER`).

        Raises
        ------
        WorkerSetupError
            The command cannot be executed.
        WorkerLostError
            The supervisor ended without a word.
        """
        process = await self._ensure_launcher()
        run = LocalRun(spec, marker)
        self._runs[run.key] = run
        try:
            await _say(process, b"run " + json.dumps(spec).encode() + b"\n")
            await run.started
        except BaseException:
            run.started.cancel()
            await asyncio.shield(self.kill(run))
            raise
        return run

    async def stop(self, run: LocalRun) -> None:
        """Ask everything of a run to end, and make it five seconds later; returns at once."""
        await self._tell("stop", run)

    async def kill(self, run: LocalRun) -> None:
        """End everything of a run now, and return when it is gone."""
        if not run.gone.is_set():
            await self._tell("kill", run)
            await run.gone.wait()

    async def _tell(self, word: str, run: LocalRun) -> None:
        if self._process is not None:
            await _say(self._process, f"{word} {run.key}\n".encode())

    async def _close(self) -> None:
        """Let go of the launcher's lifeline, and wait until everything is gone."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None  # noqa: S101 -- it was asked for
        process.stdin.close()
        if self._reading is not None:
            await asyncio.wait({self._reading})
        await process.wait()
        if self._cleaning:
            await asyncio.wait(self._cleaning)


async def _say(process: asyncio.subprocess.Process, line: bytes) -> None:
    assert process.stdin is not None  # noqa: S101 -- it was asked for
    with suppress(ConnectionError, RuntimeError):  # its end is noticed where it is read from
        process.stdin.write(line)
        await process.stdin.drain()
