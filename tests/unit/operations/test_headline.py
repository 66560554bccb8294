from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from rampd import clock
from rampd.event import load_settings
from rampd.operations.headline import duration, headline
from rampd.operations.status import SubmissionStatus
from rampd.states import SubmissionState

if TYPE_CHECKING:
    from pathlib import Path

    from rampd.config import Settings

NOW = 1_800_000_000.0
DAEMON = {"pid": 7, "n_workers": 2}


@pytest.fixture(autouse=True)
def _stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "wall", lambda: NOW)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Give an event's settings."""
    path = tmp_path / "config.yml"
    path.write_text("ramp: {problem_name: iris, event_name: iris}\nworker: {worker_type: conda}\n", encoding="utf-8")
    return load_settings(path)


def _waiting(**more: Any) -> SubmissionStatus:
    return SubmissionStatus("waits", 1, SubmissionState.NEW, **more)


RUNNING = SubmissionStatus("runs", 2, SubmissionState.TRAINING)
HELD = {"missing": "no ramp-test", "existing": ["base", "iris"], "since": NOW - 90, "next_try": NOW + 3}


@pytest.mark.parametrize(
    ("daemon", "facts", "submissions", "said"),
    [
        (None, {}, [_waiting()], "not served: no daemon runs; 1 waiting. Start it with: rampd --config "),
        (None, {"drained": {"since": NOW}}, [], "not served: no daemon runs, and drained (rampctl resume)"),
        (
            DAEMON,
            {"held": HELD},
            [_waiting()],
            "held for 1 min 30 s: no ramp-test; there is: base, iris; 1 waiting; next look in 3 s",
        ),
        (
            DAEMON,
            {"drained": {"since": NOW - 60}},
            [RUNNING, _waiting()],
            "drained for 1 min: 1 running of 2, 1 waiting; claims again after: rampctl resume",
        ),
        (
            DAEMON,
            {"no_capacity": {"since": NOW - 10, "next_try": NOW + 20}},
            [_waiting()],
            "no capacity for 10 s; 1 waiting; next try in 20 s",
        ),
        (DAEMON, {"no_capacity": {"since": NOW, "next_try": NOW}}, [RUNNING], "1 running of 2, nothing waiting"),
        (DAEMON, {}, [RUNNING, _waiting()], "1 running of 2, 1 waiting"),
        (
            DAEMON,
            {},
            [_waiting(next_try=NOW + 30), _waiting(next_try=NOW + 9)],
            "nothing running: 2 waiting, backing off after platform faults; next try in 9 s",
        ),
        (
            DAEMON,
            {"settling": {"count": 3, "since": NOW - 2}},
            [],
            "settling for 2 s: 3 arriving, taken when unchanged for 1 s",
        ),
        (DAEMON, {}, [], "nothing running, nothing waiting"),
    ],
)
def test_the_head_says_why_nothing_runs(
    settings: Settings,
    daemon: dict[str, Any] | None,
    facts: dict[str, Any],
    submissions: list[SubmissionStatus],
    said: str,
) -> None:
    """The strongest reason is named: since when, and when it is tried again."""
    assert headline(settings, daemon, facts, submissions).startswith(said)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (60, "1 min"), (61, "1 min 1 s"), (7200, "2 h"), (90_061, "1 d 1 h"), (-5, "0 s")],
)
def test_durations_have_two_units_at_most(seconds: float, text: str) -> None:
    """What people read is short."""
    assert duration(seconds) == text
