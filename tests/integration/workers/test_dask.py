"""Submissions on a real cluster of two hosts, one of which has distributed and nothing else."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from rampd import clock
from rampd.errors import WorkerLostError, WorkerSetupError
from support.conda import warm_up_uvloop
from support.dask import DaskCluster
from support.dask_room import DaskRoom
from support.event import find
from support.proxy import Proxy
from support.store_room import until

if TYPE_CHECKING:
    from collections.abc import Iterator

_FACTS = """
import json, os
words = open("/proc/self/environ", "rb").read().decode().split("\\0")
print(json.dumps({
    "environment": dict(word.split("=", 1) for word in words if word),
    "niceness": os.getpriority(os.PRIO_PROCESS, 0),
    "status": dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line),
    "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd")),
    "argv": __import__("sys").argv[1:],
    "files": sorted(os.listdir(__import__("sys").argv[8] + "/" + __import__("sys").argv[2])),
}))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, dask_environment: Path) -> Iterator[DaskCluster]:
    """Give a cluster of a worker with all that we have, and one that has only distributed."""
    with DaskCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.scheduler()
        cluster.worker("127.0.0.2")
        cluster.worker("127.0.0.3", python=str(dask_environment / "bin" / "python"))
        yield cluster


@pytest.fixture(scope="module", autouse=True)
def libuv_is_ready() -> None:
    """Have what is opened once and kept for ever open before the first test looks."""
    warm_up_uvloop()


@pytest.fixture
def room(cluster: DaskCluster, tmp_path: Path, dask_is_warm: None) -> DaskRoom:
    """Give an event's folders."""
    return DaskRoom(tmp_path, cluster)


async def _facts(room: DaskRoom, *, n_threads: int | None = None, **settings: Any) -> dict[str, Any]:
    room.python(_FACTS)
    async with room.opened(**settings) as worker:
        ended, log = await room.run(worker, room.job(n_threads=n_threads))
    assert ended.status == 0, log
    found: dict[str, Any] = json.loads(log)
    return found


async def test_both_hosts_are_used_and_named(room: DaskRoom) -> None:
    """Two submissions at once run on the two hosts, the one that has only distributed among them."""
    room.ramp_test("echo there; sleep 1000")
    async with room.opened(workers=2) as worker:
        jobs = [room.job(attempt=1), room.job(attempt=2)]
        async with room.launched(worker, jobs[0]) as one, room.launched(worker, jobs[1]) as two:
            assert {one.host, two.host} == {"127.0.0.2", "127.0.0.3"}
            for allocation in (one, two):
                assert allocation.whereabouts() == {
                    "host": allocation.host,
                    "dask_worker": allocation.dask_worker,
                    "pid": allocation.pid,
                }
                assert allocation.dask_worker.startswith(f"tcp://{allocation.host}:")
                assert (await worker.stop(allocation)).signal == 15


