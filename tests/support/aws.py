"""An event on an EC2 of the test's own: each instance is a real sshd, with a home, a kit and a ramp-test."""

from __future__ import annotations

import asyncio
import base64
import shutil
import threading
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

import yaml

from rampd.dispatcher import Dispatcher
from rampd.event import Event, load_settings
from rampd.testing import make_job
from rampd.workers.aws import AwsWorker
from rampd.workers.aws_config import AwsConfig
from rampd.workers.base import Allocation, WorkerContext
from support.ec2 import GROUP, IMAGE_NAME, KEY_NAME, REGION, Cloud
from support.event import find
from support.sshd import Sshd, free_address
from support.training_output import build_training_output

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from rampd.models import Job
    from rampd.workers.aws_allocation import AwsAllocation
    from support.ec2 import Machine

PATIENCE_S = 60.0

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
  hangs*) setsid sleep 1000 & exec sleep 1000 ;; # no shell is left that could say "Terminated"
esac
exit 99
"""


_CUT = """case $SSH_ORIGINAL_COMMAND in
*{word}*) if mkdir {root}/was-cut 2>/dev/null; then {run}; kill -s KILL "$PPID"; exit 1; fi ;;
esac
exec sh -c "$SSH_ORIGINAL_COMMAND"
"""


_HANG = """case $SSH_ORIGINAL_COMMAND in
*{word}*) if ! [ -e {root}/may-go ]; then
    {run}
    : >{root}/has-come
    until [ -e {root}/may-go ]; do sleep 0.05; done
    exit 1
  fi ;;
esac
exec sh -c "$SSH_ORIGINAL_COMMAND"
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
        """Every machine that was ever made, by its instance's id; it may be booting still."""
        self.answers = True
        """Whether a machine's sshd listens once it has booted."""
        self._prepare: Callable[[Sshd], None] | None = None
        self.cut_at: tuple[str, bool] | None = None
        """The first far command with this word in it has its connection cut: before it ran, or (True) after."""
        self.hang_at: tuple[str, bool] | None = None
        """Far commands with this word in them stand still, before they run or (True) after, while no file `may-go` is
        below `root`; `has-come` says that one does."""
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
        for machine in list(self.machines.values()):
            machine.terminate()

    def _boot(self, instance_id: str, user_data: str) -> tuple[str, Machine]:
        """Begin to boot a machine: it has its address at once, and answers a moment later."""
        address = free_address()
        booting = threading.Thread(target=self._make, args=(instance_id, user_data, address), name=instance_id)
        booting.start()
        return address, _Booted(self, instance_id, booting)

    def _make(self, instance_id: str, user_data: str, address: str) -> None:
        sshd = Sshd(
            self.root / "machines" / instance_id,
            address=address,
            port=self.port,
            authorized_key=self._authorized,
            profile=self._profile,
            options=self.sshd_options(instance_id),
        )
        self._furnish(sshd, user_data)
        with self._lock:
            if self._prepare is not None:
                self._prepare(sshd)
            self.machines[instance_id] = sshd
        if self.answers:
            sshd.start()

    def prepare_all(self, prepare: Callable[[Sshd], None]) -> None:
        """Have this done to every machine: to those that are there, booted or not, and to each new one."""
        with self._lock:
            self._prepare = prepare
            for machine in self.machines.values():
                prepare(machine)

    def sshd_options(self, instance_id: str) -> dict[str, str]:
        """Return further lines of a machine's sshd_config."""
        where = self.cut_at or self.hang_at
        if where is None:
            return {}
        word, after = where
        script = self.root / "machines" / f"{instance_id}.sh"
        template = _CUT if self.cut_at else _HANG
        run = 'sh -c "$SSH_ORIGINAL_COMMAND"' if after else ":"
        script.write_text(template.format(word=word, root=self.root, run=run), encoding="utf-8")
        return {"ForceCommand": f"sh {script}"}

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

    def write_config(self, *, dispatcher: dict[str, Any] | None = None, **worker: Any) -> Path:
        """Write an event's config; its worker's other keys given. Return its path."""
        path = self.root / "events" / "iris" / "config.yml"
        path.parent.mkdir(parents=True, exist_ok=True)
        sections = {
            "ramp": {"problem_name": "iris", "event_name": "iris"},
            "dispatcher": {
                "n_workers": 2,
                "settle_time": 0,
                "time_between_collection": 0.1,
                "hunger_policy": "exit",
                **(dispatcher or {}),
            },
            "worker": self.section(**worker),
        }
        path.write_text(yaml.safe_dump(sections), encoding="utf-8")
        return path

    @property
    def folder(self) -> Path:
        """The event's own folder."""
        return self.root / "events" / "iris"

    def submit(self, name: str, behaviour: str | None = None, **files: str) -> None:
        """Have a submission arrive by one rename; `behaviour` is what its ramp-test runs first, in sh."""
        staging = self.root / f"staging-{name}"
        staging.mkdir()
        (staging / "estimator.py").write_text(f"# {name}\n", encoding="utf-8")
        if behaviour is not None:
            (staging / "behave.sh").write_text(behaviour, encoding="utf-8")
        for file_name, text in files.items():
            (staging / file_name.replace("__", ".")).write_text(text, encoding="utf-8")
        (self.folder / "submissions").mkdir(parents=True, exist_ok=True)
        staging.rename(self.folder / "submissions" / name)

    @asynccontextmanager
    async def opened_event(self, *, dispatcher: dict[str, Any] | None = None, **worker: Any) -> AsyncIterator[Event]:
        """Give the open event."""
        event = Event.build(load_settings(self.write_config(dispatcher=dispatcher, **worker)))
        async with AsyncExitStack() as stack:
            await event.open(stack)
            yield event

    async def serve_out(self, *, dispatcher: dict[str, Any] | None = None, **worker: Any) -> None:
        """Have a daemon serve the event until everything has its end."""
        async with self.opened_event(dispatcher=dispatcher, **worker) as event:
            await asyncio.wait_for(Dispatcher(event).run(), PATIENCE_S)

    def machine(self, at: int = 0) -> Sshd:
        """Return the machine that was booted as the `at`-th, from 0."""
        return list(self.machines.values())[at]

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


class _Booted:
    """A machine that may be booting still."""

    def __init__(self, room: AwsRoom, instance_id: str, booting: threading.Thread) -> None:
        self._room = room
        self._instance_id = instance_id
        self._booting = booting

    def end(self) -> None:
        self._booting.join()
        self._room.machines[self._instance_id].terminate()


def end_of(records: list[dict[str, Any]], name: str = "good") -> dict[str, Any]:
    """Return a submission's one canonical line."""
    (finished,) = find(records, "submission.finished", submission=name)
    return finished


async def until(predicate: Callable[[], object], *, what: str, every_s: float = 0.01) -> None:
    """Look again and again until `predicate` holds; with more patience than for what is on this machine alone.

    Raises
    ------
    AssertionError
        It did not in time.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE_S
    while not predicate():
        assert loop.time() < deadline, f"{what} did not come true within {PATIENCE_S:g} s"
        await asyncio.sleep(every_s)
