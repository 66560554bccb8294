"""One attempt in the hands of a synchronous plug-in: its object, its folder, and what was heard of it.

What calls the plug-in runs in the attempt's own thread.
"""

from __future__ import annotations

import operator
import threading
import traceback
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from rampd import clock, ramp_test
from rampd.copying import UnsafeTreeError, copy_submission
from rampd.errors import WorkerError, WorkerLostError
from rampd.files import folder_below, remove_tree
from rampd.models import Exit, Results
from rampd.states import Outcome
from rampd.workers import stray_processes
from rampd.workers.base_worker import STATUSES
from rampd.workers.calls import Caller
from rampd.workers.followed_log import FollowedLog
from rampd.workers.plug_in_config import LOGS, PREDICTIONS, SUBMISSIONS

if TYPE_CHECKING:
    from pathlib import Path

    from rampd.config_sections import WorkerConfig
    from rampd.models import Job
    from rampd.workers.base_worker import BaseWorker

TIMEOUT_STATUS = 124
"""What a plug-in returns for a submission that ran for too long."""
PLATFORM_STATUS = 2
"""What a plug-in returns where results could not be had; ramp-engine's dispatcher makes it checking_error at once."""
_BEGINNING = frozenset({"make_folders", "__init__", "setup", "launch_submission"})
_SHOWN = 500
_LARGEST_STATUS = 2**32
_LONGEST_LOOK_S = 30.0


