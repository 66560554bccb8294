"""What becomes of runs when what starts and watches them, or the daemon itself, is killed."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from rampd import clock
from rampd.errors import WorkerError, WorkerLostError
from rampd.workers.containment import Containment, start_time_of
from support.conda import KINDS, CondaRoom, warm_up_uvloop
from support.store_room import until

if TYPE_CHECKING:
    from rampd.workers.conda import CondaWorker

# A tree with a process of a session of its own, one that lost our mark, and all deaf to TERM; each waits for the end.
_TREE = """
trap "" TERM
setsid sleep 1000 &
env -i setsid tail -f "$8/$2/estimator.py" &
(sleep 1001; : "$8") &
echo begun
while [ ! -e "$8/go" ]; do sleep 0.05; done
"""
_DAEMON = """
import asyncio, sys
from pathlib import Path
from rampd.workers.containment import Containment
from support.conda import CondaRoom

async def main():
    room = CondaRoom(Path(sys.argv[1]), Containment(sys.argv[2]) if sys.argv[2] else None)
    async with room.opened() as worker:
        for name in ("one", "two"):
            job = room.job(name)
            await worker.launch_submission(job, await worker.setup(job))
            await room.printed(job, b"begun")
        print("ready", flush=True)
        await asyncio.sleep(1000)

asyncio.run(main())
"""


@pytest.fixture(scope="module", autouse=True)
def libuv_is_ready() -> None:
    """Have what is opened once and kept for ever open before the first test looks."""
    warm_up_uvloop()


@pytest.fixture(params=KINDS)
def room(request: pytest.FixtureRequest, tmp_path: Path) -> CondaRoom:
    """Give an event's folders, once for each kind of containment."""
    return CondaRoom(tmp_path, request.param)


def _launcher_pid(worker: CondaWorker) -> int:
    process = worker._local._process
    assert process is not None
    return process.pid


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_killed_launcher(room: CondaRoom, number: signal.Signals) -> None:
    """Its runs are lost with everything that they started, and the next run has a new launcher."""
    room.ramp_test(_TREE)
    jobs = [room.job("one"), room.job("two")]
    async with room.opened() as worker:
        async with room.launched(worker, jobs[0]) as first, room.launched(worker, jobs[1]) as second:
            for job in jobs:
                await room.printed(job, b"begun")
            assert len(room.alive()) >= 2 * 4
            os.kill(_launcher_pid(worker), number)
            for allocation in (first, second):
                with pytest.raises(WorkerLostError):
                    await worker.wait(allocation)
            assert not room.alive()
            assert (await worker.stop(first)).status == 137
        room.ramp_test("exit 5")
        assert (await room.run(worker, room.job("three")))[0].status == 5


async def test_a_launcher_that_was_killed_while_idle(room: CondaRoom) -> None:
    """It is started again without a word; at most the run that found it dead is lost."""
    room.ramp_test("exit 5")
    async with room.opened() as worker:
        os.kill(_launcher_pid(worker), signal.SIGKILL)
        with suppress(WorkerLostError):
            assert (await room.run(worker, room.job("one")))[0].status == 5
        assert (await room.run(worker, room.job("two")))[0].status == 5


async def test_a_killed_supervisor(room: CondaRoom) -> None:
    """Its run is lost with everything that it started, marked or not."""
    room.ramp_test(_TREE)
    job = room.job()
    async with room.opened() as worker, room.launched(worker, job) as allocation:
        await room.printed(job, b"begun")
        assert allocation.pid is not None
        os.kill(allocation.pid, signal.SIGKILL)
        with pytest.raises(WorkerLostError, match="supervisor was killed"):
            await worker.wait(allocation)
        assert not room.alive()
        assert await worker.is_submission_finished(allocation)


async def test_launcher_and_supervisor_are_killed_together(room: CondaRoom) -> None:
    """When nobody is left who would be told of it, the run's processes are found by their mark."""
    room.ramp_test("setsid sleep 1000 & echo begun; sleep 1001")
    job = room.job()
    async with room.opened() as worker, room.launched(worker, job) as allocation:
        await room.printed(job, b"begun")
        assert allocation.pid is not None
        os.kill(_launcher_pid(worker), signal.SIGSTOP)
        os.kill(allocation.pid, signal.SIGKILL)
        os.kill(_launcher_pid(worker), signal.SIGKILL)
        with pytest.raises(WorkerLostError):
            await worker.wait(allocation)
        assert not room.alive()


async def test_one_lost_run_costs_no_other(room: CondaRoom) -> None:
    """When one supervisor is killed, runs beside it go on to their end."""
    room.ramp_test('echo begun; while [ ! -e "$8/go" ]; do sleep 0.01; done; exit 6')
    lost, other = room.job("lost"), room.job("other")
    async with room.opened() as worker, room.launched(worker, lost) as first, room.launched(worker, other) as second:
        for job in (lost, other):
            await room.printed(job, b"begun")
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        with pytest.raises(WorkerLostError):
            await worker.wait(first)
        (other.attempt_dir / "submissions" / "go").touch()
        assert (await worker.wait(second)).status == 6


async def test_a_supervisor_that_is_asked_to_end(room: CondaRoom) -> None:
    """TERM to a supervisor, as a shutdown sends it to everybody, means the same as the daemon's stop."""
    room.ramp_test("echo begun; exec sleep 1000")
    job = room.job()
    async with room.opened() as worker, room.launched(worker, job) as allocation:
        await room.printed(job, b"begun")
        assert allocation.pid is not None
        os.kill(allocation.pid, signal.SIGTERM)
        ended = await worker.wait(allocation)
    assert (ended.status, ended.signal) == (143, signal.SIGTERM)