async def test_a_run_has_nothing_of_the_dask_workers(room: DaskRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its environment is made from nothing, threads are limited, privileges cannot be gained, priority is low."""
    monkeypatch.setenv("TOLD", "by the daemon")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "made up")
    env = {"OWN": "text", "TOLD": None, "AWS_SECRET_ACCESS_KEY": None}
    facts = await _facts(room, n_threads=3, env=env)
    environment = facts["environment"]
    folder = environment["RAMPD_ATTEMPT"]
    assert folder.endswith(f"/attempts/{room.job().attempt_id}")
    assert environment["HOME"] == f"{folder}/home"
    assert environment["OMP_NUM_THREADS"] == environment["LOKY_MAX_CPU_COUNT"] == "3"
    assert (environment["OWN"], environment["TOLD"]) == ("text", "by the daemon")
    expected = {"HOME", "TMPDIR", "USER", "LOGNAME", "PATH", "PYTHONNOUSERSITE", "RAMPD_ATTEMPT", "OWN", "TOLD"}
    rest = {name for name in environment if not name.startswith("LC_") and not name.endswith(("_THREADS", "_COUNT"))}
    assert rest - {"LANG", "TZ", "VIRTUAL_ENV"} == expected
    assert facts["niceness"] == min(19, os.nice(0) + 10)  # on top of that of whoever runs this
    assert facts["status"]["NoNewPrivs"] == "1"
    assert facts["descriptors"] == [0, 1, 2, 3]
    assert facts["files"] == ["estimator.py"]


async def test_remote_folders_are_what_ramp_test_gets(room: DaskRoom, tmp_path: Path) -> None:
    """Kit and data are where remote_kit_dir and remote_data_dir say, and the scratch folder is the one given."""
    kit, data, scratch = tmp_path / "there" / "kit", tmp_path / "there" / "data", tmp_path / "scratch"
    for folder in (kit, data, scratch):
        folder.mkdir(parents=True)
    (kit / "problem.py").touch()
    dirs: dict[str, Any] = {
        "remote_kit_dir": str(kit),
        "remote_data_dir": str(data),
        "remote_scratch_dir": str(scratch),
    }
    argv = (await _facts(room, n_threads=None, **dirs))["argv"]
    assert argv[3] == str(kit)
    assert argv[5] == str(data)
    assert argv[7].startswith(f"{scratch}/rampd-")
    assert list(scratch.iterdir()) == []


async def test_the_log_grows_while_it_runs(room: DaskRoom) -> None:
    """What a submission prints is here before it has ended."""
    room.ramp_test("echo first; while [ ! -e $8/../../../../go ]; do sleep 0.02; done; echo last; exit 3")
    job = room.job()
    async with room.opened() as worker, room.launched(worker, job) as allocation:
        waiting = asyncio.ensure_future(worker.wait(allocation))
        await until(lambda: job.log_path.read_bytes() == b"first\n", what="the first line")
        (room.cluster.scratch(allocation.host) / "go").touch()
        try:
            ended = await waiting
        finally:
            (room.cluster.scratch(allocation.host) / "go").unlink()
        assert (ended.status, ended.log_bytes) == (3, 11)
        assert job.log_path.read_bytes() == b"first\nlast\n"


async def test_memory_is_measured_there(room: DaskRoom) -> None:
    """The peak of a submission's largest process comes back with its end."""
    room.python("b = bytearray(80_000_000); b[::4096] = b'x' * len(b[::4096])")
    async with room.opened() as worker:
        ended, log = await room.run(worker, room.job())
    assert ended.status == 0, log
    assert ended.max_rss_bytes is not None
    assert 80_000_000 < ended.max_rss_bytes < 200_000_000


async def test_a_log_is_cut_at_its_limit(room: DaskRoom) -> None:
    """A flood is counted, and only its beginning kept."""
    room.ramp_test("yes | head -c 3000000")
    async with room.opened(max_log_bytes=1_500_000) as worker:
        ended, log = await room.run(worker, room.job())
    assert (ended.log_bytes, ended.log_capped) == (3_000_000, True)
    assert log.startswith(b"y\n" * 750_000 + b"\n[rampd] the log ends here")


@pytest.mark.parametrize("size", [1000, 5_000_000], ids=["small", "large"])
async def test_results_and_submissions_of_any_size(room: DaskRoom, size: int) -> None:
    """training_output comes back as it was, whether it travelled with the answer or in pieces."""
    room.ramp_test(
        'mkdir -p "$8/$2/training_output/fold_0/empty"; cp "$8/$2/data.bin" "$8/$2/training_output/fold_0/copy"'
    )
    job = room.job()
    content = os.urandom(size)
    (job.submission_dir / "data.bin").write_bytes(content)
    async with room.opened() as worker, room.launched(worker, job) as allocation:
        assert (await worker.wait(allocation)).status == 0
        results = await worker.collect_results(job, allocation)
        assert results.training_output is not None
        assert (results.training_output / "fold_0" / "copy").read_bytes() == content
        assert (results.training_output / "fold_0" / "empty").is_dir()
        assert await worker.collect_results(job, allocation) == results


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ('ln -s /etc/passwd "$8/$2/training_output/x"', "'x' is a link"),
        ('mkfifo "$8/$2/training_output/x"', "'x' is no regular file"),
        ('echo a > "$8/a"; ln "$8/a" "$8/$2/training_output/x"', "'x' has several hard links"),
        ('head -c 2000 /dev/zero > "$8/$2/training_output/x"', "it is too large at 'x'"),
        ('for i in 1 2 3 4; do touch "$8/$2/training_output/$i"; done', "it is too large at '4'"),
    ],
)
async def test_results_that_are_refused(room: DaskRoom, script: str, sentence: str) -> None:
    """What no training_output may have is not taken from its host, and the reason comes instead."""
    room.ramp_test(f'mkdir "$8/$2/training_output"; {script}')
    job = room.job()
    async with room.opened(max_output_bytes=1000, max_output_files=3) as worker:
        async with room.launched(worker, job) as allocation:
            await worker.wait(allocation)
            results = await worker.collect_results(job, allocation)
        assert (results.training_output, results.refused) == (None, f"training_output was refused: {sentence}.")


