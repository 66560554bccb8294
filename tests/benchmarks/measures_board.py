"""What a submission costs on a RAMP board, beside the original dispatcher on the same PostgreSQL, stub and machine."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from benchmarks import rival_ramp_engine
from benchmarks.measures import _seconds, stub_ms
from support.board import Board, make_template
from support.board_daemon import board_daemon
from support.postgres import PostgresServer

if TYPE_CHECKING:
    from pathlib import Path

    Figures = dict[str, Any]


CONDA_INFO_S = 0.5
"""What the original waits for each submission on a real server: there `conda info --envs --json` takes 0.5 to 1.1 s."""


def board(
    root: Path, *, count: int, n_workers: int, scored: int = 0, rounds: int = 1, with_conda: bool = False
) -> Figures:
    """Measure `count` stub submissions that all wait when the dispatcher begins, until the last has its end.

    The overhead is what a submission takes above the stub itself under `xargs -P` (`n_workers` at a time).

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
    with_conda
        Measure the rival once more, with a `conda` that sleeps for `CONDA_INFO_S` before it answers. There is none
        to be measured where no conda can be installed; one that sleeps leaves the rival the processor.
    """
    root.mkdir(parents=True, exist_ok=True)
    with PostgresServer(log_statements=False) as server:
        make_template(server, root / "template")
        boards = [Board(server, root / f"ours{number}", f"board_{number}") for number in range(rounds)]
        ours = [_serve(one, count, n_workers, scored) for one in boards]
        stub = stub_ms(boards[0].deployment, [f"stub{number}" for number in range(count)], at_a_time=n_workers)
        ramp_test = root / "ours0" / "environment" / "bin" / "ramp-test"
        theirs = [
            rival_ramp_engine.measure(
                root / f"theirs{number}",
                n_submissions=count,
                n_workers=n_workers,
                ramp_test=ramp_test,
                n_scored=scored,
                conda_info_s=conda_info_s,
            )["ms_each"]
            for number, conda_info_s in enumerate((0.0, CONDA_INFO_S) if with_conda else (0.0,))
        ]
    ms_each = statistics.median(ours)
    figures = {
        "submissions": count,
        "n_workers": n_workers,
        "scored_before": scored,
        "stub_ms_each": stub,
        "rampd_ms_each": ms_each,
        "rampd_ms_each_by_round": ours,
        "ramp_engine_ms_each": theirs[0],
        "ratio": (theirs[0] - stub) / (ms_each - stub),
    }
    if with_conda:
        figures |= {
            "conda_info_s": CONDA_INFO_S,
            "ramp_engine_with_conda_ms_each": theirs[1],
            "ratio_with_conda": (theirs[1] - stub) / (ms_each - stub),
        }
    return figures


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
