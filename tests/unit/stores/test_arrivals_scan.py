"""One look at everything: what is new, what is no submission, what went and what changed after its end."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from rampd.errors import SubmissionRefusedError
from rampd.states import SubmissionState
from rampd.stores import arrivals
from support.store_room import StoreRoom, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rampd.stores.arrivals import Arrivals
    from support.recording_registry import RecordingRegistry

    Arriving = Callable[..., Arrivals]

_LONG_S = 3600.0


async def test_the_oldest_goes_first(room: StoreRoom, registry: RecordingRegistry, arriving: Arriving) -> None:
    """What one look finds is queued in the order in which it was made, not by name."""
    for name in ("c", "a", "b"):
        made = (room.make(name) / "estimator.py").stat().st_ctime_ns
        # ctime moves in the kernel's ticks: what is made in one tick is of one age.
        await until(lambda made=made: _touched(room.root / "tick") > made)  # type: ignore[misc] # mypy 1.15
    await arriving().scan()
    assert registry.names == ["c", "a", "b"]


def _touched(path: Path) -> int:
    path.unlink(missing_ok=True)
    path.touch()
    return path.stat().st_ctime_ns


async def test_many_at_once_are_all_taken(
    room: StoreRoom, registry: RecordingRegistry, arriving: Arriving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look in batches misses nothing and takes nothing twice."""
    monkeypatch.setattr(arrivals, "_BATCH", 3)
    for number in range(10):
        room.make(f"s{number}")
    finding = arriving()
    await finding.scan()
    await finding.scan()
    assert sorted(registry.names) == [f"s{number}" for number in range(10)]