async def test_a_stop_ends_grandchildren_that_ignore_it(room: DaskRoom) -> None:
    """TERM, five seconds, KILL: what left its session and ignores TERM goes as well."""
    room.ramp_test("trap '' TERM; (setsid sh -c \"trap '' TERM; sleep 1000\" &); echo ready; sleep 1000; sleep 1000")
    job = room.job()
    async with room.opened() as worker, room.launched(worker, job) as allocation:
        waiting = asyncio.ensure_future(worker.wait(allocation))
        await until(lambda: job.log_path.read_bytes() == b"ready\n", what="its children")
        stopped = await worker.stop(allocation)
        assert stopped.signal == 9
        assert await waiting == stopped
        assert not room.runs()


async def test_a_host_ends_a_run_whose_daemon_is_gone(room: DaskRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """The timeout holds there as well: a run that nobody ends ends by itself, and says that it was its time."""
    monkeypatch.setattr("rampd.workers.dask.REMOTE_GRACE_S", 0.5)
    room.ramp_test("sleep 1000")
    job = room.job(timeout_s=0.5)
    async with room.opened() as worker, room.launched(worker, job) as allocation:
        ended = await worker.wait(allocation)
        assert (ended.signal, ended.timed_out) == (15, True)
        assert (await worker.collect_results(job, allocation)).exit.timed_out


async def test_a_clock_that_is_set_costs_no_run_its_patience(
    room: DaskRoom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_records: list[dict[str, Any]]
) -> None:
    """A scheduler that is out of reach for a moment is waited for, whatever hour the wall clock has meanwhile."""
    room.ramp_test(f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; touch {tmp_path}/ended; exit 3")
    job = room.job(timeout_s=1800.0)
    with Proxy(room.cluster.port) as proxy:
        async with (
            room.opened(dask_scheduler=f"tcp://127.0.0.1:{proxy.port}") as worker,
            room.launched(worker, job) as allocation,
        ):
            now = clock.wall
            monkeypatch.setattr(clock, "wall", lambda: now() + 3600)
            proxy.cut()
            await until(lambda: bool(find(log_records, "dask.lost")), what="the loss of the scheduler")
            waiting = asyncio.ensure_future(worker.wait(allocation))
            (tmp_path / "go").touch()
            await until((tmp_path / "ended").exists, what="its end")
            proxy.mend()
            assert (await waiting).status == 3


@pytest.mark.parametrize("whose", ["supervisor", "keeper"])
async def test_what_watches_over_a_run_is_killed(room: DaskRoom, whose: str) -> None:
    """Whoever kills it ends the run; it is lost, and not the participant's fault, and the next run is as any other."""
    room.ramp_test("echo there; sleep 1000")
    job = room.job()
    async with room.opened() as worker:
        async with room.launched(worker, job) as allocation:
            assert allocation.pid is not None
            waiting = asyncio.ensure_future(worker.wait(allocation))
            await until(lambda: job.log_path.read_bytes() == b"there\n", what="its start")
            os.kill(allocation.pid if whose == "supervisor" else _parent(allocation.pid), 9)
            with pytest.raises(WorkerLostError, match="supervisor was killed"):
                await waiting
            assert not room.runs()
        room.ramp_test("exit 3")
        assert (await room.run(worker, room.job(attempt=2)))[0].status == 3


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])


