"""Whether an attempt was cancelled: by the order of what happened, whatever was done to the clock meanwhile."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import AsyncExitStack, closing
from typing import TYPE_CHECKING

import pytest

from rampd import clock
from rampd.journal import Journal
from rampd.journal_schema import SCHEMA
from rampd.states import RequestKind
from support.attempts import ONE, TWO

if TYPE_CHECKING:
    from pathlib import Path

    from rampd.models import Submission

_HOUR_S = 3600.0
_EARLIER = SCHEMA.replace("    after_cancel INTEGER,\n", "")


async def _cancel(journal: Journal, submission: Submission, *, accepted: bool = True) -> None:
    await journal.answer(await journal.request(RequestKind.CANCEL, submission.name), "an answer", accepted=accepted)


def _set_clock(monkeypatch: pytest.MonkeyPatch, by_s: float) -> None:
    now = clock.wall()
    monkeypatch.setattr(clock, "wall", lambda: now + by_s)


@pytest.mark.parametrize("by_s", [-_HOUR_S, 0.0, _HOUR_S])
async def test_a_cancel_that_was_accepted_during_an_attempt(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, by_s: float
) -> None:
    """It is that attempt's, and nobody else's."""
    attempt, other = await journal.open_attempt(ONE, "conda"), await journal.open_attempt(TWO, "conda")
    _set_clock(monkeypatch, by_s)
    await _cancel(journal, ONE)
    assert await journal.is_cancelled(attempt)
    assert not await journal.is_cancelled(other)


@pytest.mark.parametrize("by_s", [-_HOUR_S, 0.0, _HOUR_S])
async def test_a_cancel_that_was_accepted_before_an_attempt(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, by_s: float
) -> None:
    """The operator had it tried again since: the earlier cancel is over."""
    earlier = await journal.open_attempt(ONE, "conda")
    await _cancel(journal, ONE)
    _set_clock(monkeypatch, by_s)
    later = await journal.open_attempt(ONE, "conda")
    assert await journal.is_cancelled(earlier)
    assert not await journal.is_cancelled(later)
    await _cancel(journal, ONE)
    assert await journal.is_cancelled(later)


async def test_a_cancel_that_was_asked_for_before_an_attempt_and_accepted_during_it(journal: Journal) -> None:
    """What counts is when it was accepted."""
    request_id = await journal.request(RequestKind.CANCEL, ONE.name)
    attempt = await journal.open_attempt(ONE, "conda")
    assert not await journal.is_cancelled(attempt)
    await journal.answer(request_id, "it is being stopped", accepted=True)
    assert await journal.is_cancelled(attempt)


async def test_a_cancel_that_was_refused_is_none(journal: Journal) -> None:
    """Nor is a retry."""
    attempt = await journal.open_attempt(ONE, "conda")
    await _cancel(journal, ONE, accepted=False)
    await journal.answer(await journal.request(RequestKind.RETRY, ONE.name), "it waits", accepted=True)
    assert not await journal.is_cancelled(attempt)


@pytest.mark.parametrize(("answered_at", "is_cancelled"), [(99.0, False), (101.0, True)])
async def test_an_attempt_of_an_earlier_version(tmp_path: Path, *, answered_at: float, is_cancelled: bool) -> None:
    """It noted no request, so the time decides; its file goes on working with the earlier version."""
    path = tmp_path / "journal.sqlite3"
    insert = "INSERT INTO attempts (id, submission, submission_id, number, worker_type, step, opened_at) VALUES "
    with closing(sqlite3.connect(path, isolation_level=None)) as earlier:
        earlier.executescript(f"{_EARLIER};{insert} ('first', 'one', 1, 1, 'conda', 'opened', 100.0)")
        earlier.execute(
            "INSERT INTO requests VALUES (1, 'cancel', 'one', 98.0, ?, 'it is being stopped', 1)", (answered_at,)
        )
        earlier.execute("PRAGMA user_version=1")
        for _ in range(2):
            async with AsyncExitStack() as stack:
                journal = Journal(path)
                await journal.open(stack)
                (attempt,) = await journal.attempts(1)
                assert await journal.is_cancelled(attempt) is is_cancelled
        earlier.execute(f"{insert} ('second', 'one', 1, 2, 'conda', 'opened', 102.0)")
        assert earlier.execute("SELECT after_cancel FROM attempts").fetchall() == [(None,), (None,)]


async def test_many_open_a_file_of_an_earlier_version_at_once(tmp_path: Path) -> None:
    """Whoever comes first adds what is lacking; nobody fails."""
    path = tmp_path / "journal.sqlite3"
    with closing(sqlite3.connect(path, isolation_level=None)) as earlier:
        earlier.executescript(f"{_EARLIER};PRAGMA user_version=1")
    async with AsyncExitStack() as stack:
        journals = [Journal(path) for _ in range(8)]
        async with asyncio.TaskGroup() as group:
            for journal in journals:
                group.create_task(journal.open(stack))
        attempts = [await journal.open_attempt(ONE, "conda") for journal in journals]
        await _cancel(journals[0], ONE)
        assert all([await journals[-1].is_cancelled(attempt) for attempt in attempts])
    with closing(sqlite3.connect(path)) as file:
        assert {row[0] for row in file.execute("SELECT after_cancel FROM attempts")} == {0}
