"""What `rampctl check` looks at."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

from rampd.operations import doctor
from support.event import EventRoom

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_the_disk_that_is_measured_is_the_one_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state's, where attempts run: submissions may lie on another."""
    state = tmp_path / "elsewhere"
    state.mkdir()
    measured: list[Path] = []

    def disk_usage(path: Path) -> SimpleNamespace:
        measured.append(path)
        return SimpleNamespace(free=5e8)

    monkeypatch.setattr("shutil.disk_usage", disk_usage)
    settings = EventRoom(tmp_path, dispatcher={"state_dir": str(state)}).settings()
    (finding,) = [one for one in doctor._folders(settings) if one.name == "disk"]
    assert measured == [state]
    assert (finding.is_ok, finding.detail) == (False, f"0.5 GB free at {state}")


async def test_predictions_that_cannot_be_read_are_one_finding(tmp_path: Path) -> None:
    """What a first start would adopt is not known; everything else is looked at all the same."""
    name = "a" * 300  # to root, who may read anything, too
    settings = EventRoom(tmp_path, worker={"predictions_dir": name}).settings()
    finding = await doctor._adoption(settings)
    assert not finding.is_ok
    assert finding.detail == f"{settings.ramp.predictions_dir} cannot be read: File name too long"