async def test_a_killed_daemon_leaves_nothing(room: CondaRoom) -> None:
    """When the process that holds the worker is killed, its launcher and all runs are gone at once."""
    room.ramp_test(_TREE)
    daemon = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _DAEMON, str(room.root), room.containment or ""),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    try:
        assert daemon.stdout is not None
        async with asyncio.timeout(20):
            while line := await daemon.stdout.readline():  # its own log stream is there as well
                if line == b"ready\n":
                    break
        family = psutil.Process(daemon.pid).children(recursive=True)
        assert len(family) >= 2 * 4
    finally:
        daemon.kill()
        await daemon.wait()
    async with asyncio.timeout(2.0):
        await until(lambda: not room.alive(), what="the end of all runs")
        await until(lambda: not any(_is_alive(one) for one in family), what="the end of the launcher")


def _is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


async def test_a_launch_that_is_cancelled_at_any_moment(room: CondaRoom) -> None:
    """Wherever a launch is cancelled, what it started is gone when it returns, or it has launched."""
    room.ramp_test(_TREE)
    async with room.opened() as worker:
        for steps in range(8):
            job = room.job(f"n{steps}")
            allocation = await worker.setup(job)
            launching = asyncio.ensure_future(worker.launch_submission(job, allocation))
            for _ in range(steps):
                await asyncio.sleep(0)
            launching.cancel()
            await asyncio.wait({launching})
            assert launching.cancelled() is not bool(room.alive())
            await worker.teardown(allocation)


async def test_a_launch_that_is_cancelled_before_it_is_heard(room: CondaRoom) -> None:
    """A run whose launch was cancelled before the launcher came to it never begins, or not for long."""
    room.ramp_test(_TREE)
    job = room.job()
    async with room.opened() as worker:
        allocation = await worker.setup(job)
        os.kill(_launcher_pid(worker), signal.SIGSTOP)
        launching = asyncio.ensure_future(worker.launch_submission(job, allocation))
        for _ in range(3):
            await asyncio.sleep(0.01)
            launching.cancel()
        os.kill(_launcher_pid(worker), signal.SIGCONT)
        with pytest.raises(asyncio.CancelledError):
            await launching
        assert not room.alive()
        await worker.teardown(allocation)


async def test_an_allocation_identifies_its_process(room: CondaRoom) -> None:
    """It has the supervisor's pid with what makes a pid unique: its start, and the machine's."""
    room.ramp_test("sleep 1000")
    job = room.job()
    async with room.opened() as worker, room.launched(worker, job) as allocation:
        assert allocation.pid is not None
        assert psutil.Process(allocation.pid).ppid() == _launcher_pid(worker)
        assert allocation.start_time == start_time_of(allocation.pid)
        assert allocation.boot_id == clock.boot_id()


async def test_without_a_wish_the_best_containment_is_taken(tmp_path: Path) -> None:
    """As root that is a PID namespace, without a user namespace around it."""
    async with CondaRoom(tmp_path, None).opened() as worker:
        wanted = Containment.PID_NAMESPACE if os.geteuid() == 0 else Containment.USER_AND_PID_NAMESPACE
        assert worker.describe()["containment"] is wanted


async def test_a_launcher_that_cannot_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an interpreter there is an error that says so."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    async with AsyncExitStack() as stack:
        with pytest.raises(WorkerError, match="launcher of runs could not be started: No such file"):
            await CondaRoom(tmp_path, None).worker().open(stack)


async def test_a_launcher_whose_python_does_not_know_rampd(
    room: CondaRoom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs the rampd that the daemon runs, wherever that was found: by PYTHONPATH, or in a user's own folder."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    room.ramp_test("exit 7")
    async with room.opened() as worker:
        ended, _ = await room.run(worker, room.job())
    assert ended.status == 7


async def test_a_launcher_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher that ends at once is an error that says where to look."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    async with AsyncExitStack() as stack:
        with pytest.raises(WorkerError, match="its own words are on standard error"):
            await CondaRoom(tmp_path, None).worker().open(stack)


async def test_a_launcher_without_descriptors_left(room: CondaRoom) -> None:
    """A run that cannot be started for lack of them is tried again, and costs the others nothing."""
    room.ramp_test('echo begun; while [ ! -e "$8/go" ]; do sleep 0.01; done; exit 6')
    first, second = room.job("first"), room.job("second")
    async with room.opened() as worker, room.launched(worker, first) as allocation:
        await room.printed(first, b"begun")
        launcher = _launcher_pid(worker)
        limits = resource.prlimit(launcher, resource.RLIMIT_NOFILE)
        waiting = await worker.setup(second)
        resource.prlimit(launcher, resource.RLIMIT_NOFILE, (6, limits[1]))
        with pytest.raises(WorkerError, match="could not be started: Too many open files"):
            await worker.launch_submission(second, waiting)
        resource.prlimit(launcher, resource.RLIMIT_NOFILE, limits)
        for job in (first, second):
            (job.attempt_dir / "submissions" / "go").touch()
        assert (await worker.wait(allocation)).status == 6
        assert (await worker.wait(await worker.launch_submission(second, waiting))).status == 6
        await worker.teardown(waiting)
        assert _launcher_pid(worker) == launcher
