"""Finding submissions as they arrive: what is complete at once, what settles first, what the watch misses."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from rampd import clock
from rampd.errors import StoreError
from rampd.stores import arrivals
from rampd.stores.folders import Seen, look
from rampd.watch import FolderWatch
from support.recording_registry import DeafWatch, RecordingRegistry
from support.store_room import StoreRoom, running, until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from rampd.stores.arrivals import Arrival, Arrivals

    Arriving = Callable[..., Arrivals]

_LONG_S = 3600.0


async def test_a_rename_is_taken_at_once(room: StoreRoom, registry: RecordingRegistry, arriving: Arriving) -> None:
    """What is moved in is complete: it does not have to settle."""
    async with running(arriving(_LONG_S).watch(), registry.scanned):
        room.move_in("good")
        await until(lambda: registry.names == ["good"], what="the arrival")


async def test_what_is_made_in_place_settles_first(
    room: StoreRoom, registry: RecordingRegistry, arriving: Arriving
) -> None:
    """A folder is taken once nothing in it has changed for settle_time, and no sooner."""
    async with running(arriving(0.2).watch(), registry.scanned):
        folder = room.make("good")
        await until(lambda: registry.names == ["good"], what="the arrival")
        assert registry.taken_at("good") >= (folder / "estimator.py").stat().st_ctime + 0.2


async def test_a_folder_that_grows_is_waited_for(
    room: StoreRoom, registry: RecordingRegistry, arriving: Arriving
) -> None:
    """Each write, however deep, begins the wait anew."""
    async with running(arriving(0.2).watch(), registry.scanned):
        inner = room.make("good") / "inner"
        inner.mkdir()
        for _ in range(6):
            with (inner / "data").open("ab") as file:
                file.write(b"more")
            await asyncio.sleep(0.06)
        await until(lambda: registry.names == ["good"], what="the arrival")
        assert registry.taken_at("good") >= (inner / "data").stat().st_ctime + 0.2


async def test_what_is_written_during_a_look_is_waited_for(
    room: StoreRoom, registry: RecordingRegistry, arriving: Arriving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look that takes longer than settle_time does not make what it saw that much older."""
    written: list[Path] = []

    def look_slowly(folder: Path) -> Seen:
        seen = look(folder)
        if not written:
            time.sleep(0.25)  # in its thread
            written.append(folder / "data")
            written[0].write_bytes(b"more")
        return seen

    monkeypatch.setattr(arrivals, "look", look_slowly)
    async with running(arriving(0.2).watch(), registry.scanned):
        room.make("good")
        await until(lambda: registry.names == ["good"], what="the arrival")
        assert registry.taken_at("good") >= written[0].stat().st_ctime + 0.2


async def test_old_mtimes_do_not_make_a_copy_complete(
    room: StoreRoom, registry: RecordingRegistry, arriving: Arriving
) -> None:
    """A copy that keeps its files' times is as young as it is."""
    finding = arriving(_LONG_S)
    room.make("copied", mtime=0.0)
    await finding.scan()
    assert registry.names == []
    assert finding.settling == 1


async def test_a_clock_that_runs_ahead_does_not_delay_for_ever(
    room: StoreRoom, registry: RecordingRegistry, arriving: Arriving
) -> None:
    """A folder from the future is taken once it was watched unchanged for settle_time."""
    room.make("ahead", mtime=clock.wall() + 86_400)
    began = clock.wall()
    async with running(arriving(0.1).watch(), registry.scanned):
        await until(lambda: registry.names == ["ahead"], what="the arrival")
        assert registry.taken_at("ahead") >= began + 0.1


async def test_an_empty_folder_waits_for_its_first_file(
    room: StoreRoom, registry: RecordingRegistry, arriving: Arriving
) -> None:
    """A folder without a file is none yet, and keeps nothing from ending; the file makes it one."""
    finding = arriving(0.05)
    async with running(finding.watch(), registry.scanned):
        folder = room.submissions / "slow"
        folder.mkdir()
        await until(lambda: "slow" in finding._pending, what="the look")
        assert finding.settling == 0
        (folder / "estimator.py").touch()
        await until(lambda: registry.names == ["slow"], what="the arrival")


async def test_an_empty_folder_that_is_moved_in_is_none_yet(
    room: StoreRoom, registry: RecordingRegistry, arriving: Arriving
) -> None:
    """A rename makes complete what has a file, not what is empty."""
    (room.root / "empty").mkdir()
    finding = arriving(0.05)
    async with running(finding.watch(), registry.scanned):
        (room.root / "empty").rename(room.submissions / "empty")
        await until(lambda: "empty" in finding._pending, what="the look")
        assert registry.names == []


