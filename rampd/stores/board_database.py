"""The one module that speaks to PostgreSQL: connections, statements, notifications, and what their failures mean.

SQLAlchemy's asyncio engine keeps the connections and compiles the statements, psycopg 3 speaks libpq's language:
`drivername: postgresql` of a RAMP deployment means psycopg 2 to ramp_database and psycopg 3 here, and both read the
same hosts, options and PG… variables. Statements go to psycopg as they were compiled once: through SQLAlchemy's own
cursors and results each costs the loop twice as long. Every statement is one transaction (autocommit); every one has a
time limit. Knows nothing of submissions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row
from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine

from rampd.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from contextlib import AsyncExitStack

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from rampd.board_config import SqlalchemySection

Row = Mapping[str, Any]
"""What `fetch` returns: values by column name."""

STATEMENT_S = 20.0
"""How long one statement may take, connecting included; then the database counts as away."""
_CONNECT_S = 5
_LIBPQ = {
    # A peer that is gone without a word is noticed within a quarter of a minute (libpq, "Parameter Key Words").
    "connect_timeout": _CONNECT_S,
    "keepalives_idle": 5,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
    "application_name": "rampd",
    # The statements are few and long: each is planned once a connection, which costs more than to run it.
    "prepare_threshold": 0,
    "options": "-c plan_cache_mode=force_generic_plan",
}
_CONNECTIONS = 2
"""So many do the work: a statement takes a millisecond, and each connection plans every statement for itself."""
_MORE_CONNECTIONS = 4
_PATIENCE_S = 0.25
"""After this a statement gets one of the others: a row that somebody locks must not hold everything up."""


class RefusedError(StoreError):
    """The database understood a statement and refused it: trying it again changes nothing until a person does.

    Attributes
    ----------
    sqlstate
        PostgreSQL's code (its documentation, appendix A); empty where there is none.
    """

    def __init__(self, message: str, sqlstate: str) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class _Connection(NamedTuple):
    """One of the pool's, and psycopg's own behind it."""

    pooled: AsyncConnection
    driver: psycopg.AsyncConnection[Any]


class BoardDatabase:
    """The connections to one database.

    Parameters
    ----------
    section
        Where it is.
    """

    def __init__(self, section: SqlalchemySection) -> None:
        self._section = section
        self._engine: AsyncEngine | None = None
        self._compiled: dict[str, bytes] = {}
        self._at_hand: list[_Connection] = []
        """Connected and idle, the last used last: a turn of the pool's costs half of what a statement does."""
        self._turns = asyncio.Semaphore(_CONNECTIONS)

    def __repr__(self) -> str:
        return f"BoardDatabase({self.where})"

    @property
    def where(self) -> str:
        """Where the database is, for people; never the password."""
        section = self._section
        host = section.host or "the local socket"
        return f"{section.database} at {host}{f':{section.port}' if section.port else ''}"

    @property
    def application_name(self) -> str:
        """What the server's views call these connections."""
        return str(self._section.query.get("application_name", _LIBPQ["application_name"]))

    async def open(self, stack: AsyncExitStack) -> None:
        """Make the pool; nothing is connected yet. Closed with `stack`."""
        self._engine = create_async_engine(
            URL.create(
                "postgresql+psycopg",
                username=self._section.username,
                password=_revealed(self._section),
                host=self._section.host,
                port=self._section.port,
                database=self._section.database,
                query=self._section.query,
            ),
            isolation_level="AUTOCOMMIT",
            pool_size=_CONNECTIONS,
            max_overflow=_MORE_CONNECTIONS,
            pool_timeout=STATEMENT_S,
            pool_use_lifo=True,  # few connections do most of the work, and have it planned
            use_native_hstore=False,
            connect_args={key: value for key, value in _LIBPQ.items() if key not in self._section.query},
            hide_parameters=True,
        )
        stack.push_async_callback(self._engine.dispose)
        stack.push_async_callback(self._let_go)

    async def _let_go(self) -> None:
        while self._at_hand:
            await self._at_hand.pop().pooled.close()

    async def fetch(self, statement: str, /, **parameters: Any) -> Sequence[Row]:
        """Run one statement as one transaction, and return its rows; none where it returns nothing.

        Raises
        ------
        RefusedError
            The database refused it.
        StoreError
            The database is away, or does not answer. Whether the statement was done is not known then.
        """
        if self._engine is None:
            raise StoreError(f"the board's database ({self.where}) is not open")
        if (compiled := self._compiled.get(statement)) is None:
            compiled = self._compiled[statement] = str(text(statement).compile(dialect=self._engine.dialect)).encode()
        try:
            async with asyncio.timeout(STATEMENT_S), self._turn(), self._connection() as connection:
                return await self._execute(connection, compiled, parameters)
        except (SQLAlchemyError, psycopg.Error, OSError, TimeoutError) as error:
            raise self._translated(error) from error

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Wait until one of the connections that do the work is free, but not for long."""
        is_ours = not self._turns.locked() and await self._turns.acquire()
        if not is_ours:
            with suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE_S):
                    is_ours = await self._turns.acquire()
        try:
            yield
        finally:
            if is_ours:
                self._turns.release()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[_Connection]:
        """Give a connection; one that comes back broken, or still at its statement, is not used again."""
        assert self._engine is not None  # noqa: S101 -- the caller looked
        connection = self._at_hand.pop() if self._at_hand else await _connect(self._engine)
        try:
            yield connection
        finally:
            is_sound = connection.driver.info.transaction_status is TransactionStatus.IDLE
            if is_sound and len(self._at_hand) < _CONNECTIONS:
                self._at_hand.append(connection)
            else:
                if not is_sound:
                    await connection.pooled.invalidate()
                await connection.pooled.close()

    async def _execute(self, connection: _Connection, compiled: bytes, parameters: Row) -> Sequence[Row]:
        async with connection.driver.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(compiled, parameters)
            rows: Sequence[Row] = await cursor.fetchall() if cursor.description else ()
            return rows

    def _translated(self, error: Exception) -> StoreError:
        cause = error.orig if isinstance(error, DBAPIError) else error
        sqlstate = getattr(cause, "sqlstate", None) or ""
        said = str(cause).strip().partition("\n")[0] or type(cause).__name__
        if isinstance(cause, TimeoutError) and not str(cause):
            said = f"no answer within {STATEMENT_S:g} s"
        is_away = isinstance(cause, psycopg.OperationalError | psycopg.InterfaceError | OSError | TimeoutError)
        if not is_away and isinstance(cause, psycopg.Error):
            return RefusedError(f"the board's database ({self.where}) refused a statement: {said}", sqlstate)
        return StoreError(f"the board's database ({self.where}) cannot be used: {said}")

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """Give a connection of its own, for what lives as long as a connection: LISTEN and advisory locks.

        Raises
        ------
        StoreError
            It cannot be made, or broke inside the block.
        """
        section = self._section
        given = {
            "user": section.username,
            "password": _revealed(section),
            "host": section.host,
            "port": section.port,
            "dbname": section.database,
        }
        options: dict[str, Any] = {
            **_LIBPQ,
            **section.query,
            **{key: value for key, value in given.items() if value is not None},
        }
        try:
            async with asyncio.timeout(STATEMENT_S):
                connection = await psycopg.AsyncConnection.connect(**options, autocommit=True)
            try:
                yield Session(connection)
            finally:
                await connection.close()
        except (psycopg.Error, OSError, TimeoutError) as error:
            raise self._translated(error) from error


class Session:
    """One connection that is held."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection

    @property
    def backend_pid(self) -> int:
        """The server's process that serves it."""
        return self._connection.info.backend_pid

    async def fetch_one(self, statement: str, parameters: Mapping[str, Any] | None = None) -> Any:
        """Run one statement and return its first row's first value, None where it has none."""
        async with asyncio.timeout(STATEMENT_S):
            cursor = await self._connection.execute(statement.encode(), parameters)
            row = await cursor.fetchone() if cursor.description else None
        return row[0] if row else None

    async def notified(self, *, timeout_s: float) -> bool:
        """Wait for a notification; return whether one came within `timeout_s` seconds."""
        async for _ in self._connection.notifies(timeout=timeout_s, stop_after=1):
            return True
        return False


async def _connect(engine: AsyncEngine) -> _Connection:
    pooled = await engine.connect()
    driver = (await pooled.get_raw_connection()).driver_connection
    assert driver is not None  # noqa: S101 -- it was made just now
    return _Connection(pooled, driver)


def _revealed(section: SqlalchemySection) -> str | None:
    return section.password.get_secret_value() if section.password is not None else None
