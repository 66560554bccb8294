"""docs/operations.md says what the code does: its keys, numbers, records and links."""

from __future__ import annotations

import re
from pathlib import Path

from faults.failing_daemon import DIRECTORY_POINTS
from rampd.database import _BUSY_TIMEOUT_MS
from rampd.journal import ATTEMPTS_KEPT, REQUESTS_KEPT
from rampd.logs.catalogue import CATALOGUE
from rampd.reloading import LIVE_KEYS
from rampd.stores.directory import TRANSITIONS_KEPT
from rampd.workers.conda import CondaWorker

ROOT = Path(__file__).parent.parent.parent
GUIDE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def test_every_key_that_changes_live_is_in_the_table() -> None:
    """And no other: what is not named there has the event opened anew."""
    (table,) = re.findall(r"\| Key \| Takes effect \|\n(.*?)\n\n", GUIDE, re.DOTALL)
    live_rows = table[: table.index("| every other key")]
    named = set(re.findall(r"[a-z]+(?:_[a-z]+)+|timeout|env\b", live_rows))
    live = {key.partition(".")[2] for key in LIVE_KEYS} | CondaWorker.live_keys
    assert named == live


def test_the_numbers_of_the_retention_are_the_codes() -> None:
    """Transitions, attempts, requests, and how long a file may be locked."""
    assert f"newest {TRANSITIONS_KEPT} transitions" in GUIDE
    assert f"newest {ATTEMPTS_KEPT}, and" in GUIDE
    assert f"the newest {REQUESTS_KEPT:,}" in GUIDE
    assert f"up to {_BUSY_TIMEOUT_MS // 1000} s" in GUIDE


def test_the_number_of_kill_points_is_the_campaigns() -> None:
    """Before and after each."""
    assert f"at {2 * len(DIRECTORY_POINTS)} named ones" in GUIDE


def test_every_record_that_is_named_exists() -> None:
    """By its dotted name, in the catalogue."""
    named = set(re.findall(r"`((?:daemon|event|config|submission|log)\.[a-z_]+)`", GUIDE))
    assert named
    assert {name for name in named if name not in CATALOGUE} <= {"config.yml", "config.example"}


def test_every_link_leads_somewhere() -> None:
    """Within the project."""
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", GUIDE):
        assert (ROOT / "docs" / target).exists(), target
