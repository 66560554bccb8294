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
    from collections.abc import Iterator

    Figures = dict[str, Any]

_HOSTS = ("127.0.0.2", "127.0.0.3")

# A client of Dask's own, in a process of its own as rampd is.
_MAP = """
import json, subprocess, sys, time
from distributed import Client
commands = json.load(sys.stdin)
with Client(sys.argv[1], set_as_default=False) as client:
    client.wait_for_workers(int(sys.argv[2]), timeout=60)
    client.gather(client.map(subprocess.call, commands[:8], pure=False, resources={"slot": 1}))  # warm
    begun = time.perf_counter()
    statuses = client.gather(client.map(subprocess.call, commands[8:], pure=False, resources={"slot": 1}))
    print(json.dumps({"took_s": time.perf_counter() - begun, "statuses": sorted(set(statuses))}))
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
            event = Deployment(root / f"round{number}")
            event.make_stub_environment()
            event.worker = dask_section(cluster, conda_env=str(event.environment))
            event.dispatcher = {"n_workers": workers}
            event.write_config()
            rival_ms.append(_map(event, cluster, count, workers) / count * 1e3)
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


def _map(event: Deployment, cluster: DaskCluster, count: int, workers: int) -> float:
    commands = []
    for name in names_of(count + 8, "m"):
        folder = event.root / "mapped" / name
        (folder / name).mkdir(parents=True)
        ramp_test = str(event.environment / "bin" / "ramp-test")
        commands.append([ramp_test, "--submission", name, "--ramp-submission-dir", str(folder)])
    answer = subprocess.run(
        [sys.executable, "-c", _MAP, cluster.address, str(workers)],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    found = json.loads(answer.stdout)
    assert found["statuses"] == [0], found
    return float(found["took_s"])


def large_results(root: Path, *, count: int, megabytes: int) -> Figures:
    """Measure results that all come at once: how late the loop is meanwhile, and the most memory that is held."""
    lags: list[Figures] = []
    bare_ms: list[float] = []
    with _cluster(root, count) as cluster:
        event = Deployment(root / "large")
        event.make_stub_environment()
        event.worker = dask_section(cluster, conda_env=str(event.environment))
        event.dispatcher = {"n_workers": count}
        event.write_config()
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
