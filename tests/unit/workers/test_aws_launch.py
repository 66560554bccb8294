"""The launch protocol: what is recorded before which call, and what becomes of a launch that was cut short."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from rampd import clock
from rampd.errors import WorkerError, WorkerSetupError, WorkerUnavailableError
from rampd.remote.detached_run import Ending, RunState, RunStatus
from rampd.remote.instances import (
    Ec2CapacityError,
    Ec2Error,
    Ec2RefusedError,
    Ec2UnreachableError,
    Image,
    Instance,
    Launch,
)
from rampd.testing import make_job
from rampd.workers import host_keys
from rampd.workers.aws import AwsWorker
from rampd.workers.aws_allocation import AwsAllocation
from rampd.workers.aws_config import AwsConfig
from rampd.workers.base import Allocation, WorkerContext
from support.store_room import until

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from rampd.models import Job

CAPACITY = Ec2CapacityError("InsufficientInstanceCapacity", "none")


class FakeEc2:
    """As much of EC2 as a launch needs: idempotent by token, with errors to be raised before or after the effect."""

    def __init__(self) -> None:
        self.by_token: dict[str, Instance] = {}
        self.states: dict[str, str] = {}
        self.calls: list[tuple[str, Mapping[str, Any]]] = []
        self.errors: list[Exception | None] = []
        self.hangs = asyncio.Event()
        self.hangs.set()

    async def image(self, **_: Any) -> Image:
        """Return the one that there is."""
        return Image("ami-1", "iris", "2026")

    async def security_group(self, group: str, **_: Any) -> str:
        """Return an id for any name."""
        return f"sg-{group}"

    async def launch(self, token: str, parameters: Mapping[str, Any], *, user_data: str | None = None) -> Instance:
        """Launch, or fail as a test says; `hangs` keeps the reply back."""
        self.calls.append((token, {**parameters, "UserData": user_data}))
        error = self.errors.pop(0) if self.errors else None
        if isinstance(error, Ec2CapacityError | Ec2RefusedError):
            raise error
        if token not in self.by_token:
            tags = {tag["Key"]: tag["Value"] for tag in parameters["TagSpecifications"][0]["Tags"]}
            self.add(f"i-{len(self.by_token)}", tags["rampd:attempt"], token)
        await self.hangs.wait()
        if error is not None:
            raise error
        return self.by_token[token]

    def add(self, instance_id: str, attempt_id: str, token: str = "") -> None:
        """Have an instance run."""
        self.by_token[token or instance_id] = Instance(
            instance_id, "running", "t2.micro", False, "127.0.0.1", None, attempt_id, 0.0
        )
        self.states[instance_id] = "running"

    async def instances(self, _: str) -> dict[str, Instance]:
        """Return them all."""
        return {
            one.id: Instance(one.id, self.states[one.id], "t2.micro", False, "127.0.0.1", None, one.attempt_id, 0.0)
            for one in self.by_token.values()
        }

    async def terminate(self, instance_ids: Collection[str]) -> dict[str, str]:
        """End them."""
        for instance_id in instance_ids:
            if instance_id not in self.states:
                raise Ec2Error("InvalidInstanceID.NotFound", "unknown")
            self.states[instance_id] = "shutting-down"
        return dict.fromkeys(instance_ids, "shutting-down")

    @property
    def alive(self) -> list[str]:
        """The ids of what is paid for."""
        return [instance_id for instance_id, state in self.states.items() if state == "running"]


class Room:
    """A worker on a fake EC2, whose records are kept."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.root = root
        self.ec2 = FakeEc2()
        self.records: list[AwsAllocation] = []
        self.job: Job = make_job(root)
        self.settings = settings
        (root / "state" / "attempts").mkdir(parents=True)
        self.worker = self.restarted()

    def restarted(self) -> AwsWorker:
        """Return a worker that knows nothing of an earlier one's."""
        needed = {
            "worker_type": "aws",
            "ami_image_name": "iris",
            "ami_user_name": "ubuntu",
            "instance_type": ["a", "b"],
            "key_name": "iris",
            "key_path": "iris.pem",
            "security_group": "rampd",
            "remote_ramp_kit_folder": "/kit",
        }

        async def record(_: str, allocation: Allocation) -> None:
            assert isinstance(allocation, AwsAllocation)
            self.records.append(allocation)

        context = WorkerContext("event", self.root, self.root, self.root, self.root / "state", 0.001, record=record)
        worker = AwsWorker(AwsConfig.model_validate({**needed, **self.settings}), context)
        worker._ec2 = worker._launcher._ec2 = self.ec2  # type: ignore[assignment]
        return worker

    async def launch(self, allocation: AwsAllocation | None = None, worker: AwsWorker | None = None) -> AwsAllocation:
        """Launch, as `setup` does."""
        worker = worker or self.worker
        self.job.attempt_dir.mkdir(exist_ok=True)

        async def record(recorded: AwsAllocation) -> None:
            await worker.context.record(self.job.attempt_id, recorded)

        return await worker._launcher.launch(self.job, allocation or AwsAllocation.of(self.job, worker.config), record)


