"""Runs each submission on an EC2 instance of its own, over a pool of SSH connections. No instance outlives its use.

A run goes on while the daemon is down: the next one finds it by the journaled allocation. What ends an instance, in
the order in which it usually happens: `teardown`; `reclaim`, for what nobody holds; the instance's own dead-man's
switch, which the daemon renews while it lives.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, ClassVar, Final

import structlog

from rampd import clock
from rampd.errors import WorkerError, WorkerLostError, WorkerSetupError
from rampd.models import Exit, Finding, Job, Results
from rampd.remote.detached_run import Ending, RunSettings, RunState
from rampd.remote.ec2 import Ec2
from rampd.remote.hosts import SshConnectionError
from rampd.remote.instance_watch import InstanceWatch
from rampd.remote.instances import Ec2Error, Ec2UnreachableError
from rampd.remote.ssh import SshPool
from rampd.workers import aws_check, aws_folders, containment, host_keys
from rampd.workers.aws_allocation import AwsAllocation
from rampd.workers.aws_config import AwsConfig, HostKeyPolicy
from rampd.workers.aws_launch import HOST_KEY_FILE, Launcher
from rampd.workers.aws_shell import InstanceShell, disk_full
from rampd.workers.base import Worker, WorkerContext

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from contextlib import AsyncExitStack
    from pathlib import Path

    from rampd.config import WorkerConfig
    from rampd.remote.detached_run import RunStatus
    from rampd.remote.instances import Instance

log = structlog.get_logger("rampd.workers.aws")

_BY_SIGNAL: Final = 128
_LOOK_INTERVAL_S: Final = 5.0
_HANDSHAKE_S: Final = 20.0
_LONGEST_RENEWAL_S: Final = 600.0
_CHECKED_S: Final = 300.0
"""For so long what EC2 said of image, key and group is taken to be so still."""
_HOLD_OFF_S: Final = (60.0, 900.0)
"""After an instance was paid for only to find that the image or the account is not in order: how long no other is,
at first and at most."""

_IMAGE_FAULTS = {
    Ending.PROFILE: "the login profile (~/.profile) on the image does not come to its end",
    Ending.NO_KIT: "worker.remote_ramp_kit_folder: the image has no folder {kit}",
    Ending.NO_RAMP_TEST: "the login profile (~/.profile) on the image puts no ramp-test on PATH; install ramp-workflow",
    Ending.NO_MPROF: "worker.memory_profiling: the image has no mprof; install memory-profiler there",
}


class AwsWorker(Worker[AwsAllocation]):
    """Launches, logs in, sends, runs detached, polls, fetches, terminates."""

    config: AwsConfig
    config_model = AwsConfig
    allocation_model = AwsAllocation
    resumable: ClassVar[bool] = True
    reclaim_interval_s: ClassVar[float | None] = 600.0

    def __init__(self, config: WorkerConfig, context: WorkerContext) -> None:
        super().__init__(config, context)
        self._ec2 = Ec2(self.config.access())
        self._watch = InstanceWatch(self._instances, interval_s=_look_interval_s(context))
        self._launcher = Launcher(self.config, context, self._ec2, self._watch)
        self._shell = InstanceShell(self.config, self._launcher, self._open_pool)
        self._stack: AsyncExitStack | None = None
        self._pool: SshPool | None = None
        self._pool_opening = asyncio.Lock()
        self._checked_until = 0.0
        self._refusal: WorkerSetupError | None = None
        self._refused_until = 0.0
        self._hold_off_s = _HOLD_OFF_S[0]
        self._without_deadman: set[str] = set()
        """Attempts of which that was said already."""

    def reconfigure(self, config: WorkerConfig, context: WorkerContext) -> None:
        """Have all of its parts use them; see `Worker.reconfigure`."""
        super().reconfigure(config, context)
        self._launcher.config = self._shell.config = self.config
        self._launcher.context = context
        self._watch.interval_s = _look_interval_s(context)

    async def open(self, stack: AsyncExitStack) -> None:
        """Have everything closed with `stack`. Nothing is asked yet: what is wrong holds the event, see `check`."""
        self._stack = stack
        await self._ec2.open(stack)
        await self._watch.open(stack)

    async def _open_pool(self) -> SshPool:
        async with self._pool_opening:
            if self._pool is None:
                if self._stack is None:
                    raise RuntimeError("the worker is not open")
                pool = SshPool(self.key_path, connect_timeout_s=_HANDSHAKE_S)
                await pool.open(self._stack)
                self._pool = pool
            return self._pool

    @property
    def key_path(self) -> Path:
        """The private key's file; a relative one is relative to the deployment's folder."""
        return self.context.deployment_dir / self.config.key_path

    async def _instances(self) -> Mapping[str, Instance]:
        return await self._ec2.instances(str(await asyncio.to_thread(self._launcher.owner)))

    def describe(self) -> Mapping[str, object]:
        """Return where instances come from."""
        config = self.config
        return {
            "region": config.region_name,
            "image": config.ami_image_id or config.ami_image_name,
            "instance_type": ", ".join(config.instance_type),
            "market": "spot, then on-demand" if config.use_spot_instance else "on-demand",
        }

    async def check(self) -> None:
        """Look at the key's file, and now and then for image, key pair and security group; see `Worker.check`."""
        if self._refusal is not None and clock.boottime() < self._refused_until:
            raise self._refusal.with_traceback(None)  # else it grows with every look
        await self._open_pool()
        if clock.boottime() < self._checked_until:
            return
        try:
            for look in aws_check.looks(self.config, self._ec2):
                await look.ask()
        except WorkerSetupError:
            raise
        except WorkerError:
            return  # EC2 is busy: no reason to believe that anything is wrong
        self._checked_until = clock.boottime() + _CHECKED_S

    async def examine(self) -> Sequence[Finding]:
        """Look at everything that a launch needs, up to a launch that is not made; see `Worker.examine`."""
        return await aws_check.examine(self.config, self._ec2, self._launcher, self._open_pool, self.key_path)

    async def setup(self, job: Job) -> AwsAllocation:
        """Launch an instance, log in, and send the submission; see `Worker.setup`."""
        allocation = (
            AwsAllocation.model_validate_json(job.recorded) if job.recorded else AwsAllocation.of(job, self.config)
        )
        latest = _Latest(self.context, allocation)
        try:
            await asyncio.to_thread(aws_folders.make, job)
            return await self._set_up(job, latest)
        except BaseException as error:
            self._checked_until = 0.0
            # Whether EC2 answers again, `check` finds out without paying for it.
            if isinstance(error, WorkerSetupError) and not isinstance(error, Ec2UnreachableError):
                self._hold_off(error)
            await self._give_back(latest, reason=str(error) or "cancelled")
            raise

    async def _set_up(self, job: Job, latest: _Latest) -> AwsAllocation:
        key_file = job.attempt_dir / HOST_KEY_FILE
        allocation = await self._launcher.launch(job, latest.allocation, latest.record)
        if self.config.ssh_host_key is HostKeyPolicy.USER_DATA and allocation.host_key is None:
            allocation = allocation.with_host_key(await asyncio.to_thread(host_keys.public_line, key_file))
            await latest.record(allocation)
        until = clock.boottime() + self.config.connect_timeout
        allocation = await self._launcher.booted(allocation, until=until)
        allocation = await self._shell.log_in(allocation, until=until)
        # Pinned in the journal before anything is sent: the next daemon accepts nothing else.
        await latest.record(allocation)
        await asyncio.to_thread(host_keys.forget, key_file)
        await self._renew_deadman(allocation)
        settings = RunSettings(
            timeout_s=job.timeout_s,
            max_log_bytes=self.config.max_log_bytes,
            environment=self._environment(job),
            memory_profiling=self.config.memory_profiling,
            imds_url=self.config.metadata_url,
        )
        await self._shell.send_submission(job, allocation, settings)
        return allocation

    def _environment(self, job: Job) -> dict[str, str]:
        environment = containment.thread_limits(job.n_threads)
        for name, text in self.config.env.items():
            value = os.environ.get(name) if text is None else text
            if value is not None and not (text is None and containment.is_withheld(name)):
                environment[name] = value
        return environment

    async def _give_back(self, latest: _Latest, *, reason: str) -> None:
        """End what a setup that failed has launched. What cannot be ended now is left to `teardown` and `reclaim`."""
        ending = asyncio.create_task(self._end(latest.allocation, reason=reason), name="aws/give-back")
        try:
            await asyncio.shield(ending)
            if latest.is_recorded:
                await latest.record(latest.allocation.asking(None))
        except WorkerError as error:
            log.warning("worker.lost", error=f"teardown failed: {error}", outcome=error.outcome)
        except asyncio.CancelledError:
            ending.cancel()
            await asyncio.wait({ending})
            raise

    def _hold_off(self, error: WorkerSetupError) -> None:
        self._refusal = error
        self._refused_until = clock.boottime() + self._hold_off_s
        self._hold_off_s = min(2 * self._hold_off_s, _HOLD_OFF_S[1])
        self._checked_until = 0.0

    async def launch_submission(self, job: Job, allocation: AwsAllocation) -> AwsAllocation:  # noqa: ARG002 -- the contract
        """Start ramp-test under its wrapper; see `Worker.launch_submission`."""
        status = await self._shell.launch(allocation)
        if status.state is RunState.EXITED:
            self._refuse_image(allocation, status)
        elif status.state is not RunState.RUNNING:
            raise WorkerLostError(f"the run on instance {allocation.instance_id} is {status.state}")
        self._refusal, self._hold_off_s = None, _HOLD_OFF_S[0]
        return allocation

    async def is_submission_finished(self, allocation: AwsAllocation) -> bool:
        """Ask the instance; see `Worker.is_submission_finished`."""
        return (await self._status_of(allocation)).state is RunState.EXITED

    async def exit_of(self, allocation: AwsAllocation) -> Exit:
        """Return how the run ended; see `Worker.exit_of`."""
        return self._exit_of(allocation, await self._status_of(allocation))

    async def wait(self, allocation: AwsAllocation) -> Exit:
        """Poll until the run has ended: one command an interval brings its state, new output and a spot notice."""
        renewal_s = min(_LONGEST_RENEWAL_S, self.config.deadman_after_min * 60 / 4)
        renew_at = clock.boottime()
        while True:
            if clock.boottime() >= renew_at:
                await self._renew_deadman(allocation)
                renew_at = clock.boottime() + renewal_s
            status = await self._status_of(allocation)
            if status.state is RunState.EXITED:
                return self._exit_of(allocation, status)
            if status.spot_notice:
                log.warning("aws.spot_interrupted", instance_id=allocation.instance_id)
                raise WorkerLostError(f"AWS takes spot instance {allocation.instance_id} back")
            await asyncio.sleep(self.context.time_between_collection_s)

    async def _status_of(self, allocation: AwsAllocation) -> RunStatus:
        status = await self._shell.poll(allocation)
        if status.state in (RunState.LOST, RunState.ABSENT):
            raise WorkerLostError(
                f"the run on instance {allocation.instance_id} is gone without a word (was it rebooted?)"
            )
        return status

    def _refuse_image(self, allocation: AwsAllocation, status: RunStatus) -> None:
        """Raise WorkerSetupError where a run was never begun, since the image is not prepared for it."""
        if status.ending in _IMAGE_FAULTS:
            fault = WorkerSetupError(_IMAGE_FAULTS[status.ending].format(kit=allocation.kit_folder))
            self._hold_off(fault)
            raise fault

    def _exit_of(self, allocation: AwsAllocation, status: RunStatus) -> Exit:
        """Return how a run ended that was launched.

        Raises
        ------
        ResultsError
            The disk over there is full.
        WorkerError
            It says that it was never begun. We have seen it run: a submission wrote that, which holds no event.
        """
        ending = status.ending
        if ending in _IMAGE_FAULTS:
            raise WorkerError(f"the run on instance {allocation.instance_id} ran, and says now that it could not begin")
        if ending is Ending.DISK_FULL:
            raise disk_full(allocation)
        exit_status = status.exit_status
        number = exit_status - _BY_SIGNAL if exit_status is not None and exit_status > _BY_SIGNAL else None
        return Exit(
            exit_status,
            signal=number if number in set(signal.Signals) else None,
            max_rss_bytes=status.max_rss_bytes,
            log_bytes=status.log_bytes + status.log_capped_bytes,
            log_capped=status.log_capped_bytes > 0,
            timed_out=ending is Ending.TIMEOUT,
        )

    async def _renew_deadman(self, allocation: AwsAllocation) -> None:
        try:
            await self._shell.set_deadman(allocation)
        except SshConnectionError:
            return  # the next step finds out what became of the instance
        except WorkerError as error:
            if allocation.attempt_id not in self._without_deadman:
                self._without_deadman.add(allocation.attempt_id)
                log.warning("aws.no_deadman", instance_id=allocation.instance_id, error=str(error))

    async def stop(self, allocation: AwsAllocation) -> Exit:
        """End the run with its whole process tree; see `Worker.stop`."""
        status = await self._shell.stop(allocation)
        if status.state is not RunState.EXITED:
            return Exit(None)
        return self._exit_of(allocation, status)

    async def collect_results(self, job: Job, allocation: AwsAllocation) -> Results:
        """Fetch the rest of the log, training_output and mprof.dat; see `Worker.collect_results`."""
        ended = await self.exit_of(allocation)
        folder = job.attempt_dir / "collected"
        await asyncio.to_thread(aws_folders.make, job, is_new=False)
        refused = await self._shell.fetch(allocation, folder)
        if allocation.memory_profiling and not refused:
            await asyncio.to_thread(aws_folders.keep_profile, folder, job)
        output = folder / "training_output"
        return Results(ended, output if output.is_dir() else None, job.log_path, refused=refused)

    async def teardown(self, allocation: AwsAllocation) -> None:
        """Terminate the instance, see that EC2 does, and remove the attempt's folder; see `Worker.teardown`."""
        await self._end(allocation, reason="torn down")

    async def _end(self, allocation: AwsAllocation, *, reason: str) -> None:
        try:
            if self._pool is not None and allocation.instance_id is not None:
                await self._pool.disconnect(allocation.instance_id)
            await self._launcher.end_launch(allocation, reason=reason)
        finally:
            self._without_deadman.discard(allocation.attempt_id)
            await asyncio.to_thread(aws_folders.remove, self._attempts_dir / allocation.attempt_id)

    @property
    def _attempts_dir(self) -> Path:
        return self.context.state_dir / "attempts"

    async def reclaim(self, keep: Collection[str]) -> list[str]:
        """End instances of this state_dir that no attempt holds, once a second look shows the same; see `Worker`."""
        reclaimed: list[str] = []
        failed: WorkerError | None = None
        if await asyncio.to_thread(self._launcher.owner, create=False) is not None:
            unheld = self._unheld(await self._watch.seen(), keep)
            if unheld:
                # Never by one look alone; and an attempt that is begun meanwhile is in `keep` by then.
                again = self._unheld(await self._watch.seen(), keep)
                for instance_id in sorted(unheld.keys() & again.keys()):
                    launched_at = again[instance_id].launched_at
                    try:
                        await self._launcher.end({instance_id}, reason="held by no attempt", launched_at=launched_at)
                    except Ec2Error as error:  # one that cannot be ended keeps no other one alive
                        failed = failed or error
                        continue
                    reclaimed.append(f"instance {instance_id}")
        folders = await asyncio.to_thread(aws_folders.found_in, self._attempts_dir)
        for folder in folders:
            if folder.name not in keep:
                await asyncio.to_thread(aws_folders.remove, folder)
                reclaimed.append(f"folder {folder.name}")
        if failed is not None:
            raise failed
        return reclaimed

    @staticmethod
    def _unheld(seen: Mapping[str, Instance], keep: Collection[str]) -> dict[str, Instance]:
        return {one.id: one for one in seen.values() if one.is_alive and one.attempt_id not in keep}


class _Latest:
    """What a setup has made so far: what was recorded last, here and in the journal."""

    def __init__(self, context: WorkerContext, allocation: AwsAllocation) -> None:
        self._context = context
        self.allocation = allocation
        self.is_recorded = allocation.launch is not None

    async def record(self, allocation: AwsAllocation) -> None:
        """Record an allocation."""
        self.allocation = allocation
        self.is_recorded = True
        await self._context.record(allocation.attempt_id, allocation)


def _look_interval_s(context: WorkerContext) -> float:
    return min(_LOOK_INTERVAL_S, context.time_between_collection_s)
