"""What the Dask worker costs, beside `client.map` of the same stub through the same cluster in the same run."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measures import daemon_measured, names_of, serve_all
from support.daemon import wait_until
from support.dask import DaskCluster, dask_section
from support.deployment import Deployment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Figures = dict[str, Any]

_NICE = ("nice", "-n", "10")
"""As rampd's runs are: on a busy machine the stubs of a rival that is not would be served first."""
_HOSTS = ("127.0.0.2", "127.0.0.3")

# A client of Dask's own, in a process of its own as rampd is: maps a line's commands, and answers how long it took.
_MAP = """
import json, subprocess, sys, time
from distributed import Client
with Client(sys.argv[1], set_as_default=False) as client:
    client.wait_for_workers(int(sys.argv[2]), timeout=60)
    for line in sys.stdin:
        commands = json.loads(line)
        begun = time.perf_counter()
        statuses = client.gather(client.map(subprocess.call, commands, pure=False, resources={"slot": 1}))
        print(json.dumps({"took_s": time.perf_counter() - begun, "statuses": sorted(set(statuses))}), flush=True)
"""


@contextmanager
def _cluster(root: Path, workers: int) -> Iterator[DaskCluster]:
    with DaskCluster(root / "cluster") as cluster:
        cluster.scheduler()
        for host in _HOSTS:
            cluster.worker(host, count=workers // len(_HOSTS))
        yield cluster


def stubs(root: Path, *, count: int, workers: int, rounds: int) -> Figures:
    """Measure stub submissions, as many at once as there are Dask workers, in alternating rounds."""
    rival_ms, ours_ms = [], []
    lags: list[Figures] = []
    with _cluster(root, workers) as cluster:
        for number in range(rounds):
            event = _event(root / f"round{number}", cluster, workers)
            with _mapping(cluster, workers) as rival:
                rival(_commands(event, 8, "warm"))
                rival_ms.append(rival(_commands(event, count, "m")) / count * 1e3)
            names = names_of(count)
            for name in names:
                event.submit(name)
            ours_ms.append(serve_all(event, names, lags, 300.0) / count * 1e3)
    above = [ours - rival for ours, rival in zip(ours_ms, rival_ms, strict=True)]
    return {
        "submissions": count,
        "dask_workers": workers,
        "client_map_ms_each": statistics.median(rival_ms),
        "rampd_ms_each": statistics.median(ours_ms),
        "above_client_map_ms_each": statistics.median(above),
        "above_client_map_ms_each_by_round": above,
        "loop_lag_p99_ms": max(lag["p99_ms"] for lag in lags),
    }


def alternating(root: Path, *, count: int, mapped: int, workers: int, rounds: int) -> Figures:
    """Measure stub submissions in turns of a second with `client.map`, so that both have the same of a busy machine.

    Daemon and client stay; a round hands in `count` submissions and waits for their end, and maps `mapped` stubs, which
    takes about as long. The first round warms both up.
    """
    ours_ms, rival_ms = [], []
    with _cluster(root, workers) as cluster, _mapping(cluster, workers) as rival:
        event = _event(root / "event", cluster, workers)
        with daemon_measured(event) as daemon:
            daemon.wait_for("daemon.ready")
            daemon.wait_for("dask.connected", timeout_s=60)
            for number in range(rounds + 1):
                rival_ms.append(rival(_commands(event, mapped, f"m{number}-", nice=_NICE)) / mapped * 1e3)
                names = names_of(count, f"s{number}-")
                begun = time.perf_counter()
                for name in names:
                    event.submit(name)
                finished = daemon.finished(*names, timeout_s=120)
                ours_ms.append((time.perf_counter() - begun) / count * 1e3)
                assert {record["outcome"] for record in finished.values()} == {"ok"}, finished
    ratios = [ours / theirs for ours, theirs in zip(ours_ms[1:], rival_ms[1:], strict=True)]
    return {
        "submissions_a_round": count,
        "dask_workers": workers,
        "client_map_ms_each": statistics.median(rival_ms[1:]),
        "rampd_ms_each": statistics.median(ours_ms[1:]),
        "ratio": statistics.median(ratios),
        "ratio_by_round": ratios,
    }


def _event(root: Path, cluster: DaskCluster, workers: int) -> Deployment:
    event = Deployment(root)
    event.make_stub_environment()
    event.worker = dask_section(cluster, conda_env=str(event.environment))
    event.dispatcher = {"n_workers": workers}
    event.write_config()
    return event


@contextmanager
def _mapping(cluster: DaskCluster, workers: int) -> Iterator[Callable[[list[list[str]]], float]]:
    """Give what runs commands with `client.map` and returns how long that took, in seconds."""
    with subprocess.Popen(
        [sys.executable, "-c", _MAP, cluster.address, str(workers)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        there, back = client.stdin, client.stdout

        def run(commands: list[list[str]]) -> float:
            print(json.dumps(commands), file=there, flush=True)
            found = json.loads(back.readline())
            assert found["statuses"] == [0], found
            return float(found["took_s"])

        try:
            yield run
        finally:
            client.stdin.close()
            try:
                client.wait(60)
            except subprocess.TimeoutExpired:
                client.kill()
                raise


def _commands(event: Deployment, count: int, prefix: str, *, nice: Sequence[str] = ()) -> list[list[str]]:
    """Return as many calls of the event's ramp-test, each with a folder of its own."""
    commands = []
    for name in names_of(count, prefix):
        folder = event.root / "mapped" / name
        (folder / name).mkdir(parents=True)
        ramp_test = str(event.environment / "bin" / "ramp-test")
        commands.append([*nice, ramp_test, "--submission", name, "--ramp-submission-dir", str(folder)])
    return commands


def large_results(root: Path, *, count: int, megabytes: int) -> Figures:
    """Measure results that all come at once: how late the loop is meanwhile, and the most memory that is held."""
    lags: list[Figures] = []
    bare_ms: list[float] = []
    with _cluster(root, count) as cluster:
        event = _event(root / "large", cluster, count)
        go = event.root / "go"
        behaviour = f"""
touch {event.root}/started-$name
while [ ! -e {go} ]; do sleep 0.05; done
cp -r {event.root / "template"} "$submission/training_output"
head -c {megabytes}000000 /dev/urandom > "$submission/training_output/large.bin"
exit 0
"""
        with daemon_measured(event, lags) as daemon, _bare_loop(bare_ms):
            daemon.wait_for("dask.connected", timeout_s=60)
            names = names_of(count)
            for name in names:
                event.submit(name, behaviour)
            wait_until(lambda: len(list(event.root.glob("started-*"))) == count, timeout_s=120, what="all runs")
            before_mb = _peak_mb(daemon.pid)
            begun = time.perf_counter()
            go.touch()
            finished = daemon.finished(*names, timeout_s=300)
            took_s = time.perf_counter() - begun
            assert {record["outcome"] for record in finished.values()} == {"ok"}, finished
            peak_mb = _peak_mb(daemon.pid)
        sizes = {(event.predictions / name / "large.bin").stat().st_size for name in names}
        assert sizes == {megabytes * 1_000_000}, sizes
    return {
        "results": count,
        "megabytes_each": megabytes,
        "took_s": took_s,
        "daemon_peak_mb": peak_mb,
        "daemon_peak_before_mb": before_mb,
        "loop_lag_p99_ms": lags[0]["p99_ms"],
        "loop_lag_worst_ms": lags[0]["worst_ms"],
        "bare_loop_lag_p99_ms": bare_ms[0],
    }


# A loop that has nothing to do, in a process of its own: how late its timers are is the machine's doing.
_BARE_LOOP = """
import asyncio, sys, threading
late = []
stop = asyncio.Event()
async def main():
    loop = asyncio.get_running_loop()
    threading.Thread(target=lambda: (sys.stdin.read(), loop.call_soon_threadsafe(stop.set))).start()
    while not stop.is_set():
        due = loop.time() + 0.01
        await asyncio.sleep(0.01)
        late.append(max(0.0, loop.time() - due))
asyncio.run(main())
late.sort()
print(late[int(len(late) * 0.99)] * 1e3)
"""


@contextmanager
def _bare_loop(lags: list[float]) -> Iterator[None]:
    """Measure how late timers are on this machine meanwhile, in milliseconds (p99)."""
    with subprocess.Popen(
        [sys.executable, "-c", _BARE_LOOP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield
        finally:
            answer, _ = process.communicate("", timeout=30)
    lags.append(float(answer))


def _peak_mb(pid: int) -> float:
    """Return the most that a process has ever held (proc(5), VmHWM)."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1e3
