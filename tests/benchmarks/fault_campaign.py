"""Kill `rampd` a thousand times, with every other fault there is in between, and print what the checks came to as JSON.

Usage: python tests/benchmarks/fault_campaign.py [--store directory|board] [--kills N] [--seed N] [--jobs N] …

A board needs PostgreSQL and an environment with ramp_database; each campaign has a server of its own.
Needs root for the full disk (a file system of its own for each event); without it that fault is left out, and said so.
A line a campaign on stderr, one object with the sums on stdout; status 1 if anything was found.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from faults.campaign import STORES, Plan, campaign_on, report  # noqa: E402 -- the path comes first

if TYPE_CHECKING:
    from collections.abc import Sequence

_KILLS_A_CAMPAIGN = 50
_SUBMISSIONS_A_KILL = 1.5


def _plans(store: str, kills: int, *, flood: int, patience_s: float) -> list[Plan]:
    """Divide the kills into campaigns; the first one has 2,000 submissions at once, the second one long waits."""
    small_disk = os.geteuid() == 0
    faults = [name for name in STORES[store][1].names if small_disk or name != "full_disk"]
    plans: list[Plan] = []
    for first in range(0, kills, _KILLS_A_CAMPAIGN):
        count = min(_KILLS_A_CAMPAIGN, kills - first)
        plans.append(
            Plan(
                count,
                round(count * _SUBMISSIONS_A_KILL),
                faults=faults,
                at_once=flood if not plans else 0,
                n_workers=8 if not plans else 3,
                small_disk=small_disk,
                patience_s=patience_s if len(plans) == 1 else 2.0,
            )
        )
    return plans


def _run(store: str, seed: int, plan: Plan, directory: Path | None) -> dict[str, Any]:
    """Run one campaign. One that breaks off is a finding like others: it must not take the others' figures along."""
    with tempfile.TemporaryDirectory(prefix="rampd-faults-", dir=directory) as folder:
        began = time.monotonic()
        try:
            with campaign_on(store, Path(folder), seed, plan) as campaign:
                line = report(campaign, campaign.run(), began=began)
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is reported
            traceback.print_exc()
            problems = [f"the campaign broke off: {type(error).__name__}: {error}"]
            line = json.dumps({"seed": seed, "problems": problems, "disturbed": {}, "killed_at": {}, "counts": {}})
    print(line, file=sys.stderr, flush=True)
    figures: dict[str, Any] = json.loads(line)
    return figures


def summed(store: str, seed: int, figures: Sequence[dict[str, Any]], *, took_s: float) -> dict[str, Any]:
    """Return the sums of several campaigns."""
    problems = [f"seed {one['seed']}: {problem}" for one in figures for problem in one["problems"]]
    counts, killed_at, disturbed = Counter[str](), Counter[str](), Counter[str]()
    for one in figures:
        counts.update(one["counts"])
        killed_at.update(one["killed_at"])
        disturbed.update(one["disturbed"])
    named = {point: count for point, count in killed_at.items() if ":" in point}
    return {
        "measure": "faults",
        "store": store,
        "seed": seed,
        "campaigns": len(figures),
        "took_s": round(took_s),
        "kills": counts["kills"],
        "kills_at_named_transitions": sum(named.values()),
        "named_transitions_hit": len(named),
        "lost": sum("lost:" in problem for problem in problems),
        "finished_twice": sum("finished twice:" in problem for problem in problems),
        "left_over": sum("left over" in problem or "still held" in problem for problem in problems),
        "problems": problems,
        "disturbed": dict(sorted(disturbed.items())),
        "killed_at": dict(sorted(killed_at.items())),
        "counts": dict(sorted(counts.items())),
    }


def main() -> None:
    """Run the campaigns."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--store", choices=STORES, default="directory", help="default: directory")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=20261124)
    parser.add_argument("--jobs", type=int, default=2, help="campaigns beside one another (default: 2)")
    parser.add_argument("--flood", type=int, default=2000, help="submissions at once in the first one (default: 2000)")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds that long waits take (default: 60)")
    parser.add_argument("--directory", type=Path, help="where the events lie (default: a temporary folder)")
    options = parser.parse_args()
    began = time.monotonic()
    plans = _plans(options.store, options.kills, flood=options.flood, patience_s=options.patience)
    with ThreadPoolExecutor(options.jobs) as pool:
        runs = [
            pool.submit(_run, options.store, options.seed + number, plan, options.directory)
            for number, plan in enumerate(plans)
        ]
        figures = [run.result() for run in runs]
    print(json.dumps(summed(options.store, options.seed, figures, took_s=time.monotonic() - began)), flush=True)
    sys.exit(any(one["problems"] for one in figures))


if __name__ == "__main__":
    main()
