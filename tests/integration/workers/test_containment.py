"""Nothing outlives its submission, however it is ended, and nothing it does reaches beyond it."""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
import stat
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

from rampd.errors import WorkerLostError, WorkerSetupError
from rampd.workers import containment
from rampd.workers.containment import Containment
from support.conda import KINDS, CondaRoom, warm_up_uvloop
from support.requirements import needs_root
from support.store_room import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rampd.models import Job

# Seven processes that ignore TERM, each with the attempt's folder in its command line: the main one, a child, a
# grandchild, one that called setsid, one that forked twice, the last two again without our mark. Each says its role.
_TREE = """
import os, signal, sys, time
place = sys.argv[8]
TREE = '''
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def linger(role):
    print(role, flush=True)
    while True:
        time.sleep(1000)
kind = sys.argv[2]
if kind == "setsid":
    os.setsid()
elif kind == "twice":
    if os.fork(): os._exit(0)
    os.setsid()
    if os.fork(): os._exit(0)
elif kind == "child" and os.fork() == 0:
    linger("grandchild")
linger(kind)
'''
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def start(kind, environment):
    if os.fork() == 0:
        os.execve(sys.executable, [sys.executable, "-I", "-c", TREE, place, kind], environment)
start("child", os.environ)
for environment in (os.environ, {}):
    start("setsid", environment)
    start("twice", environment)
print("main", flush=True)
while not os.path.exists(place + "/go"):
    time.sleep(0.01)
"""
_TREE_SIZE = 7


@pytest.fixture(scope="module", autouse=True)
def libuv_is_ready() -> None:
    """Have what is opened once and kept for ever open before the first test looks."""
    warm_up_uvloop()


@pytest.fixture(params=KINDS)
def room(request: pytest.FixtureRequest, tmp_path: Path) -> CondaRoom:
    """Give an event's folders, once for each kind of containment."""
    return CondaRoom(tmp_path, request.param)


async def _all_there(room: CondaRoom, job: Job, count: int = _TREE_SIZE) -> None:
    await room.printed(job, b"\n", count=count)
    # What forked twice may still be about to end when its grandchild speaks.
    await until(lambda: len(room.alive()) == count, what=f"a tree of {count}")


async def test_what_is_asked_to_end_may_clean_up(room: CondaRoom) -> None:
    """Stop sends TERM to everything and lets it end by itself: its status and its last words are kept."""
    room.python("""
import os, signal, sys, time
role = "main" if os.fork() else "child"
def clean_up(*_):
    if role == "main":
        os.wait()
    print(role, "cleaned up", flush=True)
    os._exit(9)
signal.signal(signal.SIGTERM, clean_up)
print("ready", flush=True)
while True:
    time.sleep(1000)
""")
    job = room.job()
    async with room.opened() as worker, room.launched(worker, job) as allocation:
        await room.printed(job, b"ready\n", count=2)
        ended = await worker.stop(allocation)
        assert (ended.status, ended.signal) == (9, None)
        assert job.log_path.read_bytes() == b"ready\nready\nchild cleaned up\nmain cleaned up\n"


async def test_stop_ends_what_ignores_it(room: CondaRoom) -> None:
    """Whatever ignores TERM, left its session or forked twice is killed after five seconds: nothing is left."""
    room.python(_TREE)
    job = room.job()
    async with room.opened() as worker, room.launched(worker, job) as allocation:
        await _all_there(room, job)
        began = time.monotonic()
        ended = await worker.stop(allocation)
        took = time.monotonic() - began
        assert not room.alive()
        assert (ended.status, ended.signal) == (137, signal.SIGKILL)
        assert 5.0 <= took < 20.0


async def test_teardown_does_not_wait(room: CondaRoom) -> None:
    """A run that is torn down is killed at once, with what removed our mark from its environment."""
    room.python(_TREE)
    job = room.job()
    async with room.opened() as worker:
        async with room.launched(worker, job):
            await _all_there(room, job)
            began = time.monotonic()
        assert time.monotonic() - began < 2.0
        assert not room.alive()


async def test_closing_the_worker_ends_its_runs(room: CondaRoom) -> None:
    """A daemon that ends takes everything with it, at once."""
    room.python(_TREE)
    job = room.job()
    async with room.opened() as worker:
        await worker.launch_submission(job, await worker.setup(job))
        await _all_there(room, job)
        began = time.monotonic()
    assert time.monotonic() - began < 2.0
    assert not room.alive()