async def test_one_keeper_serves_all_runs_of_a_dask_worker(room: DaskRoom) -> None:
    """A program that is there already starts the next run; none of the earlier ones' is its child any more."""
    room.ramp_test("echo there; sleep 1000")
    keepers: dict[str, int] = {}
    async with room.opened(workers=2) as worker:
        for attempt in range(1, 5):
            job = room.job(attempt=attempt)
            async with room.launched(worker, job) as allocation:
                assert allocation.pid is not None
                keeper = _parent(allocation.pid)
                assert keepers.setdefault(allocation.dask_worker, keeper) == keeper
                assert psutil.Process(keeper).children() == [psutil.Process(allocation.pid)]
    assert keepers


@pytest.mark.parametrize(
    ("settings", "sentence", "existing"),
    [
        ({"conda_env": "ramp-irs"}, "no conda environment named 'ramp-irs'", None),
        ({"conda_env": "/nowhere/at/all"}, "there is no folder /nowhere/at/all", None),
        ({"remote_kit_dir": "/nowhere/kit"}, "worker.remote_kit_dir: there is no /nowhere/kit/problem.py", None),
        ({"remote_data_dir": "/nowhere"}, "worker.remote_data_dir: there is no folder /nowhere", "etc"),
        ({"run_as": "nobody-of-this-name"}, "worker.run_as: there is no user 'nobody-of-this-name'", None),
    ],
)
async def test_what_is_missing_names_the_host_and_what_it_has(
    room: DaskRoom, settings: dict[str, Any], sentence: str, existing: str | None
) -> None:
    """An event whose environment, kit, data or user is on no host is held, with the host's name."""
    room.ramp_test("exit 0")
    async with room.opened(**settings) as worker:
        with pytest.raises(WorkerSetupError, match=sentence) as caught:
            await worker.check()
    assert " on 127.0.0." in caught.value.missing
    if existing == "etc":
        assert "etc" in caught.value.existing


async def test_an_environment_without_ramp_test(room: DaskRoom) -> None:
    """One that has no ramp-test is named, with its host."""
    room.ramp_test("exit 0").unlink()
    async with room.opened() as worker:
        with pytest.raises(WorkerSetupError, match=r"has no bin/ramp-test; install ramp-workflow into it on 127"):
            await worker.check()


async def test_a_ramp_test_whose_interpreter_is_gone(room: DaskRoom) -> None:
    """It is the event's fault, not the submission's, and the host is named."""
    room.ramp_test("", interpreter="/nowhere/bin/python")
    job = room.job()
    async with room.opened() as worker:
        allocation = await worker.setup(job)
        with pytest.raises(WorkerSetupError, match=r"cannot be executed on 127.* No such file or directory"):
            await worker.launch_submission(job, allocation)
        await worker.teardown(allocation)


async def test_the_scheduler_that_nobody_is_at(room: DaskRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong address holds the event, and says which."""
    monkeypatch.setattr("rampd.workers.dask._OPENING_S", 0.5)
    monkeypatch.setattr("rampd.workers.dask._RECONNECT_S", 0.5)
    worker = room.worker(dask_scheduler="tcp://127.0.0.1:1")
    async with AsyncExitStack() as stack:
        await worker.open(stack)
        with pytest.raises(WorkerSetupError, match=r"tcp://127.0.0.1:1 cannot be reached"):
            await worker.check()
