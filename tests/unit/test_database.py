"""SQLite on the loop: opening, transactions whatever happens in them, and whose fault an error is."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import pytest

from rampd.database import Database
from rampd.errors import JournalCorruptError, StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Iterator
    from pathlib import Path

SCHEMA = "CREATE TABLE things (name TEXT PRIMARY KEY);\nCREATE TABLE more (name TEXT)"


@asynccontextmanager
async def opened(path: Path, *, create: bool = True) -> AsyncIterator[Database]:
    """Give an open database."""
    database = Database(path, schema=SCHEMA)
    async with AsyncExitStack() as stack:
        await database.open(stack, create=create)
        yield database


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    """Give a new one."""
    async with opened(tmp_path / "db") as database:
        yield database


async def names(database: Database) -> list[str]:
    """Return what is kept."""
    return [row["name"] for row in await database.fetch("SELECT name FROM things ORDER BY name")]


@contextmanager
def other_process(path: Path) -> Iterator[sqlite3.Connection]:
    """Give a connection of somebody else's."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


@asynccontextmanager
async def stalled(database: Database) -> AsyncIterator[None]:
    """Keep the database's thread from doing anything during the block."""
    assert database._connection is not None
    go = threading.Event()
    waiting = asyncio.ensure_future(database._connection._execute(go.wait))  # type: ignore[no-untyped-call]
    await asyncio.sleep(0)
    try:
        yield
    finally:
        go.set()
        await waiting


async def cancel_while_stalled(database: Database, work: Awaitable[None], *, go: asyncio.Event | None = None) -> None:
    """Cancel `work` while the statement that it does (once `go` is set) waits for the database's thread."""
    async with stalled(database):
        task = asyncio.ensure_future(work)
        if go is not None:
            go.set()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not task.done()
        task.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_new_file_gets_its_schema(database: Database) -> None:
    """All statements of the script are run, and the version is noted."""
    assert await names(database) == []
    assert [tuple(row) for row in await database.fetch("SELECT * FROM more")] == []
    assert (await database.fetch("PRAGMA user_version"))[0][0] == 1


async def test_a_file_is_durable_and_shared(database: Database) -> None:
    """WAL lets others read meanwhile, FULL survives a power cut, and locks are waited for."""
    pragmas = [
        (await database.fetch(f"PRAGMA {name}"))[0][0] for name in ("journal_mode", "synchronous", "foreign_keys")
    ]
    assert pragmas == ["wal", 2, 1]
    assert (await database.fetch("PRAGMA busy_timeout"))[0][0] > 10_000


async def test_what_was_written_is_there_again(tmp_path: Path) -> None:
    """A second opening makes nothing anew."""
    async with opened(tmp_path / "db") as database:
        await database.run("INSERT INTO things VALUES (?)", ("a",))
    async with opened(tmp_path / "db") as database:
        assert await names(database) == ["a"]


async def test_many_open_a_new_file_at_once(tmp_path: Path) -> None:
    """Whoever comes first makes the schema; nobody fails."""
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(Database(tmp_path / "db", schema=SCHEMA).open(stack))


async def test_names_that_mean_something_in_a_uri(tmp_path: Path) -> None:
    """A folder may be called anything."""
    path = tmp_path / "50%20? &mode=ro#x"
    async with opened(path) as database:
        await database.run("INSERT INTO things VALUES ('a')")
    assert path.stat().st_size > 0


async def test_a_block_that_ends_well_is_committed(database: Database) -> None:
    """What was done in it can be seen from outside, and not before its end."""
    with other_process(database.path) as other:
        async with database.transaction() as transaction:
            await transaction.fetch("INSERT INTO things VALUES ('a')")
            await transaction.run_many("INSERT INTO things VALUES (?)", [("b",), ("c",)])
            assert other.execute("SELECT count(*) FROM things").fetchone() == (0,)
        assert other.execute("SELECT count(*) FROM things").fetchone() == (3,)


async def _fail_in(database: Database, error: BaseException) -> None:
    async with database.transaction() as transaction:
        await transaction.fetch("INSERT INTO things VALUES ('a')")
        raise error


async def test_an_error_rolls_back(database: Database) -> None:
    """The error is the block's own, and nothing of the block is kept."""
    with pytest.raises(KeyError, match="mine"):
        await _fail_in(database, KeyError("mine"))
    assert await names(database) == []


async def test_a_failing_statement_rolls_back(database: Database) -> None:
    """Half a transaction is none; a broken constraint is told as such."""
    with pytest.raises(sqlite3.IntegrityError):
        async with database.transaction() as transaction:
            await transaction.run_many("INSERT INTO things VALUES (?)", [("b",), ("b",)])
    assert await names(database) == []


