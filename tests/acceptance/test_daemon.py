"""The process itself: its start, its signals, its exit statuses, and what it puts on its streams."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import rampd
from support.daemon import RampdProcess, processes_marked, wait_until
from support.deployment import Deployment

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def event(tmp_path: Path) -> Deployment:
    """Give an event with a stub environment."""
    event = Deployment(tmp_path)
    event.make_stub_environment()
    return event


def test_a_start_says_what_it_found(event: Deployment) -> None:
    """daemon.started names the containment that was tried out, daemon.ready the states of all submissions."""
    event.dispatcher["settle_time"] = 0
    event.write_config()
    event.submit("waits")
    with RampdProcess(event.config) as daemon:
        started, ready = daemon.wait_for("daemon.started"), daemon.wait_for("daemon.ready")
        assert started["containment"] in {"pid_namespace", "user_and_pid_namespace", "subreaper"}
        assert (started["pid"], started["version"], started["uvloop"]) == (daemon.pid, rampd.__version__, True)
        assert started["events"] == ["iris"]
        assert sum(ready["counts"].values()) == 1
        assert daemon.stop() == 0


def test_uncontained_submissions_are_warned_of_once(event: Deployment) -> None:
    """The log names what is not protected and what to do about it."""
    for number in range(3):
        event.submit(f"s{number}")
    with RampdProcess(event.config) as daemon:
        daemon.wait_for("submission.finished", count=3)
        assert daemon.stop() == 0
        (warning,) = daemon.find("worker.uncontained")
        assert "worker.run_as" in warning["message"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_runs_end(event: Deployment, number: signal.Signals) -> None:
    """Within shutdown_grace running submissions come to their end; waiting ones stay new; the status is 0."""
    event.dispatcher["n_workers"] = 1
    event.write_config()
    event.submit("runs", f"until test -e {event.root}/go; do sleep 0.02; done")
    with RampdProcess(event.config) as daemon:
        daemon.wait_for("submission.started", submission="runs")
        event.submit("waits")
        daemon.wait_for("submission.queued", submission="waits")
        daemon.process.send_signal(number)
        stopping = daemon.wait_for("daemon.stopping")
        (event.root / "go").touch()
        assert daemon.wait() == 0
        assert daemon.find("submission.finished")[0]["outcome"] == "ok"
        assert (stopping["signal"], stopping["running"]) == (number.name, 1)
        assert daemon.records[-1]["event"] == "daemon.stopped"
    assert event.states() == {"runs": "scored", "waits": "new"}


def test_what_does_not_end_in_its_grace_is_put_back(event: Deployment) -> None:
    """It is new again, costs no attempt, and runs to its end under the next daemon."""
    event.dispatcher["shutdown_grace"] = 0.2
    event.write_config()
    event.submit("slow", f"test -f {event.root}/calm || sleep 3600")
    with RampdProcess(event.config) as daemon:
        daemon.wait_for("submission.started")
        assert daemon.stop() == 0
        retried = daemon.wait_for("submission.retried")
        assert (retried["outcome"], retried["counted"]) == ("interrupted", False)
    assert event.states() == {"slow": "new"}
    assert processes_marked(str(event.state / "attempts")) == []
    (event.root / "calm").touch()
    with RampdProcess(event.config) as daemon:
        assert daemon.finished("slow")["slow"]["outcome"] == "ok"
        assert daemon.stop() == 0


def test_a_second_signal_exits_now(event: Deployment) -> None:
    """Status 1 after a daemon.failed record, no process left, and the submission put back at the next start."""
    event.submit("slow", "sleep 3600")
    with RampdProcess(event.config) as daemon:
        daemon.wait_for("submission.started")
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait_for("daemon.stopping")
        assert daemon.stop() == 1
        assert daemon.records[-1]["event"] == "daemon.failed"
        wait_until(lambda: not processes_marked(str(event.state / "attempts")), what="the end of every process")
    with RampdProcess(event.config) as daemon:
        daemon.wait_for("submission.started", attempt=2)


def test_hunger_policy_exit_ends_when_all_is_done(event: Deployment) -> None:
    """Everything that was there is scored, and the status is 0."""
    event.dispatcher["hunger_policy"] = "exit"
    event.write_config()
    for number in range(5):
        event.submit(f"s{number}")
    with RampdProcess(event.config) as daemon:
        assert daemon.wait() == 0
    assert set(event.states().values()) == {"scored"}
    assert len(event.states()) == 5


def test_never_more_than_n_workers_run(event: Deployment) -> None:
    """Two slots are two processes, however much waits."""
    for number in range(8):
        event.submit(f"s{number}", f"mkdir {event.root}/run-$name; set -- {event.root}/run-*; echo $#; sleep 0.1; "
                     f"rmdir {event.root}/run-$name")  # fmt: skip
    with RampdProcess(event.config) as daemon:
        daemon.wait_for("submission.finished", count=8)
        assert daemon.stop() == 0
    seen = [int((event.logs / f"s{number}" / "log").read_text().split()[0]) for number in range(8)]
    assert max(seen) == 2


def test_submissions_run_first_in_first_out(event: Deployment) -> None:
    """Those that were there at the start run by their age."""
    event.dispatcher["n_workers"] = 1
    event.write_config()
    for age, name in enumerate(["youngest", "middle", "oldest"]):
        folder = event.submit(name)
        then = 1_700_000_000 - age
        for path in (*folder.iterdir(), folder):
            os.utime(path, (then, then))
    with RampdProcess(event.config) as daemon:
        daemon.wait_for("submission.finished", count=3)
        assert daemon.stop() == 0
        started = [record["submission"] for record in daemon.find("submission.started")]
    # The change time of an inode cannot be set, and is in this order: the ages of the folders decide nothing else.
    assert started == ["youngest", "middle", "oldest"]


def test_only_one_daemon_serves_an_event(event: Deployment) -> None:
    """The second one ends with status 75 and names the first."""
    with RampdProcess(event.config) as first:
        first.wait_for("daemon.ready")
        with RampdProcess(event.config) as second:
            assert second.wait() == 75
            assert str(first.pid) in second.stderr.decode()
            assert "Traceback" not in second.stderr.decode()
        assert first.stop() == 0


def test_several_events_are_served_by_one_daemon(tmp_path: Path) -> None:
    """One that is wrong gets config.rejected; the others are served."""
    events = [Deployment(tmp_path, event=name) for name in ("one", "two")]
    for event in events:
        event.make_stub_environment()
        event.submit(f"of_{event.event}")
    wrong = tmp_path / "events" / "wrong.yml"
    wrong.write_text("ramp: []\n", encoding="utf-8")
    more = ["--config", str(events[1].config), "--config", str(wrong)]
    with RampdProcess(events[0].config, *more) as daemon:
        finished = daemon.finished("of_one", "of_two")
        assert {record["event_name"] for record in finished.values()} == {"one", "two"}
        rejected = daemon.wait_for("config.rejected")
        assert rejected["path"] == str(wrong)
        assert daemon.stop() == 0


def test_a_reader_that_goes_costs_no_submission(event: Deployment) -> None:
    """A closed pipe on stdout ends nothing."""
    argv = [sys.executable, "-m", "rampd", "--config", str(event.config)]
    event.dispatcher["hunger_policy"] = "exit"
    event.write_config()
    for number in range(5):
        event.submit(f"s{number}")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(60) == 0
    assert set(event.states().values()) == {"scored"}


def test_a_reader_that_stalls_costs_no_submission(event: Deployment) -> None:
    """Nobody reads for as long as the submissions run: they end, and every line is there afterwards."""
    names = [f"s{number:03d}" for number in range(150)]
    for name in names:
        event.submit(name)
    event.dispatcher["hunger_policy"] = "exit"
    event.write_config()
    argv = [sys.executable, "-m", "rampd", "--config", str(event.config)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        database = event.state / "submissions.sqlite3"
        wait_until(
            lambda: database.exists() and list(event.states().values()).count("scored") == len(names),
            timeout_s=60,
            what="the end of all submissions",
        )
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
        assert process.wait(30) == 0
    assert sum(b'"submission.finished"' in line for line in lines) == len(names)


def test_stdout_has_nothing_but_the_stream(event: Deployment) -> None:
    """Every line is a record of the catalogue, numbered from 1 without a gap."""
    event.submit("noisy", "echo to stdout; echo to stderr >&2")
    with RampdProcess(event.config) as daemon:
        daemon.finished("noisy")
        assert daemon.stop() == 0  # checks every record
    assert (event.logs / "noisy" / "log").read_text() == "to stdout\nto stderr\n"


def test_the_console_format_is_for_people(event: Deployment) -> None:
    """It is text, and only where it was asked for."""
    event.dispatcher["hunger_policy"] = "exit"
    event.write_config()
    event.submit("one")
    argv = [sys.executable, "-m", "rampd", "--config", str(event.config), "--log-format", "console"]
    ended = subprocess.run(argv, capture_output=True, timeout=60, check=True)
    assert b"submission.finished" in ended.stdout
    assert not ended.stdout.startswith(b"{")


def test_an_event_that_was_served_before_is_adopted(event: Deployment) -> None:
    """What has predictions is scored, what has only a log failed, and only the rest is run."""
    for name in ("done", "failed", "fresh"):
        event.submit(name)
    (event.predictions / "done").mkdir(parents=True)
    template = event.root / "template"
    subprocess.run(["cp", "-r", f"{template}/.", event.predictions / "done"], check=True)
    (event.logs / "failed").mkdir(parents=True)
    (event.logs / "failed" / "log").write_text("Traceback …", encoding="utf-8")
    checked = subprocess.run(
        [sys.executable, "-m", "rampd", "--config", str(event.config), "--check"], capture_output=True, check=True
    )
    assert b"adopts 1 as scored, 1 as training_error, and leaves 1 to run" in checked.stderr
    with RampdProcess(event.config) as daemon:
        daemon.finished("fresh")
        adopted = daemon.wait_for("event.adopted")
        assert (adopted["scored"], adopted["training_error"], adopted["new"]) == (1, 1, 1)
        assert [record["submission"] for record in daemon.find("submission.started")] == ["fresh"]
        assert daemon.stop() == 0
    assert event.states() == {"done": "scored", "failed": "training_error", "fresh": "scored"}
