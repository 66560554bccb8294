"""SIGHUP: what changes at once, what waits for what runs, and what a broken config leaves as it was."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from support.daemon import RampdProcess, wait_until
from support.deployment import Deployment
from support.rampctl import rampctl

if TYPE_CHECKING:
    from pathlib import Path

    from support.daemon import Record


@pytest.fixture
def event(tmp_path: Path) -> Deployment:
    """Give an event with a stub environment and one slot."""
    event = Deployment(tmp_path)
    event.make_stub_environment()
    event.dispatcher["n_workers"] = 1
    event.write_config()
    return event


def _until(path: Path) -> str:
    """Return the behaviour of a submission that runs until a file is there."""
    return f"while ! test -e {path}; do sleep 0.02; done"


def _reload(daemon: RampdProcess) -> Record:
    count = len(daemon.find("daemon.reloaded"))
    daemon.process.send_signal(signal.SIGHUP)
    return daemon.wait_for("daemon.reloaded", count=count + 1)


def test_n_workers_grows_and_shrinks_live(event: Deployment) -> None:
    """More start at once; fewer lets what runs end, and starts no more than that."""
    for number in range(6):
        event.submit(f"s{number}", _until(event.root / f"go{number}"))
    with RampdProcess(event.config) as daemon:
        daemon.wait_for("submission.started")
        event.dispatcher["n_workers"] = 3
        event.write_config()
        assert _reload(daemon)["changed"] == {"iris": ["dispatcher.n_workers"]}
        daemon.wait_for("submission.started", count=3)
        assert rampctl("status", "--json", config=event.config).data["daemon"]["n_workers"] == 3
        event.dispatcher["n_workers"] = 1
        event.write_config()
        _reload(daemon)
        for number in range(2):
            (event.root / f"go{number}").touch()
        daemon.finished("s0", "s1")
        assert len(daemon.find("submission.started")) == 3
        (event.root / "go2").touch()
        daemon.wait_for("submission.started", submission="s3")
        for number in range(3, 6):
            (event.root / f"go{number}").touch()
        daemon.finished(*(f"s{number}" for number in range(6)))
        assert daemon.stop() == 0
        order = [
            (record["event"], record["submission"])
            for record in daemon.records
            if record["event"] in {"submission.started", "submission.finished"}
        ]
    running = 0
    for what, name in order[order.index(("submission.started", "s3")) :]:
        running += 1 if what == "submission.started" else -1
        assert running <= 1, name


def test_what_runs_keeps_what_it_started_with(event: Deployment) -> None:
    """Its timeout and its environment; the next one has the new ones."""
    event.worker |= {"env": {"COLOUR": "old"}, "timeout": 3600}
    event.write_config()
    event.submit("before", f"{_until(event.root / 'go')}; echo $COLOUR")
    with RampdProcess(event.config) as daemon:
        daemon.wait_for("submission.started", submission="before")
        event.worker |= {"env": {"COLOUR": "new"}, "timeout": 3}
        event.write_config()
        assert _reload(daemon)["changed"] == {"iris": ["worker.timeout", "worker.env"]}
        event.submit("after", "echo $COLOUR; sleep 3600")
        (event.root / "go").touch()
        outcomes = {name: record["outcome"] for name, record in daemon.finished("before", "after").items()}
        assert daemon.stop() == 0
    assert outcomes == {"before": "ok", "after": "timeout"}
    assert (event.logs / "before" / "log").read_text() == "old\n"
    assert (event.logs / "after" / "log").read_text() == "new\n"


def test_a_broken_config_leaves_the_old_one_in_force(event: Deployment) -> None:
    """It is rejected once a content, with its problems, and submissions go on."""
    event.submit("running", _until(event.root / "go"))
    with RampdProcess(event.config) as daemon:
        daemon.wait_for("submission.started")
        event.config.write_text("dispatcher: {n_workers: 0}\n", encoding="utf-8")
        for _ in range(3):
            assert _reload(daemon)["rejected"] == [str(event.config)]
        (rejected,) = daemon.find("config.rejected")
        assert rejected["in_force"] is True
        assert any("dispatcher.n_workers: found 0" in problem for problem in rejected["problems"])
        (event.root / "go").touch()
        event.submit("next")
        daemon.finished("running", "next")
        event.config.write_text("dispatcher: {n_workers: -1.5}\n", encoding="utf-8")
        _reload(daemon)
        assert len(daemon.find("config.rejected")) == 2
        event.write_config()
        assert _reload(daemon)["rejected"] == []
        assert daemon.stop() == 0


def test_a_config_that_is_gone_leaves_the_old_one_in_force(event: Deployment) -> None:
    """It was named: that it is missing is a mistake, not a wish."""
    with RampdProcess(event.config) as daemon:
        daemon.wait_for("daemon.ready")
        event.config.unlink()
        assert _reload(daemon)["rejected"] == [str(event.config)]
        event.submit("next")
        daemon.finished("next")
        assert daemon.stop() == 0


def test_another_folder_has_the_event_opened_anew_once_nothing_runs(event: Deployment) -> None:
    """What runs ends in the old folder, nothing more is claimed there, and then the new one is served."""
    event.submit("old", _until(event.root / "go"))
    event.submit("waits")
    elsewhere = event.root / "elsewhere"
    (elsewhere / "there").mkdir(parents=True)
    (elsewhere / "there" / "estimator.py").touch()
    with RampdProcess(event.config) as daemon:
        daemon.wait_for("submission.started", submission="old")
        event.ramp["submissions_dir"] = str(elsewhere)
        event.dispatcher["state_dir"] = str(event.root / "new-state")
        event.write_config()
        reloaded = _reload(daemon)
        assert reloaded["reopening"] == {"iris": ["ramp.submissions_dir", "dispatcher.state_dir"]}
        assert daemon.find("event.closed") == []
        (event.root / "go").touch()
        daemon.finished("old")
        assert daemon.wait_for("event.closed")["reason"] == "reopened"
        opened = daemon.wait_for("event.opened")
        assert opened["state_dir"] == str(event.root / "new-state")
        daemon.finished("there")
        assert daemon.stop() == 0
    assert event.states() == {"old": "scored", "waits": "new"}


def test_a_stop_while_an_event_is_drained_for_its_reopening_is_a_stop(event: Deployment) -> None:
    """What runs has shutdown_grace and no longer, and nothing is opened any more."""
    event.dispatcher["shutdown_grace"] = 0.1
    event.write_config()
    event.submit("slow", "sleep 3600")
    with RampdProcess(event.config) as daemon:
        daemon.wait_for("submission.started")
        event.dispatcher["state_dir"] = str(event.root / "new-state")
        event.write_config()
        _reload(daemon)
        assert daemon.stop() == 0
        assert daemon.find("event.opened") == []
    assert event.states() == {"slow": "new"}


def test_a_reload_that_changes_nothing_says_so(event: Deployment) -> None:
    """One record, with nothing in it."""
    with RampdProcess(event.config) as daemon:
        daemon.wait_for("daemon.ready")
        reloaded = _reload(daemon)
        assert reloaded["events"] == ["iris"]
        assert (reloaded["changed"], reloaded["added"], reloaded["removed"], reloaded["rejected"]) == ({}, [], [], [])
        assert daemon.stop() == 0


def test_hunger_policy_exit_counts_from_the_reload_on(event: Deployment) -> None:
    """An idle daemon that is told to exit when nothing is left does so at once."""
    with RampdProcess(event.config) as daemon:
        daemon.wait_for("daemon.ready")
        event.dispatcher["hunger_policy"] = "exit"
        event.write_config()
        _reload(daemon)
        assert daemon.wait() == 0


def test_many_signals_are_one_reload_after_another(event: Deployment) -> None:
    """However many come, the daemon lives, and the last content is in force."""
    event.submit("s0", _until(event.root / "go"))
    with RampdProcess(event.config) as daemon:
        daemon.wait_for("daemon.ready")
        for n_workers in range(1, 9):
            event.dispatcher["n_workers"] = n_workers
            event.write_config()
            daemon.process.send_signal(signal.SIGHUP)
        wait_until(
            lambda: rampctl("status", "--json", config=event.config).data["daemon"]["n_workers"] == 8,
            timeout_s=30,
            what="the last content's n_workers",
        )
        (event.root / "go").touch()
        assert daemon.stop() == 0