async def test_after_a_rollback_the_next_one_works(database: Database) -> None:
    """Nothing is left open."""
    with pytest.raises(KeyError):
        await _fail_in(database, KeyError())
    async with database.transaction() as transaction:
        await transaction.fetch("INSERT INTO things VALUES ('next')")
    assert await names(database) == ["next"]


async def _insert_and_wait(database: Database) -> None:
    async with database.transaction() as transaction:
        await transaction.fetch("INSERT INTO things VALUES ('a')")
        await asyncio.get_running_loop().create_future()


async def _insert(database: Database) -> None:
    async with database.transaction() as transaction:
        await transaction.fetch("INSERT INTO things VALUES ('a')")


async def test_a_cancelled_block_rolls_back(database: Database) -> None:
    """Cancelled between two statements: nothing is kept, and the next one is not disturbed."""
    task = asyncio.ensure_future(_insert_and_wait(database))
    while not (database._connection and database._connection.in_transaction):  # noqa: ASYNC110 -- no event tells
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with database.transaction():
        assert await names_in(database) == []


async def names_in(database: Database) -> list[str]:
    """Return what is kept, inside a transaction."""
    return [row["name"] for row in await database._fetch("SELECT name FROM things")]


async def test_a_cancelled_beginning_leaves_nothing_open(database: Database) -> None:
    """Cancelled while the transaction begins: it does not stay open for the next one to fall into."""
    await cancel_while_stalled(database, _insert(database))
    async with database.transaction() as transaction:
        await transaction.fetch("INSERT INTO things VALUES ('next')")
    with other_process(database.path) as other:
        assert other.execute("SELECT name FROM things").fetchall() == [("next",)]


async def test_a_cancelled_statement_rolls_back(database: Database) -> None:
    """Cancelled while a statement of the block runs: it is undone with the block."""
    begun, go = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        async with database.transaction() as transaction:
            begun.set()
            await go.wait()
            await transaction.fetch("INSERT INTO things VALUES ('a')")

    task = asyncio.ensure_future(work())
    await begun.wait()

    await cancel_while_stalled(database, task, go=go)
    assert await names(database) == []


async def test_a_cancelled_commit_is_whole(database: Database) -> None:
    """Cancelled while it commits: the cancellation goes on, the commit stands, and the next one works."""
    begun, go = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        async with database.transaction() as transaction:
            await transaction.fetch("INSERT INTO things VALUES ('a')")
            begun.set()
            await go.wait()

    task = asyncio.ensure_future(work())
    await begun.wait()

    await cancel_while_stalled(database, task, go=go)
    assert await names(database) == ["a"]
    await database.run("INSERT INTO things VALUES ('b')")
    with other_process(database.path) as other:
        assert other.execute("SELECT count(*) FROM things").fetchone() == (2,)


async def test_transactions_do_not_mix(database: Database) -> None:
    """What other coroutines do meanwhile is no part of a transaction that is rolled back."""
    begun, end = asyncio.Event(), asyncio.Event()

    async def rolled_back() -> None:
        async with database.transaction() as transaction:
            await transaction.fetch("INSERT INTO things VALUES ('rolled back')")
            begun.set()
            await end.wait()
            raise KeyError

    async with asyncio.TaskGroup() as group:
        failing = group.create_task(asyncio.wait({asyncio.ensure_future(rolled_back())}))
        await begun.wait()
        group.create_task(database.run("INSERT INTO things VALUES ('mine')"))
        group.create_task(_insert(database))
        await asyncio.sleep(0)
        end.set()
        (done,), _ = await failing
    assert isinstance(done.exception(), KeyError)
    assert await names(database) == ["a", "mine"]


@pytest.mark.parametrize("content", [b"no database, a text\n" * 100, b"SQLite format 3\0" + b"x" * 5000])
async def test_a_file_that_is_none_is_corrupt(tmp_path: Path, content: bytes) -> None:
    """The sentence says what to do, and the file is as it was."""
    (tmp_path / "db").write_bytes(content)
    with pytest.raises(JournalCorruptError, match=r"db: is damaged.*Restore the file.*or move it away"):
        async with opened(tmp_path / "db"):
            pass
    assert (tmp_path / "db").read_bytes() == content


async def test_damage_inside_is_found_at_the_start(tmp_path: Path) -> None:
    """A head that is fine does not hide pages that are not."""
    path = tmp_path / "db"
    async with opened(path) as database, database.transaction() as transaction:
        await transaction.run_many("INSERT INTO things VALUES (?)", [(f"{number:0500}",) for number in range(200)])
    with path.open("r+b") as file:
        file.seek(3 * 4096)
        file.write(b"\xa5" * 5 * 4096)
    with pytest.raises(JournalCorruptError, match="is damaged"):
        async with opened(path):
            pass


