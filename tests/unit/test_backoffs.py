"""Who backs off, and until when."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rampd import clock
from rampd.backoffs import Backoffs

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def turn(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give what turns both clocks, which stand still otherwise."""
    boottime, wall = clock.boottime(), clock.wall()
    monkeypatch.setattr(clock, "boottime", lambda: boottime)
    monkeypatch.setattr(clock, "wall", lambda: wall)

    def turned(*, boottime_s: float = 0.0, wall_s: float = 0.0) -> None:
        monkeypatch.setattr(clock, "boottime", lambda: boottime + boottime_s)
        monkeypatch.setattr(clock, "wall", lambda: wall + wall_s)

    return turned


def test_a_submission_waits_until_its_time_has_come(turn: Callable[..., None]) -> None:
    """And the first of them says when to look again."""
    backoffs = Backoffs()
    backoffs.set(1, 10)
    backoffs.set(2, 5)
    assert (sorted(backoffs.waiting()), backoffs.next_s()) == ([1, 2], 5)
    turn(boottime_s=6)
    assert (backoffs.waiting(), backoffs.next_s()) == ([1], 0)
    backoffs.keep([1])
    assert backoffs.next_s() == 4
    assert backoffs.drop(1)
    assert not backoffs.drop(1)
    assert (backoffs.waiting(), backoffs.next_s(), bool(backoffs)) == ([], None, False)


@pytest.mark.parametrize("jump_s", [3600, -3600])
def test_the_wall_clock_changes_nothing(turn: Callable[..., None], jump_s: int) -> None:
    """Set forward nobody's time has come, set back nobody waits for an hour."""
    backoffs = Backoffs()
    backoffs.set(1, 10)
    turn(wall_s=jump_s)
    assert (backoffs.waiting(), backoffs.next_s()) == ([1], 10)
    turn(boottime_s=11, wall_s=jump_s + 11)
    assert backoffs.waiting() == []


def test_a_restart_goes_on_with_what_was_journaled(turn: Callable[..., None]) -> None:
    """By the wall clock; what ends later than any backoff lasts was set under another clock, and is over."""
    backoffs = Backoffs()
    backoffs.load({1: clock.wall() + 30, 2: clock.wall() - 5, 3: clock.wall() + 3600})
    assert backoffs.waiting() == [1]
    turn(boottime_s=31)
    assert backoffs.waiting() == []
