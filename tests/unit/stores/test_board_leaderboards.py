"""When leaderboards are built, and what a build that fails costs; tests/integration/stores has the real ones."""

from __future__ import annotations

import asyncio
import os
import tracemalloc
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from rampd.board_config import SqlalchemySection
from rampd.stores import board_leaderboards
from rampd.stores.board_leaderboards import Leaderboards, find_python
from support.event import find

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    Record = dict[str, Any]

SECTION = SqlalchemySection.model_validate({"drivername": "postgresql", "database": "d", "password": "made-up"})
# An interpreter that has ramp_database (`-c`), and whose builds say that they begin and end, and wait for `go_on`.
PYTHON = """#!/bin/sh
case "$2" in -c) exit 0 ;; esac
cat >"$0.asked"
mkdir "$0.alone" || echo twice >>"$0.said"
echo begun >>"$0.said"
until [ -e "$0.go_on" ]; do sleep 0.01; done
rmdir "$0.alone"
if [ -e "$0.warns" ]; then rm "$0.warns"; yes 'Warning: deprecated' | head -c 32000000 >&2; echo >&2; fi
if [ -e "$0.raves" ]; then rm "$0.raves"; exec yes 'Warning: deprecated' >&2; fi
if [ -e "$0.fails" ]; then rm "$0.fails"; echo 'Error: no kit' >&2; exit 1; fi
echo ended >>"$0.said"
"""


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the interpreter; nothing is waited for between builds."""
    for name in ("_GATHER_S", "_PAUSE_S", "_FIRST_RETRY_S"):
        monkeypatch.setattr(board_leaderboards, name, 0.01)
    path = tmp_path / "python"
    path.write_text(PYTHON, encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
async def pages(python: Path) -> AsyncIterator[Leaderboards]:
    """Give leaderboards; what is being built at the end is ended."""
    made = Leaderboards(SECTION, event_name="iris", python=python)
    yield made
    (python.parent / "python.go_on").touch()
    with suppress(TimeoutError):
        await asyncio.wait_for(made.close(), 30)


def said(python: Path) -> list[str]:
    """Return what the builds said so far."""
    path = python.with_name("python.said")
    return path.read_text(encoding="utf-8").split() if path.exists() else []


async def until(python: Path, *words: str) -> None:
    """Wait until the builds have said exactly this."""
    async with asyncio.timeout(30):
        while said(python) != list(words):  # noqa: ASYNC110 -- another process says it
            await asyncio.sleep(0.01)


async def test_one_build_runs_and_one_waits(pages: Leaderboards, python: Path, log_records: list[Record]) -> None:
    """However often they are asked for, what is asked for during a build is in one more after it."""
    for _ in range(5):
        pages.ask_for(final=True)
    await until(python, "begun")
    for _ in range(5):
        pages.ask_for(final=True)
        await asyncio.sleep(0.01)
    python.with_name("python.go_on").touch()
    await until(python, "begun", "ended", "begun", "ended")
    await asyncio.sleep(0)
    assert "made-up" in python.with_name("python.asked").read_text(encoding="utf-8")
    assert not find(log_records, "leaderboards.failed")


async def test_a_build_of_waiting_ones_alone_is_the_cheaper_one(
    pages: Leaderboards, python: Path, log_records: list[Record]
) -> None:
    """Everything is built where a submission has ended, the pages of waiting ones where none has."""
    python.with_name("python.go_on").touch()
    pages.ask_for(final=False)
    await until(python, "begun", "ended")
    assert '"final": false' in python.with_name("python.asked").read_text(encoding="utf-8")
    pages.ask_for(final=False)
    pages.ask_for(final=True)
    await until(python, *(["begun", "ended"] * 2))
    assert '"final": true' in python.with_name("python.asked").read_text(encoding="utf-8")


async def test_a_build_that_fails_is_tried_again(pages: Leaderboards, python: Path, log_records: list[Record]) -> None:
    """Its last line is logged, and nobody has to ask anew."""
    python.with_name("python.fails").touch()
    python.with_name("python.go_on").touch()
    pages.ask_for(final=True)
    await until(python, "begun", "begun", "ended")
    assert [one["error"] for one in find(log_records, "leaderboards.failed")] == ["Error: no kit"]


async def test_a_build_that_says_much_is_heard_out(
    pages: Leaderboards, python: Path, log_records: list[Record]
) -> None:
    """Megabytes of warnings neither stop it nor are kept; its last line is logged all the same."""
    for name in ("warns", "fails", "go_on"):
        python.with_name(f"python.{name}").touch()
    tracemalloc.start()
    try:
        pages.ask_for(final=True)
        await until(python, "begun", "begun", "ended")
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [one["error"] for one in find(log_records, "leaderboards.failed")] == ["Error: no kit"]
    assert most_bytes < 4_000_000


async def test_a_build_that_never_stops_talking_is_ended(
    pages: Leaderboards, python: Path, log_records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that prints without end has its time, and no more; the next one is built."""
    for name in ("raves", "go_on"):
        python.with_name(f"python.{name}").touch()
    monkeypatch.setattr(board_leaderboards, "_BUILD_S", 3.0)
    monkeypatch.setattr(board_leaderboards, "_FIRST_RETRY_S", 1.0)
    pages.ask_for(final=True)
    async with asyncio.timeout(30):
        while not find(log_records, "leaderboards.failed"):  # noqa: ASYNC110 -- another process is waited for
            await asyncio.sleep(0.01)
    monkeypatch.setattr(board_leaderboards, "_BUILD_S", 600.0)
    await until(python, "begun", "begun", "ended")
    assert find(log_records, "leaderboards.failed")[0]["error"] == "not done after 3 s"


async def test_the_last_changes_are_built_at_the_end(python: Path, log_records: list[Record]) -> None:
    """A daemon that ends cuts a build short, and leaves pages that have everything."""
    pages = Leaderboards(SECTION, event_name="iris", python=python)
    pages.ask_for(final=True)
    await until(python, "begun")
    python.with_name("python.alone").rmdir()
    python.with_name("python.go_on").touch()
    await pages.close()
    assert said(python)[-1] == "ended"
    assert "twice" not in said(python)


async def test_no_interpreter_is_one_warning(tmp_path: Path, python: Path, log_records: list[Record]) -> None:
    """Without ramp_database nothing is built, it is said once, and nothing else changes."""
    pages = Leaderboards(SECTION, event_name="iris", python=tmp_path / "none")
    for _ in range(3):
        pages.ask_for(final=True)
        async with asyncio.timeout(30):
            while not find(log_records, "leaderboards.unavailable"):  # noqa: ASYNC110 -- a process says it
                await asyncio.sleep(0.01)
    await pages.close()
    assert len(find(log_records, "leaderboards.unavailable")) == 1


async def test_the_first_interpreter_that_can_is_taken(
    python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the one that runs rampd has no ramp_database, python3 on PATH may."""
    (tmp_path / "python3").symlink_to(python)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert await find_python(None) == tmp_path / "python3"
    with pytest.raises(LookupError, match="--board-python"):
        await find_python(tmp_path / "none")
