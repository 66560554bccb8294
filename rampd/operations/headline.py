"""The first line of `rampctl status`: what runs, or why nothing does, since when, and when it is tried again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rampd import clock
from rampd.states import SubmissionState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rampd.config import Settings
    from rampd.operations.status import SubmissionStatus


@dataclass(frozen=True, slots=True)
class _Situation:
    settings: Settings
    daemon: Mapping[str, Any] | None
    facts: Mapping[str, Any]
    waiting: Sequence[SubmissionStatus]
    running: int
    now: float

    @property
    def told(self) -> str:
        return f"{len(self.waiting)} waiting" if self.waiting else "nothing waiting"

    @property
    def busy(self) -> str:
        n_workers = (self.daemon or {}).get("n_workers")
        return f"{self.running} running" + (f" of {n_workers}" if n_workers else "")

    def since(self, fact: Mapping[str, Any]) -> str:
        return duration(self.now - fact["since"])


def headline(
    settings: Settings,
    daemon: Mapping[str, Any] | None,
    facts: Mapping[str, Any],
    submissions: Sequence[SubmissionStatus],
) -> str:
    """Answer "why is nothing running?", or say what runs.

    Parameters
    ----------
    settings
        The event's.
    daemon
        What is known of the daemon; None where there is none.
    facts
        held, drained, settling and no_capacity, as the daemon left them in the journal.
    submissions
        All of the event's.
    """
    waiting = [one for one in submissions if one.state is SubmissionState.NEW]
    running = sum(one.is_running for one in submissions)
    situation = _Situation(settings, daemon, facts, waiting, running, clock.wall())
    for answer in (_not_served, _held, _drained, _no_capacity, _busy, _backing_off, _settling):
        if text := answer(situation):
            return text
    return f"nothing running, {situation.told}"


def _not_served(situation: _Situation) -> str:
    if situation.daemon is not None:
        return ""
    drained = ", and drained (rampctl resume)" if situation.facts.get("drained") else ""
    board = situation.settings.board
    start = f"rampd --config {situation.settings.path}{f' --database-config {board.path}' if board else ''}"
    return f"not served: no daemon runs{drained}; {situation.told}. Start it with: {start}"


def _held(situation: _Situation) -> str:
    held = situation.facts.get("held")
    if not held:
        return ""
    there = f"; there is: {', '.join(held['existing'])}" if held.get("existing") else ""
    next_look_s = max(0.0, held["next_try"] - situation.now)
    since, told = situation.since(held), situation.told
    return f"held for {since}: {held['missing']}{there}; {told}; next look in {next_look_s:.0f} s"


def _drained(situation: _Situation) -> str:
    drained = situation.facts.get("drained")
    if not drained:
        return ""
    busy, told = situation.busy, situation.told
    return f"drained for {situation.since(drained)}: {busy}, {told}; claims again after: rampctl resume"


def _no_capacity(situation: _Situation) -> str:
    lack = situation.facts.get("no_capacity")
    if not lack or situation.running:
        return ""
    next_try = duration(lack["next_try"] - situation.now)
    return f"no capacity for {situation.since(lack)}; {situation.told}; next try in {next_try}"


def _busy(situation: _Situation) -> str:
    return f"{situation.busy}, {situation.told}" if situation.running else ""


def _backing_off(situation: _Situation) -> str:
    tries = [one.next_try for one in situation.waiting if one.next_try is not None]
    if not tries or len(tries) < len(situation.waiting):
        return ""
    next_try = duration(min(tries) - situation.now)
    return f"nothing running: {situation.told}, backing off after platform faults; next try in {next_try}"


def _settling(situation: _Situation) -> str:
    settling = situation.facts.get("settling")
    if not settling or any(one.id is not None for one in situation.waiting):
        return ""
    settle_time_s = situation.settings.dispatcher.settle_time
    return (
        f"settling for {situation.since(settling)}: {settling['count']} arriving, taken when unchanged "
        f"for {settle_time_s:g} s"
    )


def duration(seconds: float, *, units: int = 2) -> str:
    """Return a duration for people, in one unit or two."""
    left = max(0, round(seconds))
    for size, unit, below, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if left >= size:
            whole, rest = divmod(left, size)
            return f"{whole} {unit} {rest // below} {smaller}" if rest // below and units > 1 else f"{whole} {unit}"
    return f"{left} s"
