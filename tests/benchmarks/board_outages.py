"""Stop a board's PostgreSQL at every step of a submission, for a minute each, and look whether anything was lost.

Usage: python tests/benchmarks/board_outages.py [--away SECONDS] [MOMENT…]

One JSON line a moment: how long the server was away, how often each submission ran, and what the board says in the end.
Status 1 where something was lost, ran twice, or was scored twice. tests/integration/stores has the short forms.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests' helpers

from support.board import Board, make_template
from support.board_daemon import board_daemon
from support.postgres import PostgresServer

MOMENTS = (
    "daemon.started",
    "board.connected",
    "submission.detected",
    "submission.started",
    "submission.scored",
    "submission.finished",
)
_RUN = "echo $name >>ROOT/runs; sleep 1\n"
_COUNT = 4


def outage(server: PostgresServer, root: Path, moment: str, *, away_s: float, number: signal.Signals) -> dict[str, Any]:
    """Stop the server when the daemon says `moment` for the first time; start it again after `away_s` seconds."""
    board = Board(server, root, f"board_{moment.replace('.', '_')}_{number.name.lower()}")
    board.deployment.make_stub_environment()
    names = [f"s{one}" for one in range(_COUNT)]
    ids = board.insert(*names, behaviours=dict.fromkeys(names, _RUN.replace("ROOT", str(root))))
    with board_daemon(board) as daemon:
        daemon.wait_for(moment)
        server.stop(number)
        try:
            time.sleep(away_s)
        finally:
            server.start()
        daemon.finished(*(f"submission_{one:09d}" for one in ids), timeout_s=120)
        status = daemon.stop()
        attempts = sorted({record["attempt"] for record in daemon.find("submission.finished")})
    runs = Counter((root / "runs").read_text(encoding="utf-8").split())
    scored = dict(
        board.query("SELECT submission_id, count(*) FROM rampd_transitions WHERE state = 'scored' GROUP BY 1")
    )
    found = {
        "moment": moment,
        "signal": number.name,
        "away_s": away_s,
        "status": status,
        "states": dict(Counter(board.states().values())),
        "runs_each": sorted(runs.values()),
        "attempts": attempts,
        "scored_once": scored == dict.fromkeys(ids, 1),
    }
    found["is_right"] = (
        status == 0
        and found["states"] == {"scored": _COUNT}
        and found["runs_each"] == [1] * _COUNT
        and bool(found["scored_once"])
    )
    board.drop()
    return found


def main() -> int:
    """Go through the moments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("moments", nargs="*", default=MOMENTS, metavar="MOMENT", help=f"of: {', '.join(MOMENTS)}")
    parser.add_argument("--away", type=float, default=60.0, metavar="SECONDS")
    options = parser.parse_args()
    is_right = True
    with tempfile.TemporaryDirectory(prefix="rampd-outages-") as name, PostgresServer(log_statements=False) as server:
        make_template(server, Path(name) / "template")
        for place, moment in enumerate(options.moments):
            number = (signal.SIGINT, signal.SIGQUIT)[place % 2]  # an orderly end, and one as in a power cut
            root = Path(name) / f"{place}-{moment}"
            found = outage(server, root, moment, away_s=options.away, number=number)
            print(json.dumps(found), flush=True)
            is_right = is_right and found["is_right"]
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
