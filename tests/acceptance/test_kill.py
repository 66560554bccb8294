"""kill -9 at any moment: each submission ends in one final state, is never run twice at once, and leaves nothing."""

from __future__ import annotations

import json
import random
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from support.daemon import RampdProcess, processes_marked, wait_until
from support.deployment import Deployment

if TYPE_CHECKING:
    from pathlib import Path

    from support.daemon import Record

# Two runs of one submission at once would meet here: mkdir(2) succeeds for one only.
_ALONE = """
mkdir ROOT/running-$name || {{ echo $name >>ROOT/twice; exit 1; }}
sleep {seconds}
rmdir ROOT/running-$name
"""


@pytest.fixture
def event(tmp_path: Path) -> Deployment:
    """Give an event with a stub environment."""
    event = Deployment(tmp_path)
    event.make_stub_environment()
    return event


def _behaviour(event: Deployment, seconds: float) -> str:
    # A run that was killed leaves its folder: it is gone by then, and the next one may begin.
    return _ALONE.format(seconds=seconds).replace("ROOT", str(event.root))


def _forget_killed_runs(event: Deployment) -> None:
    wait_until(lambda: not processes_marked(str(event.state / "attempts")), what="the end of all runs")
    for folder in event.root.glob("running-*"):
        folder.rmdir()


def _check_the_end(event: Deployment, names: list[str], records: list[Record]) -> None:
    assert not (event.root / "twice").exists()
    assert event.states() == dict.fromkeys(names, "scored")
    with closing(sqlite3.connect(event.state / "journal.sqlite3")) as journal:
        rows = journal.execute("SELECT submission, final, step, outcome FROM attempts").fetchall()
    assert {step for _, _, step, _ in rows} == {"closed"}
    assert sorted(name for name, final, _, _ in rows if final) == sorted(names)
    assert {outcome for _, final, _, outcome in rows if not final} <= {"interrupted"}
    finished = {(record["submission"], record["attempt"]) for record in records}
    assert sorted(name for name, _ in finished) == sorted(names)
    assert sorted(path.name for path in event.predictions.iterdir()) == sorted(names)
    assert list((event.state / "attempts").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_kills_at_random_moments_lose_and_double_nothing(event: Deployment, seed: int) -> None:
    """Twelve submissions, two at a time, and a daemon that is killed again and again while it works on them."""
    moments = random.Random(seed)
    names = [f"s{number:02d}" for number in range(12)]
    for name in names:
        event.submit(name, _behaviour(event, 0.15))
    records: list[Record] = []
    for _ in range(7):
        with RampdProcess(event.config) as daemon:
            daemon.wait_for("daemon.started")
            time.sleep(moments.uniform(0.0, 0.5))
            daemon.kill()
            records += daemon.find("submission.finished")
        _forget_killed_runs(event)
    event.dispatcher["hunger_policy"] = "exit"
    event.write_config()
    with RampdProcess(event.config) as daemon:
        assert daemon.wait() == 0
        records += daemon.find("submission.finished")
    _check_the_end(event, names, records)


@pytest.mark.parametrize(
    "moment", ["submission.detected", "submission.queued", "submission.started", "submission.scored"]
)
def test_a_kill_after_each_record_is_mended_at_the_next_start(event: Deployment, moment: str) -> None:
    """Wherever it was, the next daemon brings the submission to its one end."""
    event.submit("one", _behaviour(event, 0.05))
    with RampdProcess(event.config) as daemon:
        daemon.wait_for(moment, submission="one")
        daemon.kill()
        records = daemon.find("submission.finished")
    _forget_killed_runs(event)
    event.dispatcher["hunger_policy"] = "exit"
    event.write_config()
    with RampdProcess(event.config) as daemon:
        assert daemon.wait() == 0
        records += daemon.find("submission.finished")
    _check_the_end(event, ["one"], records)


def test_a_killed_daemon_leaves_nothing_alive(event: Deployment) -> None:
    """Grandchildren that left their session die with it too, at once and not at the next start."""
    event.submit("deep", "setsid sh -c '(trap \"\" TERM; while :; do sleep 1; done) &'; exec sleep 3600")
    attempts = str(event.state / "attempts")
    with RampdProcess(event.config) as daemon:
        daemon.wait_for("submission.started")
        assert processes_marked(attempts)
        daemon.kill()
        wait_until(lambda: not processes_marked(attempts), timeout_s=5, what="the end of every process")


def test_kills_that_repeat_do_not_count_against_a_submission(event: Deployment) -> None:
    """Four kills in a row are the platform's, although max_attempts is 3."""
    event.submit("patient", f"test -f {event.root}/calm || sleep 3600")
    for _ in range(4):
        with RampdProcess(event.config) as daemon:
            daemon.wait_for("submission.started")
            daemon.kill()
    (event.root / "calm").touch()
    with RampdProcess(event.config) as daemon:
        record = daemon.finished("patient")["patient"]
        assert (record["outcome"], record["attempts"]) == ("ok", 5)
        assert daemon.stop() == 0


def test_an_end_that_was_not_said_is_said_again(event: Deployment) -> None:
    """A line that may be lost is written once more, marked as a replay, and only until it was written."""
    event.submit("one")
    with RampdProcess(event.config) as daemon:
        daemon.finished("one")
        daemon.kill()
    with closing(sqlite3.connect(event.state / "journal.sqlite3")) as journal, journal:
        journal.execute("UPDATE attempts SET announced = 0")
    with RampdProcess(event.config) as daemon:
        record = daemon.wait_for("submission.finished", submission="one", replayed=True)
        assert (record["attempt"], record["outcome"], record["state"]) == (1, "ok", "scored")
        assert daemon.stop() == 0
    with RampdProcess(event.config) as daemon:
        daemon.wait_for("daemon.ready")
        assert daemon.stop() == 0
        assert daemon.find("submission.finished") == []


def test_the_last_line_of_a_killed_daemon_may_be_half(event: Deployment) -> None:
    """Every line before it is whole."""
    for number in range(40):
        event.submit(f"s{number:02d}")
    with RampdProcess(event.config) as daemon:
        daemon.wait_for("submission.finished", count=5)
        daemon.kill()
        whole = [line for line in daemon.raw if line.endswith(b"\n")]
        assert len(whole) >= len(daemon.raw) - 1
        assert all(json.loads(line)["event"] for line in whole)
