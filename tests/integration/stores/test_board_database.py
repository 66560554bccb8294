"""The connections to a board: who waits for whom, and what becomes of a statement that is given up."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from rampd.board_config import SqlalchemySection
from rampd.errors import StoreError
from rampd.stores.board_database import BoardDatabase, RefusedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.board import Board

_BACKENDS = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'rampd'"


@pytest.fixture
async def database(board: Board) -> AsyncIterator[BoardDatabase]:
    """Give the open connections to a board."""
    opened = BoardDatabase(SqlalchemySection.model_validate(board.section))
    async with AsyncExitStack() as stack:
        await opened.open(stack)
        yield opened


async def test_a_statement_costs_no_connection_of_its_own(database: BoardDatabase) -> None:
    """Many at once share two connections: each would plan every statement for itself."""
    await asyncio.gather(*(database.fetch("SELECT :n AS n", n=n) for n in range(50)))
    assert len(await database.fetch(_BACKENDS)) <= 2


async def test_locked_rows_do_not_hold_up_the_rest(board: Board, database: BoardDatabase) -> None:
    """Statements that wait for somebody's lock leave connections to the others."""
    (locked,) = board.insert("locked")
    lock = "SELECT id FROM submissions WHERE id = :id FOR UPDATE"
    with board.server.connect(board.database) as somebody, somebody.transaction():
        somebody.execute("SELECT id FROM submissions WHERE id = %s FOR UPDATE", (locked,))
        waiting = [asyncio.create_task(database.fetch(lock, id=locked)) for _ in range(3)]
        (found,) = await database.fetch("SELECT 1 AS one")
        assert found == {"one": 1}
        assert not any(task.done() for task in waiting)
    assert [len(rows) for rows in await asyncio.gather(*waiting)] == [1, 1, 1]


async def test_a_statement_that_is_given_up_spoils_no_other(board: Board, database: BoardDatabase) -> None:
    """Cancelled half-way, it neither answers the next question nor stays in its way."""
    (locked,) = board.insert("locked")
    with board.server.connect(board.database) as somebody, somebody.transaction():
        somebody.execute("SELECT id FROM submissions WHERE id = %s FOR UPDATE", (locked,))
        waiting = asyncio.create_task(database.fetch("SELECT 2 FROM submissions WHERE id = :id FOR UPDATE", id=locked))
        async with asyncio.timeout(30):
            while not await database.fetch("SELECT 1 FROM pg_locks WHERE NOT granted"):  # noqa: ASYNC110 -- nobody is told
                await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        answers = await asyncio.gather(*(database.fetch("SELECT :n AS n", n=n) for n in range(20)))
        assert [row["n"] for (row,) in answers] == list(range(20))


async def test_a_refused_statement_spoils_no_other(database: BoardDatabase) -> None:
    """What the database refuses is told apart from one that is away; the connection serves on."""
    (before,) = await database.fetch("SELECT pg_backend_pid() AS pid")
    with pytest.raises(RefusedError, match="refused a statement") as refused:
        await database.fetch("SELECT 1 FROM no_such_table")
    assert refused.value.sqlstate == "42P01"
    assert await database.fetch("SELECT pg_backend_pid() AS pid") == [before]


async def test_a_connection_that_was_ended_is_replaced(board: Board, database: BoardDatabase) -> None:
    """It costs one statement, which says that the database is away."""
    (mine,) = await database.fetch("SELECT pg_backend_pid() AS pid")
    with board.server.connect(board.database) as admin:
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", (mine["pid"],))
    with pytest.raises(StoreError, match="cannot be used"):
        await database.fetch("SELECT 1 AS one")
    assert await database.fetch("SELECT 1 AS one") == [{"one": 1}]
    assert mine not in await database.fetch(_BACKENDS)
