"""Faults of the platform: never charged to a participant, never the end of the daemon."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from support.daemon import RampdProcess, wait_until
from support.deployment import Deployment
from support.rampctl import rampctl
from support.requirements import needs_root

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def event(tmp_path: Path) -> Deployment:
    """Give an event whose environment does not exist yet."""
    return Deployment(tmp_path)


def _misspell(event: Deployment) -> str:
    event.make_stub_environment()
    event.worker["conda_env"] = "no-such-environment"
    event.write_config()
    return "no-such-environment"


def _forget_environment(event: Deployment) -> str:
    return str(event.environment)


def _forget_ramp_test(event: Deployment) -> str:
    event.make_stub_environment()
    (event.environment / "bin" / "ramp-test").unlink()
    return "has no bin/ramp-test"


def _forget_kit(event: Deployment) -> str:
    event.make_stub_environment()
    shutil.rmtree(event.kit)
    return str(event.kit / "problem.py")


@pytest.mark.parametrize("fault", [_misspell, _forget_environment, _forget_ramp_test, _forget_kit])
def test_an_event_that_cannot_run_is_held(event: Deployment, fault: object) -> None:
    """The log, `rampctl check` and the head of `rampctl status` name what is missing; submissions stay new."""
    assert callable(fault)
    missing = fault(event)
    event.submit("waits")
    with RampdProcess(event.config) as daemon:
        held = daemon.wait_for("event.held")
        assert missing in held["missing"]
        checked = rampctl("check", config=event.config)
        assert checked.status == 1
        assert missing in checked.stdout
        status = rampctl("status", config=event.config).stdout
        assert status.startswith("iris: held for ")
        assert missing in status
        assert "1 waiting" in status
        assert event.states() == {"waits": "new"}
        assert daemon.stop() == 0
        assert daemon.find("submission.started") == []
        assert len(daemon.find("event.held")) == 1


def test_a_misspelt_environment_is_told_from_those_that_exist(
    event: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads the record sees what the name should have been."""
    for name in ("ramp-iris", "ramp-titanic"):
        (tmp_path / "envs" / name / "conda-meta").mkdir(parents=True)
    monkeypatch.setenv("CONDA_ENVS_DIRS", str(tmp_path / "envs"))
    _misspell(event)
    event.submit("waits")
    with RampdProcess(event.config) as daemon:
        assert {"ramp-iris", "ramp-titanic"} <= set(daemon.wait_for("event.held")["existing"])
        assert daemon.stop() == 0


def test_a_held_event_goes_on_when_the_environment_appears(event: Deployment) -> None:
    """Nothing has to be restarted, and nothing was counted against the submission."""
    event.submit("waits")
    with RampdProcess(event.config) as daemon:
        daemon.wait_for("event.held")
        event.make_stub_environment()
        assert daemon.finished("waits")["waits"]["attempts"] == 1
        assert daemon.find("event.released")
        assert daemon.stop() == 0


def test_an_environment_that_goes_while_the_daemon_runs_holds_the_event(event: Deployment) -> None:
    """It is noticed at the next submission, and costs that one nothing."""
    event.make_stub_environment()
    event.submit("first")
    with RampdProcess(event.config) as daemon:
        daemon.finished("first")
        event.environment.rename(event.root / "elsewhere")
        event.submit("second")
        daemon.wait_for("event.held")
        (event.root / "elsewhere").rename(event.environment)
        assert daemon.finished("second")["second"]["outcome"] == "ok"
        assert daemon.stop() == 0


def test_a_held_event_gives_up_after_hold_timeout(event: Deployment) -> None:
    """Then its submissions are checking_error: nobody waits for ever who does not want to."""
    event.dispatcher |= {"hold_timeout": 1, "hunger_policy": "exit"}
    event.write_config()
    event.submit("waits")
    with RampdProcess(event.config) as daemon:
        record = daemon.finished("waits")["waits"]
        assert (record["state"], record["outcome"]) == ("checking_error", "platform_error")
        daemon.wait()


def test_an_event_that_is_held_to_its_exit_ends_with_status_1(event: Deployment) -> None:
    """hunger_policy exit does not wait for what may never come, and does not call it a success."""
    event.dispatcher["hunger_policy"] = "exit"
    event.dispatcher["hold_timeout"] = 1
    event.write_config()
    event.submit("waits")
    with RampdProcess(event.config) as daemon:
        assert daemon.wait() == 1


