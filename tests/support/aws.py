"""An event on an EC2 of the test's own: each instance is a real sshd, with a home, a kit and a ramp-test."""

from __future__ import annotations

import base64
import shutil
import threading
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

import yaml

from rampd.testing import make_job
from rampd.workers.aws import AwsWorker
from rampd.workers.aws_config import AwsConfig
from rampd.workers.base import Allocation, WorkerContext
from support.ec2 import GROUP, IMAGE_NAME, KEY_NAME, REGION, Cloud
from support.sshd import Sshd, free_address
from support.training_output import build_training_output

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from rampd.models import Job
    from rampd.workers.aws_allocation import AwsAllocation
    from support.ec2 import Machine

# A ramp-test that goes by the submission's name, or does what the submission's own behave.sh says.
BY_NAME = """#!/bin/sh
echo "ramp-test $*"
while [ "$1" != --submission ]; do shift; done
name=$2
cd "submissions/$name" || exit 1
if [ -f behave.sh ]; then . ./behave.sh; fi
case $name in
  good*) mkdir -p training_output && cp -r TEMPLATE/. training_output && exit 0 ;;
  bad*) exit 1 ;;
  hangs*) setsid sleep 1000 & sleep 1000 ;;
esac
exit 99
"""


class AwsRoom:
    """A cloud and the folders of one event below `root`. Use it as a context manager.

    Parameters
    ----------
    root
        A folder of the test's own.
    ramp_test
        What the image's ramp-test is; None: the one above.
    profile
        The image's `~/.profile`, where it is another one.
    kit
        A kit to be the image's; None: an empty one.
    """

    def __init__(
        self, root: Path, *, ramp_test: str | None = None, profile: str | None = None, kit: Path | None = None
    ) -> None:
        self.root = root
        self.cloud = Cloud(self._boot)
        self.machines: dict[str, Sshd] = {}
        """Every machine that was ever booted, by its instance's id."""
        self.answers = True
        """Whether a machine's sshd listens once it has booted."""
        self.prepare: Callable[[Sshd], None] | None = None
        """What is done to each machine before it boots."""
        self._ramp_test = ramp_test or BY_NAME
        self._profile = profile
        self._kit = kit
        self._lock = threading.Lock()
        self.records: list[tuple[str, AwsAllocation]] = []
        """What the worker had recorded, in order."""

    def __enter__(self) -> Self:
        (self.root / "machines").mkdir(parents=True)
        if not (self.root / "template").exists():
            build_training_output(self.root / "template")
        # One machine is made beforehand for its key pair and its port: all of them have the same.
        self._first = Sshd(self.root / "machines" / "first")
        self.key_path = self._first.client_key
        self.port = self._first.port
        self._authorized = (self._first.folder / "authorized_keys").read_text(encoding="utf-8")
        self.cloud.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.cloud.__exit__()
        for machine in self.machines.values():
            machine.terminate()

    def _boot(self, instance_id: str, user_data: str) -> tuple[str, Machine]:
        sshd = Sshd(
            self.root / "machines" / instance_id,
            address=free_address(),
            port=self.port,
            authorized_key=self._authorized,
            profile=self._profile,
        )
        self._furnish(sshd, user_data)
        with self._lock:
            self.machines[instance_id] = sshd
        if self.answers:
            sshd.start()
        return sshd.address, _Ending(sshd)

    def _furnish(self, sshd: Sshd, user_data: str) -> None:
        if self._kit is not None:
            shutil.copytree(self._kit, sshd.kit, dirs_exist_ok=True)
        if self._profile is None:
            stub = sshd.home / "bin" / "ramp-test"
            stub.write_text(self._ramp_test.replace("TEMPLATE", str(self.root / "template")), encoding="utf-8")
        if user_data:
            # As much of cloud-init's module cc_ssh as is wanted.
            keys = yaml.safe_load(base64.b64decode(user_data))["ssh_keys"]
            (sshd.folder / "host_key").write_text(keys["ed25519_private"], encoding="ascii")
            sshd.host_key = keys["ed25519_public"]
        if self.prepare is not None:
            self.prepare(sshd)

    def section(self, **settings: Any) -> dict[str, Any]:
        """Return the `worker` section, its other keys given."""
        return {
            "worker_type": "aws",
            "access_key_id": "AKIAMADEUP",
            "secret_access_key": "made-up-on-the-spot",
            "region_name": REGION,
            "endpoint_url": self.cloud.url,
            "ami_image_name": IMAGE_NAME,
            "ami_user_name": self._first.user,
            "instance_type": "t2.micro",
            "key_name": KEY_NAME,
            "key_path": str(self.key_path),
            "security_group": GROUP,
            "ssh_port": self.port,
            "remote_ramp_kit_folder": "~/kit",
            "timeout": 60,
            "connect_timeout": 30,
            "deadman_command": 'echo {minutes} >>"$HOME/deadman"',
            "metadata_url": "http://127.0.0.1:9",
            **settings,
        }

    def job(self, name: str = "good", *, attempt: int = 1, **options: Any) -> Job:
        """Return a job, with a submission of one file."""
        return make_job(self.root, name, attempt=attempt, **options)

    def context(self, root: Path) -> WorkerContext:
        """Return the worker's context below `root`; what is recorded is kept in `records`."""
        (root / "state" / "attempts").mkdir(parents=True, exist_ok=True)

        async def record(attempt_id: str, allocation: Allocation) -> None:
            self.records.append((attempt_id, allocation))  # type: ignore[arg-type] # the worker's own

        return WorkerContext(
            event_name="event",
            deployment_dir=root,
            kit_dir=root / "kit",
            data_dir=root / "data",
            state_dir=root / "state",
            time_between_collection_s=0.05,
            record=record,
        )

    @asynccontextmanager
    async def opened(self, *, state_root: Path | None = None, **settings: Any) -> AsyncIterator[AwsWorker]:
        """Give an open worker, and close it."""
        config = AwsConfig.model_validate(self.section(**settings))
        worker = AwsWorker(config, self.context(state_root or self.root))
        async with AsyncExitStack() as stack:
            await worker.open(stack)
            yield worker


class _Ending:
    """An sshd as a machine."""

    def __init__(self, sshd: Sshd) -> None:
        self._sshd = sshd

    def end(self) -> None:
        self._sshd.terminate()
