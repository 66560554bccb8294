"""Asking a daemon for something, from outside."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

from rampd import clock
from rampd.errors import RampdError
from rampd.operations import asking
from rampd.state_lock import StateLock
from rampd.states import RequestKind, SubmissionState
from rampd.stores.staging import stage_submission
from support.event import EventRoom

if TYPE_CHECKING:
    from pathlib import Path


async def test_one_patience_serves_all_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that answers nothing is waited for once, however many submissions were named."""
    monkeypatch.setattr(asking, "_PATIENCE_S", 0.2)
    room = EventRoom(tmp_path)
    names = [f"one-{number}" for number in range(50)]
    for name in names:
        room.submit(name)
    async with room.opened() as event:
        settings = event.settings
    began = clock.boottime()
    with StateLock(settings.dispatcher.state_dir):  # somebody serves the event, and does not listen
        answers = await asking.ask(settings, RequestKind.CANCEL, names)
    assert [(answer.name, answer.accepted) for answer in answers] == [(name, None) for name in names]
    assert clock.boottime() - began < len(names) * 0.2


@pytest.mark.parametrize("has_ended", [False, True])
async def test_what_is_claimed_while_it_is_replaced_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_ended: bool
) -> None:
    """The old one may be what ran: the operator is told while it runs, and once it has ended the new one runs."""
    room = EventRoom(tmp_path)
    room.submit("one")
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "estimator.py").write_text("# new", encoding="utf-8")
    async with room.opened() as event:
        loop = asyncio.get_running_loop()

        async def serve() -> None:
            claimed = await event.store.claim()
            assert claimed is not None
            if has_ended:
                await event.store.set_failed(claimed.id, SubmissionState.CHECKING_ERROR, "")

        def stage_slowly(*arguments: Any, **options: Any) -> None:
            asyncio.run_coroutine_threadsafe(serve(), loop).result(10)
            stage_submission(*arguments, **options)

        monkeypatch.setattr(asking, "stage_submission", stage_slowly)
        if has_ended:
            submitted = await asking.submit(event.settings, folder, "one", replace=True)
            assert submitted.answer is not None
            (request,) = await event.journal.pending_requests()
            assert (request.kind, request.submission) == (RequestKind.RETRY, "one")
        else:
            with pytest.raises(RampdError, match="what runs may be what was there before"):
                await asking.submit(event.settings, folder, "one", replace=True)


async def test_what_is_interrupted_is_not_handed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while a large folder is copied: the copy does not appear a moment later."""
    room = EventRoom(tmp_path)
    async with room.opened() as event:
        settings = event.settings
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "estimator.py").write_text("# mine", encoding="utf-8")
    begun, go_on, ended = asyncio.Event(), threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def stage_slowly(*arguments: Any, **options: Any) -> None:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait(60)
        stage_submission(*arguments, **options)
        loop.call_soon_threadsafe(ended.set)

    monkeypatch.setattr(asking, "stage_submission", stage_slowly)
    submitting = asyncio.create_task(asking.submit(settings, folder, "mine", replace=False))
    await begun.wait()
    submitting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await submitting
    go_on.set()
    await ended.wait()
    assert list(settings.ramp.submissions_dir.iterdir()) == []
