"""What a submission costs on a RAMP board, beside the original dispatcher on the same PostgreSQL, stub and machine."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from benchmarks import rival_ramp_engine
from benchmarks.measures import _seconds
from support.board import Board, make_template
from support.board_daemon import board_daemon
from support.postgres import PostgresServer

if TYPE_CHECKING:
    from pathlib import Path

    Figures = dict[str, Any]


def board(root: Path, *, count: int, n_workers: int, scored: int = 0, rounds: int = 1) -> Figures:
    """Measure `count` stub submissions that all wait when the dispatcher begins, until the last has its end.

    Parameters
    ----------
    root
        A folder for everything.
    count
        How many submissions are measured.
    n_workers
        How many may run at a time.
    scored
        How many of the event are scored before: the original's leaderboards grow with them.
    rounds
        How often rampd is measured; the median counts. The rival is measured once.
    """
    root.mkdir(parents=True, exist_ok=True)
    with PostgresServer(log_statements=False) as server:
        make_template(server, root / "template")
        boards = [Board(server, root / f"ours{number}", f"board_{number}") for number in range(rounds)]
        ours = [_serve(one, count, n_workers, scored) for one in boards]
        ramp_test = root / "ours0" / "environment" / "bin" / "ramp-test"
        theirs = rival_ramp_engine.measure(
            root / "theirs", n_submissions=count, n_workers=n_workers, ramp_test=ramp_test, n_scored=scored
        )["ms_each"]
    ms_each = statistics.median(ours)
    return {
        "submissions": count,
        "n_workers": n_workers,
        "scored_before": scored,
        "rampd_ms_each": ms_each,
        "rampd_ms_each_by_round": ours,
        "ramp_engine_ms_each": theirs,
        "ratio": theirs / ms_each,
    }


def _serve(one: Board, count: int, n_workers: int, scored: int) -> float:
    """Return how long a submission takes, from the daemon's readiness to the last end, in milliseconds."""
    one.deployment.dispatcher["n_workers"] = n_workers
    one.deployment.write_config()
    one.deployment.make_stub_environment()
    if scored:
        _run(one, scored)
    ended_s = _run(one, count)
    return ended_s / count * 1e3


def _run(one: Board, count: int) -> float:
    names = [f"submission_{number:09d}" for number in one.insert(*(f"s{number}-{count}" for number in range(count)))]
    with board_daemon(one, pages=True) as rampd:
        began = rampd.wait_for("daemon.started")
        rampd.wait_for("submission.finished", count=len(names), timeout_s=60 + count)
        ends = rampd.find("submission.finished")
        assert {record["outcome"] for record in ends} == {"ok"}
        assert rampd.stop() == 0
    return _seconds(ends[-1]["timestamp"]) - _seconds(began["timestamp"])
