"""The `worker` section of worker_type aws: its keys, and what is worth saying of their values."""

from __future__ import annotations

import math
import re
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from rampd.config_sections import Location, Seconds, Text, Whole, WorkerConfig
from rampd.credentials import AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, read_credential
from rampd.errors import ConfigError
from rampd.remote.instances import Ec2Access

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rampd.config_sections import DispatcherSection

_ZONE = re.compile(r"([a-z]{2}(?:-[a-z]+)+-\d+)(?:-[a-z]+-\d+)?[a-z]")
"""us-west-2a, and a local zone such as us-west-2-lax-1a: a region, and more."""
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_SHORTEST_COLLECTION_S = 10.0
_DEADMAN_MARGIN_MIN = 60


class HostKeyPolicy(StrEnum):
    """Which host key an instance must show."""

    FIRST_USE = "first_use"  # the one that it shows first, from then on
    USER_DATA = "user_data"  # one made for the launch, which cloud-init gives it


class AwsConfig(WorkerConfig):
    """The `worker` section of worker_type aws."""

    timeout: Seconds = 86400.0
    """Seconds that a submission may run; its instance is paid for as long."""
    access_key_id: Text | None = None
    """The access key's id; null: profile_name, else the credential that systemd hands over (LoadCredential=), else the
    standard AWS chain (environment, files, the machine's role)."""
    secret_access_key: SecretStr | None = None
    """The access key's secret; stands together with access_key_id."""
    profile_name: Text | None = None
    """A profile of ~/.aws/config; null: access_key_id, or the standard AWS chain."""
    region_name: Text | None = None
    """The region, such as us-west-2; null: the standard AWS chain's."""
    endpoint_url: Text | None = None
    """Where EC2 answers; null: the region's own endpoint."""
    ami_image_name: Text | None = None
    """The beginning of the image's name; the newest one of yours (or shared with you) whose name starts so is used."""
    ami_image_id: Text | None = None
    """The image's id, ami-…; this or ami_image_name."""
    ami_user_name: Text
    """Who logs in on the image: ubuntu, ec2-user, …."""
    instance_type: Annotated[tuple[Text, ...], Field(min_length=1)]
    """The instance type, or a list in the order of preference: the next one is asked for where one is not to be had."""
    use_spot_instance: bool = False
    """Whether spot instances are asked for first; an on-demand one is where none is to be had, or two were lost."""
    key_name: Text
    """The key pair's name in EC2."""
    key_path: Location
    """The key pair's private key, a file that only its owner can read (chmod 400)."""
    security_group: Text
    """A security group's name, or its id, sg-…; it must let the daemon in at ssh_port."""
    subnet_id: Text | None = None
    """The subnet, subnet-…; null: one of the default VPC's."""
    use_private_ip: bool = False
    """Whether instances are reached at their private addresses: where the daemon is in their VPC."""
    remote_ramp_kit_folder: Text
    """The kit's folder on the image, absolute or from ~/; submissions are put into its `submissions`."""
    memory_profiling: bool = False
    """Whether mprof records a submission's memory, as `logs_dir/<name>/mprof.dat`; memory-profiler is on the image."""
    ssh_port: Annotated[Whole, Field(ge=1, le=65535)] = 22
    """Where the image's sshd listens."""
    ssh_host_key: HostKeyPolicy = HostKeyPolicy.FIRST_USE
    """first_use: the key that an instance shows first is the only one accepted from then on; user_data: the instance
    is given a key made for it (its image runs cloud-init), and nothing else is accepted."""
    connect_timeout: Seconds = 600.0
    """Seconds from its launch that an instance may take until somebody can log in."""
    reconnect_timeout: Seconds = 600.0
    """Seconds for which an instance that EC2 says is running may be out of reach before its run counts as lost."""
    deadman_minutes: Annotated[Whole, Field(ge=1)] | None = None
    """Minutes after which an instance that hears nothing of the daemon ends itself; null: the timeout's, and 60."""
    deadman_command: str = "sudo -n shutdown -h +{minutes}"
    """What sets that switch on the instance, {minutes} filled in, now and then while the daemon lives; empty: none."""
    metadata_url: Text = "http://169.254.169.254"
    """Where the instance finds its metadata service, which says that a spot instance will be taken back."""

    @field_validator("instance_type", mode="before")
    @classmethod
    def _as_list(cls, value: object) -> object:
        if isinstance(value, str):
            return (value,)
        if isinstance(value, list | tuple) and value and all(isinstance(one, str) for one in value):
            return tuple(value)
        raise ValueError("an instance type, or a list of some")

    @field_validator("region_name")
    @classmethod
    def _no_zone(cls, value: str | None) -> str | None:
        if value is not None and (match := _ZONE.fullmatch(value)):
            raise ValueError(f"a region, such as {match[1]}; this is a zone of it")
        return value

    @field_validator("endpoint_url", "metadata_url")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^\s/'\"]+(/[^\s'\"]*)?", value):
            raise ValueError("a URL that begins with http:// or https://")
        return value.rstrip("/") if value else value

    @field_validator("ami_user_name")
    @classmethod
    def _user(cls, value: str) -> str:
        if not _USER.fullmatch(value):
            raise ValueError("a user's name, such as ubuntu")
        return value

    @field_validator("remote_ramp_kit_folder")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if not value.startswith(("/", "~/")) or "\n" in value or ".." in value.split("/"):
            raise ValueError("an absolute path on the image, such as /home/ubuntu/ramp-kits/iris or ~/ramp-kits/iris")
        return value.rstrip("/") or "/"

    @field_validator("ami_image_id")
    @classmethod
    def _image_id(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("ami-"):
            raise ValueError("an image's id, ami-…; a name belongs into ami_image_name")
        return value

    @field_validator("subnet_id")
    @classmethod
    def _subnet_id(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("subnet-"):
            raise ValueError("a subnet's id, subnet-…")
        return value

    @field_validator("deadman_command")
    @classmethod
    def _command(cls, value: str) -> str:
        if "\0" in value or "\n" in value or (value.strip() and "{minutes}" not in value):
            raise ValueError("one line with {minutes} in it, or nothing")
        return value.strip()

    @model_validator(mode="after")
    def _one_image(self) -> Self:
        if (self.ami_image_name is None) == (self.ami_image_id is None):
            both = self.ami_image_id is not None
            raise ValueError(f"ami_image_name or ami_image_id{', not both' if both else ': one of them is needed'}")
        return self

    @model_validator(mode="after")
    def _one_login(self) -> Self:
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ValueError("access_key_id and secret_access_key together, or neither")
        if self.access_key_id is not None and self.profile_name is not None:
            raise ValueError("access_key_id and secret_access_key, or profile_name, not both")
        return self

    def access(self) -> Ec2Access:
        """Return how EC2 is reached: by the config's key or profile, else the service manager's key, else AWS's chain.

        Blocking: reads two small files where the service manager hands them over.

        Raises
        ------
        ConfigError
            The service manager hands over half a key, or something that is none.
        """
        key_id, secret = (
            self.access_key_id,
            self.secret_access_key.get_secret_value() if self.secret_access_key else None,
        )
        if key_id is None and self.profile_name is None:
            key_id, secret = read_credential(AWS_ACCESS_KEY_ID), read_credential(AWS_SECRET_ACCESS_KEY)
            if (key_id is None) != (secret is None):
                there, missing = (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)[:: -1 if key_id is None else 1]
                raise ConfigError([f"$CREDENTIALS_DIRECTORY has {there} and no {missing}: hand over both, or neither"])
        return Ec2Access(
            access_key_id=key_id,
            secret_access_key=secret,
            profile_name=self.profile_name,
            region_name=self.region_name,
            endpoint_url=self.endpoint_url,
        )

    @property
    def deadman_after_min(self) -> int:
        """Minutes after which an instance that hears nothing of the daemon ends itself."""
        return self.deadman_minutes or math.ceil(self.timeout / 60) + _DEADMAN_MARGIN_MIN

    def advice(self, dispatcher: DispatcherSection) -> Sequence[str]:
        """Return what an operator should know of these values; see `WorkerConfig.advice`."""
        found = []
        if "timeout" not in self.model_fields_set:
            found.append(
                f"worker.timeout is not set: a submission that hangs is paid for until {self.timeout:g} s are over; "
                "set what the event allows"
            )
        if dispatcher.time_between_collection < _SHORTEST_COLLECTION_S:
            found.append(
                f"dispatcher.time_between_collection is {dispatcher.time_between_collection:g} s: every running "
                "instance is asked over SSH as often, which a cloud provider may take for an attack; 60 or more is "
                "advised for aws"
            )
        if self.run_as is not None:
            found.append(
                "worker.run_as is ignored: on an instance submissions run as worker.ami_user_name, which is alone there"
            )
        return found