class PlugInRun:
    """An attempt's plug-in.

    Parameters
    ----------
    job
        The attempt.
    plug_in
        The class.
    config
        What the plug-in finds in `self.config`.
    bounds
        How much is copied and kept.
    """

    def __init__(self, job: Job, plug_in: type[BaseWorker], config: dict[str, Any], bounds: WorkerConfig) -> None:
        self.job = job
        self.plug_in: BaseWorker | None = None
        self.callers = [Caller(job.attempt_id)]
        self.log = FollowedLog(
            job.attempt_dir, (LOGS, job.submission, "log"), job.log_path, max_bytes=bounds.max_log_bytes
        )
        self.launched_at: float | None = None
        """By CLOCK_BOOTTIME, as the deadline of the lifecycle."""
        self.is_over = False
        """Whether the plug-in said that the run ended, or it was stopped."""
        self.was_stopped = False
        self.is_timed_out = False
        self.was_begun = False
        """Whether `setup` was called, so that `teardown` has something to give back."""
        self.is_torn_down = False
        self.results: Results | None = None
        self.ended = Exit(None)
        self.known: stray_processes.Known = frozenset()
        """Processes of this machine that came from its threads, as far as they were seen."""
        self.children: set[int] = set()
        """Processes of this machine that were ended."""
        self._class = plug_in
        self._config = config
        self._bounds = bounds
        self._lock = threading.Lock()
        self._still_out = 0

    @property
    def caller(self) -> Caller:
        """The thread that may be asked for more."""
        return self.callers[-1]

    @property
    def is_beginning(self) -> bool:
        """Whether the latest call is one that makes what others give back."""
        return self.caller.call is not None and self.caller.call.method in _BEGINNING

    @property
    def thread_ids(self) -> list[int]:
        """The kernel's ids of its threads."""
        return [caller.thread_id for caller in self.callers if caller.thread_id is not None]

    def is_overdue(self) -> bool:
        """Say whether the run has had its time. The lifecycle's clock began a moment later."""
        return self.launched_at is not None and clock.boottime() - self.launched_at >= self.job.timeout_s

    def look_limit_s(self, begun: float) -> float:
        """Return how long a look that began at `begun` may take, in seconds.

        One that was under way for long when the deadline comes says nothing of the submission: the plug-in is asked to
        answer at once. So it ends a moment before the deadline would charge the participant.
        """
        timeout_s = self.job.timeout_s
        deadline = timeout_s + (self.launched_at or begun) - min(0.5, timeout_s / 10)
        under_way_s = deadline - begun
        return under_way_s if under_way_s >= min(_LONGEST_LOOK_S, timeout_s / 2) else timeout_s

    # -- in the attempt's thread

    def make_folders(self) -> None:
        """Make the attempt's folder, with a private copy of the submission."""
        job, bounds = self.job, self._bounds
        try:
            self.log.begin()
            job.attempt_dir.mkdir(mode=0o700)
            for name in (SUBMISSIONS, PREDICTIONS, LOGS):
                (job.attempt_dir / name).mkdir()
            copy_submission(
                job.submission_dir,
                job.attempt_dir / SUBMISSIONS / job.submission,
                max_bytes=bounds.max_output_bytes,
                max_files=bounds.max_output_files,
            )
        except UnsafeTreeError as error:
            raise WorkerError(f"{job.submission_dir} changed while it was copied: {error}") from error
        except OSError as error:
            raise WorkerError(f"{error.filename}: cannot be written: {error.strerror}") from error

    def make(self) -> None:
        """Make the plug-in's object."""
        self.plug_in = self._class(self._config, self.job.submission)

    def set_up(self) -> None:
        """Call `setup`."""
        plug_in = self._made()
        self.was_begun = True
        plug_in.setup()
        self._refuse(plug_in.status, "setup", but={"initialized", "setup"})

    def launch(self) -> None:
        """Call `launch_submission`."""
        plug_in = self._made()
        plug_in.launch_submission()
        # Not `plug_in.status`, which would look at the run: that is a call of its own.
        status = _status_of(plug_in)
        if status in {"initialized", "setup"}:
            raise WorkerError(
                f"launch_submission() of {self._named} left the status {status!r}: it has to end with "
                "super().launch_submission()"
            )
        self._refuse(status, "launch_submission", but={"running", "finished", "timeout", "collected"})
        self.launched_at = clock.boottime()

    def look(self) -> None:
        """Ask for the status, which has the plug-in look at the run; follow its log."""
        # First: a plug-in that ends a process at its timeout leaves that one's own children to nobody.
        self.known = stray_processes.descendants_of(self.thread_ids, known=self.known)
        status = self._made().status
        self.log.follow()
        if status != "running":
            self._refuse(status, "_is_submission_finished", but={"finished", "timeout", "collected"})
            self.is_over = True

    def stop(self, *, is_overdue: bool) -> None:
        """Tell the plug-in that the run is over: it ran for too long, or it is not wanted any more."""
        plug_in = self._made()
        try:
            if is_overdue:
                plug_in.check_timeout()
        finally:
            if _status_of(plug_in) not in {"timeout", "finished", "collected"}:
                plug_in.status = "timeout" if is_overdue else "retry"

    def collect(self) -> tuple[int, str]:
        """Call `collect_results`."""
        return self._understood(self._made().collect_results())

    def tear_down(self) -> None:
        """Call `teardown`, in a status that a plug-in may ask for: what was not collected is tried again."""
        plug_in = self._made()
        if _status_of(plug_in) != "collected":
            plug_in.status = "retry"
        plug_in.teardown()

    def _made(self) -> BaseWorker:
        if self.plug_in is None:
            raise WorkerError(f"{self._named} was never made")
        return self.plug_in

    @property
    def _named(self) -> str:
        return f"{self._class.__module__}:{self._class.__qualname__}"

    def _refuse(self, status: object, method: str, *, but: set[str]) -> None:
        if status in but:
            return
        if status == "retry":
            raise WorkerLostError(f"{self._named} says that the run was interrupted")
        what = "which says that it cannot go on" if status in STATUSES else f"which is none of {', '.join(STATUSES)}"
        raise WorkerError(f"{self._named} has the status {_shown(status)} after {method}(), {what}")

    def _understood(self, returned: object) -> tuple[int, str]:
        if not isinstance(returned, tuple | list) or len(returned) != 2:  # noqa: PLR2004 -- (return code, message)
            raise WorkerError(
                f"collect_results() of {self._named} returned {_shown(returned)}; it has to return a tuple "
                "(return code, error message)"
            )
        code, message = returned
        if isinstance(message, bytes):
            message = message.decode("utf-8", "replace")
        status: int | None = None
        with suppress(TypeError):
            status = None if isinstance(code, bool) else operator.index(code)
        if status is None or abs(status) > _LARGEST_STATUS:
            raise WorkerError(
                f"collect_results() of {self._named} returned the return code {_shown(code)}; it has to be a whole "
                "number"
            )
        if not isinstance(message, str | None):
            raise WorkerError(
                f"collect_results() of {self._named} returned the error message {_shown(message)}; it has to be a text"
            )
        return status, message or ""

    # -- the end

    def add_caller(self) -> None:
        """Go on in another thread: the one before never came back."""
        self.callers.append(Caller(self.job.attempt_id))

    def release(self) -> bool:
        """End the threads; say whether nobody is in the attempt's folder any more.

        A thread that is still in a call removes the folder itself should it ever come back; where it was making
        something then, it tears that down before.
        """
        out = [caller for caller in self.callers if caller.is_busy and caller.is_alive]
        self._still_out = len(out)
        for caller in self.callers:
            caller.close(self._come_back if caller in out else _nothing)
        return not out

    def _come_back(self) -> None:
        with self._lock:
            self._still_out -= 1
            is_last = self._still_out == 0
            is_torn_down, self.is_torn_down = self.is_torn_down, True
        if self.was_begun and not is_torn_down:
            with suppress(BaseException):  # the last that it does, with nobody left to tell
                self.tear_down()
        if is_last:
            find = partial(stray_processes.processes_of, self.job.attempt_dir, (), self.known)
            stray_processes.end_all(find, patience_s=0.0)
            with suppress(OSError):  # the next start removes it
                remove_tree(self.job.attempt_dir)

    def sentence_of(self, method: str, error: BaseException) -> str:
        """Return what an exception of the plug-in's says, and where it came from."""
        where = ""
        if frames := traceback.extract_tb(error.__traceback__):
            where = f" ({frames[-1].filename}:{frames[-1].lineno})"
        return f"{method}() of {self._named} raised {_said(error)}{where}"

    def results_of(self, said: tuple[int, str] | None) -> Results:
        """Return what the plug-in left, and what it said of it; None where it was not asked, or did not answer.

        Raises
        ------
        WorkerError
            It said that all is well, and left nothing.
        """
        output = folder_below(self.job.attempt_dir, PREDICTIONS, self.job.submission)
        if said is None:
            return Results(self.exit(None), output or self._training_output(), self.job.log_path)
        status, message = said
        if status == 0:
            if output is None:
                raise WorkerError(
                    f"collect_results() of {self._named} returned 0 and left no folder "
                    f"{self.job.submission!r} in config['predictions_dir']"
                )
            return Results(self.exit(0), output, self.job.log_path)
        outcome = {TIMEOUT_STATUS: Outcome.TIMEOUT, PLATFORM_STATUS: Outcome.PLATFORM_ERROR}.get(
            status, Outcome.PARTICIPANT_ERROR
        )
        return Results(
            self.exit(status),
            output or self._training_output(),
            self.job.log_path,
            outcome=outcome,
            message=ramp_test.shown_message(message).replace(f"{self.job.attempt_dir}/", ""),
        )

    def _training_output(self) -> Path | None:
        """Return the private copy's own, where ramp-test ran on this machine: its traceback is worth having."""
        return folder_below(self.job.attempt_dir, SUBMISSIONS, self.job.submission, "training_output")

    def exit(self, status: int | None) -> Exit:
        """Return how the run ended, by the plug-in's word."""
        number = None
        if status is not None and status < 0:  # as subprocess has it
            status, number = 128 - status, -status
        return Exit(status, number, log_bytes=self.log.size, log_capped=self.log.is_capped)


def _nothing() -> None:
    """Be the last thing that a thread does which has nothing left to do."""


def _status_of(plug_in: BaseWorker) -> object:
    return vars(plug_in).get("_status", "initialized")


def _shown(value: object) -> str:
    """Return a short word for a foreign value. Not the `repr` of foreign classes, which may do anything."""
    if type(value) in (str, bytes, int, float, bool, type(None)):
        return f"{value!r:.80}"
    if type(value) in (tuple, list):
        return f"a {type(value).__name__} of {len(value)}"  # type: ignore[arg-type] # both have a length
    return f"an object of type {type(value).__name__}"


def _said(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 -- a plug-in's own exception may do anything
        text = ""
    return f"{type(error).__name__}: {text[:_SHOWN]}" if text else type(error).__name__