@pytest.fixture
def room(tmp_path: Path) -> Room:
    """Give one."""
    return Room(tmp_path)


async def test_the_call_is_recorded_before_it_is_made(room: Room) -> None:
    """Whole, with its token; and afterwards with what came of it."""
    await room.launch()
    before, after = room.records
    assert (before.launch, before.instance_id) == (after.launch, None)
    assert before.launch is not None
    assert room.ec2.calls == [(before.launch.token, {**before.launch.parameters, "UserData": None})]
    assert after.instance_id == "i-0"


async def test_a_recorded_call_is_made_again_as_it_was(room: Room) -> None:
    """Even where the config, and the newest image, have changed meanwhile; what it made is taken up."""
    await room.launch()
    recorded = AwsAllocation.model_validate_json(room.records[0].model_dump_json())
    room.settings = {"instance_type": "c", "ami_image_name": None, "ami_image_id": "ami-2"}
    allocation = await room.launch(recorded, room.restarted())
    assert allocation.instance_id == "i-0"
    assert room.ec2.calls[0] == room.ec2.calls[1]
    assert room.ec2.alive == ["i-0"]


async def test_what_is_known_is_not_asked_for(room: Room) -> None:
    """An instance that was recorded is enough."""
    allocation = await room.launch()
    assert await room.launch(allocation, room.restarted()) == allocation
    assert len(room.ec2.calls) == 1


async def test_each_different_call_has_its_own_number_and_token(room: Room) -> None:
    """A token used again with other parameters would be refused."""
    room.settings = {"use_spot_instance": True}
    room.ec2.errors = [CAPACITY] * 4
    with pytest.raises(WorkerUnavailableError) as raised:
        await room.launch(worker=room.restarted())
    launches = [record.launch for record in room.records if record.launch is not None]
    assert [(one.number, one.instance_type, one.spot) for one in launches] == [
        (1, "a", True),
        (2, "b", True),
        (3, "a", False),
        (4, "b", False),
    ]
    assert len({one.token for one in launches}) == 4
    assert room.records[-1].launch is None
    assert "a, spot: InsufficientInstanceCapacity; b, spot" in str(raised.value)


async def test_a_recorded_call_without_capacity_goes_on_to_the_next(room: Room) -> None:
    """The numbers go on as well: nothing is asked for twice under another number."""
    room.ec2.errors = [CAPACITY, CAPACITY]
    with pytest.raises(WorkerUnavailableError):
        await room.launch()
    room.ec2.errors = [CAPACITY]
    allocation = await room.launch(room.records[0], room.restarted())
    assert allocation.launch is not None
    assert (allocation.launch.number, allocation.launch.instance_type) == (2, "b")


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_spot_is_given_up_after_two_losses(tmp_path: Path, lost: int) -> None:
    """The third attempt is not lost to anybody's higher bid."""
    room = Room(tmp_path, use_spot_instance=True)
    is_spot = [spot for _, spot in room.worker._launcher.candidates(lost)]
    assert is_spot == ([True, True, False, False] if lost < 2 else [False, False])


