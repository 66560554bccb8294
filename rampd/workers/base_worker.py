"""The synchronous contract of RAMP's documentation ("Create your own worker"), method for method.

Knows nothing of rampd: a worker written by that page runs here, in a thread of its own (`rampd.workers.threaded`), and
alone (`BaseWorker.launch`). Behaviour as ramp-engine 0.10's `base.py`, from which a subclass may come.
"""

from __future__ import annotations

import subprocess
import time
from abc import ABC, abstractmethod
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rampd.config_sections import WorkerConfig

STATUSES: Final = (
    "initialized",  # made
    "setup",  # set up
    "error",  # it could not be set up, or the submission not be launched
    "running",  # the submission is being trained
    "finished",  # it has ended; its results can be collected
    "collected",  # its results are where the config says
    "retry",  # it was interrupted, and is to be tried again
    "killed",  # torn down
    "timeout",  # it ran for too long, and was ended
)
"""What `BaseWorker.status` may be."""


class BaseWorker(ABC):
    """Runs one submission: subclass it for your platform.

    Parameters
    ----------
    config
        The event's `worker` section as it was given, with kit_dir, data_dir, timeout (seconds), and with
        submissions_dir, predictions_dir and logs_dir that lead into the attempt's own folder: the private copy of the
        submission, and two empty folders. The event's are event_submissions_dir, event_predictions_dir and
        event_logs_dir.
    submission
        The submission's name.

    Notes
    -----
    The order is `setup`, `launch_submission`, `_is_submission_finished` again and again, `collect_results`,
    `teardown`, each call in the same thread. Whatever a method raises is the platform's failure, never the
    participant's.
    """

    config_model: ClassVar[type[WorkerConfig] | None] = None
    """The pydantic model of the config's `worker` section; None: any key is allowed."""
    teardown_grace_s: ClassVar[float] = 1.0
    """Seconds that `teardown` gets once the daemon's own shutdown_grace is over, at most 15; then it is given up."""

    def __init__(self, config: dict[str, Any], submission: str) -> None:
        self.config = config
        self.submission = submission
        self._status: str
        self.status = "initialized"

    def setup(self) -> None:
        """Prepare the worker; call this at the end of your own."""
        self.status = "setup"

    def teardown(self) -> None:
        """Give everything back; call this at the end of your own."""
        self.status = "killed"

    @abstractmethod
    def launch_submission(self) -> None:
        """Start the submission and return at once; call this at the end of your own."""
        self._running_since = time.monotonic()
        self.status = "running"

    @abstractmethod
    def collect_results(self) -> tuple[int, str]:
        """Write log and predictions to where the config says; call this at the beginning of your own.

        Returns
        -------
        tuple of int and str
            The return code (0: it did well; 124: it ran for too long; 2: its results could not be had; anything else:
            the submission failed), and what the participant shall read of a failure.

        Raises
        ------
        ValueError
            Nothing was launched yet.
        """
        status = self.status
        if status == "initialized":
            raise ValueError(
                "the worker was not set up and no submission was launched: call setup() and launch_submission() first"
            )
        if status == "setup":
            raise ValueError("no submission was launched: call launch_submission() first")
        return 0, ""

    @abstractmethod
    def _is_submission_finished(self) -> bool:
        """Return whether the submission has ended. Must not wait for it."""

    def _is_submission_interrupted(self) -> bool:
        """Return whether the run was lost through nobody's fault, so that it is to be tried again."""
        return False

    @property
    def timeout(self) -> float:
        """Seconds that the submission may run."""
        given = self.__dict__.get("_timeout")
        return float(self.config.get("timeout", 7200)) if given is None else given

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._timeout = seconds

    def check_timeout(self) -> bool | None:
        """Set the status to timeout if the submission is over its time. Override it to end the run as well.

        Returns
        -------
        bool or None
            True if it is.
        """
        since = self.__dict__.get("_running_since")
        if since is None or time.monotonic() - since <= self.timeout:
            return None
        self.status = "timeout"
        return True

    @property
    def status(self) -> str:
        """Where the worker stands, one of `STATUSES`; while it is running, the submission is looked at."""
        if self._status == "running":
            self._status_running_check_time = datetime.now(UTC).replace(tzinfo=None)
            try:
                if self._is_submission_interrupted():
                    self._status = "retry"
                elif self._is_submission_finished() and self._status == "running":
                    # Looking may itself have found that the time is over, and said so.
                    self._status = "finished"
            except subprocess.CalledProcessError:
                # A command that asks another machine failed: that machine is gone.
                self._status = "retry"
        return self._status

    @status.setter
    def status(self, status: str) -> None:
        if status not in STATUSES:
            raise ValueError(f"{status!r} is no status of a worker; there are {', '.join(STATUSES)}")
        self._status = status

    def time_since_last_status_check(self) -> float | None:
        """Return the seconds since `status` last looked at the running submission; None before the first time."""
        checked = self.__dict__.get("_status_running_check_time")
        if checked is None:
            return None
        elapsed: float = (datetime.now(UTC).replace(tzinfo=None) - checked).total_seconds()
        return elapsed

    @staticmethod
    def _check_config_name(config: Mapping[str, Any], param: str) -> None:
        """Raise ValueError if the config lacks a key."""
        if param not in config:
            raise ValueError(f"the worker needs the key {param!r}; its config has {', '.join(map(str, config))}")

    @staticmethod
    def _get_traceback(content: str) -> str:
        """Return what follows the first word Traceback, that included; all of it where there is none."""
        return _get_traceback(content)

    def launch(self, *, time_between_collection: float = 1.0) -> tuple[int, str]:
        """Run the submission without a daemon, from setup to teardown, and wait for it.

        Parameters
        ----------
        time_between_collection
            Seconds between two looks at the running submission.

        Returns
        -------
        tuple of int and str
            What `collect_results` returned.

        Raises
        ------
        RuntimeError
            It could not be launched, or was interrupted.
        """
        self.setup()
        try:
            if self._status != "error":
                self.launch_submission()
            while self.status == "running" and not self.check_timeout():
                time.sleep(time_between_collection)
            if self.status in ("error", "retry"):
                raise RuntimeError(f"{self!r} could not run the submission")
            return self.collect_results()
        finally:
            if self._status != "collected":
                self._status = "retry"
            self.teardown()

    def __repr__(self) -> str:
        # Without a look at the submission: whoever writes this to a log means no more than that.
        return f'{type(self).__name__}({self.submission}): status="{self._status}"'

    def __str__(self) -> str:
        return repr(self)


def _get_traceback(content: str) -> str:
    """Return what follows the first word Traceback, that included; all of it where there is none."""
    return content[max(0, content.find("Traceback")) :] if content else ""
