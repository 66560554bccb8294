"""The worker alone, without a daemon: a stub stands for ramp-test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from rampd_conda_like import CondaLikeWorker

if TYPE_CHECKING:
    from pathlib import Path

_STUB = """#!/bin/sh
mkdir -p "$8/$2/training_output"
echo printed
if [ -f "$8/$2/bad" ]; then printf 'Traceback (most recent call last):\\nValueError\\n' >&2; exit 1; fi
if [ -f "$8/$2/hangs" ]; then exec sleep 100; fi
echo 0.5 >"$8/$2/training_output/score"
"""


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """Return a config as rampd hands it over."""
    ramp_test = tmp_path / "environment" / "bin" / "ramp-test"
    ramp_test.parent.mkdir(parents=True)
    ramp_test.write_text(_STUB, encoding="utf-8")
    ramp_test.chmod(0o755)
    (tmp_path / "submissions" / "one").mkdir(parents=True)
    folders = {
        name: str(tmp_path / name.removesuffix("_dir")) for name in ("submissions_dir", "predictions_dir", "logs_dir")
    }
    return {
        "conda_env": str(tmp_path / "environment"),
        "kit_dir": str(tmp_path),
        "data_dir": str(tmp_path),
        "timeout": 60,
        **folders,
    }


def test_it_runs_a_submission(config: dict[str, Any], tmp_path: Path) -> None:
    """Log and predictions are where the config says."""
    worker = CondaLikeWorker(config, "one")
    assert worker.launch(time_between_collection=0.01) == (0, "")
    assert worker.status == "killed"
    assert (tmp_path / "predictions" / "one" / "score").read_text(encoding="utf-8") == "0.5\n"
    assert (tmp_path / "logs" / "one" / "log").read_text(encoding="utf-8") == "printed\n\n\n"


def test_a_failure_has_its_traceback(config: dict[str, Any], tmp_path: Path) -> None:
    """The status is ramp-test's own, the message its traceback."""
    (tmp_path / "submissions" / "one" / "bad").touch()
    said = CondaLikeWorker(config, "one").launch(time_between_collection=0.01)
    assert said == (1, "Traceback (most recent call last):\nValueError\n")


def test_an_environment_that_is_not_there(config: dict[str, Any]) -> None:
    """The error names what was looked for."""
    with pytest.raises(FileNotFoundError, match="there is no /nowhere/bin/ramp-test"):
        CondaLikeWorker({**config, "conda_env": "/nowhere"}, "one").setup()