async def test_a_launch_whose_reply_was_lost_is_found_by_its_tag(room: Room) -> None:
    """Whoever gives up on the call ends what it made."""
    room.ec2.errors = [Ec2UnreachableError("no answer")]
    with pytest.raises(Ec2UnreachableError):
        await room.launch()
    assert room.ec2.alive == ["i-0"]
    await room.worker._launcher.end_launch(room.records[-1], reason="test")
    assert room.ec2.alive == []


async def test_a_launch_that_is_cancelled_is_ended(room: Room) -> None:
    """The reply is waited for, and its instance terminated, before the cancellation goes on."""
    room.ec2.hangs.clear()
    launching = asyncio.create_task(room.launch())
    await until(lambda: room.ec2.alive, what="the launch")
    launching.cancel()
    await asyncio.sleep(0)
    room.ec2.hangs.set()
    with pytest.raises(asyncio.CancelledError):
        await launching
    assert room.ec2.alive == []


async def test_a_refused_launch_leaves_nothing_to_look_for(room: Room) -> None:
    """It is recorded that nothing was made, so that nobody looks for it."""
    room.ec2.errors = [Ec2RefusedError("UnauthorizedOperation", "no")]
    with pytest.raises(Ec2RefusedError):
        await room.launch()
    assert room.records[-1].launch is None


