"""Finding submissions as they arrive on the board: told by the database, or by a look every few seconds."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import structlog

from rampd import clock
from rampd.errors import StoreError
from rampd.stores.board_tables import CHANNEL

if TYPE_CHECKING:
    from collections.abc import Callable

    from rampd.stores.board_event import BoardEvent

log = structlog.get_logger("rampd.stores.rampboard")

POLL_S = 5.0
"""How often an idle event is looked at without the trigger: one statement."""
POLL_WITH_TRIGGER_S = 30.0
"""How often with it: for what other daemons abandon, and for what a notification may have missed."""
_TIDY_S = 1.0
"""Queue positions are numbered at most this often, however much is claimed meanwhile."""
_LONGEST_NAP_S = 5.0
"""How long at most an outage is waited out between two tries."""


class BoardWatch:
    """Looks at one event, and keeps its queue's positions.

    Parameters
    ----------
    board
        The event, open.
    name_of
        Gives a submission's name.
    on_found
        Called when something may be claimable.
    on_placed
        Called when positions have changed.
    """

    def __init__(
        self,
        board: BoardEvent,
        *,
        name_of: Callable[[int], str],
        on_found: Callable[[], None],
        on_placed: Callable[[], None],
    ) -> None:
        self.scanned = asyncio.Event()
        self._board = board
        self._name_of = name_of
        self._on_found = on_found
        self._on_placed = on_placed
        self._seen: set[int] = set()
        self._untidy = asyncio.Event()

    def untidy(self) -> None:
        """Have the queue numbered anew, soon."""
        self._untidy.set()

    async def scan(self) -> None:
        """Look once; one statement while nothing happens.

        Raises
        ------
        StoreError
            The database is away.
        """
        holding = self._board.holding
        (found,) = await self._board.ask(holding.statements.look, held=holding.held)
        self._board.note(is_open=bool(found["is_open"]), has_trigger=found["has_trigger"])
        waiting: list[int] = found["waiting"] or []
        for position, submission_id in enumerate(waiting, start=1):
            if submission_id not in self._seen:
                bound = log.bind(submission=self._name_of(submission_id), submission_id=submission_id)
                bound.info("submission.detected")
                bound.info("submission.queued", position=position)
        self._seen = set(waiting)
        if found["unplaced"]:
            self._untidy.set()
        if found["abandoned"]:
            await self._take_up_abandoned()
        if waiting:
            self._on_found()

    async def _take_up_abandoned(self) -> None:
        """Put back what a daemon held that is not heard of any more."""
        holding = self._board.holding
        await holding.prepare()
        for row in await self._board.ask(holding.statements.release_abandoned, held=holding.held):
            log.info("submission.recovered", submission=self._name_of(row["id"]), submission_id=row["id"])
            self._on_found()

    async def run(self) -> None:
        """Look, for ever; outages are waited out."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen(), name=f"{self._board.name}:board/listen")
            group.create_task(self._tidy_up(), name=f"{self._board.name}:board/tidy")

    async def _listen(self) -> None:
        """Look whenever the database calls, and every few seconds all the same."""
        away_since: float | None = None
        while True:
            try:
                async with self._board.database.session() as session:
                    await session.fetch_one(f"LISTEN {CHANNEL}{self._board.row.id}")
                    while True:
                        await self.scan()
                        if not self.scanned.is_set():
                            self._say_connected()
                            self.scanned.set()
                        if away_since is not None:
                            log.info("store.recovered", down_s=clock.boottime() - away_since)
                            away_since = None
                        await session.notified(timeout_s=POLL_WITH_TRIGGER_S if self._board.row.has_trigger else POLL_S)
            except StoreError as error:
                if away_since is None:
                    away_since = clock.boottime()
                    log.error("store.unavailable", error=str(error))  # noqa: TRY400 -- the sentence says it all
            await asyncio.sleep(random.uniform(0.1, 1.0) * _LONGEST_NAP_S)  # noqa: S311 -- jitter

    def _say_connected(self) -> None:
        log.info(
            "board.connected",
            database=self._board.database.where,
            leased=self._board.holding.is_leased,
            trigger=self._board.row.has_trigger,
        )

    async def _tidy_up(self) -> None:
        """Keep the numbers of those that wait: a moment gathers many changes into one statement."""
        while True:
            await self._untidy.wait()
            await asyncio.sleep(_TIDY_S)
            self._untidy.clear()
            try:
                await self._board.ask(self._board.holding.statements.place)
            except StoreError:  # whoever waits for something says that the database is away
                self._untidy.set()
                await asyncio.sleep(_LONGEST_NAP_S)
            else:
                self._on_placed()
