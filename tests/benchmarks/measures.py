"""What rampd costs, each figure beside its rival's from the same run. Machines are shared and noisy: ratios count.

Every measure returns plain figures for JSON. Times are in milliseconds or seconds as their names say.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from rampd.demo import deployment as demo
from rampd.stores.staging import stage_submission
from support.daemon import RampdProcess
from support.deployment import Deployment

if TYPE_CHECKING:
    from collections.abc import Iterator

    Figures = dict[str, Any]

_LAG_DAEMON = Path(__file__).parent / "lag_daemon.py"


def _environment(lag_file: Path | None = None) -> dict[str, str]:
    """Return the environment of a daemon as it is installed: with its bytecode."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    if lag_file is not None:
        environment["RAMPD_LAG_FILE"] = str(lag_file)
    return environment


@contextmanager
def daemon_measured(event: Deployment, lags: list[Figures] | None = None) -> Iterator[RampdProcess]:
    """Give a daemon; stop it as systemd would, and keep how late its loop was."""
    lag_file = event.root / "lag.json"
    command = (sys.executable, str(_LAG_DAEMON)) if lags is not None else (sys.executable, "-m", "rampd")
    with RampdProcess(event.config, environment=_environment(lag_file), command=command) as daemon:
        yield daemon
        assert daemon.stop() == 0
    if lags is not None:
        lags.append(json.loads(lag_file.read_text(encoding="utf-8")))


def names_of(count: int, prefix: str = "s") -> list[str]:
    """Return names of submissions, in order."""
    return [f"{prefix}{number:05d}" for number in range(count)]


