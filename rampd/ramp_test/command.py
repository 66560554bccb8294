"""The command line of ramp-test (rampwf/utils/cli/testing.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from rampd.models import Job


def argv(prefix: Path, job: Job, submissions_dir: Path) -> list[str]:
    """Return the command that trains and evaluates one submission.

    Parameters
    ----------
    prefix
        The environment: `<prefix>/bin/ramp-test` is what runs.
    job
        The attempt.
    submissions_dir
        The attempt's own folder of submissions, with the private copy in it; training_output appears there.
    """
    return [
        str(prefix / "bin" / "ramp-test"),
        "--submission",
        job.submission,
        "--ramp-kit-dir",
        str(job.kit_dir),
        "--ramp-data-dir",
        str(job.data_dir),
        "--ramp-submission-dir",
        str(submissions_dir),
        "--save-output",
        "--ignore-warning",
    ]
