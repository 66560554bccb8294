"""`rampctl demo`: the main job, from nothing to a leaderboard."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from rampd.demo.deployment import EXPECTED
from support.daemon import processes_marked, wait_until
from support.rampctl import rampctl

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
def test_the_demo_ends_as_it_says(ramp_environment: Path, tmp_path: Path) -> None:
    """Two submissions are scored, three fail as they should, and what it prints names where everything lies."""
    directory = tmp_path / "demo"
    words = ["demo", "--directory", str(directory), "--environment", str(ramp_environment), "--timeout", "20"]
    said = rampctl(*words, timeout_s=110)
    assert said.status == 0, said.stderr
    for name, outcome in EXPECTED.items():
        assert any(line.split()[:3:2] == [name, outcome] for line in said.stdout.splitlines()), said.stdout
    board = said.stdout[said.stdout.index("Leaderboard") :]
    assert board.index("logistic_regression") < board.index("Where everything lies")
    config = directory / "events" / "iris" / "config.yml"
    assert f"config       {config}" in board
    assert rampctl("status", config=config).status == 0
    for line in (directory / "events" / "iris" / "rampd.jsonl").read_text(encoding="utf-8").splitlines():
        assert json.loads(line)["seq"]


@pytest.mark.slow
def test_an_interrupted_demo_leaves_nothing_running(ramp_environment: Path, tmp_path: Path) -> None:
    """Ctrl-C stops the daemon as systemd would; the demo says so by its status, and can be run again."""
    directory = tmp_path / "demo"
    argv = [sys.executable, "-m", "rampd.cli.rampctl", "demo", "--directory", str(directory)]
    with subprocess.Popen(
        [*argv, "--environment", str(ramp_environment)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as demo:
        assert demo.stderr is not None
        deadline = time.monotonic() + 60
        for line in demo.stderr:
            assert time.monotonic() < deadline
            if " started (pid " in line:
                break
        os.kill(demo.pid, signal.SIGINT)
        demo.stderr.read()
        assert demo.wait(60) == 1
    wait_until(lambda: not processes_marked(str(directory / "events")), what="the end of every process")


def test_the_demo_touches_no_folder_of_somebody_else(ramp_environment: Path, tmp_path: Path) -> None:
    """A folder with something in it that the demo did not make is left alone."""
    (tmp_path / "thesis.tex").touch()
    said = rampctl("demo", "--directory", str(tmp_path), "--environment", str(ramp_environment))
    assert said.status == 1
    assert "holds something that the demo did not make" in said.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
