"""The records that serving a RAMP board's database adds to the catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rampd.logs.specs import ERROR, OUTCOMES, EventSpec, flag, number, text

if TYPE_CHECKING:
    from collections.abc import Mapping

BOARD_RECORDS: Final[Mapping[str, EventSpec]] = {
    "board.connected": EventSpec(
        "info",
        "The event's submissions come from a RAMP board's database.",
        {
            "database": text("where it is"),
            "leased": flag("whether several daemons may serve the event; else its lock lets one"),
            "trigger": flag("whether the database wakes this daemon up; else it looks every 5 s"),
        },
    ),
    "board.event_opened": EventSpec("info", "By the board the event is open now.", {}),
    "board.event_closed": EventSpec(
        "info", "By the board the event is closed now; under --events-dir nothing more of it is claimed.", {}
    ),
    "board.figures_missing": EventSpec(
        "warning",
        "Predictions have gone before their figures were written; the board has the last bags only.",
        {"path": text("the folder"), "error": ERROR},
    ),
    "lease.lost": EventSpec(
        "warning",
        "Another daemon claimed a submission whose lease could not be renewed in time; the run here is ended.",
        {},
    ),
    "lease.parked": EventSpec(
        "warning",
        "The leases of runs that go on without the daemon could not be extended; others may claim them in a minute.",
        {"error": ERROR},
    ),
    "submission.superseded": EventSpec(
        "warning",
        "An attempt's outcome was dropped: another daemon has claimed the submission since.",
        {"reason": text("what happened"), "outcome": text("how this attempt ended", values=OUTCOMES)},
    ),
    "leaderboards.built": EventSpec(
        "info",
        "The board's leaderboards are up to date.",
        {"took_s": number("the build"), "new_only": flag("whether only the pages of waiting submissions were built")},
    ),
    "leaderboards.failed": EventSpec(
        "error",
        "The board's leaderboards could not be built; it is tried again, and costs no submission.",
        {"error": ERROR, "delay_s": number("until the next try")},
    ),
    "leaderboards.unavailable": EventSpec(
        "warning",
        "No Python that can import ramp_database: the board's leaderboards are not built, everything else works.",
        {"error": text("what was looked at, and what to do")},
    ),
}