async def test_an_empty_folder_is_looked_at_less_and_less(
    room: StoreRoom, registry: RecordingRegistry, arriving: Arriving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What never becomes a submission costs no more than the rescans do in the end, also without a settle_time."""
    looks: list[Path] = []

    def count_and_look(path: Path) -> Seen:
        looks.append(path)
        return look(path)

    monkeypatch.setattr(arrivals, "look", count_and_look)
    monkeypatch.setattr(arrivals, "_STALE_S", 0.3)
    (room.submissions / "empty").mkdir()
    finding = arriving(0.0)
    async with running(finding.watch(), registry.scanned):
        await until(lambda: finding._until_next_look_s(_LONG_S + time.monotonic()) > 60, what="the end of looking")
        assert 1 < len(looks) < 40
        before = len(looks)
        await finding.scan()
        assert len(looks) == before + 1
        assert finding._until_next_look_s(_LONG_S + time.monotonic()) > 60


async def test_what_settles_for_long_still_counts(
    room: StoreRoom, registry: RecordingRegistry, arriving: Arriving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event with a long settle_time does not end while a submission settles."""
    monkeypatch.setattr(arrivals, "_STALE_S", 0.0)
    room.make("slow")
    finding = arriving(_LONG_S)
    for _ in range(3):
        await finding.scan()
        assert finding.settling == 1


async def test_hidden_names_are_passed_over(room: StoreRoom, registry: RecordingRegistry, arriving: Arriving) -> None:
    """Neither taken nor rejected: what version control, editors, Python and our own staging leave."""
    finding = arriving()
    for name in (".git", ".submit-0123", "__pycache__"):
        room.make(name)
    async with running(finding.watch(), registry.scanned):
        room.move_in(".hidden")
        room.move_in("good")
        await until(lambda: registry.names == ["good"], what="the arrival")
    assert registry.rejected == []
    assert finding.settling == 0


async def test_a_rename_over_an_ended_one_is_a_change(
    room: StoreRoom, registry: RecordingRegistry, arriving: Arriving
) -> None:
    """What is put in the place of a submission that has run is said at once, and not run."""
    async with running(arriving(_LONG_S).watch(), registry.scanned):
        folder = room.move_in("ended")
        await until(lambda: registry.names == ["ended"], what="the arrival")
        registry.end("ended")
        folder.rename(room.root / "old")
        room.move_in("ended")
        await until(lambda: registry.changes == ["ended"], what="the change")
    assert registry.names == ["ended"]


async def test_one_that_is_forgotten_meanwhile_ends_nothing(
    room: StoreRoom, registry: RecordingRegistry, arriving: Arriving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A submission that a claim forgets between two statements of the watch is no error."""
    register = registry.register

    async def register_and_forget(found: Sequence[Arrival]) -> set[str]:
        await register(found)
        registry.rows.clear()
        return {one.name for one in found}

    async with running(arriving(_LONG_S).watch(), registry.scanned):
        monkeypatch.setattr(registry, "register", register_and_forget)
        room.move_in("one")
        await until(lambda: registry.names == ["one"], what="the first arrival")
        room.move_in("two")
        await until(lambda: registry.names == ["one", "two"], what="the second arrival")


async def test_a_polling_watch_finds_them_too(
    room: StoreRoom, registry: RecordingRegistry, arriving: Arriving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without inotify a look every moment finds what came, and what settled; an empty folder does not hold it up."""
    monkeypatch.setattr(arrivals, "FolderWatch", partial(FolderWatch, poll_interval_s=0.1))
    (room.submissions / "empty").mkdir()
    async with running(arriving(0.02, poll=True).watch(), registry.scanned):
        room.move_in("moved")
        room.make("made")
        await until(lambda: sorted(registry.names) == ["made", "moved"], what="the arrivals")


@pytest.mark.looptime
async def test_a_poll_is_not_put_off_by_a_caller_in_a_hurry(room: StoreRoom) -> None:
    """Somebody who has to look at something sooner, again and again, is still told when to look at everything."""
    async with FolderWatch(room.submissions, poll=True, poll_interval_s=1.0) as watch:
        for _ in range(9):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await watch.changes()
        async with asyncio.timeout(0.2):
            assert (await watch.changes()).rescan


async def test_a_rescan_finds_what_the_watch_missed(
    room: StoreRoom, registry: RecordingRegistry, arriving: Arriving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything is looked at from time to time although nothing was heard of."""
    monkeypatch.setattr(arrivals, "FolderWatch", DeafWatch)
    async with running(arriving(rescan_interval_s=0.05).watch(), registry.scanned):
        room.move_in("unheard")
        await until(lambda: registry.names == ["unheard"], what="the arrival")


async def test_trouble_with_the_database_does_not_end_the_watch(
    room: StoreRoom,
    registry: RecordingRegistry,
    arriving: Arriving,
    monkeypatch: pytest.MonkeyPatch,
    log_records: list[dict[str, object]],
) -> None:
    """It is said, and everything is looked at again a little later; nothing that arrived is lost."""
    monkeypatch.setattr(arrivals, "_STORE_RETRY_S", 0.02)
    registry.trouble = [StoreError("disk full"), OSError("gone")]
    room.make("good")
    async with running(arriving().watch(), registry.scanned):
        await until(lambda: registry.names == ["good"], what="the arrival")
        assert [record.get("error") for record in log_records] == ["disk full", "gone", None]
        registry.trouble = [StoreError("again")]
        room.submissions.rename(room.root / "away")
        await until(lambda: len(log_records) == 4, what="the trouble")
        room.move_in("later")
        await until(lambda: registry.names == ["good", "later"], what="the arrival after the trouble")