async def test_what_outlives_the_main_process_is_killed(room: CondaRoom) -> None:
    """A run is over when its main process is; the children that it left are not waited for."""
    room.python(f"{_TREE}sys.exit(3)\n")
    job = room.job()
    async with room.opened() as worker, room.launched(worker, job) as allocation:
        await _all_there(room, job)
        (job.attempt_dir / "submissions" / "go").touch()
        ended = await worker.wait(allocation)
        assert not room.alive()
        assert (ended.status, ended.signal) == (3, None)


async def test_a_child_that_prints_for_ever_does_not_delay_the_end(room: CondaRoom) -> None:
    """The log ends with the run, although a child of it still prints."""
    room.ramp_test("yes & echo begun; sleep 0.2; exit 4")
    async with room.opened(max_log_bytes=100_000) as worker:
        async with asyncio.timeout(5.0):
            ended, log = await room.run(worker, room.job())
        assert not room.alive()
    assert ended.status == 4
    assert ended.log_capped
    assert ended.log_bytes is not None
    assert ended.log_bytes > 100_000
    assert len(log) < 100_200


@pytest.mark.parametrize("how", ["stop", "teardown"])
async def test_a_fork_bomb(room: CondaRoom, how: str) -> None:
    """A tree of 200 processes that goes on forking ends, whichever way it is asked to."""
    room.python("""
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if os.fork() else None)  # ends, but not without an heir
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for number in range(199):
    if os.fork() == 0:
        if number % 3 == 0:
            os.setsid()
        break
print("here", flush=True)
while True:
    time.sleep(1000)
""")
    job = room.job()
    async with room.opened() as worker, room.launched(worker, job) as allocation:
        await _all_there(room, job, 200)
        if how == "stop":
            assert (await worker.stop(allocation)).status is not None
        else:
            await worker.teardown(allocation)
        assert not room.alive()


async def test_a_run_that_kills_its_supervisor(tmp_path: Path) -> None:
    """Without a namespace a run can do so: it is lost, and nothing of it is left, marked or not."""
    room = CondaRoom(tmp_path, Containment.SUBREAPER)
    room.python(f"{_TREE}os.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(1000)\n")
    job = room.job()
    async with room.opened() as worker, room.launched(worker, job) as allocation:
        await _all_there(room, job)
        (job.attempt_dir / "submissions" / "go").touch()
        with pytest.raises(WorkerLostError, match="supervisor was killed"):
            await worker.wait(allocation)
        assert not room.alive()


@pytest.mark.parametrize("kind", [None, Containment.USER_AND_PID_NAMESPACE])
async def test_in_a_namespace_it_sees_itself_alone(tmp_path: Path, kind: Containment | None) -> None:
    """In its own PID namespace a run sees its own processes in /proc, and no others."""
    room = CondaRoom(tmp_path, kind)
    room.python(
        "import os\nprint(*sorted(int(n) for n in os.listdir('/proc') if n.isdigit()), os.getppid(), os.getpid())"
    )
    async with room.opened() as worker:
        *seen, parent, own = (await room.output(worker, room.job())).split()
    assert parent == "1"
    assert seen == ["1", own]


@pytest.mark.parametrize("name", ["KILL", "STOP"])
async def test_in_a_namespace_pid_1_cannot_be_killed(tmp_path: Path, name: str) -> None:
    """What watches over a run goes on when the run sends it what no process survives."""
    room = CondaRoom(tmp_path, None)
    room.ramp_test(f"kill -{name} 1; kill -{name} 1; sleep 0.1; echo still here; exit 5")
    async with room.opened() as worker:
        ended, log = await room.run(worker, room.job())
    assert (ended.status, log) == (5, b"still here\n")


async def test_reclaim_finds_processes_by_their_mark(tmp_path: Path) -> None:
    """What an earlier daemon left, whoever its parent is now, is ended; what is kept, or another event's, is not."""
    room = CondaRoom(tmp_path, None)
    attempts = tmp_path / "state" / "attempts"
    marks = [str(attempts / "lost"), str(attempts / "kept"), str(tmp_path / "other" / "attempts" / "lost")]
    processes = []
    try:
        for mark in marks:
            environment = {**os.environ, containment.MARKER: mark}
            processes.append(await asyncio.create_subprocess_exec("setsid", "sleep", "1000", env=environment))
        async with room.opened() as worker:
            await until(lambda: len(containment.marked_processes(str(tmp_path))) == len(marks))
            (attempts / "lost" / "home").mkdir(parents=True)
            (attempts / "kept").mkdir()
            reclaimed = await worker.reclaim({"kept"})
            assert reclaimed == [f"process {processes[0].pid}", "folder lost"]
            assert await processes[0].wait() == -signal.SIGKILL
            assert sorted(containment.marked_processes(str(tmp_path)).values()) == sorted(marks[1:])
            assert [path.name for path in attempts.iterdir()] == ["kept"]
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