@contextmanager
def _tmpfs(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


def test_a_full_disk_loses_nothing(event: Deployment) -> None:
    """The daemon says so and lives; once there is room again the submission is scored."""
    needs_root()
    event.make_stub_environment()
    with _tmpfs(event.folder / "state", "1M"):
        with RampdProcess(event.config) as daemon:
            daemon.wait_for("daemon.ready")
            ballast = event.folder / "state" / "ballast"
            with pytest.raises(OSError, match="No space left"):
                _fill(ballast)
            event.submit("patient")
            complaint = daemon.wait_for("store.unavailable")
            assert "full" in complaint["error"] or "No space" in complaint["error"]
            ballast.unlink()
            record = daemon.finished("patient")["patient"]
            assert (record["outcome"], record["state"]) == ("ok", "scored")
            assert daemon.stop() == 0
        assert event.states() == {"patient": "scored"}


def test_full_predictions_are_no_participants_fault(event: Deployment) -> None:
    """Where predictions cannot be kept the attempt is the platform's, and is repeated until they can."""
    needs_root()
    event.make_stub_environment()
    event.submit("large", f"cp -r {event.root}/template $submission/training_output; "
                 "head -c 3000000 /dev/urandom >$submission/training_output/large; exit 0")  # fmt: skip
    with _tmpfs(event.predictions, "1M"), RampdProcess(event.config) as daemon:
        retried = daemon.wait_for("submission.retried", submission="large")
        assert retried["outcome"] == "platform_error"
        assert "predictions" in retried["reason"]
        record = daemon.finished("large")["large"]
        assert (record["state"], record["attempts"]) == ("checking_error", 3)
        assert daemon.stop() == 0


def test_predictions_that_cannot_be_written_are_no_participants_fault(event: Deployment) -> None:
    """A read-only predictions_dir costs attempts of the platform; the submission is there to be retried."""
    needs_root()
    event.make_stub_environment()
    event.predictions.mkdir(parents=True)
    event.submit("good")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", str(event.predictions)], check=True)
    try:
        with RampdProcess(event.config) as daemon:
            record = daemon.finished("good")["good"]
            assert (record["state"], record["outcome"]) == ("checking_error", "platform_error")
            assert "predictions" in record["reason"]
            subprocess.run(["umount", str(event.predictions)], check=True)
            assert rampctl("retry", "good", config=event.config).status == 0
            assert daemon.wait_for("submission.finished", submission="good", count=2)["outcome"] == "ok"
            assert daemon.stop() == 0
    finally:
        if os.path.ismount(event.predictions):
            subprocess.run(["umount", str(event.predictions)], check=True)


def test_a_state_dir_of_another_user_is_said_and_ends_the_start(event: Deployment) -> None:
    """One daemon.failed record and one line on stderr that names the folder; status 1; nothing is lost."""
    needs_root()
    event.make_stub_environment()
    event.submit("good")
    event.state.mkdir(mode=0o700)
    os.chown(event.state, 65534, 65534)
    # Root that may not override permissions stands for any user: another one may not even read the interpreter.
    unprivileged = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    with RampdProcess(event.config, command=(*unprivileged, sys.executable, "-m", "rampd")) as daemon:
        assert daemon.wait() == 1
        assert str(event.state) in daemon.wait_for("daemon.failed")["error"]
        assert str(event.state) in daemon.stderr.decode()
        assert "Traceback" not in daemon.stderr.decode()


def test_a_kit_that_is_broken_is_no_participants_fault(event: Deployment) -> None:
    """ramp-test that fails before it comes to the submission is repeated, and ends as checking_error."""
    event.make_stub_environment(
        '#!/bin/sh\nprintf \'Traceback (most recent call last):\\n  File "problem.py", line 1\\n'
        "ModuleNotFoundError: No module named sklearn\\n'; exit 1\n"
    )
    event.submit("good")
    with RampdProcess(event.config) as daemon:
        record = daemon.finished("good")["good"]
        assert (record["state"], record["attempts"]) == ("checking_error", 3)
        assert "No module named sklearn" in record["reason"]
        assert [retried["attempts"] for retried in daemon.find("submission.retried")] == [1, 2]
        assert daemon.stop() == 0
    shown = rampctl("status", "good", "--json", config=event.config).data
    assert "sklearn" not in shown["error_msg"]


def test_the_daemon_lives_when_its_event_folder_is_moved_away_and_back(event: Deployment) -> None:
    """An unmounted share is trouble, not the end."""
    event.make_stub_environment()
    with RampdProcess(event.config) as daemon:
        daemon.wait_for("daemon.ready")
        event.submissions.rename(event.root / "away")
        (event.root / "away").rename(event.submissions)
        event.submit("after")
        wait_until(lambda: bool(daemon.find("submission.finished")), timeout_s=30, what="the end of a submission")
        assert daemon.stop() == 0


def test_a_daemon_at_the_lowest_priority_serves_all_the_same(event: Deployment) -> None:
    """Submissions are nicer than the daemon by ten, as far as niceness goes; no user could go back."""
    event.make_stub_environment()
    event.submit("polite", "nice")
    with RampdProcess(event.config, command=("nice", "-n", "12", sys.executable, "-m", "rampd")) as daemon:
        assert daemon.finished("polite")["polite"]["outcome"] == "ok"
        assert daemon.stop() == 0
    assert (event.logs / "polite" / "log").read_text(encoding="utf-8").strip() == "19"
