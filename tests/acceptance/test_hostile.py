"""What hostile submissions get, end to end: time-outs, floods of output, and outputs that are none."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from support.daemon import RampdProcess, processes_marked, wait_until
from support.deployment import Deployment
from support.rampctl import rampctl

if TYPE_CHECKING:
    from pathlib import Path

_TIMED_OUT = "Worker killed due to timeout after 1s."

_HANGS = {
    "hangs": "exec sleep 3600 # MARK",
    "ignores_term": "trap '' TERM; sleep 3600 & sleep 3600 & while :; do sleep 1; done # MARK",
    "leaves_its_session": "setsid sh -c 'trap \"\" TERM; : MARK; while :; do sleep 1; done' & exec sleep 3600",
    "forks_twice": "(setsid sh -c '(trap \"\" TERM; : MARK; while :; do sleep 1; done) &' &); exec sleep 3600",
    "fork_bomb": (
        "bomb() { if [ $1 -gt 0 ]; then bomb $(($1 - 1)) & bomb $(($1 - 1)) & fi; trap '' TERM; "
        "while :; do sleep 1; done; }; bomb 6; : MARK"
    ),
}


@pytest.fixture
def event(tmp_path: Path) -> Deployment:
    """Give an event with a stub environment."""
    event = Deployment(tmp_path)
    event.make_stub_environment()
    return event


@pytest.mark.parametrize("name", _HANGS)
def test_what_hangs_is_ended_with_everything_it_started(event: Deployment, name: str) -> None:
    """It is a timeout, 124, with the sentence that participants know, and nothing of it is left alive."""
    event.worker["timeout"] = 1
    event.write_config()
    event.submit(name, _HANGS[name].replace("MARK", str(event.root)))
    with RampdProcess(event.config) as daemon:
        record = daemon.finished(name)[name]
        attempts = str(event.state / "attempts")
        wait_until(lambda: not processes_marked(attempts), what="the end of every process")
        assert (record["outcome"], record["state"], record["exit_status"]) == ("timeout", "training_error", 124)
        assert daemon.find("submission.timed_out", submission=name)[0]["timeout_s"] == 1
        assert list((event.state / "attempts").iterdir()) == []
        assert daemon.stop() == 0
    assert _message(event, name).endswith(_TIMED_OUT)


def _message(event: Deployment, name: str) -> str:
    return str(rampctl("status", name, "--json", config=event.config).data["error_msg"])


def test_a_flood_of_output_is_capped(event: Deployment) -> None:
    """500 MB are read, a part of it is kept, the log says so, and the submission ends as it would have."""
    event.worker["max_log_bytes"] = "1 MiB"
    event.write_config()
    event.submit("floods", "head -c 500000000 /dev/zero | tr '\\0' 'x'")
    event.submit("quiet")
    with RampdProcess(event.config) as daemon:
        finished = daemon.finished("floods", "quiet")
        assert daemon.stop() == 0
    assert finished["floods"]["outcome"] == finished["quiet"]["outcome"] == "ok"
    assert finished["floods"]["log_bytes"] == 500_000_000
    log = (event.logs / "floods" / "log").read_bytes()
    assert 1 << 20 < len(log) < (1 << 20) + 200
    assert b"only the first 1048576 bytes are kept" in log


def test_the_cap_is_64_mib_by_default(event: Deployment) -> None:
    """What stands in the documentation is in force."""
    event.submit("floods", "head -c 70000000 /dev/zero")
    with RampdProcess(event.config) as daemon:
        daemon.finished("floods")
        assert daemon.stop() == 0
    assert 64 << 20 < (event.logs / "floods" / "log").stat().st_size < (64 << 20) + 200


def test_bytes_that_are_no_text_break_nothing(event: Deployment) -> None:
    """NULs, colours and invalid UTF-8 stay in the log, and are gone from the message."""
    printed = 'Traceback (most recent call last):\\n  File "x", line 1\\nValueError: \\033[31mred\\000 \\377\\n'
    event.submit("noisy", f"mkdir -p $submission/training_output/fold_0; printf '{printed}'; exit 1")
    with RampdProcess(event.config) as daemon:
        assert daemon.finished("noisy")["noisy"]["outcome"] == "participant_error"
        assert daemon.stop() == 0
    assert b"\x1b[31mred\x00 \xff" in (event.logs / "noisy" / "log").read_bytes()
    assert _message(event, "noisy").endswith("ValueError: red \ufffd")
    shown = rampctl("logs", "noisy", config=event.config).stdout
    assert "\\x1b[31mred\\x00 \\xff" in shown
    assert "\x1b" not in shown


_OUTPUTS = {
    "link": ("ln -s /etc/passwd $submission/training_output/fold_0/stolen", "a link"),
    "link_to_folder": ("ln -s /etc $submission/training_output/etc", "a link"),
    "sparse": ("truncate -s 2G $submission/training_output/fold_0/big.npz", "too large"),
    "fifo": ("mkfifo $submission/training_output/fifo", "a fifo"),
    "hard_link": ("ln $submission/estimator.py $submission/training_output/twice", "hard links"),
    "pickle": ("cp $submission/evil.npz $submission/training_output/fold_0/y_pred_test.npz", "a pickle"),
    "not_a_zip": ("echo no >$submission/training_output/fold_0/y_pred_train.npz", "no complete .npz"),
    "not_a_number": ("echo seven >$submission/training_output/fold_0/train_time", "where a number belongs"),
    "unfinished_fold": ("rm $submission/training_output/fold_1/scores.csv", "not complete"),
}


@pytest.mark.parametrize("name", _OUTPUTS)
def test_a_training_output_that_is_none_is_refused(event: Deployment, name: str) -> None:
    """It is the participant's error, with the reason; nothing of it is kept, and nothing outside is read."""
    shell, reason = _OUTPUTS[name]
    event.submit("hostile", f"cp -r {event.root}/template $submission/training_output; {shell}; exit 0")
    if name == "pickle":
        (event.submissions / "hostile" / "evil.npz").write_bytes(_object_array())
    with RampdProcess(event.config) as daemon:
        record = daemon.finished("hostile")["hostile"]
        assert daemon.stop() == 0
    assert (record["outcome"], record["state"]) == ("participant_error", "training_error")
    assert reason in _message(event, "hostile")
    assert list(event.predictions.iterdir()) == []


def _object_array() -> bytes:
    from support.training_output import npy, npz  # noqa: PLC0415 -- here only

    return npz(y_pred=npy([0.5], descr="|O"))


def test_an_output_that_came_with_the_submission_counts_for_nothing(event: Deployment) -> None:
    """A training_output that a participant sent along is not taken for ramp-test's."""
    event.submit("forged", "exit 0")
    shutil.copytree(event.root / "template", event.submissions / "forged" / "training_output")
    with RampdProcess(event.config) as daemon:
        assert daemon.finished("forged")["forged"]["outcome"] == "participant_error"
        assert daemon.stop() == 0
    assert list(event.predictions.iterdir()) == []