@pytest.fixture(params=KINDS)
def open_room(request: pytest.FixtureRequest) -> Iterator[CondaRoom]:
    """Give an event's folders that another user may enter."""
    needs_root()
    with TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield CondaRoom(Path(name), request.param)


async def test_run_as_gives_another_user(open_room: CondaRoom) -> None:
    """The run has that user's uid, gid and groups alone, and no way back."""
    open_room.ramp_test(
        "id -u; id -g; id -G; id -un; echo $USER $LOGNAME; grep -E 'CapEff|NoNewPrivs' /proc/self/status"
    )
    nobody = pwd.getpwnam("nobody")
    groups = " ".join(str(number) for number in os.getgrouplist("nobody", nobody.pw_gid))
    ours = os.getgroups()
    os.setgroups([*ours, 4])
    async with AsyncExitStack() as stack:
        stack.callback(os.setgroups, ours)
        worker = await stack.enter_async_context(open_room.opened(run_as="nobody"))
        assert worker.describe()["run_as"] == "nobody"
        assert worker.warnings() == ()
        printed = (await open_room.output(worker, open_room.job())).split("\n")
    assert printed == [
        *(str(nobody.pw_uid), str(nobody.pw_gid), groups, "nobody", "nobody nobody"),
        *("CapEff:\t0000000000000000", "NoNewPrivs:\t1", ""),
    ]


async def test_run_as_owns_its_folder_alone(open_room: CondaRoom) -> None:
    """All of the attempt's folder is the run's, and nobody else may enter; what was submitted and the log are not."""
    open_room.ramp_test('find "$HOME/.." ! -user nobody; echo >> "$8/$2/estimator.py" && touch "$HOME/a" "$TMPDIR/b" c')
    job = open_room.job()
    (job.submission_dir / "folder").mkdir()
    (job.submission_dir / "folder" / "file").touch()
    async with open_room.opened(run_as="nobody") as worker, open_room.launched(worker, job) as allocation:
        ended = await worker.wait(allocation)
        assert (ended.status, job.log_path.read_bytes()) == (0, b"")
        assert stat.S_IMODE(job.attempt_dir.stat().st_mode) == 0o700
    assert job.log_path.stat().st_uid == 0
    assert (job.submission_dir / "estimator.py").stat().st_uid == 0


async def test_run_as_leaves_results_that_can_be_read(open_room: CondaRoom) -> None:
    """The daemon gets what the run wrote, even where the run let nobody read it, and can remove it."""
    open_room.ramp_test(
        'umask 077; mkdir "$8/$2/training_output"; echo 0.5 > "$8/$2/training_output/score"; chmod 0 "$8"'
    )
    job = open_room.job()
    async with open_room.opened(run_as="nobody") as worker, open_room.launched(worker, job) as allocation:
        await worker.wait(allocation)
        results = await worker.collect_results(job, allocation)
        assert results.training_output is not None
        assert (results.training_output / "score").read_text(encoding="utf-8") == "0.5\n"
    assert not job.attempt_dir.exists()


async def test_run_as_a_user_who_may_not_enter(open_room: CondaRoom) -> None:
    """Where that user cannot reach the attempts' folders, it is they that are named, and not ramp-test."""
    open_room.ramp_test("exit 0")
    job = open_room.job()
    async with open_room.opened(run_as="nobody") as worker:
        allocation = await worker.setup(job)
        (open_room.root / "state").chmod(0o700)
        with pytest.raises(WorkerSetupError, match=f"cannot enter {job.attempt_dir}: Permission denied"):
            await worker.launch_submission(job, allocation)
        await worker.teardown(allocation)


async def test_run_as_a_user_that_is_not_there(tmp_path: Path) -> None:
    """A user that this machine does not have is named."""
    worker = CondaRoom(tmp_path, None).worker(run_as="no-such-user")
    with pytest.raises(WorkerSetupError, match=r"worker.run_as: there is no user 'no-such-user'"):
        await worker.open(AsyncExitStack())


async def test_run_as_needs_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that is not root cannot give its submissions another user, and says so."""
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    worker = CondaRoom(tmp_path, None).worker(run_as="nobody")
    with pytest.raises(WorkerSetupError, match="'nobody' needs a daemon that was started as root"):
        await worker.open(AsyncExitStack())


async def test_without_run_as_there_is_a_warning(tmp_path: Path, log_records: list[dict[str, Any]]) -> None:
    """What is not contained is said once, when the worker opens."""
    async with CondaRoom(tmp_path, None).opened() as worker:
        (sentence,) = worker.warnings()
    assert [record["message"] for record in log_records if record["event"] == "worker.uncontained"] == [sentence]
    assert "worker.run_as" in sentence
