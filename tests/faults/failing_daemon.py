"""The real `rampd` with two switches that the product does not have: where it kills itself, and a clock that jumps.

``RAMPD_FAULT_KILL=journal.decide:after:3`` ends the process with SIGKILL after the third commit of an outcome;
``RAMPD_FAULT_CLOCK=FILE`` adds the seconds in a file to the wall clock, as often as they change.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rampd.cli.rampd as command_line
from rampd import clock

if TYPE_CHECKING:
    from collections.abc import Callable

_OF_EVERY_STORE = {
    # What the journal commits: the steps of an attempt, in their order.
    "journal.open_attempt": "rampd.journal:Journal.open_attempt",
    "journal.record_allocation": "rampd.journal:Journal.record_allocation",
    "journal.record_launch": "rampd.journal:Journal.record_launch",
    "journal.decide": "rampd.journal:Journal.decide",
    "journal.close": "rampd.journal:Journal.close",
    "journal.mark_announced": "rampd.journal:Journal.mark_announced",
    "journal.set_backoff": "rampd.journal:Journal.set_backoff",
    "journal.answer": "rampd.journal:Journal.answer",
    # What happens outside: copies, processes, predictions.
    "worker.setup": "rampd.workers.conda:CondaWorker.setup",
    "worker.launch_submission": "rampd.workers.conda:CondaWorker.launch_submission",
    "worker.collect_results": "rampd.workers.conda:CondaWorker.collect_results",
    "worker.stop": "rampd.workers.conda:CondaWorker.stop",
    "worker.teardown": "rampd.workers.conda:CondaWorker.teardown",
    "worker.reclaim": "rampd.workers.conda:CondaWorker.reclaim",
    "predictions.swap": "rampd.conclusion:swap_into_place",
    "recovery.conclude": "rampd.recovery:conclude",
}
DIRECTORY_POINTS = {
    **_OF_EVERY_STORE,
    # What the store commits: a submission's states.
    "store.register": "rampd.stores.registry:DirectoryRegistry.register",
    "store.claim": "rampd.stores.directory:DirectoryStore.claim",
    "store.set_training": "rampd.stores.directory:DirectoryStore.set_training",
    "store.set_tested": "rampd.stores.directory:DirectoryStore.set_tested",
    "store.set_scored": "rampd.stores.directory:DirectoryStore.set_scored",
    "store.set_failed": "rampd.stores.directory:DirectoryStore.set_failed",
    "store.release": "rampd.stores.directory:DirectoryStore.release",
    "store.release_unheld": "rampd.stores.directory:DirectoryStore.release_unheld",
    "store.requeue": "rampd.stores.directory:DirectoryStore.requeue",
    "store.forget": "rampd.stores.registry:DirectoryRegistry.forget",
}
BOARD_POINTS = {
    **_OF_EVERY_STORE,
    # What the board's database commits: a submission's states, its figures, leases.
    "board.claim": "rampd.stores.rampboard:RampBoardStore.claim",
    "board.confirm": "rampd.stores.rampboard:RampBoardStore.confirm",
    "board.set_training": "rampd.stores.rampboard:RampBoardStore.set_training",
    "board.set_tested": "rampd.stores.rampboard:RampBoardStore.set_tested",
    "board.set_scored": "rampd.stores.rampboard:RampBoardStore.set_scored",
    "board.set_failed": "rampd.stores.rampboard:RampBoardStore.set_failed",
    "board.release": "rampd.stores.rampboard:RampBoardStore.release",
    "board.release_unheld": "rampd.stores.rampboard:RampBoardStore.release_unheld",
    "board.requeue": "rampd.stores.rampboard:RampBoardStore.requeue",
    "board.prepare": "rampd.stores.rampboard:RampBoardStore.prepare",
    "board.recall": "rampd.stores.board_holding:Holding.recall",
    "board.scan": "rampd.stores.board_watch:BoardWatch.scan",
    # Any statement at all: sent, or not.
    "board.statement": "rampd.stores.board_database:BoardDatabase.fetch",
}
POINTS = {**DIRECTORY_POINTS, **BOARD_POINTS}
"""Every named transition: each can be the last thing that a daemon does, or the first that it does not."""


@dataclass(slots=True)
class _KillPoint:
    """Ends this process at the `count`-th passage."""

    side: str
    count: int
    passed: int = field(default=0)

    def pass_by(self, side: str) -> None:
        if side == self.side:
            self.passed += 1
            if self.passed == self.count:
                os.kill(os.getpid(), signal.SIGKILL)


def _guarded(work: Callable[..., Any], point: _KillPoint) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(work):

        @functools.wraps(work)
        async def guarded_coroutine(*arguments: Any, **options: Any) -> Any:
            point.pass_by("before")
            result = await work(*arguments, **options)
            point.pass_by("after")
            return result

        return guarded_coroutine

    @functools.wraps(work)
    def guarded(*arguments: Any, **options: Any) -> Any:
        point.pass_by("before")
        result = work(*arguments, **options)
        point.pass_by("after")
        return result

    return guarded


def _set_kill_point(text: str) -> None:
    name, side, count = text.split(":")
    module_name, _, path = POINTS[name].partition(":")
    owner: Any = importlib.import_module(module_name)
    *parents, attribute = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    setattr(owner, attribute, _guarded(getattr(owner, attribute), _KillPoint(side, int(count))))


def _set_clock(path: Path) -> None:
    real = clock.wall

    def jumping() -> float:
        return real() + float(path.read_text(encoding="ascii") or 0)

    vars(clock)["wall"] = jumping


if __name__ == "__main__":
    if kill_point := os.environ.pop("RAMPD_FAULT_KILL", ""):
        _set_kill_point(kill_point)
    if clock_file := os.environ.pop("RAMPD_FAULT_CLOCK", ""):
        _set_clock(Path(clock_file))
    sys.exit(command_line.main())