def _xargs(command: list[str], names: list[str], *, at_a_time: int = 2) -> float:
    """Return how long `xargs -P` takes for the same submissions, in seconds."""
    begun = time.perf_counter()
    subprocess.run(
        ["xargs", f"-P{at_a_time}", "-I{}", *command],
        input="\n".join(names).encode(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - begun


def stub_ms(event: Deployment, names: list[str], *, at_a_time: int) -> float:
    """Return how long an event's stub alone takes for each of `names`, under `xargs -P`, in milliseconds."""
    folder = event.root / "rival"
    for name in names:
        (folder / name).mkdir(parents=True)
    command = [str(event.environment / "bin/ramp-test"), "--submission", "{}", "--ramp-submission-dir", str(folder)]
    os.sync()
    took_s = _xargs(command, names, at_a_time=at_a_time)
    os.sync()
    return took_s / len(names) * 1e3


def serve_all(event: Deployment, names: list[str], lags: list[Figures], timeout_s: float) -> float:
    """Return the time from daemon.ready to the last submission.finished, in seconds, by the records' own clocks."""
    _settle(event)
    with daemon_measured(event, lags) as daemon:
        ready = daemon.wait_for("daemon.ready")
        last = daemon.wait_for("submission.finished", count=len(names), timeout_s=timeout_s)
        outcomes = {record["outcome"] for record in daemon.find("submission.finished")}
        assert outcomes == {"ok"}, outcomes
    return _seconds(last["timestamp"]) - _seconds(ready["timestamp"])


def _settle(event: Deployment) -> None:
    """Make what lies in submissions_dir old enough to be taken at the first look."""
    then = time.time() - 60
    for folder in event.submissions.iterdir():
        for path in (*folder.iterdir(), folder):
            os.utime(path, (then, then))
    time.sleep(event.dispatcher.get("settle_time", 0.1))  # ctime cannot be set


def _seconds(timestamp: str) -> float:
    from datetime import datetime  # noqa: PLC0415 -- here only

    return datetime.fromisoformat(timestamp).timestamp()


def stubs(root: Path, *, count: int, rounds: int) -> Figures:
    """Measure stub submissions, two at a time: what rampd costs each, above `xargs -P2` on the same stub."""
    lags: list[Figures] = []
    rival_ms, ours_ms = [], []
    names = names_of(count)
    for number in range(rounds):
        event = Deployment(root / f"round{number}")
        event.make_stub_environment()
        for name in names:
            event.submit(name)
        rival_ms.append(stub_ms(event, names, at_a_time=2))
        # Nothing is removed between rounds: ext4 goes through all recently freed inodes to make a new one.
        ours_ms.append(serve_all(event, names, lags, 60 + count) / count * 1e3)
    above = [ours - rival for ours, rival in zip(ours_ms, rival_ms, strict=True)]
    return {
        "submissions": count,
        "rounds": rounds,
        "xargs_ms_each": statistics.median(rival_ms),
        "rampd_ms_each": statistics.median(ours_ms),
        "above_xargs_ms_each": statistics.median(above),
        "above_xargs_ms_each_by_round": above,
        "loop_lag_p99_ms": max(lag["p99_ms"] for lag in lags),
    }


def iris(root: Path, environment: Path, *, count: int, rounds: int) -> Figures:
    """Measure real iris submissions, two at a time: rampd's time over that of `xargs -P2 ramp-test`, alternating."""
    kit, data = demo.kit_dir(root / "kit"), demo.data_dir(root / "kit")
    demo.write_kit(kit, data, environment)
    lags: list[Figures] = []
    rival_s, ours_s = [], []
    names = names_of(count, "iris")
    for number in range(rounds):
        folder = root / f"rival{number}"
        event = Deployment(
            root / f"round{number}",
            worker={"conda_env": str(environment)},
            ramp={"kit_dir": str(kit), "data_dir": str(data)},
        )
        for name in names:
            for submissions in (folder, event.submissions):
                demo.write_submission("random_forest", submissions).rename(submissions / name)
        command = [
            *(str(environment / "bin/ramp-test"), "--submission", "{}", "--ramp-kit-dir", str(kit)),
            *("--ramp-data-dir", str(data), "--ramp-submission-dir", str(folder), "--save-output", "--ignore-warning"),
        ]
        rival_s.append(_xargs(command, names))
        ours_s.append(serve_all(event, names, lags, 300))
    ratios = [ours / rival for ours, rival in zip(ours_s, rival_s, strict=True)]
    return {
        "submissions": count,
        "rounds": rounds,
        "xargs_s": statistics.median(rival_s),
        "rampd_s": statistics.median(ours_s),
        "ratio": statistics.median(ratios),
        "ratio_by_round": ratios,
        "loop_lag_p99_ms": max(lag["p99_ms"] for lag in lags),
    }


def latency(root: Path, *, count: int) -> Figures:
    """Measure from handing a submission in (as `rampctl submit` does) to its process, on an idle daemon."""
    event = Deployment(root)
    event.make_stub_environment()
    source = root / "source"
    source.mkdir()
    (source / "estimator.py").write_text("# nothing\n", encoding="utf-8")
    (source / "behave.sh").write_text('date +%s.%N >"$submission/../../began"; cat "$submission/../../began"\n')
    lags: list[Figures] = []
    took_ms = []
    with daemon_measured(event, lags) as daemon:
        daemon.wait_for("daemon.ready")
        for name in names_of(count):
            begun = time.time()
            stage_submission(source, event.submissions, name)
            daemon.wait_for("submission.finished", submission=name)
            took_ms.append((float((event.logs / name / "log").read_text()) - begun) * 1e3)
    took_ms.sort()
    return {
        "submissions": count,
        "median_ms": statistics.median(took_ms),
        "p99_ms": took_ms[min(count - 1, int(count * 0.99))],
        "loop_lag_p99_ms": lags[0]["p99_ms"],
    }


def idle(root: Path, *, seconds: float) -> Figures:
    """Measure what the daemon and its launcher use of a core: with nothing to do, and while one submission sleeps."""
    event = Deployment(root)
    event.make_stub_environment()
    with daemon_measured(event) as daemon:
        daemon.wait_for("daemon.ready")
        time.sleep(1.0)
        nothing = _cpu_percent(daemon, seconds)
        event.submit("sleeper", "sleep 3600")
        daemon.wait_for("submission.started")
        time.sleep(1.0)
        sleeping = _cpu_percent(daemon, seconds)
        subprocess.run(
            [sys.executable, "-m", "rampd.cli.rampctl", "cancel", "sleeper", "--config", str(event.config)], check=True
        )
        daemon.finished("sleeper")
    return {"seconds": seconds, "idle_percent": nothing, "with_one_sleeping_percent": sleeping}


def _cpu_percent(daemon: RampdProcess, seconds: float) -> float:
    processes = [psutil.Process(daemon.pid), *psutil.Process(daemon.pid).children(recursive=True)]
    before = sum(_cpu_s(process) for process in processes)
    time.sleep(seconds)
    return (sum(_cpu_s(process) for process in processes) - before) / seconds * 100


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def memory(root: Path, *, first: int, last: int, step: int) -> Figures:
    """Measure the memory of daemon and launcher after `first` submissions, and what it grew by until `last`."""
    event = Deployment(root)
    event.make_stub_environment()
    sizes: dict[int, float] = {}
    launcher_mb = 0.0
    with daemon_measured(event) as daemon:
        daemon.wait_for("daemon.ready")
        names = names_of(last)
        for start in range(0, last, step):
            for name in names[start : start + step]:
                event.submit(name)
            done = min(start + step, last)
            daemon.wait_for("submission.finished", count=done, timeout_s=120)
            process = psutil.Process(daemon.pid)
            sizes[done] = process.memory_info().rss / 1e6
            launcher_mb = max(launcher_mb, *(child.memory_info().rss / 1e6 for child in process.children()))
    return {
        "daemon_mb_after": {str(first): sizes[first], str(last): sizes[last]},
        "launcher_mb": launcher_mb,
        "growth_mb": sizes[last] - sizes[first],
        "by_count": {str(count): size for count, size in sizes.items()},
    }


def queue(root: Path, *, few: int, many: int, measured: int) -> Figures:
    """Measure a long queue: a submission's cost with `many` waiting over that with `few`, status, and the start."""
    lags: list[Figures] = []
    cost_ms, ready_s, status_s = {}, {}, {}
    for count in (few, many):
        event = Deployment(root / str(count))
        event.make_stub_environment()
        for name in names_of(count):
            event.submit(name)
        _settle(event)
        begun = time.perf_counter()
        with daemon_measured(event, lags) as daemon:
            ready = daemon.wait_for("daemon.ready", timeout_s=120)
            ready_s[count] = time.perf_counter() - begun
            last = daemon.wait_for("submission.finished", count=measured, timeout_s=120)
            cost_ms[count] = (_seconds(last["timestamp"]) - _seconds(ready["timestamp"])) / measured * 1e3
            command = [sys.executable, "-m", "rampd.cli.rampctl"]
            subprocess.run([*command, "drain", "--config", str(event.config)], check=True, stdout=subprocess.DEVNULL)
            took = []
            for _ in range(5):
                begun = time.perf_counter()
                subprocess.run(
                    [*command, "status", "--config", str(event.config)],
                    check=True,
                    stdout=subprocess.DEVNULL,
                    env=_environment(),
                )
                took.append(time.perf_counter() - begun)
            status_s[count] = statistics.median(took)
        shutil.rmtree(event.root)
    return {
        "waiting": [few, many],
        "ms_each": {str(count): cost for count, cost in cost_ms.items()},
        "ratio": cost_ms[many] / cost_ms[few],
        "ready_s": {str(count): took for count, took in ready_s.items()},
        "status_s": {str(count): took for count, took in status_s.items()},
        "loop_lag_p99_ms": max(lag["p99_ms"] for lag in lags),
    }


def original(root: Path, *, count: int) -> Figures:
    """Measure the same stub under ramp-engine 0.10.1's dispatcher, where PostgreSQL is installed, and under rampd."""
    from benchmarks import rival_ramp_engine  # noqa: PLC0415 -- it needs much that the others do not

    if (reason := rival_ramp_engine.available()) is not None:
        return {"skipped": reason}
    event = Deployment(root / "ours")
    event.make_stub_environment()
    theirs = rival_ramp_engine.measure(
        root / "theirs", n_submissions=count, n_workers=2, ramp_test=event.environment / "bin" / "ramp-test"
    )
    names = names_of(count)
    for name in names:
        event.submit(name)
    lags: list[Figures] = []
    ours_ms = serve_all(event, names, lags, 60) / count * 1e3
    return {
        "submissions": count,
        "ramp_engine_ms_each": theirs["ms_each"],
        "rampd_ms_each": ours_ms,
        "ratio": theirs["ms_each"] / ours_ms,
    }
