"""What goes on in an event, as data: its daemon, why nothing runs if nothing does, and every submission."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rampd import clock
from rampd.config import UnknownWorkerTypeError
from rampd.errors import SubmissionRefusedError, UnknownSubmissionError
from rampd.operations.headline import headline
from rampd.operations.opening import opened
from rampd.state_lock import is_held
from rampd.states import SubmissionState
from rampd.stores.folders import check_name, is_ignored
from rampd.workers.registry import worker_class

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from rampd.config import Settings
    from rampd.journal import Journal, LatestAttempt
    from rampd.models import Attempt, Scores, Submission
    from rampd.operations.opening import OpenFiles

_RUNNING = (SubmissionState.SENT_TO_TRAINING, SubmissionState.TRAINING, SubmissionState.TESTED)


@dataclass(frozen=True, slots=True)
class SubmissionStatus:
    """One submission. Times are seconds since the epoch (UTC)."""

    name: str
    id: int | None
    """None for a folder that no daemon has seen yet."""
    state: SubmissionState
    attempt: int | None = None
    """The number of its latest attempt."""
    position: int | None = None
    """1 for the next one to run; None for what does not wait."""
    worker: str | None = None
    """The worker_type of its latest attempt."""
    started: float | None = None
    """When its latest attempt was launched."""
    queued: float | None = None
    changed: float | None = None
    """When it took its present state."""
    age_s: float | None = None
    """For how long it has been in its present state."""
    next_try: float | None = None
    """Until when it backs off after a platform fault."""
    where: Mapping[str, Any] = field(default_factory=dict)
    """Where it runs, by the names of `submission.started`: pid, host, …; empty for what does not run."""
    outcome: str | None = None
    """How its latest attempt ended."""
    reason: str | None = None
    """Why it waits again, for the operator."""
    error_msg: str = ""
    """What its participant sees."""

    @property
    def is_running(self) -> bool:
        """Whether it has a slot."""
        return self.state in _RUNNING


@dataclass(frozen=True, slots=True)
class EventStatus:
    """One event."""

    event: str
    daemon: Mapping[str, Any] | None
    """pid, run, version, started_at, n_workers, worker_type; the pid alone while it starts, and of `rampctl run`; None
    where no daemon serves it."""
    head: str
    """One line: what runs, or why nothing does."""
    counts: Mapping[str, int]
    submissions: Sequence[SubmissionStatus]
    held: Mapping[str, Any] | None = None
    drained: Mapping[str, Any] | None = None
    settling: Mapping[str, Any] | None = None
    no_capacity: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class SubmissionDetails:
    """One submission with all that is known of it."""

    status: SubmissionStatus
    history: Sequence[tuple[SubmissionState, float]] = ()
    attempts: Sequence[Attempt] = ()
    scores: Scores = field(default_factory=dict)
    log_path: str = ""


async def look_at_event(settings: Settings) -> EventStatus:
    """Return the status of an event.

    Raises
    ------
    StoreError
        Its files cannot be read.
    """
    async with opened(settings) as files:
        submissions = await _submissions(settings, files)
        facts = await _facts(files.journal)
    pid = is_held(settings.dispatcher.state_dir)
    counts = dict.fromkeys(map(str, SubmissionState), 0)
    for submission in submissions:
        counts[submission.state] += 1
    introduced = facts.get("daemon") or {}
    if pid is None or (pid and introduced.get("pid") != pid):
        # What an earlier daemon left behind says nothing of now; only the operator's own word stands.
        facts, introduced = {"drained": facts.get("drained")}, {}
    daemon = {**introduced, "pid": introduced.get("pid", pid)} if pid is not None else None
    return EventStatus(
        event=settings.ramp.event_name,
        daemon=daemon,
        head=headline(settings, daemon, facts, submissions),
        counts=counts,
        submissions=submissions,
        held=facts.get("held"),
        drained=facts.get("drained"),
        settling=facts.get("settling"),
        no_capacity=facts.get("no_capacity"),
    )


async def look_at_submission(settings: Settings, name: str) -> SubmissionDetails:
    """Return everything about one submission.

    Raises
    ------
    UnknownSubmissionError
        There is none of that name.
    """
    async with opened(settings) as files:
        found = next((one for one in await _submissions(settings, files) if one.name == name), None)
        if found is None:
            if files.store is not None:
                await files.store.get(name)  # raises, with the nearest names
            raise UnknownSubmissionError(name)
        log_path = str(settings.ramp.logs_dir / name / "log")
        if found.id is None or files.store is None:
            return SubmissionDetails(found, log_path=log_path)
        return SubmissionDetails(
            found,
            history=await files.store.history(found.id),
            attempts=await files.journal.attempts(found.id) if files.journal else (),
            scores=await files.store.scores_of(found.id),
            log_path=log_path,
        )


async def states_of(settings: Settings, name: str) -> AsyncGenerator[SubmissionState, None]:
    """Yield a submission's state, for ever, as it is whenever the next one is asked for.

    The event's files are opened once for all looks: opening them reads them whole.

    Raises
    ------
    UnknownSubmissionError
        There is none of that name.
    """
    while True:
        async with opened(settings) as files:
            with suppress(UnknownSubmissionError):
                while files.store is not None:
                    yield (await files.store.get(name)).state
        # No daemon has seen it yet.
        yield (await look_at_submission(settings, name)).status.state


async def _facts(journal: Journal | None) -> dict[str, Any]:
    return await journal.facts() if journal is not None else {}


async def _submissions(settings: Settings, files: OpenFiles) -> list[SubmissionStatus]:
    stored = await files.store.list() if files.store is not None else []
    attempts = await files.journal.latest_attempts() if files.journal is not None else {}
    backoffs = await files.journal.backoffs() if files.journal is not None else {}
    now = clock.wall()
    shown: list[SubmissionStatus] = []
    position = 0
    for submission in stored:
        is_waiting = submission.state is SubmissionState.NEW
        position += is_waiting
        shown.append(
            _status_of(
                submission,
                attempts.get(submission.id),
                now,
                position=position if is_waiting else None,
                next_try=backoffs.get(submission.id),
            )
        )
    for name in _unseen(settings, {submission.name for submission in stored}):
        position += 1
        shown.append(SubmissionStatus(name, None, SubmissionState.NEW, position=position))
    return shown


def _status_of(
    submission: Submission, attempt: LatestAttempt | None, now: float, *, position: int | None, next_try: float | None
) -> SubmissionStatus:
    waits = submission.state is SubmissionState.NEW
    return SubmissionStatus(
        name=submission.name,
        id=submission.id,
        state=submission.state,
        attempt=attempt.number if attempt else None,
        position=position,
        worker=attempt.worker_type if attempt else None,
        started=attempt.launched_at if attempt and not waits else None,
        queued=submission.queued_at,
        changed=submission.state_at,
        age_s=max(0.0, now - submission.state_at),
        next_try=next_try if waits and next_try is not None and next_try > now else None,
        where=_where(attempt) if attempt and not waits else {},
        outcome=attempt.outcome if attempt else None,
        reason=attempt.reason or None if attempt else None,
        error_msg=submission.error_msg,
    )


def _where(attempt: LatestAttempt) -> Mapping[str, Any]:
    if attempt.allocation is None:
        return {}
    try:
        model = worker_class(attempt.worker_type).allocation_model
        return model.model_validate_json(attempt.allocation).whereabouts()
    except (UnknownWorkerTypeError, ValueError):  # the plug-in that wrote it is gone, or another version of it is here
        return {}


def _unseen(settings: Settings, known: set[str]) -> list[str]:
    """Return the names of folders that are submissions to all appearances and that no daemon has looked at yet.

    On a board there are none: its rows alone say what a submission is.
    """
    if settings.board is not None:
        return []
    found: list[tuple[float, str]] = []
    try:
        with os.scandir(settings.ramp.submissions_dir) as entries:
            for entry in entries:
                name = entry.name
                if name in known or name == settings.ramp.sandbox_dir or is_ignored(name):
                    continue
                try:
                    check_name(name)
                except SubmissionRefusedError:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    found.append((entry.stat(follow_symlinks=False).st_mtime, name))
    except OSError:
        return []
    return [name for _, name in sorted(found)]
