"""What is done on an instance over SSH: logging in, sending a submission, starting its run, polling it, fetching it.

Every step may be repeated (`rampd.remote.detached_run`), and is, while its connection breaks and EC2 does not say that
the instance has ended: a lost connection alone is not a lost instance.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from rampd import clock
from rampd.copying import UnsafeTreeError
from rampd.errors import ResultsError, WorkerError, WorkerLostError, WorkerSetupError
from rampd.files import remove_tree
from rampd.remote import archive, detached_run
from rampd.remote.detached_run import DetachedRun, Problem, RunState
from rampd.remote.hosts import SshAuthError, SshConnectionError, SshHostKeyError, SshOutputError, printable
from rampd.workers.aws_launch import lost

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rampd.models import Job
    from rampd.remote.detached_run import RunSettings, RunStatus
    from rampd.remote.hosts import Completed, SshHost
    from rampd.remote.ssh import SshPool
    from rampd.workers.aws_allocation import AwsAllocation
    from rampd.workers.aws_config import AwsConfig
    from rampd.workers.aws_launch import Launcher

T = TypeVar("T")

log = structlog.get_logger("rampd.workers.aws")

_COMMAND_S: Final = 30.0
_LAUNCH_S: Final = 90.0
"""The login profile has a minute, see `detached_run.launch`."""
_STOP_S: Final = 40.0
_COLLECT_S: Final = 3600.0
"""A connection that is gone is noticed by its keepalive; this is for one that creeps."""
_SLOWEST_BYTES_S: Final = 100_000
_POLL_BYTES: Final = 256 << 10
_LOG_MARGIN_BYTES: Final = 4096
"""For the far side's own last line, beyond what is kept of a log."""
_STOP_REACH_S: Final = 30.0
"""How long a run that is to be stopped is tried to be reached; its instance is ended in any case."""

_MENDS = {
    Problem.NO_KIT: "worker.remote_ramp_kit_folder: the image has no folder {kit}",
    Problem.KIT_NOT_WRITABLE: "worker.remote_ramp_kit_folder: {user} cannot write to {kit}/submissions on the image",
    Problem.HOME_NOT_WRITABLE: "worker.ami_user_name: {user} cannot write to its home on the image",
    Problem.NO_TAR: "the image has no tar; install it there",
}


