"""The operator's commands against a real daemon, and without one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import jsonschema
import pytest

from support.daemon import RampdProcess, wait_until
from support.deployment import Deployment
from support.rampctl import rampctl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def event(tmp_path: Path) -> Deployment:
    """Give an event with a stub environment."""
    event = Deployment(tmp_path)
    event.make_stub_environment()
    return event


@pytest.fixture
def daemon(event: Deployment) -> Iterator[RampdProcess]:
    """Give the event's daemon, ready."""
    with RampdProcess(event.config) as daemon:
        daemon.wait_for("daemon.ready")
        yield daemon
        assert daemon.stop() == 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder to submit."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "estimator.py").write_text("# mine\n", encoding="utf-8")
    return folder


def test_status_of_an_event_that_was_never_served(event: Deployment) -> None:
    """Folders that wait are shown, and the head says that no daemon runs and how to start one."""
    event.submit("waits")
    said = rampctl("status", config=event.config)
    assert said.status == 0
    assert said.stdout.startswith("iris: not served: no daemon runs; 1 waiting. Start it with: rampd --config ")
    assert not event.state.exists()
    data = rampctl("status", "--json", config=event.config).data
    assert data["daemon"] is None
    assert data["submissions"][0]["name"] == "waits"
    assert (data["submissions"][0]["state"], data["submissions"][0]["position"]) == ("new", 1)


def test_status_json_has_what_programs_read(event: Deployment, daemon: RampdProcess) -> None:
    """daemon, event, held, counts and submissions with the promised keys."""
    event.submit("runs", "sleep 3600")
    started = daemon.wait_for("submission.started")
    wait_until(lambda: event.states() == {"runs": "training"}, what="the state")
    data = rampctl("status", "--json", config=event.config).data
    assert data["daemon"]["pid"] == daemon.pid
    assert (data["event"], data["held"], data["counts"]["training"]) == ("iris", None, 1)
    (one,) = data["submissions"]
    keys = {"name", "id", "state", "attempt", "position", "worker", "started", "age_s"}
    assert keys <= set(one)
    assert (one["id"], one["state"], one["attempt"]) == (started["submission_id"], "training", 1)
    assert data["head"] == "1 running of 2, nothing waiting"
    rampctl("cancel", "runs", config=event.config)
    daemon.finished("runs")


def test_status_of_one_submission(event: Deployment, daemon: RampdProcess) -> None:
    """Its transitions with their times, its attempts, its scores, and where its log is."""
    event.submit("one")
    daemon.finished("one")
    data = rampctl("status", "one", "--json", config=event.config).data
    states = [entry["state"] for entry in data["history"]]
    assert states == ["new", "sent_to_training", "training", "tested", "scored"]
    assert [entry["at"] for entry in data["history"]] == sorted(entry["at"] for entry in data["history"])
    assert data["attempts"][0]["outcome"] == "ok"
    assert data["scores"]["acc"]["test"]["bagged"] == pytest.approx(0.961)
    assert data["log"] == str(event.logs / "one" / "log")
    text = rampctl("status", "one", config=event.config).stdout
    assert "sent_to_training" in text
    assert "0.961" in text


def test_a_table_is_plain_where_it_is_piped(event: Deployment, daemon: RampdProcess) -> None:
    """No colours, no frames, a line a submission."""
    event.submit("one")
    daemon.finished("one")
    lines = rampctl("status", config=event.config).stdout.splitlines()
    assert lines[-2].split() == ["NAME", "STATE", "TRY", "SINCE", "NOTE"]
    assert lines[-1].split()[:3] == ["one", "scored", "1"]
    assert all(line.isprintable() for line in lines)


def test_what_participants_wrote_is_escaped(event: Deployment, daemon: RampdProcess) -> None:
    """A message that would steer a terminal, or that looks like markup, is shown as it is."""
    traceback = "Traceback (most recent call last):\\n  File x\\nValueError: [bold]hi[/bold] \\302\\233 \\007"
    event.submit("evil", f"mkdir -p $submission/training_output/fold_0; printf '{traceback}'; exit 1")
    daemon.finished("evil")
    for words in (("status",), ("status", "evil")):
        said = rampctl(*words, config=event.config).stdout
        assert "[bold]hi[/bold]" in said
        assert "\x07" not in said
        assert "\x9b" not in said


