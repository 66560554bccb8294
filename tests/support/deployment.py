"""Small deployments for tests: folders, a config, submissions, and environments whose ramp-test is a few lines."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from support.training_output import build_training_output

if TYPE_CHECKING:
    from pathlib import Path

# A ramp-test of a few milliseconds: it copies a valid training_output, or does what the submission's own
# `behave.sh` says. `$submission` is the folder of the submission, in the attempt's private copy.
_STUB = """#!/bin/sh
for word in "$@"; do
  case "$previous" in
    --submission) name=$word ;;
    --ramp-submission-dir) folder=$word ;;
  esac
  case "$word" in
    --submission=*) name=${word#*=} ;;
    --ramp-submission-dir=*) folder=${word#*=} ;;
  esac
  previous=$word
done
submission=$folder/$name
if [ -f "$submission/behave.sh" ]; then . "$submission/behave.sh"; fi
exec cp -r TEMPLATE "$submission/training_output"
"""


@dataclass
class Deployment:
    """One event in a folder of its own, served by a stub environment unless told otherwise."""

    root: Path
    event: str = "iris"
    worker: dict[str, Any] = field(default_factory=dict)
    dispatcher: dict[str, Any] = field(default_factory=dict)
    ramp: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for folder in (self.submissions, self.kit, self.root / "ramp-data" / "iris"):
            folder.mkdir(parents=True, exist_ok=True)
        (self.kit / "problem.py").write_text("", encoding="utf-8")
        self.write_config()

    @property
    def folder(self) -> Path:
        """The event's own folder."""
        return self.root / "events" / self.event

    @property
    def config(self) -> Path:
        """The event's config file."""
        return self.folder / "config.yml"

    @property
    def kit(self) -> Path:
        """The kit."""
        return self.root / "ramp-kits" / "iris"

    @property
    def environment(self) -> Path:
        """The stub environment's prefix."""
        return self.root / "environment"

    @property
    def submissions(self) -> Path:
        """Where submissions arrive."""
        return self.folder / "submissions"

    @property
    def predictions(self) -> Path:
        """Where predictions are kept."""
        return self.folder / "predictions"

    @property
    def logs(self) -> Path:
        """Where logs are kept."""
        return self.folder / "logs"

    @property
    def state(self) -> Path:
        """The daemon's own folder."""
        return self.folder / "state"

    def write_config(self) -> None:
        """Write the config anew from the three sections."""
        sections = {
            "ramp": {"problem_name": "iris", "event_name": self.event, "event_title": "Iris", **self.ramp},
            "dispatcher": {"n_workers": 2, "settle_time": 0.1, **self.dispatcher},
            "worker": {"worker_type": "conda", "conda_env": str(self.environment), "timeout": 60, **self.worker},
        }
        self.config.write_text(yaml.safe_dump(sections), encoding="utf-8")

    def make_stub_environment(self, script: str | None = None) -> None:
        """Make an environment whose ramp-test is `script`, by default the one above."""
        template = self.root / "template"
        if not template.exists():
            build_training_output(template)
        ramp_test = self.environment / "bin" / "ramp-test"
        ramp_test.parent.mkdir(parents=True, exist_ok=True)
        ramp_test.write_text((script or _STUB).replace("TEMPLATE", str(template)), encoding="utf-8")
        ramp_test.chmod(0o755)

    def submit(self, name: str, behaviour: str | None = None, **files: str) -> Path:
        """Put a submission in place by one rename, as a complete one arrives.

        Parameters
        ----------
        name
            The folder's name.
        behaviour
            Shell lines that the stub ramp-test runs before anything else.
        files
            Further files by name, with `__` for the dot.
        """
        staging = self.folder / f".staging-{time.monotonic_ns()}"
        staging.mkdir()
        (staging / "estimator.py").write_text(files.pop("estimator__py", "# nothing\n"), encoding="utf-8")
        if behaviour is not None:
            (staging / "behave.sh").write_text(behaviour, encoding="utf-8")
        for file_name, text in files.items():
            (staging / file_name.replace("__", ".")).write_text(text, encoding="utf-8")
        final = self.submissions / name
        staging.rename(final)
        return final

    def states(self) -> dict[str, str]:
        """Return each submission's state as the store's file has it."""
        uri = f"file:{self.state / 'submissions.sqlite3'}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            made = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'submissions'").fetchone()
            rows = connection.execute("SELECT name, state FROM submissions").fetchall() if made else []
        return dict(rows)
