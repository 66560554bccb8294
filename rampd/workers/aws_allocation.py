"""What finds a submission's instance, and its run there, again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from rampd import clock
from rampd.remote.hosts import SshHost
from rampd.remote.instances import Launch
from rampd.workers.base import Allocation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rampd.models import Job
    from rampd.remote.instances import Instance
    from rampd.workers.aws_config import AwsConfig


class AwsAllocation(Allocation):
    """An instance, from the call that is about to ask for it to the run on it."""

    attempt_id: str
    submission: str
    attempt_dir: str
    """On this machine."""
    log_path: str
    """On this machine; how large it is says how much of the run's output has arrived."""
    user: str
    port: int
    kit_folder: str
    """On the instance."""
    memory_profiling: bool
    use_private_ip: bool
    launch: Launch | None = None
    """The call that was made, or is about to be; None: nothing was asked for."""
    instance_id: str | None = None
    """None while it is not known: the call may have taken effect all the same."""
    launched_at: float | None = None
    """When the instance began to cost (EC2's word), seconds since the epoch."""
    address: str | None = None
    host_key: str | None = None
    """The only host key that is accepted."""

    @classmethod
    def of(cls, job: Job, config: AwsConfig) -> Self:
        """Return the allocation of an attempt that has asked for nothing yet."""
        return cls(
            attempt_id=job.attempt_id,
            submission=job.submission,
            attempt_dir=str(job.attempt_dir),
            log_path=str(job.log_path),
            user=config.ami_user_name,
            port=config.ssh_port,
            kit_folder=config.remote_ramp_kit_folder,
            memory_profiling=config.memory_profiling,
            use_private_ip=config.use_private_ip,
        )

    def asking(self, launch: Launch | None) -> Self:
        """Return it with the call that is about to be made; None: the last one made nothing."""
        return self.model_copy(update={"launch": launch, "instance_id": None, "launched_at": None, "address": None})

    def with_instance(self, instance: Instance) -> Self:
        """Return it with what EC2 says of its instance."""
        address = self.address_of(instance) or self.address
        found = {"instance_id": instance.id, "launched_at": instance.launched_at, "address": address}
        return self.model_copy(update=found)

    def address_of(self, instance: Instance) -> str | None:
        """Return where the instance is reached; None while it has no address."""
        return instance.private_address if self.use_private_ip else instance.public_address

    def with_host_key(self, host_key: str) -> Self:
        """Return it with the host key that is accepted from now on."""
        return self.model_copy(update={"host_key": host_key})

    @property
    def host(self) -> SshHost:
        """Where to log in. Legal once the address is known."""
        if self.instance_id is None or self.address is None:
            raise ValueError(f"attempt {self.attempt_id} has no instance yet")
        return SshHost(self.instance_id, self.address, self.port, self.user, self.host_key)

    @property
    def run_s(self) -> float | None:
        """For how many seconds the instance has cost so far."""
        return None if self.launched_at is None else max(0.0, clock.wall() - self.launched_at)

    def whereabouts(self) -> Mapping[str, str | int | float | bool | None]:
        """Return the instance, its address, and what it has cost so far in seconds."""
        return {
            "instance_id": self.instance_id,
            "instance_type": self.launch.instance_type if self.launch else None,
            "spot": self.launch.spot if self.launch else None,
            "host": self.address,
            "instance_s": None if self.run_s is None else round(self.run_s, 1),
        }
