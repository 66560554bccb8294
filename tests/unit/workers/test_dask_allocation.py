"""How much time a run on a Dask cluster has left, whoever sets which clock."""

from __future__ import annotations

import pytest

from rampd import clock
from rampd.workers.dask_allocation import DaskAllocation


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Give clocks that go when a test says so."""
    now: dict[str, object] = {"wall": 1_000_000.0, "boottime": 500.0, "boot_id": "this"}
    monkeypatch.setattr(clock, "wall", lambda: now["wall"])
    monkeypatch.setattr(clock, "boottime", lambda: now["boottime"])
    monkeypatch.setattr(clock, "boot_id", lambda: now["boot_id"])
    return now


@pytest.fixture
def launched(clocks: dict[str, object]) -> DaskAllocation:
    """Return a run that has 60 s from now, as the journal brings it back."""
    made = DaskAllocation(attempt_id="a", attempt_dir="", log_path="", key="k", dask_worker="tcp://h:1", host="h")
    assert made.left_s() is None
    return DaskAllocation.model_validate_json(made.launched(60.0).model_dump_json())


@pytest.mark.parametrize("set_by_s", [-3600.0, 3600.0])
def test_a_wall_clock_that_is_set_changes_nothing(
    clocks: dict[str, object], launched: DaskAllocation, set_by_s: float
) -> None:
    """Its time is over when it has had it, not an hour too early or too late."""
    clocks |= {"wall": 1_000_010.0 + set_by_s, "boottime": 510.0}
    assert launched.left_s() == 50.0
    clocks["boottime"] = 561.0
    assert launched.left_s() == -1.0


def test_the_wall_clock_counts_after_a_reboot(clocks: dict[str, object], launched: DaskAllocation) -> None:
    """The other one began anew, and says nothing."""
    clocks |= {"wall": 1_000_045.0, "boottime": 3.0, "boot_id": "the next"}
    assert launched.left_s() == 15.0
