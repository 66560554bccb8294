"""--events-dir and --max-workers: events that appear, change and go, and share what runs at once."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from support.daemon import RampdProcess
from support.deployment import Deployment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Serve = Callable[..., RampdProcess]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """Give what starts a daemon on a folder of events."""
    (tmp_path / "events").mkdir()

    def start(*arguments: str) -> RampdProcess:
        return RampdProcess(None, "--events-dir", str(tmp_path / "events"), *arguments)

    return start


def _event(root: Path, name: str) -> Deployment:
    """Make an event whose config comes by one rename, as an operator's would."""
    event = Deployment(root, event=name)
    event.make_stub_environment()
    return event


def _until(path: Path) -> str:
    return f"while ! test -e {path}; do sleep 0.02; done"


def test_events_appear_change_and_go(tmp_path: Path, serve: Serve) -> None:
    """The daemon waits in an empty folder, serves what comes, reloads what changes and drains what goes."""
    with serve() as daemon:
        started, ready = daemon.wait_for("daemon.started"), daemon.wait_for("daemon.ready")
        assert (started["events"], started["state_dir"], ready["counts"]) == ([], None, {})
        one = _event(tmp_path, "one")
        daemon.wait_for("event.opened", event_name="one")
        assert daemon.wait_for("daemon.reloaded")["added"] == ["one"]
        one.submit("first")
        daemon.finished("first")
        one.dispatcher["n_workers"] = 3
        one.write_config()
        reloaded = daemon.wait_for("daemon.reloaded", changed={"one": ["dispatcher.n_workers"]})
        assert reloaded["reason"] == "events_dir"
        one.submit("running", _until(tmp_path / "go"))
        daemon.wait_for("submission.started", submission="running")
        one.config.unlink()
        assert daemon.wait_for("daemon.reloaded", removed=["one"])["events"] == ["one"]
        one.submit("waits")
        daemon.wait_for("submission.queued", submission="waits")
        (tmp_path / "go").touch()
        daemon.finished("running")
        assert daemon.wait_for("event.closed", event_name="one")["reason"] == "config_gone"
        assert daemon.find("submission.started", submission="waits") == []
        one.write_config()
        daemon.finished("waits")
        assert daemon.stop() == 0


def test_a_broken_event_stops_nobody(tmp_path: Path, serve: Serve) -> None:
    """It is rejected once a content, and served as soon as it is right."""
    good, bad = _event(tmp_path, "good"), _event(tmp_path, "bad")
    bad.config.write_text("worker: [", encoding="utf-8")
    with serve() as daemon:
        rejected = daemon.wait_for("config.rejected", path=str(bad.config))
        assert rejected["in_force"] is False
        good.submit("one")
        daemon.finished("one")
        bad.dispatcher["n_workers"] = 0
        bad.write_config()
        daemon.wait_for("config.rejected", count=2)
        bad.dispatcher["n_workers"] = 1
        bad.write_config()
        bad.submit("two")
        daemon.finished("two")
        assert len(daemon.find("config.rejected")) == 2
        assert daemon.stop() == 0


def test_a_served_event_outlives_its_broken_config(tmp_path: Path, serve: Serve) -> None:
    """The old settings stay in force."""
    event = _event(tmp_path, "one")
    with serve() as daemon:
        daemon.wait_for("daemon.ready")
        event.config.write_text("ramp: {}\n", encoding="utf-8")
        assert daemon.wait_for("config.rejected")["in_force"] is True
        event.submit("late")
        daemon.finished("late")
        assert daemon.stop() == 0


def test_an_event_that_another_daemon_holds_is_served_once_it_is_free(tmp_path: Path, serve: Serve) -> None:
    """It is rejected with the holder's pid, and tried again by itself."""
    event = _event(tmp_path, "one")
    with RampdProcess(event.config) as holder:
        holder.wait_for("daemon.ready")
        with serve() as daemon:
            rejected = daemon.wait_for("config.rejected")
            assert any(f"pid {holder.pid} " in problem for problem in rejected["problems"])
            daemon.wait_for("daemon.ready")
            assert holder.stop() == 0
            event.submit("late")
            assert daemon.finished("late")["late"]["outcome"] == "ok"
            assert daemon.stop() == 0