async def test_a_flipped_bit_in_an_indexed_value_is_found_at_the_start(tmp_path: Path) -> None:
    """The page is well formed, and says what nobody wrote: an index knows better."""
    path = tmp_path / "db"
    async with opened(path) as database:
        await database.run("CREATE TABLE states (name TEXT, state TEXT)")
        await database.run("CREATE INDEX waiting ON states (name) WHERE state = 'waiting'")
        await database.run("INSERT INTO states VALUES ('one', 'waiting')")
    data = bytearray(path.read_bytes())
    data[data.rfind(b"waiting")] ^= 0x01
    path.write_bytes(data)
    with pytest.raises(JournalCorruptError, match="is damaged"):
        async with opened(path):
            pass


@pytest.mark.parametrize("version", [2, 99])
async def test_a_newer_schema_is_refused(tmp_path: Path, version: int) -> None:
    """Both versions are named, and nothing is written."""
    path = tmp_path / "db"
    with other_process(path) as other:
        other.execute(f"PRAGMA user_version={version}")
    with pytest.raises(JournalCorruptError, match=rf"another version of rampd \(schema {version}, this one reads 1\)"):
        async with opened(path):
            pass
    with other_process(path) as other:
        assert other.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,)


async def test_a_schema_that_does_not_fit_is_undone(tmp_path: Path) -> None:
    """Somebody else's tables are not mixed with half of ours."""
    path = tmp_path / "db"
    with other_process(path) as other:
        other.execute("CREATE TABLE more (x)")
    with pytest.raises(StoreError, match="table more already exists"):
        async with opened(path):
            pass
    with other_process(path) as other:
        assert other.execute("SELECT name FROM sqlite_schema").fetchall() == [("more",)]


async def test_a_missing_file_is_not_made_by_looking(tmp_path: Path) -> None:
    """Without `create` there must be one."""
    with pytest.raises(StoreError, match="db: unable to open database file"):
        async with opened(tmp_path / "db", create=False):
            pass
    assert not (tmp_path / "db").exists()


@pytest.mark.parametrize("name", ["missing/db", "."])
async def test_a_place_for_no_file_is_a_store_error(tmp_path: Path, name: str) -> None:
    """A folder that is missing, and one where the file should be."""
    with pytest.raises(StoreError, match="unable to open database file"):
        async with opened(tmp_path / name):
            pass


async def test_writing_what_may_only_be_read_is_a_store_error(database: Database) -> None:
    """It can be tried again: nothing is damaged."""
    await database.run("PRAGMA query_only=ON")
    with pytest.raises(StoreError, match="attempt to write a readonly database"):
        await database.run("INSERT INTO things VALUES ('a')")


async def test_a_full_disk_is_a_store_error_and_rolls_back(database: Database) -> None:
    """What did not fit is not there, and what fits later is."""
    pages = (await database.fetch("PRAGMA page_count"))[0][0]
    await database.run(f"PRAGMA max_page_count={pages}")
    with pytest.raises(StoreError, match="database or disk is full"):
        async with database.transaction() as transaction:
            await transaction.run_many("INSERT INTO things VALUES (?)", [(f"{n:0900}",) for n in range(50)])
    await database.run("PRAGMA max_page_count=100000")
    await database.run("INSERT INTO things VALUES ('later')")
    assert await names(database) == ["later"]


async def test_a_file_that_somebody_holds_is_a_store_error(database: Database) -> None:
    """Once the patience is over, a lock is trouble that may pass."""
    await database.run("PRAGMA busy_timeout=10")
    with other_process(database.path) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="database is locked"):
            await _insert(database)
        other.execute("COMMIT")
    await _insert(database)


async def test_damage_that_comes_later_is_corrupt(database: Database) -> None:
    """A file that breaks while it is open is told so at the next statement."""
    await database.run("INSERT INTO things VALUES ('a')")
    await database.run("PRAGMA wal_checkpoint(TRUNCATE)")
    database.path.write_bytes(b"\xa5" * database.path.stat().st_size)
    await database.run("PRAGMA shrink_memory")
    with pytest.raises(JournalCorruptError, match="is damaged"):
        await names(database)


async def test_a_database_that_is_not_open_is_a_store_error(tmp_path: Path) -> None:
    """Asked before it is open, it says so."""
    with pytest.raises(StoreError, match="db is not open"):
        await Database(tmp_path / "db", schema=SCHEMA).fetch("SELECT 1")