async def test_reclaim_looks_twice(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held by the time of the second look is not ended, whatever the first one was held against."""
    await room.launch()
    room.ec2.add("i-late", "late")
    held = {room.job.attempt_id}
    looks = 0
    seen = room.worker._watch.seen

    async def looking() -> Mapping[str, Instance]:
        nonlocal looks
        looks += 1
        if looks == 2:
            held.add("late")
        return await seen()

    monkeypatch.setattr(room.worker._watch, "seen", looking)
    assert await room.worker.reclaim(held) == []
    held.discard("late")
    assert await room.worker.reclaim(held) == ["instance i-late"]
    assert room.ec2.alive == ["i-0"]


async def test_an_instance_that_cannot_be_ended_keeps_no_other_one(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody protected one from being terminated: the rest goes all the same, and the failure is told."""
    await room.launch()
    for name in ("i-protected", "i-rest"):
        room.ec2.add(name, name)
    terminate = room.ec2.terminate

    async def refusing(instance_ids: Collection[str]) -> dict[str, str]:
        if "i-protected" in instance_ids:
            raise Ec2Error("OperationNotPermitted", "it may not be terminated")
        return await terminate(instance_ids)

    monkeypatch.setattr(room.ec2, "terminate", refusing)
    left = room.root / "state" / "attempts" / "left"
    left.mkdir()
    with pytest.raises(Ec2Error, match="may not be terminated"):
        await room.worker.reclaim({room.job.attempt_id})
    assert room.ec2.alive == ["i-0", "i-protected"]
    assert not left.exists()


async def test_a_refusal_that_is_said_again_does_not_grow(room: Room) -> None:
    """While an event is held it is looked at again and again."""
    room.worker._hold_off(WorkerSetupError("no kit"))
    lengths = set()
    for _ in range(3):
        with pytest.raises(WorkerSetupError) as refused:
            await room.worker.check()
        lengths.add(len(refused.traceback))
    assert len(lengths) == 1


async def test_a_run_that_denies_that_it_ran_holds_no_event(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """A submission can write what the far side says of it: that is its own fate, and no other's."""
    allocation = AwsAllocation.of(room.job, room.worker.config)
    status = RunStatus(RunState.EXITED, 0, exit_status=125, ending=Ending.PROFILE)

    async def say(_: AwsAllocation) -> RunStatus:
        return status

    monkeypatch.setattr(room.worker._shell, "poll", say)
    monkeypatch.setattr(room.worker._shell, "launch", say)
    monkeypatch.setattr(room.worker, "_renew_deadman", say)
    for ask in (room.worker.wait, room.worker.exit_of):
        with pytest.raises(WorkerError, match="says now that it could not begin") as raised:
            await ask(allocation)
        assert not isinstance(raised.value, WorkerSetupError)
    assert room.worker._refusal is None
    with pytest.raises(WorkerSetupError, match="login profile"):  # before it was launched it is the image's word
        await room.worker.launch_submission(room.job, allocation)
    assert room.worker._refusal is not None


async def test_a_clock_that_is_set_costs_no_instance(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """connect_timeout is a duration: this machine's time may be set while an instance boots."""
    allocation = await room.launch()
    room.ec2.states["i-0"] = "pending"
    seen = room.worker._watch.seen

    async def looking() -> Mapping[str, Instance]:
        found = await seen()
        room.ec2.states["i-0"] = "running"
        return found

    monkeypatch.setattr(room.worker._watch, "seen", looking)
    monkeypatch.setattr(clock, "wall", lambda: time.time() + 86400)
    booted = await room.worker._launcher.booted(allocation, until=clock.boottime() + 600)
    assert booted.address == "127.0.0.1"


async def test_reclaim_asks_nobody_where_nothing_was_ever_launched(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first start needs no EC2."""

    async def refuse() -> Mapping[str, Instance]:
        raise AssertionError("EC2 was asked")

    monkeypatch.setattr(room.worker._watch, "seen", refuse)
    assert await room.worker.reclaim(set()) == []


async def test_an_owner_is_made_once(room: Room) -> None:
    """All workers of a state_dir are one owner, and another state_dir is another one."""
    launcher = room.worker._launcher
    assert launcher.owner(create=False) is None
    owner = launcher.owner()
    assert owner is not None
    assert len(owner) == 32
    assert room.restarted()._launcher.owner() == owner


async def test_a_host_key_travels_in_the_launch_alone(tmp_path: Path) -> None:
    """It is in no record, it is the same when the call is made again, and only its owner can read it."""
    room = Room(tmp_path, ssh_host_key="user_data")
    await room.launch()
    path = room.job.attempt_dir / "instance-host-key"
    assert path.stat().st_mode & 0o777 == 0o600
    private = path.read_text(encoding="ascii").splitlines()[1]
    ((_, parameters),) = room.ec2.calls
    assert private in parameters["UserData"]
    assert all(private not in record.model_dump_json() for record in room.records)
    await room.launch(room.records[0], room.restarted())
    assert room.ec2.calls[0] == room.ec2.calls[1]
    assert host_keys.public_line(path).startswith("ssh-ed25519 ")
    host_keys.forget(path)
    host_keys.forget(path)
    assert not path.exists()


def test_whereabouts_are_what_costs() -> None:
    """Instance, type, market, address, and for how long it was paid for."""
    allocation = AwsAllocation(
        attempt_id="a",
        submission="s",
        attempt_dir="/a",
        log_path="/l",
        user="u",
        port=22,
        kit_folder="/k",
        memory_profiling=False,
        use_private_ip=False,
        launched_at=0.0,
        instance_id="i-1",
        address="127.0.0.1",
        launch=Launch(number=1, token="t", instance_type="t2.micro", spot=True, parameters={}),  # noqa: S106 -- no secret
    )
    where = dict(allocation.whereabouts())
    cost = where.pop("instance_s")
    assert isinstance(cost, float)
    assert cost > 1e9
    assert where == {"instance_id": "i-1", "instance_type": "t2.micro", "spot": True, "host": "127.0.0.1"}
