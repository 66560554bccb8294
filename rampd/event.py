"""One event's rooms: its settings, store, journal and worker, opened together and closed in reverse."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rampd import ramp_test
from rampd.board_config import board_of_process, load_board
from rampd.config import Settings, load_config
from rampd.errors import StoreError
from rampd.journal import Journal
from rampd.models import Job
from rampd.states import Step
from rampd.stores.directory import DirectoryStore
from rampd.workers.base import Worker, WorkerContext
from rampd.workers.registry import worker_class, worker_model

if TYPE_CHECKING:
    from contextlib import AsyncExitStack
    from pathlib import Path

    from rampd.board_config import BoardSettings
    from rampd.models import Attempt, Submission
    from rampd.stores.base import SubmissionStore
    from rampd.workers.base import Allocation

ATTEMPTS_FOLDER = "attempts"
STORE_FILE = "submissions.sqlite3"
JOURNAL_FILE = "journal.sqlite3"
WAKE_FILE = "wake"
"""`rampctl` touches it in state_dir after a request."""


def load_settings(path: Path, *, deployment_dir: Path | None = None) -> Settings:
    """Read one event's config with the installed workers' models, and the board's where this process was given one.

    Parameters
    ----------
    path
        The event's config.
    deployment_dir
        What its relative paths are relative to; None for the place that it implies. With a board, a config that is
        not at `events/<event>/config.yml` implies the folder of the board's, as for RAMP's own dispatcher.

    Raises
    ------
    ConfigError
        With every problem of the file.
    """
    given = board_of_process.get()
    if given is None:
        return load_config(path, worker_models=worker_model, deployment_dir=deployment_dir)
    if deployment_dir is None and path.absolute().parent.parent.name != "events":
        deployment_dir = given.database_config.absolute().parent
    settings = load_config(path, worker_models=worker_model, deployment_dir=deployment_dir)
    return replace(settings, board=load_board(given))


@dataclass(frozen=True, slots=True)
class Event:
    """Everything that one event needs, each part the sole owner of what it keeps."""

    settings: Settings
    store: SubmissionStore
    journal: Journal
    worker: Worker[Any]

    @classmethod
    def build(cls, settings: Settings) -> Event:
        """Put the parts together; nothing is opened yet."""
        journal = build_journal(settings)
        return cls(settings, build_store(settings), journal, build_worker(settings, journal))

    async def open(self, stack: AsyncExitStack) -> None:
        """Make the event's folders and open every part.

        Raises
        ------
        StoreError
            A folder or a database cannot be made or written.
        WorkerError
            The worker cannot work on this machine.
        """
        make_folders(self.settings)
        await self.journal.open(stack)
        await self.store.open(stack)
        await self.store.prepare()
        await self.worker.open(stack)

    def reloaded(self, settings: Settings) -> Event:
        """Return the same event under other settings: what has the present one goes on with what it started with.

        Parameters
        ----------
        settings
            They differ in nothing that needs the event opened anew; see `rampd.reloading`.
        """
        self.worker.reconfigure(
            settings.worker,
            replace(self.worker.context, time_between_collection_s=settings.dispatcher.time_between_collection),
        )
        self.store.reconfigure(settle_time_s=settings.dispatcher.settle_time)
        return replace(self, settings=settings)

    def job(self, submission: Submission, attempt: Attempt) -> Job:
        """Return what a worker needs to know of one attempt."""
        ramp = self.settings.ramp
        return Job(
            event_name=ramp.event_name,
            submission=submission.name,
            submission_id=submission.id,
            attempt=attempt.number,
            attempt_id=attempt.id,
            submission_dir=self.store.submission_dir(submission),
            attempt_dir=self.settings.dispatcher.state_dir / ATTEMPTS_FOLDER / attempt.id,
            kit_dir=ramp.kit_dir,
            data_dir=ramp.data_dir,
            log_path=ramp.logs_dir / submission.name / "log",
            timeout_s=self.settings.worker.timeout,
            n_threads=self.settings.dispatcher.n_threads,
            recorded=attempt.allocation if attempt.step is Step.OPENED else None,
        )


def build_store(settings: Settings) -> SubmissionStore:
    """Return the event's store, not yet opened."""
    ramp, dispatcher = settings.ramp, settings.dispatcher
    if settings.board is not None:
        return _build_board_store(settings, settings.board)
    return DirectoryStore(
        dispatcher.state_dir / STORE_FILE,
        submissions_dir=ramp.submissions_dir,
        predictions_dir=ramp.predictions_dir,
        logs_dir=ramp.logs_dir,
        sandbox_dir=ramp.sandbox_dir,
        settle_time_s=dispatcher.settle_time,
        read_scores=ramp_test.read_scores,
    )


def _build_board_store(settings: Settings, board: BoardSettings) -> SubmissionStore:
    """Return the store on a RAMP board; its libraries are the extra rampd[board], imported here alone."""
    try:
        from rampd.stores.board_leaderboards import Leaderboards  # noqa: PLC0415 -- only where there is a board
        from rampd.stores.rampboard import RampBoardStore  # noqa: PLC0415 -- as above
    except ModuleNotFoundError as error:
        raise StoreError(
            f"--database-config needs {error.name}, which is not installed; pip install 'rampd[board]'"
        ) from error
    event_name = settings.ramp.event_name
    return RampBoardStore(
        board.database,
        event_name=event_name,
        submissions_dir=settings.ramp.submissions_dir,
        predictions_dir=settings.ramp.predictions_dir,
        state_dir=settings.dispatcher.state_dir,
        only_while_open=board.only_while_open,
        leaderboards=Leaderboards(board.database, event_name=event_name, python=board.python),
    )


def build_journal(settings: Settings) -> Journal:
    """Return the event's journal, not yet opened."""
    return Journal(settings.dispatcher.state_dir / JOURNAL_FILE)


def build_worker(settings: Settings, journal: Journal | None = None) -> Worker[Any]:
    """Return the event's worker, not yet opened. Without a journal it can be asked, but run nothing."""
    ramp, dispatcher = settings.ramp, settings.dispatcher

    async def record(attempt_id: str, allocation: Allocation) -> None:
        if journal is None:
            raise StoreError("nothing can be recorded: the worker was built without a journal")
        await journal.record_beginning(attempt_id, allocation.model_dump_json())

    context = WorkerContext(
        event_name=ramp.event_name,
        deployment_dir=settings.deployment_dir,
        kit_dir=ramp.kit_dir,
        data_dir=ramp.data_dir,
        state_dir=dispatcher.state_dir,
        time_between_collection_s=dispatcher.time_between_collection,
        record=record,
        submissions_dir=ramp.submissions_dir,
        predictions_dir=ramp.predictions_dir,
        logs_dir=ramp.logs_dir,
    )
    return worker_class(settings.worker.worker_type)(settings.worker, context)


def make_folders(settings: Settings) -> None:
    """Make the event's own folders where they are missing.

    Raises
    ------
    StoreError
        One cannot be made; the message names it.
    """
    ramp = settings.ramp
    # Attempts' folders may belong to another user (worker.run_as), who must be able to pass through, not to look.
    for folder, mode in (
        (settings.dispatcher.state_dir, 0o711),
        (settings.dispatcher.state_dir / ATTEMPTS_FOLDER, 0o711),
        (ramp.submissions_dir, 0o755),
        (ramp.predictions_dir, 0o755),
        (ramp.logs_dir, 0o755),
    ):
        try:
            folder.mkdir(mode=mode, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{folder}: cannot be made: {error.strerror}; make it, or mend its owner") from error
