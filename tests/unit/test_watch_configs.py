"""Seeing that a config in a folder of events came, changed or went."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

import pytest

from rampd.watch import ConfigsWatch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PATIENCE_S = 10.0


@pytest.fixture
def events(tmp_path: Path) -> Path:
    """Give a folder with one event."""
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.yml").write_text("a", encoding="utf-8")
    return tmp_path


def _written(events: Path) -> None:
    (events / "one" / "config.yml").write_text("b", encoding="utf-8")


def _renamed_into_place(events: Path) -> None:
    (events / "one" / "new").write_text("b", encoding="utf-8")
    (events / "one" / "new").rename(events / "one" / "config.yml")


def _removed(events: Path) -> None:
    (events / "one" / "config.yml").unlink()


def _appeared(events: Path) -> None:
    (events / "two").mkdir()


def _gone(events: Path) -> None:
    shutil.rmtree(events / "one")


@pytest.mark.parametrize("poll", [False, True])
@pytest.mark.parametrize("change", [_written, _renamed_into_place, _removed, _appeared, _gone])
async def test_every_change_is_seen(events: Path, change: Callable[[Path], None], poll: bool) -> None:
    """With inotify at once, where there is none at the next interval."""
    async with ConfigsWatch(events, "config.yml", poll=poll, poll_interval_s=0.01) as watch:
        change(events)
        await asyncio.wait_for(watch.changed(), PATIENCE_S)


async def test_a_folder_that_appears_is_watched(events: Path) -> None:
    """The config that comes into it later is seen, too."""
    async with ConfigsWatch(events, "config.yml", poll=False) as watch:
        (events / "two").mkdir()
        await asyncio.wait_for(watch.changed(), PATIENCE_S)
        changing = asyncio.ensure_future(watch.changed())
        await asyncio.sleep(0)
        (events / "two" / "config.yml").write_text("a", encoding="utf-8")
        await asyncio.wait_for(changing, PATIENCE_S)


async def test_other_files_and_what_lies_deeper_are_none_of_its_business(events: Path) -> None:
    """The event's own folders are busy: the next thing seen is the config."""
    async with ConfigsWatch(events, "config.yml", poll=False) as watch:
        (events / "one" / "state").mkdir()
        (events / "one" / "state" / "config.yml").write_text("x", encoding="utf-8")
        (events / "one" / "notes.txt").write_text("x", encoding="utf-8")
        changing = asyncio.ensure_future(watch.changed())
        await asyncio.sleep(0.05)
        assert not changing.done()
        _written(events)
        await asyncio.wait_for(changing, PATIENCE_S)


async def test_a_missing_folder_is_polled_until_it_is_there(tmp_path: Path) -> None:
    """Then it is watched, and what is in it is looked at."""
    folder = tmp_path / "events"
    async with ConfigsWatch(folder, "config.yml", poll=False, poll_interval_s=0.01) as watch:
        await asyncio.wait_for(watch.changed(), PATIENCE_S)
        folder.mkdir()
        changing = asyncio.ensure_future(watch.changed())
        await asyncio.sleep(0.05)
        (folder / "one").mkdir()
        await asyncio.wait_for(changing, PATIENCE_S)


async def test_a_folder_that_goes_is_seen_and_polled_for(events: Path) -> None:
    """A deployment that is moved away and back is served again."""
    async with ConfigsWatch(events, "config.yml", poll=False, poll_interval_s=0.01) as watch:
        shutil.rmtree(events)
        for _ in range(3):
            await asyncio.wait_for(watch.changed(), PATIENCE_S)
        events.mkdir()  # noqa: ASYNC240 -- in memory
        await asyncio.wait_for(watch.changed(), PATIENCE_S)
