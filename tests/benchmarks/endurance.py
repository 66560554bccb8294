"""Whether a daemon that runs for months stays as it was, and how fast it is back after a kill and obeys its operator.

Memory, open files, threads, tasks and the size of its state; all of it while there is much to do.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from rampd.event import load_settings
from rampd.operations import asking
from rampd.states import RequestKind
from support.daemon import RampdProcess, wait_until
from support.deployment import Deployment
from support.rampctl import rampctl

if TYPE_CHECKING:
    Figures = dict[str, Any]

_COUNTING_DAEMON = Path(__file__).parent / "counting_daemon.py"
_STATE_FILES = ("journal.sqlite3", "submissions.sqlite3")


def _look(process: psutil.Process, event: Deployment, counts_file: Path) -> Figures:
    """Return what an idle daemon holds."""
    time.sleep(1.0)  # batches of the log's confirmations are still being written
    rss_bytes = process.memory_info().rss  # before it is asked for more than a daemon does by itself
    counts_file.unlink(missing_ok=True)
    process.send_signal(signal.SIGUSR1)
    wait_until(counts_file.exists, timeout_s=30, what="the counts")
    counts: dict[str, int] = json.loads(counts_file.read_bytes())
    return {
        "rss_mb": round(rss_bytes / 1e6, 2),
        "fds": process.num_fds(),
        "threads": process.num_threads(),
        **counts,
        "state_mb": round(sum((event.state / name).stat().st_size for name in _STATE_FILES) / 1e6, 2),
    }


def endurance(root: Path, *, first: int, last: int) -> Figures:
    """Run `last` stub submissions through one daemon; compare it with what it was after `first` of them."""
    event = Deployment(root, dispatcher={"n_workers": 2})
    event.make_stub_environment()
    counts_file = root / "counts"
    environment = {**os.environ, "RAMPD_COUNTS_FILE": str(counts_file)}
    begun = time.monotonic()
    looks: dict[int, Figures] = {}
    argv = [sys.executable, str(_COUNTING_DAEMON), "--config", str(event.config)]
    with (root / "stream").open("wb") as stream, subprocess.Popen(argv, stdout=stream, env=environment) as daemon:
        try:
            process = psutil.Process(daemon.pid)
            wait_until((event.state / "submissions.sqlite3").exists, timeout_s=60, what="the store")
            for start in range(0, last, first):
                for number in range(start, min(start + first, last)):
                    event.submit(f"s{number:06d}")
                done = min(start + first, last)
                wait_until(lambda done=done: _ended(event) >= done, timeout_s=900, what=f"the end of {done}")  # type: ignore[misc]
                if done in {first, last} or done % 5000 == 0:
                    looks[done] = _look(process, event, counts_file)
            daemon.send_signal(signal.SIGTERM)
            status = daemon.wait(60)
        finally:
            daemon.kill()
    return {
        "submissions": last,
        "status": status,
        "scored": list(event.states().values()).count("scored"),
        "finished_lines": (root / "stream").read_bytes().count(b'"event":"submission.finished"'),
        "took_s": round(time.monotonic() - begun),
        "at": {str(count): look for count, look in looks.items()},
        "growth": {key: round(looks[last][key] - looks[first][key], 2) for key in looks[first]},
        "state_bytes_each": round(looks[last]["state_mb"] * 1e6 / last),
    }


def _ended(event: Deployment) -> int:
    with closing(sqlite3.connect(f"file:{event.state / 'submissions.sqlite3'}?mode=ro", uri=True)) as store:
        if not store.execute("SELECT 1 FROM sqlite_schema WHERE name = 'submissions'").fetchone():
            return 0
        return int(store.execute("SELECT count(*) FROM submissions WHERE state = 'scored'").fetchone()[0])


def restart(root: Path, *, waiting: int, rounds: int) -> Figures:
    """Measure kill -9 to the next start's first running submission, with `waiting` others in the queue."""
    event = Deployment(root, dispatcher={"n_workers": 2})
    event.make_stub_environment()
    for number in range(waiting):
        event.submit(f"s{number:05d}", "sleep 0.2")
    first_s, ready_s, bare_s = [], [], []
    with RampdProcess(event.config) as daemon:
        daemon.wait_for("submission.started", count=4, timeout_s=120)
    for _ in range(rounds):
        bare_s.append(_bare_s())
        begun = time.monotonic()
        with RampdProcess(event.config) as daemon:
            daemon.wait_for("submission.started")
            first_s.append(time.monotonic() - begun)
            ready_s.append(daemon.wait_for("daemon.ready")["startup_s"])
    return {
        "waiting": waiting,
        "rounds": rounds,
        "restart_to_running_s": [round(one, 2) for one in first_s],
        "median_s": round(sorted(first_s)[rounds // 2], 2),
        "of_which_inside_s": round(sorted(ready_s)[rounds // 2], 2),
        "rampctl_version_s": round(sorted(bare_s)[rounds // 2], 2),
    }


def second_daemon(root: Path, *, rounds: int) -> Figures:
    """Measure a second daemon on an event from its exec to its exit, each beside the start of an interpreter."""
    event = Deployment(root)
    event.make_stub_environment()
    took_s, bare_s = [], []
    with RampdProcess(event.config) as first:
        first.wait_for("daemon.ready")
        for _ in range(rounds):
            bare_s.append(_took_s([sys.executable, "-m", "rampd", "--version"], status=0))
            argv = [sys.executable, "-m", "rampd", "--config", str(event.config)]
            took_s.append(_took_s(argv, status=75, says=f"pid {first.pid} serves this event"))
    return {
        "rounds": rounds,
        "second_daemon_s": {"median": round(sorted(took_s)[rounds // 2], 2), "worst": round(max(took_s), 2)},
        "rampd_version_s": round(sorted(bare_s)[rounds // 2], 2),
    }


def _took_s(argv: list[str], *, status: int, says: str = "") -> float:
    """Return how long a command takes, which has to end with `status` and to say `says` on stderr."""
    begun = time.monotonic()
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    took_s = time.monotonic() - begun
    assert (done.returncode, says in done.stderr) == (status, True), done
    return took_s


def operators(root: Path, *, waiting: int, rounds: int) -> Figures:
    """Measure how long cancel, retry, drain and resume take until they are obeyed, under load.

    From the call that `rampctl` makes, without the start of an interpreter, which is measured beside it.
    """
    event = Deployment(root, dispatcher={"n_workers": 2})
    event.make_stub_environment()
    for number in range(waiting):
        event.submit(f"s{number:05d}", "sleep 0.02")
    settings = load_settings(event.config)
    took: dict[str, list[float]] = {"cancel": [], "retry": [], "drain": [], "resume": []}
    with RampdProcess(event.config) as daemon:
        daemon.wait_for("submission.finished", timeout_s=120)
        for number in range(rounds):
            name = f"s{waiting - 1 - number:05d}"
            for kind in (RequestKind.CANCEL, RequestKind.RETRY):
                begun = time.monotonic()
                (answer,) = asyncio.run(asking.ask(settings, kind, [name]))
                took[kind].append((time.monotonic() - begun) * 1e3)
                assert answer.accepted, answer
            for word, said in (("drain", "event.drained"), ("resume", "event.resumed")):
                count = len(daemon.find(said))
                begun = time.time()
                asyncio.run(asking.set_drained(settings, drained=word == "drain"))
                record = daemon.wait_for(said, count=count + 1)
                took[word].append(max(0.0, _seconds(record["timestamp"]) - begun) * 1e3)
    return {
        "waiting": waiting,
        "rounds": rounds,
        **{
            f"{word}_ms": {"median": round(sorted(one)[len(one) // 2]), "worst": round(max(one))}
            for word, one in took.items()
        },
        "rampctl_version_s": round(_bare_s(), 2),
    }


def _bare_s() -> float:
    """Return how long `rampctl --version` takes: what the machine has to spare."""
    begun = time.monotonic()
    rampctl("--version")
    return time.monotonic() - begun


def _seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()