async def test_names_are_read_in_batches(
    room: StoreRoom, registry: RecordingRegistry, arriving: Arriving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whichever batch a name is: what waits there stays, what went is forgotten, a rejection is said once."""
    monkeypatch.setattr(arrivals, "_NAMES", 3)
    for number in range(10):
        room.make(f"s{number}")
        (room.submissions / f"file{number}").touch()
    finding = arriving()
    await finding.scan()
    (room.submissions / "s5").rename(room.root / "s5")
    (room.submissions / "file5").unlink()
    await finding.scan()
    assert registry.forgotten == ["s5"]
    assert sorted(registry.rows) == [f"s{number}" for number in range(10) if number != 5]
    assert sorted(one.name for one in registry.rejected) == [f"file{number}" for number in range(10)]
    assert "'file5'" not in registry.stamps


async def test_what_the_reading_missed_is_not_forgotten(
    room: StoreRoom, registry: RecordingRegistry, arriving: Arriving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that was replaced while the names were read may be in none of them, and keeps its place."""
    finding = arriving()
    room.make("replaced")
    await finding.scan()
    monkeypatch.setattr(finding, "_iterate_names", lambda: iter(()))
    await finding.scan()
    assert registry.forgotten == []


async def test_what_is_gone_before_it_runs_is_forgotten(
    room: StoreRoom, registry: RecordingRegistry, arriving: Arriving
) -> None:
    """A waiting submission goes with its folder; one that has begun stays."""
    finding = arriving()
    moved = [room.make("waiting"), room.make("running")]
    await finding.scan()
    registry.end("running", SubmissionState.TRAINING)
    for folder in moved:
        folder.rename(room.root / folder.name)
    await finding.scan()
    assert registry.forgotten == ["waiting"]
    assert list(registry.rows) == ["running"]


async def test_what_goes_while_it_settles_is_no_longer_waited_for(
    room: StoreRoom, registry: RecordingRegistry, arriving: Arriving
) -> None:
    """A folder that was taken back leaves no trace."""
    finding = arriving(_LONG_S)
    folder = room.make("back")
    await finding.scan()
    assert finding.settling == 1
    folder.rename(room.root / "elsewhere")
    await finding.scan()
    assert finding.settling == 0


async def test_a_missing_folder_is_made(room: StoreRoom, registry: RecordingRegistry, arriving: Arriving) -> None:
    """submissions_dir that went, or never was, is there after a look."""
    room.submissions.rmdir()
    await arriving().scan()
    assert room.submissions.is_dir()


async def test_names_of_one_rendering_are_rejected_once_each(
    room: StoreRoom, registry: RecordingRegistry, arriving: Arriving
) -> None:
    """Two long names, or an escaped one and a literal one, that look alike do not overwrite each other."""
    names = ["x" * 200 + "1", "x" * 200 + "2", "a\nb", "a\\nb"]
    for name in names:
        room.make(name)
    finding = arriving()
    for _ in range(3):
        await finding.scan()
    assert sorted(one.name for one in registry.rejected) == sorted(names)
    assert len({one.shown for one in registry.rejected}) == 2


async def test_what_changed_is_rejected_again(room: StoreRoom, registry: RecordingRegistry, arriving: Arriving) -> None:
    """A rejected thing is looked at anew after each change, and once it is mended it is taken."""
    finding = arriving()
    folder = room.make("mended")
    os.mkfifo(folder / "fifo")
    await finding.scan()
    await finding.scan()
    assert [one.reason for one in registry.rejected] == ["special_file"]
    (folder / "escape").symlink_to("/etc/passwd")
    await finding.scan()
    assert len(registry.rejected) == 2
    (folder / "fifo").unlink()
    (folder / "escape").unlink()
    await finding.scan()
    assert registry.names == ["mended"]


async def test_what_went_and_came_back_is_rejected_again(
    room: StoreRoom, registry: RecordingRegistry, arriving: Arriving
) -> None:
    """A rejection is forgotten with its cause."""
    finding = arriving()
    (room.submissions / "file").touch()
    await finding.scan()
    (room.submissions / "file").unlink()
    await finding.scan()
    assert registry.stamps == {}
    (room.submissions / "file").touch()
    await finding.scan()
    assert [one.name for one in registry.rejected] == ["file", "file"]


async def test_the_sandbox_is_rejected_once_and_for_all(
    room: StoreRoom, registry: RecordingRegistry, arriving: Arriving
) -> None:
    """The starting kit is never run, and editing it is nothing to speak of."""
    finding = arriving()
    folder = room.make("kit")
    await finding.scan()
    (folder / "more.py").touch()
    await finding.scan()
    await finding.scan()
    assert [(one.name, one.reason) for one in registry.rejected] == [("kit", "sandbox")]
    assert registry.names == []


@pytest.mark.parametrize("state", [state for state in SubmissionState if state.is_final])
async def test_a_change_after_the_end_is_noted_once(
    room: StoreRoom, registry: RecordingRegistry, arriving: Arriving, state: SubmissionState
) -> None:
    """Each change of an ended submission's folder is said once, and does not queue it."""
    finding = arriving()
    folder = room.make("ended")
    await finding.scan()
    registry.end("ended", state)
    await finding.scan()
    assert registry.changes == []
    for count in (1, 2):
        (folder / "estimator.py").write_text("x" * count * 100, encoding="utf-8")
        await finding.scan()
        await finding.scan()
        assert registry.changes == ["ended"] * count
    assert registry.names == ["ended"]


async def test_a_change_before_the_end_is_not_noted(
    room: StoreRoom, registry: RecordingRegistry, arriving: Arriving
) -> None:
    """While a submission waits or runs, its folder is the participant's."""
    finding = arriving()
    folder = room.make("waiting")
    await finding.scan()
    (folder / "more.py").touch()
    await finding.scan()
    assert registry.changes == []


async def test_every_ended_one_gets_its_look(
    room: StoreRoom, registry: RecordingRegistry, arriving: Arriving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many ended submissions each rescan looks at the next ones."""
    monkeypatch.setattr(arrivals, "_CHANGE_CHECKS", 2)
    names = [f"s{number}" for number in range(5)]
    folders = [room.make(name) for name in names]
    finding = arriving()
    await finding.scan()
    for name in names:
        registry.end(name)
    for folder in folders:
        (folder / "more.py").touch()
    for _ in range(4):
        await finding.scan()
    assert sorted(registry.changes) == names


async def test_ended_ones_whose_folders_are_gone_take_no_turns(
    room: StoreRoom, registry: RecordingRegistry, arriving: Arriving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many folders an operator has put away, the next rescan looks at those that are there."""
    monkeypatch.setattr(arrivals, "_CHANGE_CHECKS", 2)
    finding = arriving()
    folders = {f"s{number}": room.make(f"s{number}") for number in range(9)}
    await finding.scan()
    for name, folder in folders.items():
        registry.end(name)
        if name not in {"s7", "s8"}:
            folder.rename(room.root / name)
    for name in ("s7", "s8"):
        (folders[name] / "more.py").touch()
    await finding.scan()
    assert registry.changes == ["s7", "s8"]


async def test_the_sandbox_may_be_admitted(room: StoreRoom, registry: RecordingRegistry, arriving: Arriving) -> None:
    """By the operator's word the starting kit gets a row, which no later look leaves waiting."""
    finding = arriving()
    room.make("kit")
    await finding.admit("kit")
    assert registry.names == ["kit"]
    await finding.scan()
    assert registry.forgotten == ["kit"]


async def test_what_settles_may_be_admitted(room: StoreRoom, registry: RecordingRegistry, arriving: Arriving) -> None:
    """The operator need not wait for settle_time; asked twice, it is registered once."""
    finding = arriving(_LONG_S)
    room.make("young")
    await finding.scan()
    await finding.admit("young")
    await finding.admit("young")
    assert registry.names == ["young"]
    await finding.scan()
    assert finding.settling == 0


async def test_what_is_no_submission_is_not_admitted(
    room: StoreRoom, registry: RecordingRegistry, arriving: Arriving
) -> None:
    """A refusal says why; a name that is not there, and an empty folder, are nobody's."""
    finding = arriving()
    (room.submissions / "file").touch()
    (room.submissions / "empty").mkdir()
    for name in ("file", "../up", ".hidden"):
        with pytest.raises(SubmissionRefusedError):
            await finding.admit(name)
    await finding.admit("missing")
    await finding.admit("empty")
    assert registry.names == []
