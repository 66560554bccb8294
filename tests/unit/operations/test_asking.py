"""Asking a daemon for something, from outside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rampd import clock
from rampd.operations import asking
from rampd.state_lock import StateLock
from rampd.states import RequestKind
from support.event import EventRoom

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


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
