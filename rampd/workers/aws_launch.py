"""An instance for a submission: asked for once, whatever is lost on the way, and ended once nobody holds it.

The protocol: each different RunInstances call is journaled whole before it is made, with a token by which EC2 makes one
instance of it however often it is asked. After a crash the same call is made again, never a changed one, so that an
instance whose reply was lost is taken up and none is left behind. Where it cannot be known whether a call took effect,
the instance is looked for by its tags; what is found by nobody is found by `reclaim`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from typing import TYPE_CHECKING, Any, Final

import structlog

from rampd import clock
from rampd.errors import WorkerError, WorkerLostError
from rampd.remote.instances import (
    ATTEMPT_TAG,
    EVENT_TAG,
    OWNER_TAG,
    SUBMISSION_TAG,
    Ec2CapacityError,
    Ec2Error,
    Ec2RefusedError,
    Launch,
)
from rampd.workers import host_keys
from rampd.workers.aws_config import HostKeyPolicy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection
    from pathlib import Path

    from rampd.models import Job
    from rampd.remote.ec2 import Ec2
    from rampd.remote.instance_watch import InstanceWatch
    from rampd.remote.instances import Instance
    from rampd.workers.aws_allocation import AwsAllocation
    from rampd.workers.aws_config import AwsConfig
    from rampd.workers.base import WorkerContext

log = structlog.get_logger("rampd.workers.aws")

OWNER_FILE: Final = "aws-owner"
HOST_KEY_FILE: Final = "instance-host-key"
_SPOT_LOSSES: Final = 2
"""After so many lost instances of one submission an on-demand one is asked for."""
_REPLY_S: Final = 10.0
"""How long a launch that was cancelled is given to say what it made."""
_NEW_S: Final = 60.0
"""For so long after a launch EC2 may not know the instance yet."""
_LOOKS: Final = 3


class Launcher:
    """Launches, finds and ends instances of one event.

    Parameters
    ----------
    config, context
        The worker's.
    ec2, watch
        EC2, and the looks at it that all attempts share.
    """

    def __init__(self, config: AwsConfig, context: WorkerContext, ec2: Ec2, watch: InstanceWatch) -> None:
        self.config = config
        self.context = context
        self._ec2 = ec2
        self._watch = watch

    def owner(self, *, create: bool = True) -> str | None:
        """Return this state_dir's random id, which all its instances carry. Blocking.

        Parameters
        ----------
        create
            Make one where there is none; without it, None says that nothing was ever launched from here.
        """
        path = self.context.state_dir / OWNER_FILE
        try:
            if owner := path.read_text(encoding="ascii").strip():
                return owner
        except FileNotFoundError:
            pass
        return _write_owner(path) if create else None

    def candidates(self, lost_before: int) -> list[tuple[str, bool]]:
        """Return the types and markets to ask for, in order: (instance type, whether spot)."""
        is_spot_tried = self.config.use_spot_instance and lost_before < _SPOT_LOSSES
        markets = (True, False) if is_spot_tried else (False,)
        return [(instance_type, spot) for spot in markets for instance_type in self.config.instance_type]

    async def launch(
        self, job: Job, allocation: AwsAllocation, record: Callable[[AwsAllocation], Awaitable[None]]
    ) -> AwsAllocation:
        """Give an attempt its instance: the one that an earlier daemon may have launched, or a new one.

        Parameters
        ----------
        job
            The attempt.
        allocation
            Without a launch, or as an earlier daemon recorded it.
        record
            Commits what is about to be asked for, and then what it is.

        Returns
        -------
        AwsAllocation
            With its instance, and recorded so.

        Raises
        ------
        WorkerUnavailableError
            No candidate is to be had now.
        WorkerSetupError
            EC2 refuses, or does not answer.
        """
        if allocation.instance_id is not None:
            return allocation
        remaining = self.candidates(job.lost_before)
        refusals: list[str] = []
        failed = ""
        launch = allocation.launch
        number = 0
        if launch is not None:
            number = launch.number
            asked = (launch.instance_type, launch.spot)
            remaining = remaining[remaining.index(asked) + 1 :] if asked in remaining else remaining
        while launch is not None or remaining:
            if launch is None:
                number += 1
                launch = await self._plan(job, number, *remaining.pop(0))
                allocation = allocation.asking(launch)
                await record(allocation)
            try:
                instance = await self._asked(launch, job.attempt_dir)
            except Ec2CapacityError as error:
                refusals.append(f"{launch.instance_type}{', spot' if launch.spot else ''}: {error.code}")
                launch, failed = None, error.code
                continue
            except (Ec2RefusedError, Ec2Error):
                await record(allocation.asking(None))
                raise
            allocation = allocation.with_instance(instance)
            await record(allocation)
            log.info(
                "aws.instance_launched",
                instance_id=instance.id,
                instance_type=launch.instance_type,
                spot=launch.spot,
                image_id=launch.parameters["ImageId"],
            )
            return allocation
        await record(allocation.asking(None))
        raise Ec2CapacityError(failed, "; ".join(refusals))

    async def _plan(self, job: Job, number: int, instance_type: str, spot: bool) -> Launch:
        owner = str(await asyncio.to_thread(self.owner))
        market = "spot" if spot else "on-demand"
        words = (owner, job.event_name, job.submission, str(job.attempt), str(number), instance_type, market)
        if self.config.ssh_host_key is HostKeyPolicy.USER_DATA:
            await asyncio.to_thread(host_keys.make, job.attempt_dir / HOST_KEY_FILE)
        return Launch(
            number=number,
            token=hashlib.sha256("\0".join(words).encode()).hexdigest(),
            instance_type=instance_type,
            spot=spot,
            parameters=await self.parameters(
                instance_type,
                spot=spot,
                tags={
                    "Name": f"rampd {job.event_name} {job.submission}",
                    OWNER_TAG: owner,
                    EVENT_TAG: job.event_name,
                    SUBMISSION_TAG: job.submission,
                    ATTEMPT_TAG: job.attempt_id,
                },
            ),
        )

    async def parameters(self, instance_type: str, *, spot: bool, tags: dict[str, str]) -> dict[str, Any]:
        """Return what RunInstances is called with, but for its token and user data."""
        config = self.config
        image = await self._ec2.image(image_id=config.ami_image_id, name=config.ami_image_name)
        group = await self._ec2.security_group(config.security_group, subnet_id=config.subnet_id)
        tagged = [{"Key": key, "Value": value[:256]} for key, value in tags.items()]
        parameters: dict[str, Any] = {
            "ImageId": image.id,
            "InstanceType": instance_type,
            "MinCount": 1,
            "MaxCount": 1,
            "KeyName": config.key_name,
            "SecurityGroupIds": [group],
            "InstanceInitiatedShutdownBehavior": "terminate",
            "MetadataOptions": {"HttpTokens": "required"},
            "TagSpecifications": [{"ResourceType": kind, "Tags": tagged} for kind in ("instance", "volume")],
        }
        if config.subnet_id is not None:
            parameters["SubnetId"] = config.subnet_id
        if spot:
            options = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
            parameters["InstanceMarketOptions"] = {"MarketType": "spot", "SpotOptions": options}
        return parameters

    async def _asked(self, launch: Launch, attempt_dir: Path) -> Instance:
        """Make the call. Cancelled meanwhile, it waits a moment for the reply, so that what was made is known."""
        user_data = None
        if self.config.ssh_host_key is HostKeyPolicy.USER_DATA:
            user_data = await asyncio.to_thread(host_keys.user_data, attempt_dir / HOST_KEY_FILE)
        calling = asyncio.create_task(
            self._ec2.launch(launch.token, launch.parameters, user_data=user_data), name="aws/run-instances"
        )
        try:
            return await asyncio.shield(calling)
        except asyncio.CancelledError:
            try:
                await asyncio.wait({calling}, timeout=_REPLY_S)
                if calling.done() and not calling.cancelled() and calling.exception() is None:
                    await self.end({calling.result().id}, reason="cancelled", launched_at=calling.result().launched_at)
            finally:
                calling.cancel()
                await asyncio.wait({calling})
            raise

    async def booted(self, allocation: AwsAllocation, *, until: float) -> AwsAllocation:
        """Wait until the instance runs and has an address.

        Parameters
        ----------
        allocation
            With an instance.
        until
            How long that may take, by CLOCK_BOOTTIME: nobody sets that.

        Raises
        ------
        WorkerLostError
            It ended while it booted.
        WorkerError
            It does not boot.
        """
        while True:
            instance = await self.seen(allocation)
            if instance is not None:
                if instance.state not in ("pending", "running"):
                    raise lost(instance)
                if instance.state == "running" and allocation.address_of(instance):
                    return allocation.with_instance(instance)
            if clock.boottime() > until:
                state = "unknown to EC2" if instance is None else instance.state
                kind = "private" if allocation.use_private_ip else "public"
                lacks = f"without a {kind} address" if instance and instance.state == "running" else state
                raise WorkerError(
                    f"instance {allocation.instance_id} is still {lacks} after worker.connect_timeout "
                    f"({self.config.connect_timeout:g} s)"
                )

    async def seen(self, allocation: AwsAllocation) -> Instance | None:
        """Return what EC2 says of an attempt's instance now; None where it does not know, or does not answer."""
        try:
            return (await self._watch.seen()).get(allocation.instance_id or "")
        except WorkerError:
            return None

    async def end(self, instance_ids: Collection[str], *, reason: str, launched_at: float | None = None) -> None:
        """End instances, and see that EC2 does; silent where they are gone.

        Raises
        ------
        WorkerError
            EC2 does not end them, or does not answer.
        """
        since = clock.boottime()
        while True:
            try:
                await self._ec2.terminate(instance_ids)
                break
            except Ec2Error as error:
                if error.code != "InvalidInstanceID.NotFound":
                    raise
                is_new = launched_at is not None and clock.wall() - launched_at < _NEW_S
                if not is_new or clock.boottime() - since > _NEW_S:
                    return
                await asyncio.sleep(1.0)
        cost = None if launched_at is None else round(max(0.0, clock.wall() - launched_at), 1)
        for instance_id in sorted(instance_ids):
            log.info("aws.instance_terminated", instance_id=instance_id, reason=reason, instance_s=cost)

    async def end_launch(self, allocation: AwsAllocation, *, reason: str) -> None:
        """End what an attempt has, or may have, launched; see `end`."""
        if allocation.instance_id is not None:
            await self.end({allocation.instance_id}, reason=reason, launched_at=allocation.launched_at)
            return
        if allocation.launch is None:
            return
        for _ in range(_LOOKS):  # EC2 may not show at once what it has launched; `reclaim` looks again later
            found = [one for one in (await self._watch.seen()).values() if one.attempt_id == allocation.attempt_id]
            for instance in found:
                if instance.is_alive:
                    await self.end({instance.id}, reason=reason, launched_at=instance.launched_at)
            if found:
                return


def lost(instance: Instance) -> WorkerLostError:
    """Return the error of an instance that has ended; says so in the log where AWS took it back."""
    if instance.was_taken_back:
        log.warning("aws.spot_interrupted", instance_id=instance.id)
        return WorkerLostError(f"AWS took spot instance {instance.id} back")
    why = f" ({instance.reason_code})" if instance.reason_code else ""
    return WorkerLostError(f"instance {instance.id} is {instance.state}, and it was not rampd that ended it{why}")


def _write_owner(path: Path) -> str:
    """Write a new owner's id, or return the one that was written meanwhile."""
    owner = secrets.token_hex(16)
    temporary = path.with_name(f"{path.name}.{owner}")
    try:
        temporary.write_text(f"{owner}\n", encoding="ascii")
        os.link(temporary, path)
    except FileExistsError:
        return path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise WorkerError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return owner
