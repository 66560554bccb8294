"""The command line of ramp-test."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from rampd.models import Job
from rampd.ramp_test import argv


def _job(submission: str) -> Job:
    return Job(
        event_name="iris",
        submission=submission,
        submission_id=1,
        attempt=1,
        attempt_id="a1",
        submission_dir=Path("/submissions") / submission,
        attempt_dir=Path("/state/attempts/a1"),
        kit_dir=Path("/kit"),
        data_dir=Path("/data"),
        log_path=Path("/logs/log"),
        timeout_s=10.0,
        n_threads=None,
    )


def test_argv_is_the_one_that_operators_know() -> None:
    """Every option stands where the contract says, the executable is the environment's own."""
    assert argv(Path("/env"), _job("starting_kit"), Path("/state/attempts/a1/submissions")) == [
        "/env/bin/ramp-test",
        "--submission",
        "starting_kit",
        "--ramp-kit-dir",
        "/kit",
        "--ramp-data-dir",
        "/data",
        "--ramp-submission-dir",
        "/state/attempts/a1/submissions",
        "--save-output",
        "--ignore-warning",
    ]


@pytest.mark.parametrize("name", ["--help", "-", "--", "--retrain-fully-trained", "a b; rm -rf /", "$(id)", "ä\n"])
def test_no_name_becomes_an_option_or_a_second_argument(name: str) -> None:
    """Whatever a submission is called, click, which reads ramp-test's command line, takes it for the name."""
    seen: dict[str, object] = {}

    @click.command()
    @click.option("--submission", default="starting_kit")
    @click.option("--ramp-kit-dir")
    @click.option("--ramp-data-dir")
    @click.option("--ramp-submission-dir")
    @click.option("--save-output", is_flag=True)
    @click.option("--ignore-warning", is_flag=True)
    @click.option("--retrain-fully-trained", is_flag=True)
    def ramp_test(**options: object) -> None:
        seen.update(options)

    ramp_test.main(argv(Path("/env"), _job(name), Path("/submissions"))[1:], standalone_mode=False)
    assert seen == {
        "submission": name,
        "ramp_kit_dir": "/kit",
        "ramp_data_dir": "/data",
        "ramp_submission_dir": "/submissions",
        "save_output": True,
        "ignore_warning": True,
        "retrain_fully_trained": False,
    }