def test_submit_is_seen_at_once(event: Deployment, daemon: RampdProcess, folder: Path) -> None:
    """What rampctl submit puts in place is complete: it runs without settling."""
    said = rampctl("submit", str(folder), "--name", "handed_in", config=event.config)
    assert (said.status, said.stdout) == (0, "submitted handed_in\n")
    daemon.finished("handed_in")
    assert [path.name for path in (event.submissions / "handed_in").iterdir()] == ["estimator.py"]


def test_submit_refuses_a_name_that_is_taken(event: Deployment, folder: Path) -> None:
    """Status 2, unless --replace says otherwise."""
    assert rampctl("submit", str(folder), config=event.config).status == 0
    again = rampctl("submit", str(folder), config=event.config)
    assert again.status == 2
    assert "--replace" in again.stderr
    assert rampctl("submit", str(folder), "--replace", config=event.config).status == 0


@pytest.mark.parametrize("name", ["with space", "-rf", "../up", "", "x" * 101, "starting_kit", "new\nline"])
def test_submit_refuses_a_bad_name(event: Deployment, folder: Path, name: str) -> None:
    """Nothing is put in place."""
    said = rampctl("submit", str(folder), f"--name={name}", config=event.config)
    assert said.status in (1, 2)
    assert "Traceback" not in said.stderr
    assert list(event.submissions.iterdir()) == []


def test_submit_replace_runs_an_ended_submission_again(event: Deployment, daemon: RampdProcess, folder: Path) -> None:
    """The new content is what runs."""
    rampctl("submit", str(folder), config=event.config)
    daemon.finished("mine")
    (folder / "behave.sh").write_text("echo second", encoding="utf-8")
    said = rampctl("submit", str(folder), "--replace", config=event.config)
    assert said.status == 0
    assert "waits at the end of the queue" in said.stdout
    daemon.wait_for("submission.finished", submission="mine", attempt=2)
    assert (event.logs / "mine" / "log").read_text() == "second\n"


def test_cancel_ends_what_runs(event: Deployment, daemon: RampdProcess) -> None:
    """It is checking_error, and the participant reads whose word it was."""
    event.submit("slow", "sleep 3600")
    daemon.wait_for("submission.started")
    said = rampctl("cancel", "slow", config=event.config)
    assert (said.status, said.stdout) == (0, "slow: it is being stopped\n")
    record = daemon.finished("slow")["slow"]
    assert (record["state"], record["outcome"]) == ("checking_error", "cancelled")
    shown = rampctl("status", "slow", "--json", config=event.config).data
    assert shown["error_msg"] == "Cancelled by the organizers."


def test_cancel_takes_a_waiting_submission_out_of_the_queue(event: Deployment, daemon: RampdProcess) -> None:
    """It never starts."""
    rampctl("drain", config=event.config)
    daemon.wait_for("event.drained")
    event.submit("waits")
    daemon.wait_for("submission.queued")
    assert rampctl("cancel", "waits", config=event.config).status == 0
    assert daemon.finished("waits")["waits"]["outcome"] == "cancelled"
    assert daemon.find("submission.started") == []


def test_cancel_of_what_has_ended_is_refused(event: Deployment, daemon: RampdProcess) -> None:
    """Status 1, with the reason."""
    event.submit("one")
    daemon.finished("one")
    said = rampctl("cancel", "one", config=event.config)
    assert said.status == 1
    assert "it has ended already (scored)" in said.stdout


def test_retry_runs_a_submission_again(event: Deployment, daemon: RampdProcess) -> None:
    """With a new attempt number, and what it left before is replaced."""
    event.submit("one", f"test -f {event.root}/mended || {{ mkdir -p $submission/training_output/fold_0; exit 1; }}")
    assert daemon.finished("one")["one"]["state"] == "training_error"
    (event.root / "mended").touch()
    assert rampctl("retry", "one", config=event.config).status == 0
    record = daemon.wait_for("submission.finished", submission="one", attempt=2)
    assert record["state"] == "scored"


