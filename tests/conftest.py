"""Fixtures and rules for every test: what it is given, on which loop it runs, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog
import uvloop
from pytest_asyncio import is_async_test

from rampd.demo import deployment, environment
from rampd.logs import pipeline, problems_of
from support.board import Board, make_template
from support.leaks import Snapshot, adopt_orphans, unfinished_tasks
from support.postgres import PostgresServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, MutableMapping
    from typing import NoReturn

    Record = dict[str, Any]

_ROOT = Path(__file__).parent.parent
_boards = itertools.count(1)
_ON_UVLOOP = ("integration", "acceptance", "benchmarks")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run integration tests on uvloop, as the daemon does; the others on a loop whose clock looptime can turn."""
    if item.path.relative_to(Path(__file__).parent).parts[0] in _ON_UVLOOP:
        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give asynchronous tests a look at their loop's tasks, torn down after all that the test itself asks for."""
    if not is_async_test(item):
        return
    marker = item.get_closest_marker("asyncio")
    if marker is None or marker.kwargs.get("loop_scope", "function") == "function":
        item.fixturenames.insert(item.fixturenames.index("nothing_left_over") + 1, "no_task_left_over")


@pytest.fixture(scope="session", autouse=True)
def orphans_are_ours() -> None:
    """Let `nothing_left_over` see what a killed daemon leaves, and nothing that no test made."""
    adopt_orphans()
    # looptime asks for the present loop before every test; asyncio would make one for the first, and keep it.
    asyncio.set_event_loop(None)
    # libuv keeps a pipe for good from its first loop on.
    uvloop.new_event_loop().close()


@pytest.fixture(autouse=True)
def nothing_left_over(orphans_are_ours: None) -> Iterator[None]:
    """Hold every test to leaving no process, thread or open file behind. Set up first, torn down last."""
    before = Snapshot.take()
    yield
    assert not (left := before.left_over()), left


@pytest.fixture
async def no_task_left_over() -> AsyncIterator[None]:
    """Hold an asynchronous test to leaving no task behind."""
    yield
    assert not (left := await unfinished_tasks()), left


@pytest.fixture(autouse=True)
def log_records(nothing_left_over: None) -> Iterator[list[Record]]:
    """Give the records that rampd logs during the test, as they would stand in its stream.

    Whether a test asks for them or not: each must fit the catalogue. A test that calls `rampd.logs.configure` sends
    them elsewhere.
    """
    records: list[Record] = []

    def keep(_: object, method: str, fields: MutableMapping[str, Any]) -> NoReturn:
        record = dict(fields)
        if written := record.pop("on_written", None):
            written()
        if error := record.pop("exc_info", None):
            record["exception"] = repr(error)
        head = {
            "timestamp": "1970-01-01T00:00:00.000000Z",
            "level": "error" if method == "exception" else method,
            "event": record.pop("event"),
            "logger": record.pop("logger", "rampd"),
            "run": "0",
        }
        records.append(json.loads(pipeline._render_json(head, record, len(records) + 1)))
        raise structlog.DropEvent

    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, keep], cache_logger_on_first_use=False)
    yield records
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    problems = [(record, found) for record in records if (found := problems_of(record))]
    assert not problems, problems


@pytest.fixture(scope="session")
def ramp_environment() -> Path:
    """Return a prefix with ramp-workflow: RAMPD_TEST_ENVIRONMENT, else one that is made once beside the tests."""
    if given := os.environ.get("RAMPD_TEST_ENVIRONMENT"):
        return Path(given)
    prefix = _ROOT / ".venv-ramp"
    environment.build(prefix, say=print)
    return prefix


@pytest.fixture(scope="session")
def iris_kit(ramp_environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a deployment's folder that has the demo's kit and its data, and nothing else. Not to be written to."""
    root = tmp_path_factory.mktemp("iris")
    deployment.write_kit(deployment.kit_dir(root), deployment.data_dir(root), ramp_environment)
    return root


@pytest.fixture(scope="session")
def dask_is_warm() -> None:
    """Have distributed start, before a test looks, the threads that it keeps for the whole life of a process."""
    from distributed.utils import offload  # noqa: PLC0415 -- 0.7 s that other tests need not pay

    with asyncio.Runner() as runner:
        runner.run(offload(int))


@pytest.fixture(scope="session")
def dask_environment() -> Path:
    """Return a prefix with distributed and nothing else: RAMPD_TEST_DASK_ENVIRONMENT, else one that is made once."""
    if given := os.environ.get("RAMPD_TEST_DASK_ENVIRONMENT"):
        return Path(given)
    prefix = _ROOT / ".venv-dask"
    wanted = f"distributed=={version('distributed')}"
    if not (prefix / wanted).exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(prefix)], check=True)
        pip = [str(prefix / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", wanted]
        subprocess.run(pip, check=True)
        (prefix / wanted).touch()
    return prefix


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """Give a PostgreSQL with a board that tests copy; it runs until the last test."""
    with PostgresServer() as server:
        make_template(server, tmp_path_factory.mktemp("board"))
        yield server


@pytest.fixture
def board(nothing_left_over: None, postgres: PostgresServer, tmp_path: Path) -> Iterator[Board]:
    """Give a board of the test's own, with two teams and nothing but their sandboxes in it."""
    made = Board(postgres, tmp_path / "board", f"board_{next(_boards)}")
    yield made
    made.drop()
