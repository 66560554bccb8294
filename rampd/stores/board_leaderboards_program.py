"""Builds an event's leaderboards with ramp_database's own functions: what rampd has another interpreter run.

Needs the standard library and ramp_database (ramp_database/tools/leaderboard.py), and nothing of rampd. Says nothing;
what goes wrong is a traceback on stderr. What to do is one JSON object on stdin, for it has a password in it.
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Build them."""
    # Whoever asked for pages and is gone does not need them: the next daemon builds its own.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    asked = json.load(sys.stdin)
    from ramp_database.tools import leaderboard  # type: ignore[import-not-found]  # noqa: PLC0415 -- seconds: after the line above
    from ramp_database.utils import session_scope  # type: ignore[import-not-found]  # noqa: PLC0415 -- as above

    database = {key: value for key, value in asked["database"].items() if value not in (None, {})}
    new_only = not asked["final"]
    with session_scope(database) as session:
        leaderboard.update_leaderboards(session, asked["event_name"], new_only=new_only)
        leaderboard.update_all_user_leaderboards(session, asked["event_name"], new_only=new_only)


if __name__ == "__main__":
    main()