@pytest.mark.parametrize("verb", ["cancel", "retry", "logs", "status", "run"])
def test_an_unknown_name_is_status_2(event: Deployment, verb: str) -> None:
    """The message says so, whether anything was served before or not."""
    said = rampctl(verb, "nobody", config=event.config)
    assert said.status == 2
    assert "no submission named 'nobody'" in said.stderr
    assert "Traceback" not in said.stderr


def test_requests_wait_for_a_daemon_that_is_down(event: Deployment) -> None:
    """A cancel that was asked for beforehand counts from the daemon's first moment."""
    event.submit("unwanted")
    said = rampctl("cancel", "unwanted", config=event.config)
    assert (said.status, said.stdout) == (0, "unwanted: noted: it is done when a daemon starts\n")
    with RampdProcess(event.config) as daemon:
        assert daemon.finished("unwanted")["unwanted"]["outcome"] == "cancelled"
        assert daemon.find("submission.started") == []
        assert daemon.stop() == 0


def test_drain_and_resume(event: Deployment, daemon: RampdProcess) -> None:
    """A drained event claims nothing, says so, and goes on by the operator's word."""
    assert rampctl("drain", "--json", config=event.config).data == {"event": "iris", "drained": True, "served": True}
    daemon.wait_for("event.drained")
    event.submit("waits")
    daemon.wait_for("submission.queued")
    assert "drained for" in rampctl("status", config=event.config).stdout
    assert event.states() == {"waits": "new"}
    assert rampctl("resume", config=event.config).status == 0
    assert daemon.finished("waits")["waits"]["outcome"] == "ok"


def test_drain_outlives_the_daemon(event: Deployment) -> None:
    """An event that was drained stays so through a restart."""
    rampctl("drain", config=event.config)
    event.submit("waits")
    with RampdProcess(event.config) as daemon:
        daemon.wait_for("event.drained")
        daemon.wait_for("submission.queued")
        assert daemon.stop() == 0
    assert event.states() == {"waits": "new"}


def test_logs_follows_a_run_to_its_end(event: Deployment, daemon: RampdProcess) -> None:
    """Lines are shown while it runs, and the command ends when the submission does."""
    gate = event.root / "gate"
    event.submit("talks", f"echo first; until [ -e {gate} ]; do sleep 0.05; done; printf 'last without an end'")
    daemon.wait_for("submission.started")
    argv = [sys.executable, "-m", "rampd.cli.rampctl", "logs", "-f", "talks", "--config", str(event.config)]
    lines: list[str] = []
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as following:
        stream = following.stdout
        assert stream is not None
        reader = threading.Thread(target=lambda: lines.extend(iter(stream.readline, "")))
        reader.start()
        wait_until(lambda: lines == ["first\n"], what="the first line")
        gate.touch()
        assert following.wait(30) == 0
        reader.join()
    assert lines == ["first\n", "last without an end\n"]


def test_scores_rank_by_what_is_asked_for(event: Deployment, daemon: RampdProcess) -> None:
    """The bagged scores of everything that is scored, the best first."""
    for name, value in (("low", "0.10"), ("high", "0.90")):
        event.submit(
            name,
            f"cp -r {event.root}/template $submission/training_output; "
            f"printf 'step,n_bag,acc,nll\\nvalid,0,{value},0.5\\ntest,0,{value},0.5\\n' "
            ">$submission/training_output/bagged_scores.csv; exit 0",
        )
    daemon.finished("low", "high")
    board = rampctl("scores", "--json", config=event.config).data
    assert [entry["name"] for entry in board["entries"]] == ["high", "low"]
    upside_down = rampctl("scores", "--by", "acc", "--ascending", "--json", config=event.config).data
    assert [entry["name"] for entry in upside_down["entries"]] == ["low", "high"]
    lines = rampctl("scores", config=event.config).stdout.splitlines()
    assert lines[2].split()[:3] == ["1", "high", "0.900"]
    assert rampctl("scores", "--by", "auc", config=event.config).status == 1


