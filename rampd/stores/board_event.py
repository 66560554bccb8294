"""One event on a RAMP board: its row, its database, and what is done once to the board."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import structlog

from rampd.errors import StoreError
from rampd.stores.board_database import BoardDatabase
from rampd.stores.board_holding import Holding
from rampd.stores.board_tables import (
    COLUMNS_THERE,
    EVENT,
    EVENT_NAMES,
    INSTALL_TRIGGER,
    MAY_CREATE,
    NEEDED,
    REMOVE_TRIGGER,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AsyncExitStack
    from pathlib import Path

    from rampd.board_config import SqlalchemySection
    from rampd.stores.board_database import Row

log = structlog.get_logger("rampd.stores.rampboard")

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class EventRow:
    """What the board says of the event, as of the last look."""

    id: int
    sandbox: str
    """What each team's sandbox is called; never run."""
    submissions_dir: str
    """Where ramp-frontend puts submissions."""
    is_open: bool
    has_trigger: bool = False
    """Whether the database wakes daemons up."""


class BoardEvent:
    """One event's connections, and what is held of it.

    Parameters
    ----------
    section
        Where the database is.
    name
        The event's name in it.
    state_dir
        Keeps this daemon's name on the board.
    """

    def __init__(self, section: SqlalchemySection, name: str, state_dir: Path) -> None:
        self.database = BoardDatabase(section)
        self.holding = Holding(self.database, state_dir, event_name=name)
        self.name = name
        self.row = EventRow(0, "", "", is_open=True)

    async def open(self, stack: AsyncExitStack) -> None:
        """Look whether the board is what it should be; writes nothing.

        Raises
        ------
        StoreError
            The database is away, is no board, or has no such event.
        """
        await self.database.open(stack)
        await self._check_columns()
        rows = await self.database.fetch(EVENT, name=self.name)
        if not rows:
            names = [row["name"] for row in await self.database.fetch(EVENT_NAMES)]
            raise StoreError(
                f"the board ({self.database.where}) has no event {self.name!r}; there is: "
                f"{', '.join(names) or 'none yet'}; ramp.event_name must be one of them"
            )
        self.row = EventRow(**rows[0])
        await self.holding.open(stack, self.row.id)

    async def _check_columns(self) -> None:
        rows = await self.database.fetch(COLUMNS_THERE, tables=list(NEEDED))
        there = {(row["table_name"], row["column_name"]) for row in rows}
        needed = [(table, column) for table, columns in NEEDED.items() for column in columns]
        if lacking := [f"{table}.{column}" for table, column in needed if (table, column) not in there]:
            more = f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
            raise StoreError(
                f"{self.database.where} is no RAMP board of ramp-database 0.10: it lacks "
                f"{', '.join(lacking[:_SHOWN])}{more}; is it the right database, and is its schema up to date?"
            )

    async def ask(self, statement: str, **parameters: Any) -> Sequence[Row]:
        """Run a statement with what any of them may name; see `BoardDatabase.fetch`."""
        common = {"event": self.row.id, "sandbox": self.row.sandbox, **self.holding.fence()}
        return await self.database.fetch(statement, **{**common, **parameters})

    def note(self, *, is_open: bool, has_trigger: bool) -> None:
        """Keep what a look found."""
        if (is_open, has_trigger) != (self.row.is_open, self.row.has_trigger):
            if is_open != self.row.is_open:
                log.info("board.event_opened" if is_open else "board.event_closed")
            self.row = replace(self.row, is_open=is_open, has_trigger=has_trigger)

    async def may_make_tables(self) -> bool:
        """Say whether this user may make the tables of leases."""
        (found,) = await self.database.fetch(MAY_CREATE)
        return bool(found["may"])

    async def set_trigger(self, *, installed: bool) -> None:
        """Have the database notify of new submissions, or not; repeatable.

        Raises
        ------
        StoreError
            This user may not: the table's owner must do it.
        """
        for statement in INSTALL_TRIGGER if installed else REMOVE_TRIGGER:
            await self.database.fetch(statement)
