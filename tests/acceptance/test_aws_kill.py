"""kill -9 of the daemon between every two steps of a submission on an instance: the next daemon goes on, once."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from support.aws import AwsRoom
from support.daemon import RampdProcess, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.daemon import Record
    from support.sshd import Sshd

# Runs one at a time, and says how often it ran.
_ONCE = 'echo run >>"$HOME/runs"\nuntil [ -e "$HOME/go-on" ]; do sleep 0.05; done\necho over\n'


@pytest.fixture
def aws(tmp_path: Path) -> Iterator[AwsRoom]:
    """Give an event on a cloud, of which nothing may be left in the end."""
    with AwsRoom(tmp_path / "cloud") as room:
        yield room
        assert room.cloud.alive() == []


def _daemon(config: Path) -> RampdProcess:
    return RampdProcess(config, environment={**os.environ, "AWS_EC2_METADATA_DISABLED": "true"})


def _kill_when(config: Path, is_there: Callable[[RampdProcess], Any], what: str) -> list[Record]:
    """Have a daemon serve until something is the case, and kill it then; return its records."""
    with _daemon(config) as daemon:
        wait_until(lambda: bool(is_there(daemon)), timeout_s=60, what=what)
        daemon.kill()
        return daemon.records


def _journaled(aws: AwsRoom) -> list[tuple[str, Any]]:
    path = aws.folder / "state" / "journal.sqlite3"
    if not path.exists():
        return []
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as journal:
        return journal.execute("SELECT step, allocation FROM attempts").fetchall()


def _let_go_on(machine: Sshd) -> None:
    (machine.home / "go-on").touch()


def _finish(aws: AwsRoom, config: Path) -> list[Record]:
    """Have a daemon serve the event to its end; every machine's run may go on."""
    aws.prepare_all(_let_go_on)
    with _daemon(config) as daemon:
        assert daemon.wait() == 0
        return daemon.records


def _check_the_end(aws: AwsRoom, records: list[Record], *, instances: int = 1) -> None:
    finished = [record for record in records if record["event"] == "submission.finished"]
    assert [(record["submission"], record["outcome"]) for record in finished] == [("good", "ok")]
    assert len(aws.machines) == instances
    runs = [machine.home / "runs" for machine in aws.machines.values()]
    assert "".join(path.read_text(encoding="utf-8") for path in runs if path.exists()) == "run\n"
    log = (aws.folder / "logs" / "good" / "log").read_text(encoding="utf-8")
    assert log.partition("\n")[2] == "over\n"
    assert list((aws.folder / "state" / "attempts").iterdir()) == []
    assert {step for step, _ in _journaled(aws)} == {"closed"}


@pytest.fixture
def config(aws: AwsRoom) -> Path:
    """Give the event's config, with one submission waiting."""
    aws.submit("good", _ONCE)
    return aws.write_config()


@pytest.mark.parametrize("after", [False, True], ids=["before-it-is-launched", "after-it-was-launched"])
def test_while_the_instance_is_asked_for(aws: AwsRoom, config: Path, after: bool) -> None:
    """The call is made again as it was: one instance, whether the first one took effect or not."""
    pause = aws.cloud.pause("RunInstances", after=after)
    _kill_when(config, lambda _: pause.reached.is_set(), "the launch")
    pause.go_on.set()
    _check_the_end(aws, _finish(aws, config))
    calls = aws.cloud.called("RunInstances")
    assert len({tuple(sorted(call.parameters.items())) for call in calls}) == 1
    assert len(calls) == 2


def test_before_anything_is_asked_for(aws: AwsRoom, config: Path) -> None:
    """An attempt that had asked for nothing is begun anew."""
    pause = aws.cloud.pause("DescribeSecurityGroups")
    _kill_when(config, lambda _: pause.reached.is_set(), "the first look")
    pause.go_on.set()
    _check_the_end(aws, _finish(aws, config))


def test_while_it_boots(aws: AwsRoom, config: Path) -> None:
    """The instance that boots is the one that is used."""
    aws.cloud.never_boots.set()
    _kill_when(config, lambda _: len(aws.cloud.called("DescribeInstances")) > 1, "a look at the instance")
    aws.cloud.never_boots.clear()
    _check_the_end(aws, _finish(aws, config))


def test_while_nobody_can_log_in(aws: AwsRoom, config: Path) -> None:
    """The instance whose sshd was not up yet is the one that is used."""
    aws.answers = False
    _kill_when(config, lambda _: len(aws.cloud.called("DescribeInstances")) > 2, "looks at the instance")
    wait_until(lambda: len(aws.machines) == 1, what="the machine")
    aws.machine().start()
    _check_the_end(aws, _finish(aws, config))


@pytest.mark.parametrize("word", ["mkdir", "upload", "launch", "poll", "collect"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_at_a_far_command(aws: AwsRoom, config: Path, word: str, after: bool) -> None:
    """Killed when a command has been given to the instance: it is given again, and has one effect."""
    aws.hang_at = (word, after)
    if word == "collect":
        aws.prepare_all(_let_go_on)
    _kill_when(config, lambda _: (aws.root / "has-come").exists(), f"the command {word}")
    (aws.root / "may-go").touch()
    _check_the_end(aws, _finish(aws, config))


def test_while_it_runs(aws: AwsRoom, config: Path) -> None:
    """The training goes on without a daemon, and the next one takes it over."""
    records = _kill_when(config, lambda daemon: daemon.find("submission.started"), "the start")
    ended = _finish(aws, config)
    _check_the_end(aws, ended)
    (resumed,) = [record for record in ended if record["event"] == "submission.resumed"]
    (started,) = [record for record in records if record["event"] == "submission.started"]
    assert resumed["instance_id"] == started["instance_id"]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_while_the_instance_is_ended(aws: AwsRoom, config: Path, after: bool) -> None:
    """It is ended by the next daemon, if it was not yet."""
    aws.prepare_all(_let_go_on)
    pause = aws.cloud.pause("TerminateInstances", after=after)
    _kill_when(config, lambda _: pause.reached.is_set(), "the end")
    pause.go_on.set()
    _check_the_end(aws, _finish(aws, config))


def test_a_start_without_ec2_takes_runs_over(aws: AwsRoom, config: Path) -> None:
    """What runs needs no EC2 to go on; a daemon that starts while EC2 is away does not end by that."""
    _kill_when(config, lambda daemon: daemon.find("submission.started"), "the start")
    aws.cloud.is_away.set()
    with _daemon(config) as daemon:
        daemon.wait_for("submission.resumed", timeout_s=60)
        assert "does not answer" in daemon.find("worker.lost")[0]["error"]
        aws.machine().home.joinpath("go-on").touch()
        daemon.wait_for("submission.scored", timeout_s=60)
        aws.cloud.is_away.clear()
        daemon.wait(timeout_s=120)
    with _daemon(config) as daemon:  # what could not be ended then is ended at the next start, or after ten minutes
        assert daemon.wait() == 0