def test_run_works_without_a_daemon(event: Deployment) -> None:
    """Progress goes to stderr, the result to stdout; the status says whether it was scored."""
    event.submit("good")
    event.submit("bad", "mkdir -p $submission/training_output/fold_0; exit 1")
    said = rampctl("run", "good", config=event.config)
    assert said.status == 0
    assert said.stdout.startswith("good: scored\n")
    assert "submission.started pid=" in said.stderr
    assert rampctl("run", "bad", config=event.config).status == 1
    assert event.states() == {"good": "scored", "bad": "training_error"}


def test_run_may_run_the_sandbox(event: Deployment) -> None:
    """No daemon ever does: it is rejected there, before and after."""
    event.submit("starting_kit")
    said = rampctl("run", "starting_kit", "--json", config=event.config)
    assert (said.status, said.data["state"]) == (0, "scored")
    with RampdProcess(event.config) as daemon:
        daemon.wait_for("daemon.ready")
        assert daemon.stop() == 0
        assert daemon.find("submission.started") == []


def test_run_is_refused_while_a_daemon_serves_the_event(event: Deployment, daemon: RampdProcess) -> None:
    """Status 75, with the daemon's pid."""
    event.submit("one")
    daemon.finished("one")
    said = rampctl("run", "one", config=event.config)
    assert said.status == 75
    assert str(daemon.pid) in said.stderr


def test_check_of_a_good_event(event: Deployment) -> None:
    """Everything is looked at, nothing is made, and the status is 0."""
    said = rampctl("check", "--json", config=event.config)
    assert said.status == 0
    assert said.data["ok"] is True
    names = {finding["name"] for finding in said.data["findings"]}
    assert {"config", "submissions_dir", "predictions_dir", "logs_dir", "state_dir", "worker", "environment"} <= names
    assert not event.state.exists()


def test_schema_is_that_of_the_stream(event: Deployment, daemon: RampdProcess) -> None:
    """Every line that a daemon wrote is valid by it."""
    event.submit("one")
    daemon.finished("one")
    schema = rampctl("schema").data
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert [error.message for record in daemon.records for error in validator.iter_errors(record)] == []


@pytest.mark.parametrize("verb", ["status", "scores", "check", "drain"])
def test_a_wrong_config_is_status_78(tmp_path: Path, verb: str) -> None:
    """One line a problem, as rampd has it."""
    config = tmp_path / "config.yml"
    config.write_text("ramp: {problem_name: iris}\nworker: {worker_type: conda, time_out: 3}\n", encoding="utf-8")
    said = rampctl(verb, config=config)
    assert said.status == 78
    assert len(said.stderr.splitlines()) == 2
    assert "timeout" in said.stderr


def test_json_is_json_even_of_strange_text(event: Deployment, daemon: RampdProcess) -> None:
    """Bytes that are no text do not break a program that reads it."""
    event.submit("strange", "printf '\\377\\000\\033[31m'")
    daemon.finished("strange")
    data = json.loads(rampctl("logs", "strange", "--json", config=event.config).stdout)
    assert data["text"] == "\\xff\x00\x1b[31m"


@pytest.mark.parametrize("name", ["x" * 300, "", ".", "..", "a/b", "white space"])
@pytest.mark.parametrize("command", ["status", "cancel", "retry", "logs", "run"])
def test_a_name_that_can_be_no_submissions(event: Deployment, command: str, name: str) -> None:
    """It is an unknown name like any other: status 2 and a sentence."""
    said = rampctl(command, name, config=event.config)
    assert (said.status, said.stdout) == (2, "")
    assert said.stderr.splitlines()[-1].startswith("rampctl: ")
    assert "Traceback" not in said.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{mine}", "--name", "starting_kit"], "'starting_kit' is the event's sandbox, which is never run"),
        (["{mine}", "--name", "my model"], "'my model': a submission's name has letters"),
        (["{mine}", "--name", "x" * 300], "choose one with --name"),
        (["{mine}/estimator.py/deeper", "--name", "one"], "there is no folder {mine}/estimator.py/deeper"),
        (["{mine}/nothing"], "there is no folder {mine}/nothing"),
        (["{mine}/empty"], "{mine}/empty has no file in it"),
    ],
)
def test_what_cannot_be_submitted(event: Deployment, folder: Path, arguments: list[str], sentence: str) -> None:
    """Status 2, and a sentence that names it."""
    (folder / "empty").mkdir()
    said = rampctl("submit", *(word.replace("{mine}", str(folder)) for word in arguments), config=event.config)
    assert (said.status, said.stdout) == (2, "")
    assert sentence.replace("{mine}", str(folder)) in said.stderr
    assert list(event.submissions.iterdir()) == []


