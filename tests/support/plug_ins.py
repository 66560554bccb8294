"""Synchronous plug-ins for tests. What each does goes by the submission, as what it leaves goes by its files."""

from __future__ import annotations

import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any, ClassVar

from rampd import BaseWorker
from support.training_output import build_training_output

BY_NAME = """
echo "$0 runs"
case "$0" in
  good) exit 0 ;;
  bad) exit 1 ;;
  hangs) setsid sleep 1000 & sleep 1000 ;;
esac
exit 99
"""
"""A run by its name. One that hangs has a child of its own, and one in a session of its own."""


class LocalWorker(BaseWorker):
    """Runs `BY_NAME` on this machine, as the documentation's conda worker runs ramp-test."""

    _proc: subprocess.Popen[bytes]

    def launch_submission(self) -> None:
        """Start it, its log where it belongs."""
        folder = Path(self.config["logs_dir"]) / self.submission
        folder.mkdir(parents=True)
        with (folder / "log").open("wb") as log:
            words = ["sh", "-c", BY_NAME, self.submission, self.config["submissions_dir"]]
            self._proc = subprocess.Popen(words, stdout=log, stderr=log)
        super().launch_submission()

    def _is_submission_finished(self) -> bool:
        return self._proc.poll() is not None

    def collect_results(self) -> tuple[int, str]:
        """Leave a complete training_output."""
        super().collect_results()
        build_training_output(Path(self.config["predictions_dir"]) / self.submission)
        self.status = "collected"
        return self._proc.wait(), ""

    def teardown(self) -> None:
        """Wait for what was started, which has ended by now."""
        if "_proc" in vars(self):
            self._proc.wait()
        super().teardown()


class ScriptedWorker(BaseWorker):
    """Does what `scripts` says for its submission, and nothing outside the process.

    A script maps a method's name to an exception that is raised, a value that is returned, or a callable that is given
    the worker. What is not in it works at once, and leaves a complete training_output.
    """

    scripts: ClassVar[dict[str, dict[str, Any]]] = {}
    made: ClassVar[list[ScriptedWorker]] = []
    release: ClassVar[threading.Event] = threading.Event()
    """Ends every call that sleeps for ever, so that a test leaves no thread behind."""

    def __init__(self, config: dict[str, Any], submission: str) -> None:
        super().__init__(config, submission)
        self.calls: list[tuple[str, str]] = []
        type(self).made.append(self)
        self._play("__init__", None)

    def _play(self, method: str, otherwise: Any) -> Any:
        self.calls.append((method, threading.current_thread().name))
        says = self.scripts.get(self.submission, {}).get(method, otherwise)
        if isinstance(says, BaseException):
            raise says
        return says(self) if callable(says) else says

    def sleep_for_ever(self) -> None:
        """Return when the test is over."""
        type(self).release.wait(60)

    def setup(self) -> None:
        """Play it."""
        self._play("setup", None)
        if self._status == "initialized":
            super().setup()

    def launch_submission(self) -> None:
        """Play it."""
        self._play("launch_submission", None)
        if self._status == "setup":
            super().launch_submission()

    def _is_submission_finished(self) -> bool:
        return bool(self._play("_is_submission_finished", otherwise=True))

    def _is_submission_interrupted(self) -> bool:
        return bool(self._play("_is_submission_interrupted", otherwise=False))

    def check_timeout(self) -> bool | None:
        """Play it."""
        self._play("check_timeout", None)
        return super().check_timeout()

    def leave(self, text: bytes = b"", *, output: bool = True) -> None:
        """Leave a log, and a complete training_output, where the config says."""
        folder = Path(self.config["logs_dir"]) / self.submission
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "log").write_bytes(text)
        if output:
            predictions = Path(self.config["predictions_dir"]) / self.submission
            shutil.rmtree(predictions, ignore_errors=True)
            build_training_output(predictions)

    def collect_results(self) -> tuple[int, str]:
        """Play it."""
        super().collect_results()
        if "collect_results" not in self.scripts.get(self.submission, {}):
            self.leave()
        returned: tuple[int, str] = self._play("collect_results", (0, ""))
        self.status = "collected"
        return returned

    def teardown(self) -> None:
        """Play it."""
        self._play("teardown", None)
        super().teardown()
