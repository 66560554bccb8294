"""Asking an event's daemon for something: through its journal, so that it works while no daemon runs as well."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rampd import clock
from rampd.errors import RampdError, SubmissionRefusedError, UnknownSubmissionError
from rampd.operations.opening import opened, wake
from rampd.states import FINAL_STATES, RequestKind, SubmissionState
from rampd.stores.folders import check_name
from rampd.stores.staging import stage_submission

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rampd.config import Settings
    from rampd.journal import Journal
    from rampd.operations.opening import OpenFiles

_PATIENCE_S = 5.0
_LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request."""

    name: str
    accepted: bool | None
    """None: no daemon has answered yet; the next one will."""
    message: str


@dataclass(frozen=True, slots=True)
class Submitted:
    """A submission that was handed in."""

    name: str
    path: Path
    is_replacement: bool
    answer: Answer | None
    """To the retry that goes with a replaced submission that has ended before."""


async def ask(settings: Settings, kind: RequestKind, names: Sequence[str]) -> list[Answer]:
    """Ask for something for each of these submissions, and wait up to 5 s for a daemon's answers.

    Raises
    ------
    UnknownSubmissionError
        There is no such submission; nothing was asked for then.
    StoreError
        The journal cannot be written.
    """
    async with opened(settings, create=True) as files:
        for name in names:
            await _make_sure_of(settings, files, name)
        journal = files.journal
        assert journal is not None  # noqa: S101 -- create=True
        ids = {name: await journal.request(kind, name) for name in names}
        if wake(settings) is None:
            return [Answer(name, None, "noted: it is done when a daemon starts") for name in names]
        deadline = clock.boottime() + _PATIENCE_S  # for all of them
        return [await _answer_to(journal, request_id, name, deadline=deadline) for name, request_id in ids.items()]


async def _make_sure_of(settings: Settings, files: OpenFiles, name: str) -> None:
    with suppress(SubmissionRefusedError):
        check_name(name)
        if settings.board is None and (settings.ramp.submissions_dir / name).is_dir():
            return
    if files.store is None:
        raise UnknownSubmissionError(name)
    await files.store.get(name)


async def _answer_to(journal: Journal, request_id: int, name: str, *, deadline: float) -> Answer:
    while True:
        request = await journal.get_request(request_id)
        if request.accepted is not None:
            return Answer(name, request.accepted, request.answer or "")
        if clock.boottime() > deadline:
            return Answer(
                name, None, "noted: the daemon has not answered within 5 s; rampctl status shows what it does"
            )
        await asyncio.sleep(_LOOK_S)


async def set_drained(settings: Settings, *, drained: bool) -> bool:
    """Have the event claim no more, or claim again; return whether a daemon serves it now.

    Raises
    ------
    StoreError
        The journal cannot be written.
    """
    async with opened(settings, create=True) as files:
        assert files.journal is not None  # noqa: S101 -- create=True
        if not drained:
            await files.journal.delete("drained")
        elif await files.journal.get("drained") is None:
            await files.journal.put("drained", {"since": clock.wall()})
    return wake(settings) is not None


async def submit(settings: Settings, folder: Path, name: str, *, replace: bool) -> Submitted:
    """Hand a submission in, atomically.

    Parameters
    ----------
    settings
        The event's.
    folder
        What is copied.
    name
        The submission's.
    replace
        Put it in the place of one of the same name; one that has ended runs again then.

    Raises
    ------
    AlreadySubmittedError
        There is one of that name, and `replace` was not asked for.
    SubmissionRefusedError
        It is no submission, or the name is no submission's.
    RampdError
        The one to be replaced is running, or began to meanwhile.
    StoreError
        It cannot be written.
    """
    if settings.board is not None:
        raise RampdError("submissions to this event arrive through ramp-frontend; submit it there")
    try:
        check_name(name)
    except SubmissionRefusedError as refusal:
        raise SubmissionRefusedError(refusal.reason, f"{name!r}: {refusal}; choose one with --name") from None
    if name == settings.ramp.sandbox_dir:
        raise SubmissionRefusedError(
            "sandbox", f"{name!r} is the event's sandbox, which is never run; choose another --name"
        )
    ramp = settings.ramp
    was_there = (ramp.submissions_dir / name).exists()
    state = await _state_of(settings, name) if replace and was_there else None
    if state is not None and state is not SubmissionState.NEW and state not in FINAL_STATES:
        raise RampdError(f"{name!r} is running ({state}); cancel it, or wait for its end, before it is replaced")
    await _stage(folder, ramp.submissions_dir, name, replace=replace)
    if state is SubmissionState.NEW:
        # Copying takes its time, in which a daemon may have claimed, and even ended, what was there before.
        state = await _state_of(settings, name)
        if state is not None and state is not SubmissionState.NEW and state not in FINAL_STATES:
            raise RampdError(
                f"{name!r} was replaced, and claimed meanwhile: what runs may be what was there before; "
                f"when it has ended: rampctl retry {name}"
            )
    answer = None
    if state in FINAL_STATES:
        (answer,) = await ask(settings, RequestKind.RETRY, [name])
    return Submitted(name, ramp.submissions_dir / name, was_there, answer)


async def _stage(folder: Path, submissions_dir: Path, name: str, *, replace: bool) -> None:
    """Stage in a thread, which goes on after a cancellation, and then leaves nothing behind."""
    given_up = threading.Event()
    try:
        await asyncio.to_thread(
            stage_submission, folder, submissions_dir, name, replace=replace, is_given_up=given_up.is_set
        )
    except asyncio.CancelledError:
        given_up.set()
        raise


async def _state_of(settings: Settings, name: str) -> SubmissionState | None:
    async with opened(settings) as files:
        if files.store is None:
            return None
        try:
            return (await files.store.get(name)).state
        except UnknownSubmissionError:
            return None