class InstanceShell:
    """Speaks to the instances of one event.

    Parameters
    ----------
    config
        The worker's.
    launcher
        Asked whether an instance that does not answer is still there.
    pool
        Gives the connections; opened when it is first needed.
    """

    def __init__(self, config: AwsConfig, launcher: Launcher, pool: Callable[[], Awaitable[SshPool]]) -> None:
        self.config = config
        self._launcher = launcher
        self._pool = pool

    async def _insist(
        self,
        allocation: AwsAllocation,
        step: Callable[[SshPool, SshHost], Awaitable[T]],
        *,
        for_s: float | None = None,
    ) -> T:
        """Repeat a step while its connection breaks and its instance is not known to have ended.

        Parameters
        ----------
        allocation
            With its instance and address.
        step
            What to do; may be repeated.
        for_s
            For how long; None: worker.reconnect_timeout.

        Raises
        ------
        WorkerLostError
            The instance has ended, or is out of reach for too long.
        SshHostKeyError
            Something else answers at its address, while EC2 says that it runs.
        """
        patience_s = self.config.reconnect_timeout if for_s is None else for_s
        pool = await self._pool()
        since: float | None = None
        while True:
            try:
                return await step(pool, allocation.host)
            except (SshConnectionError, SshAuthError, SshHostKeyError) as error:
                broken = error
            since = clock.boottime() if since is None else since
            instance = await self._launcher.seen(allocation)
            if instance is not None:
                if instance.state not in ("pending", "running"):
                    raise lost(instance) from broken
                if isinstance(broken, SshHostKeyError):
                    raise broken
                # Whoever stops an instance and starts it again gives it another address.
                allocation = allocation.with_instance(instance)
            if clock.boottime() - since > patience_s:
                known = "EC2 says that it runs" if instance is not None else "EC2 says nothing of it"
                raise WorkerLostError(
                    f"instance {allocation.instance_id} was out of reach for {patience_s:g} s ({known}): {broken}"
                ) from broken

    async def log_in(self, allocation: AwsAllocation, *, until: float) -> AwsAllocation:
        """Log in as soon as the instance lets us; return the allocation with the host key that it showed.

        Parameters
        ----------
        allocation
            With its instance and address.
        until
            How long that may take, by CLOCK_BOOTTIME: nobody sets that.

        Raises
        ------
        WorkerLostError
            The instance ended.
        WorkerSetupError
            It answers, and lets nobody in with this user and key.
        WorkerError
            It does not answer.
        SshHostKeyError
            It has another host key than the one that was made for it.
        """
        pool = await self._pool()
        while True:
            try:
                return allocation.with_host_key(await pool.connect(allocation.host))
            except SshAuthError as error:
                # cloud-init makes users and their keys while sshd answers already.
                failed: WorkerError = WorkerSetupError(
                    f"the image lets nobody in as worker.ami_user_name {allocation.user!r} with worker.key_path; it "
                    f"must be the private half of worker.key_name ({error})"
                )
            except SshConnectionError as error:
                failed = WorkerError(
                    f"instance {allocation.instance_id} does not answer at {allocation.address}, port "
                    f"{allocation.port}, within worker.connect_timeout ({self.config.connect_timeout:g} s); look at "
                    f"worker.security_group, worker.ssh_port and worker.use_private_ip ({error})"
                )
            instance = await self._launcher.seen(allocation)
            if instance is not None and instance.state not in ("pending", "running"):
                raise lost(instance)
            if clock.boottime() > until:
                raise failed

    async def send_submission(self, job: Job, allocation: AwsAllocation, settings: RunSettings) -> None:
        """Put the run's own folder and the submission where they belong on the instance.

        Raises
        ------
        WorkerSetupError
            The image is not prepared for it.
        WorkerError
            The submission cannot be packed here, or not be kept there.
        """
        run = run_of(allocation)
        packed = job.attempt_dir / "submission.tar"
        await asyncio.to_thread(self._pack, job, packed)
        seconds = _COMMAND_S + (await asyncio.to_thread(packed.stat)).st_size / _SLOWEST_BYTES_S
        install = detached_run.install(run, settings)

        async def send(pool: SshPool, host: SshHost) -> RunStatus:
            await _install(pool, host)
            return _answer(allocation, await pool.send(host, detached_run.upload(run), packed, timeout_s=seconds))

        async def _install(pool: SshPool, host: SshHost) -> None:
            said = await pool.run(
                host,
                install.command,
                input=install.input,
                timeout_s=_COMMAND_S,
                max_output_bytes=detached_run.MAX_SAID_BYTES,
            )
            _answer(allocation, said)

        await self._insist(allocation, send)
        await asyncio.to_thread(packed.unlink, missing_ok=True)

    def _pack(self, job: Job, packed: Path) -> None:
        scratch = job.attempt_dir / "packing"
        try:
            remove_tree(scratch)
            with packed.open("wb") as file:
                archive.pack_submission(
                    job.submission_dir,
                    file,
                    name=job.submission,
                    scratch=scratch,
                    max_bytes=self.config.max_output_bytes,
                    max_files=self.config.max_output_files,
                )
        except UnsafeTreeError as error:
            raise WorkerError(f"{job.submission_dir} changed while it was packed: {error}") from error
        except OSError as error:
            raise ResultsError(f"{error.filename}: cannot be written: {error.strerror}") from error

    async def launch(self, allocation: AwsAllocation) -> RunStatus:
        """Start the run, if it was not started yet; return its status once ramp-test runs, or has ended."""
        run = run_of(allocation)
        while True:
            status = await self._insist(allocation, lambda pool, host: _asked(pool, host, allocation, run, _LAUNCH_S))
            if status.state is not RunState.STARTING:
                return status

    async def poll(self, allocation: AwsAllocation) -> RunStatus:
        """Ask how the run is, and add what it has printed since to the log here."""
        run = run_of(allocation)
        path = Path(allocation.log_path)
        most = self.config.max_log_bytes + _LOG_MARGIN_BYTES
        while True:
            offset = await asyncio.to_thread(_size_of, path)

            async def ask(pool: SshPool, host: SshHost, offset: int = offset) -> tuple[RunStatus, bytes]:
                said = await pool.run(
                    host,
                    detached_run.poll(run, offset, max(0, min(_POLL_BYTES, most - offset))),
                    timeout_s=_COMMAND_S,
                    max_output_bytes=_POLL_BYTES + detached_run.MAX_SAID_BYTES,
                )
                return detached_run.parse(run, said)

            status, piece = await self._insist(allocation, ask)
            piece = piece[: max(0, most - offset)]
            if piece:
                await asyncio.to_thread(_write_at, path, offset, piece)
            if not piece or offset + len(piece) >= min(status.log_bytes, most):
                return status

    async def stop(self, allocation: AwsAllocation) -> RunStatus:
        """End the run with all its processes; return how it ended."""
        run = run_of(allocation)

        async def ask(pool: SshPool, host: SshHost) -> RunStatus:
            said = await pool.run(
                host, detached_run.stop(run), timeout_s=_STOP_S, max_output_bytes=detached_run.MAX_SAID_BYTES
            )
            return detached_run.parse(run, said)[0]

        return await self._insist(allocation, ask, for_s=_STOP_REACH_S)

    async def fetch(self, allocation: AwsAllocation, folder: Path) -> str:
        """Fetch what the run left into a folder that is made anew.

        Returns
        -------
        str
            Why it was refused, as a sentence for the participant; empty where it was fetched.

        Raises
        ------
        ResultsError
            It could not be fetched, or not be kept here.
        """
        run = run_of(allocation)
        packed = folder.with_suffix(".tar")
        bounds = {"max_bytes": int(self.config.max_output_bytes), "max_files": self.config.max_output_files}

        async def receive(pool: SshPool, host: SshHost) -> Completed:
            return await pool.receive(
                host,
                detached_run.collect(run),
                packed,
                max_bytes=archive.largest_archive_bytes(**bounds),
                timeout_s=_COLLECT_S,
            )

        try:
            said = await self._insist(allocation, receive)
            if said.status != 0:
                return _unread(allocation, said)
            await asyncio.to_thread(_unpack, packed, folder, **bounds)
        except SshOutputError:
            return f"training_output was refused: it is larger than {bounds['max_bytes']} bytes."
        except UnsafeTreeError as error:
            return f"training_output was refused: {error}."
        finally:
            await asyncio.to_thread(packed.unlink, missing_ok=True)
        return ""

    async def set_deadman(self, allocation: AwsAllocation) -> None:
        """Have the instance end itself unless it hears of us again in time.

        Raises
        ------
        WorkerError
            It does not take that.
        """
        command = self.config.deadman_command.replace("{minutes}", str(self.config.deadman_after_min))
        if not command:
            return
        pool = await self._pool()
        said = await pool.run(
            allocation.host, command, timeout_s=_COMMAND_S, max_output_bytes=detached_run.MAX_SAID_BYTES
        )
        if said.status != 0:
            words = printable(said.stderr.decode("utf-8", "replace").strip())
            raise WorkerError(f"worker.deadman_command ended with status {said.status}: {words or 'it says nothing'}")