@pytest.mark.parametrize("program", ["rampd", "rampd.cli.rampctl"])
def test_a_deployment_that_is_not_there(event: Deployment, program: str) -> None:
    """A mistyped --deployment-dir is a wrong command line, and makes no folders anywhere."""
    words = ["check"] if program == "rampd.cli.rampctl" else []
    argv = [sys.executable, "-m", program, *words, "--config", str(event.config), "--deployment-dir", "/no/such"]
    ended = subprocess.run(argv, capture_output=True, check=False, timeout=60)
    assert ended.returncode == 2
    assert b"'/no/such' does not exist" in ended.stderr


@pytest.mark.parametrize("program", ["rampd", "rampd.cli.rampctl"])
def test_help_is_for_people(program: str) -> None:
    """It has an example, and none of the marks that it is laid out by."""
    ended = subprocess.run([sys.executable, "-m", program, "--help"], capture_output=True, check=True, timeout=60)
    assert b"--config events/iris/config.yml" in ended.stdout
    assert b"\\b" not in ended.stdout
    assert b"\b" not in ended.stdout


def test_a_follower_is_interrupted_without_a_word(event: Deployment, daemon: RampdProcess) -> None:
    """Ctrl-C is how one ends `logs -f`: status 130, as a shell has it."""
    event.submit("talks", "echo first; exec sleep 3600")
    daemon.wait_for("submission.started")
    argv = [sys.executable, "-m", "rampd.cli.rampctl", "logs", "-f", "talks", "--config", str(event.config)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as following:
        assert following.stdout is not None
        assert following.stderr is not None
        assert following.stdout.readline() == b"first\n"
        following.send_signal(signal.SIGINT)
        assert following.wait(60) == 130
        assert (following.stdout.read(), following.stderr.read().strip()) == (b"", b"")
    rampctl("cancel", "talks", config=event.config)
    daemon.finished("talks")


@pytest.mark.parametrize(("redirection", "status"), [(">&-", 0), (">/dev/full", 1)])
def test_an_answer_that_nobody_takes(event: Deployment, redirection: str, status: int) -> None:
    """Without a stdout, or with one on a full disk, there is no traceback either."""
    command = f"{sys.executable} -m rampd.cli.rampctl status --config {event.config} {redirection}"
    ended = subprocess.run(["sh", "-c", command], capture_output=True, check=False, timeout=60)
    assert ended.returncode == status
    assert ended.stderr == (b"rampctl: No space left on device\n" if status else b"")


def test_a_reader_that_has_seen_enough() -> None:
    """It is no failure that `rampctl … | head` ends early, and nothing is said."""
    argv = [sys.executable, "-m", "rampd.cli.rampctl", "schema"]
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(argv, stdout=writing, stderr=subprocess.PIPE, check=False, timeout=60)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_a_terminal_that_lacks_a_character(event: Deployment) -> None:
    """In a locale that is not UTF-8 it is escaped, and JSON is the same JSON."""
    event.submit("shows", "echo '1 € 😀'")
    assert rampctl("run", "shows", config=event.config).status == 0
    latin = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    assert "1 \\u20ac \\U0001f600\n" in rampctl("logs", "shows", config=event.config, environment=latin).stdout
    assert "1 € 😀\n" in rampctl("logs", "shows", "--json", config=event.config, environment=latin).data["text"]


def test_run_of_what_lost_its_folder_is_refused(event: Deployment) -> None:
    """It has status 2, and the scores of the run that there was stay."""
    folder = event.submit("one")
    assert rampctl("run", "one", config=event.config).status == 0
    shutil.rmtree(folder)
    said = rampctl("run", "one", config=event.config)
    assert said.status == 2
    assert f"'one': its folder is gone ({folder})" in said.stderr
    assert event.states() == {"one": "scored"}