def test_two_configs_of_one_event_are_one_event(tmp_path: Path, serve: Serve) -> None:
    """The second one is refused by the lock, even from the same daemon."""
    event = _event(tmp_path, "one")
    copy = tmp_path / "events" / "two" / "config.yml"
    copy.parent.mkdir()
    copy.write_bytes(event.config.read_bytes())
    with serve() as daemon:
        assert daemon.wait_for("config.rejected")["path"] == str(copy)
        event.submit("one")
        daemon.finished("one")
        assert len(daemon.find("submission.started")) == 1
        assert daemon.stop() == 0


def test_an_event_whose_journal_is_damaged_stops_nobody(tmp_path: Path, serve: Serve) -> None:
    """It is named, with what to do, and the other is served."""
    good, bad = _event(tmp_path, "good"), _event(tmp_path, "bad")
    bad.state.mkdir()
    (bad.state / "journal.sqlite3").write_bytes(b"no database" * 100)
    with serve() as daemon:
        rejected = daemon.wait_for("config.rejected", path=str(bad.config))
        assert "Restore the file" in rejected["problems"][0]
        good.submit("one")
        daemon.finished("one")
        assert daemon.stop() == 0


def test_max_workers_holds_over_all_events_and_they_take_turns(tmp_path: Path, serve: Serve) -> None:
    """A long queue of one event does not keep the other waiting: they start in turns, never more than N at once."""
    events = [_event(tmp_path, name) for name in ("busy", "quiet")]
    for number in range(8):
        events[0].submit(f"b{number}", _until(tmp_path / "go"))
    with serve("--max-workers", "1") as daemon:
        assert daemon.wait_for("daemon.started")["max_workers"] == 1
        daemon.wait_for("submission.started", submission="b0")
        for number in range(3):
            events[1].submit(f"q{number}")
        daemon.wait_for("submission.queued", submission="q2")
        (tmp_path / "go").touch()
        daemon.wait_for("submission.finished", count=11)
        assert daemon.stop() == 0
        started = [record["submission"] for record in daemon.find("submission.started")]
        order = [record["event"] for record in daemon.records if record["event"].startswith("submission.")]
    assert [name[0] for name in started[1:7]] == ["q", "b"] * 3 or [name[0] for name in started[1:7]] == ["b", "q"] * 3
    running = 0
    for what in order:
        running += (what == "submission.started") - (what == "submission.finished")
        assert running <= 1


def test_an_idle_event_keeps_no_slot_from_a_busy_one(tmp_path: Path, serve: Serve) -> None:
    """With one slot for both, the one that has something to run has it."""
    _event(tmp_path, "idle")
    busy = _event(tmp_path, "busy")
    with serve("--max-workers", "1") as daemon:
        daemon.wait_for("daemon.ready")
        for number in range(4):
            busy.submit(f"s{number}")
        daemon.wait_for("submission.finished", count=4)
        assert daemon.stop() == 0


def test_nothing_to_serve_is_a_usage_error() -> None:
    """Neither --config nor --events-dir: status 2, and what to give."""
    ended = subprocess.run([sys.executable, "-m", "rampd"], capture_output=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert b"--events-dir" in ended.stderr


def test_a_missing_events_dir_is_a_config_error(tmp_path: Path) -> None:
    """Status 78, and one line."""
    argv = [sys.executable, "-m", "rampd", "--events-dir", str(tmp_path / "nowhere")]
    ended = subprocess.run(argv, capture_output=True, timeout=60, check=False)
    assert ended.returncode == 78
    assert ended.stderr.decode().splitlines() == [f"--events-dir {tmp_path / 'nowhere'}: there is no such folder"]


def test_check_looks_at_every_event(tmp_path: Path) -> None:
    """The right ones are printed, each problem of the others is a line, and the status is 78."""
    _event(tmp_path, "good")
    _event(tmp_path, "bad").config.write_text("ramp: {}\n", encoding="utf-8")
    argv = [sys.executable, "-m", "rampd", "--events-dir", str(tmp_path / "events"), "--check"]
    ended = subprocess.run(argv, capture_output=True, timeout=60, check=False)
    assert ended.returncode == 78
    assert b'"event_name": "good"' in ended.stdout
    assert b"events/bad/config.yml" in ended.stderr