def run_of(allocation: AwsAllocation) -> DetachedRun:
    """Return what finds an attempt's run on its instance."""
    return DetachedRun(allocation.attempt_id, allocation.submission, allocation.kit_folder)


async def _asked(
    pool: SshPool, host: SshHost, allocation: AwsAllocation, run: DetachedRun, timeout_s: float
) -> RunStatus:
    said = await pool.run(
        host, detached_run.launch(run), timeout_s=timeout_s, max_output_bytes=detached_run.MAX_SAID_BYTES
    )
    return _answer(allocation, said)


def _answer(allocation: AwsAllocation, said: Completed) -> RunStatus:
    """Return what a command answered.

    Raises
    ------
    WorkerSetupError, WorkerError
        It was refused.
    """
    status = detached_run.parse(run_of(allocation), said)[0]
    if status.problem is None:
        return status
    mend = _MENDS.get(status.problem)
    if mend is not None:
        raise WorkerSetupError(mend.format(kit=allocation.kit_folder, user=allocation.user))
    if status.problem is Problem.DISK_FULL:
        raise disk_full(allocation)
    raise ResultsError(f"the submission did not arrive whole on instance {allocation.instance_id}")


def disk_full(allocation: AwsAllocation) -> ResultsError:
    """Return the error of an instance whose disk is full."""
    return ResultsError(f"the disk of instance {allocation.instance_id} is full; its image needs a larger root volume")


def _unread(allocation: AwsAllocation, said: Completed) -> str:
    words = printable(said.stderr.decode("utf-8", "replace").strip())
    if b"Permission denied" in said.stderr:
        return f"training_output was refused: {words}."
    raise ResultsError(
        f"training_output could not be read on instance {allocation.instance_id} (status {said.status}): {words}"
    )


def _unpack(packed: Path, folder: Path, *, max_bytes: int, max_files: int) -> None:
    try:
        remove_tree(folder)
        with packed.open("rb") as file:
            archive.unpack(file, folder, max_bytes=max_bytes, max_files=max_files)
    except OSError as error:
        raise ResultsError(f"{error.filename}: cannot be written: {error.strerror}") from error


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read: {error.strerror}") from error


def _write_at(path: Path, offset: int, piece: bytes) -> None:
    """Write a piece of a log where it belongs: two polls at once, or one that was cancelled, double nothing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644), "wb") as file:
            file.seek(offset)
            file.write(piece)
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written: {error.strerror}") from error
