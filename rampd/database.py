"""SQLite files on the loop: the only module that knows aiosqlite.

It owns opening (WAL, synchronous=FULL, a busy timeout), the schema's version, and transactions. It knows nothing of
what is kept in them.
"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiosqlite

from rampd.errors import HOW_TO_RESTORE, JournalCorruptError, StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
    from contextlib import AsyncExitStack
    from pathlib import Path

    Parameters = Sequence[Any] | dict[str, Any]

Row = sqlite3.Row
"""What `fetch` returns: values by column name."""

_CACHE_KIB = 256
"""Rows are few and looked at once; the default, 2 MB a file, would only make the daemon larger."""
_WAL_TRIES, _WAL_RETRY_S = 50, 0.02
_BUSY_TIMEOUT_MS = 15_000
"""Longer than the 10 s for which a backup tool may hold the file."""


class Database:
    """One SQLite file.

    Parameters
    ----------
    path
        The file; its folder must exist.
    schema
        The SQL script that makes version 1 of the schema in an empty file.
    version
        What `PRAGMA user_version` must say; an older file has to be migrated by its owner, a newer one is refused.
    later_columns
        Types of columns that came later, by table and column: added to a file that lacks them. Nothing else changes,
        so that an earlier version goes on working with the file, and leaves them empty (NULL).

    Notes
    -----
    aiosqlite runs every call in one thread of its own, so statements of different coroutines would mix inside a
    transaction: every call here takes one lock.
    """

    def __init__(
        self,
        path: Path,
        *,
        schema: str,
        version: int = 1,
        later_columns: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.path = path
        self._later_columns = later_columns or {}
        self._schema = schema
        self._version = version
        self._lock = asyncio.Lock()
        self._connection: aiosqlite.Connection | None = None

    async def open(self, stack: AsyncExitStack, *, create: bool = True) -> None:
        """Open the file and make its schema if it is new.

        Raises
        ------
        StoreError
            It cannot be opened or written.
        JournalCorruptError
            It is damaged, no SQLite file, or of a newer rampd.
        """
        mode = "rwc" if create else "rw"
        uri = f"{self.path.absolute().as_uri()}?mode={mode}"
        with self._translated():
            connecting = aiosqlite.connect(uri, uri=True, isolation_level=None)
            try:
                connection = await connecting
            except BaseException:
                # aiosqlite only asks its thread to end, which then speaks to a loop that may be closed by now.
                await asyncio.to_thread(connecting._thread.join)  # noqa: SLF001 -- there is no other way to wait for it
                raise
            stack.push_async_callback(connection.close)
            connection.row_factory = sqlite3.Row
            self._connection = connection
            await connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
            await _use_wal(connection)
            await connection.execute("PRAGMA synchronous=FULL")
            await connection.execute("PRAGMA foreign_keys=ON")
            await connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
            await self._check()

    async def _check(self) -> None:
        # Not quick_check: it does not hold the indexes against the rows, where a flipped bit in a value shows.
        rows = await self.fetch("PRAGMA integrity_check(1)")
        if rows[0][0] != "ok":
            raise JournalCorruptError(self._how_to_restore(f"is damaged ({rows[0][0]})"))
        found = (await self.fetch("PRAGMA user_version"))[0][0]
        if found == 0:
            try:
                await self.run_script(
                    f"BEGIN IMMEDIATE;\n{self._schema};\nPRAGMA user_version={self._version};\nCOMMIT;"
                )
            except StoreError:
                await self._roll_back()
                # Another process may have been faster.
                if (await self.fetch("PRAGMA user_version"))[0][0] != self._version:
                    raise
        elif found != self._version:
            raise JournalCorruptError(
                f"{self.path}: written by another version of rampd (schema {found}, this one reads {self._version})"
            )
        for table, columns in self._later_columns.items():
            await self._add_columns(table, columns)

    async def _add_columns(self, table: str, columns: Mapping[str, str]) -> None:
        async def lacking() -> set[str]:
            return columns.keys() - {row["name"] for row in await self.fetch(f"PRAGMA table_info({table})")}

        for column in await lacking():
            try:
                await self.run(f"ALTER TABLE {table} ADD COLUMN {column} {columns[column]}")
            except StoreError:
                if column in await lacking():  # else another process was faster
                    raise

    def _how_to_restore(self, what: str) -> str:
        return f"{self.path}: {what}. {HOW_TO_RESTORE}"

    async def fetch(self, sql: str, parameters: Parameters = ()) -> list[sqlite3.Row]:
        """Run one statement (committed at once outside a transaction) and return its rows."""
        async with self._lock:
            return await self._fetch(sql, parameters)

    async def run(self, sql: str, parameters: Parameters = ()) -> None:
        """Run one statement whose rows do not matter."""
        await self.fetch(sql, parameters)

    async def run_script(self, sql: str) -> None:
        """Run several statements."""
        async with self._lock:
            with self._translated():
                await self._open_connection().executescript(sql)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Give a transaction that is committed at the end of the block, or rolled back if anything leaves it."""
        async with self._lock:
            try:
                await self._fetch("BEGIN IMMEDIATE")
                yield Transaction(self)
                # A cancellation must not fall between the statements and the commit they wait for.
                await asyncio.shield(self._fetch("COMMIT"))
            except BaseException:
                await asyncio.shield(self._roll_back())
                raise

    async def _roll_back(self) -> None:
        with self._translated():
            # In the database's thread, so after what a cancelled call still has it do: only there and then it is
            # known whether a transaction is open. Nothing happens where there is none.
            await self._open_connection().rollback()

    async def _fetch(self, sql: str, parameters: Parameters = ()) -> list[sqlite3.Row]:
        with self._translated():
            return list(await self._open_connection().execute_fetchall(sql, parameters))

    async def _fetch_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        with self._translated():
            await self._open_connection().executemany(sql, rows)

    def _open_connection(self) -> aiosqlite.Connection:
        if self._connection is None:
            raise StoreError(f"{self.path} is not open")
        return self._connection

    def _translated(self) -> _Translated:
        return _Translated(self)


async def _use_wal(connection: aiosqlite.Connection) -> None:
    """Switch to WAL; the busy timeout does not hold for this, and another process may be about the same."""
    for tries_left in reversed(range(_WAL_TRIES)):
        try:
            await connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or not tries_left:
                raise
            await asyncio.sleep(_WAL_RETRY_S)
        else:
            return


class Transaction:
    """What may be done inside `Database.transaction`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def fetch(self, sql: str, parameters: Parameters = ()) -> list[sqlite3.Row]:
        """Run one statement and return its rows."""
        return await self._database._fetch(sql, parameters)  # noqa: SLF001 -- the two are one

    async def run_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run one statement for every row of parameters."""
        await self._database._fetch_many(sql, rows)  # noqa: SLF001 -- the two are one


class _Translated:
    """Turns sqlite3's errors into ours, once, here at the edge."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, sqlite3.OperationalError):
            raise StoreError(f"{self._database.path}: {error}") from error
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.IntegrityError):
            raise JournalCorruptError(self._database._how_to_restore(f"is damaged ({error})")) from error  # noqa: SLF001
