"""Measure rampd beside its rivals and print each figure as JSON, a line a measure.

Usage: python tests/benchmarks/run.py [--short] [--directory DIR] [MEASURE…]

The long forms take about a quarter of an hour; their short forms run with the tests (test_short_forms.py). The iris
measure needs an environment with ramp-workflow (RAMPD_TEST_ENVIRONMENT, else one is made beside the tests).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from benchmarks import endurance, measures, measures_board, measures_dask  # noqa: E402 -- the path comes first
from benchmarks.ssh_polling import polling  # noqa: E402
from rampd.demo import environment  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    Measure = Callable[[Path], dict[str, Any]]


def _environment() -> Path:
    if given := os.environ.get("RAMPD_TEST_ENVIRONMENT"):
        return Path(given)
    prefix = ROOT / ".venv-ramp"
    environment.build(prefix, say=lambda line: print(line, file=sys.stderr))
    return prefix


LONG: dict[str, Measure] = {
    "stubs": lambda root: measures.stubs(root, count=200, rounds=5),
    "iris": lambda root: measures.iris(root, _environment(), count=6, rounds=5),
    "latency": lambda root: measures.latency(root, count=200),
    "idle": lambda root: measures.idle(root, seconds=30),
    "memory": lambda root: measures.memory(root, first=200, last=2000, step=200),
    "queue": lambda root: measures.queue(root, few=100, many=10_000, measured=100),
    "dask_stubs": lambda root: measures_dask.stubs(root, count=200, workers=8, rounds=3),
    "dask_large": lambda root: measures_dask.large_results(root, count=8, megabytes=50),
    "original": lambda root: measures.original(root, count=20),
    "polling": lambda root: polling(root, instances=200, interval_s=1.0, seconds=30, rival_polls=20),
    "polling-1000": lambda root: polling(root, instances=1000, interval_s=60.0, seconds=120, rival_polls=5),
    "restart": lambda root: endurance.restart(root, waiting=1000, rounds=9),
    "second_daemon": lambda root: endurance.second_daemon(root, rounds=10),
    "operators": lambda root: endurance.operators(root, waiting=1000, rounds=10),
    "endurance": lambda root: endurance.endurance(root, first=500, last=20_000),
    "board_2": lambda root: measures_board.board(root, count=20, n_workers=2, rounds=3, with_conda=True),
    "board_8": lambda root: measures_board.board(root, count=20, n_workers=8, rounds=3, with_conda=True),
    "board_2_scored": lambda root: measures_board.board(root, count=20, n_workers=2, scored=100, rounds=3),
    "board_8_scored": lambda root: measures_board.board(root, count=20, n_workers=8, scored=100, rounds=3),
}
SHORT: dict[str, Measure] = {
    "stubs": lambda root: measures.stubs(root, count=60, rounds=2),
    "iris": lambda root: measures.iris(root, _environment(), count=4, rounds=3),
    "latency": lambda root: measures.latency(root, count=30),
    "idle": lambda root: measures.idle(root, seconds=5),
    "memory": lambda root: measures.memory(root, first=100, last=400, step=100),
    "queue": lambda root: measures.queue(root, few=100, many=2_000, measured=50),
    "dask_stubs": lambda root: measures_dask.alternating(root, count=20, mapped=80, workers=4, rounds=7),
    "dask_large": lambda root: measures_dask.large_results(root, count=4, megabytes=20),
    "polling": lambda root: polling(root, instances=40, interval_s=1.0, seconds=5, rival_polls=5),
    "restart": lambda root: endurance.restart(root, waiting=200, rounds=3),
    "second_daemon": lambda root: endurance.second_daemon(root, rounds=3),
    "operators": lambda root: endurance.operators(root, waiting=100, rounds=2),
    "endurance": lambda root: endurance.endurance(root, first=200, last=1000),
}


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("measures", nargs="*", metavar="MEASURE", help=f"of: {', '.join(LONG)} (default: all)")
    parser.add_argument("--short", action="store_true", help="the short forms")
    parser.add_argument("--directory", type=Path, help="where the events lie (default: a temporary folder)")
    options = parser.parse_args()
    available = SHORT if options.short else LONG
    unknown = set(options.measures) - set(available)
    if unknown:
        parser.error(f"no such measure: {', '.join(sorted(unknown))}; there is: {', '.join(available)}")
    machine = {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9),
        "python": platform.python_version(),
    }
    print(json.dumps({"measure": "machine", **machine}), flush=True)
    for name in options.measures or available:
        with tempfile.TemporaryDirectory(prefix="rampd-bench-", dir=options.directory) as folder:
            print(json.dumps({"measure": name, **available[name](Path(folder))}), flush=True)


if __name__ == "__main__":
    main()
