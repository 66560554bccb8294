"""A board that goes away, daemons that are killed, two of them at once: each submission has one end, and one run."""

from __future__ import annotations

import random
import signal
import sqlite3
import threading
import time
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest

from support.board import Board, make_template
from support.board_daemon import board_daemon, second_host
from support.daemon import processes_marked, wait_until
from support.postgres import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from support.daemon import RampdProcess, Record

# Two runs of one submission at once would meet at the mkdir; each run says that it was there.
_RUN = """
echo $name >>ROOT/runs
mkdir ROOT/running-$name || { echo $name >>ROOT/twice; exit 1; }
WAIT
rmdir ROOT/running-$name
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """Give a PostgreSQL that tests may stop."""
    with PostgresServer() as one:
        make_template(one, tmp_path_factory.mktemp("board"))
        yield one


@pytest.fixture
def board(nothing_left_over: None, server: PostgresServer, tmp_path: Path) -> Iterator[Board]:
    """Give a board on it, with a stub environment."""
    made = Board(server, tmp_path / "board", f"board_{time.monotonic_ns()}")
    made.deployment.make_stub_environment()
    yield made
    made.drop()


def _insert(board: Board, count: int, wait: str = "sleep 0.05") -> list[str]:
    titles = [f"s{number:03d}" for number in range(count)]
    behaviour = _RUN.replace("WAIT", wait).replace("ROOT", str(board.root))
    ids = board.insert(*titles, behaviours=dict.fromkeys(titles, behaviour))
    return [f"submission_{number:09d}" for number in ids]


def _runs(board: Board) -> list[str]:
    path = board.root / "runs"
    return path.read_text(encoding="utf-8").split() if path.exists() else []


def _check_the_end(board: Board, names: Sequence[str], records: Sequence[Record]) -> None:
    """Every submission is scored, once in the board's memory, a journal and the log; none ran twice at once."""
    assert not (board.root / "twice").exists()
    assert set(board.states().values()) == {"scored"}
    scored = "SELECT submission_id, count(*) FROM rampd_transitions WHERE state = 'scored' GROUP BY 1"
    assert dict(board.query(scored)) == {int(name[-9:]): 1 for name in names}
    figures = "SELECT DISTINCT train_time, test_time, state FROM submission_on_cv_folds WHERE submission_id = ANY(%s)"
    assert board.query(figures, [[int(name[-9:]) for name in names]]) == [(0.01, 0.01, "scored")]
    rows = []
    for path in sorted(board.root.glob("**/journal.sqlite3")):
        with closing(sqlite3.connect(path)) as journal:
            rows += journal.execute("SELECT submission, final, step FROM attempts").fetchall()
    assert {step for _, _, step in rows} == {"closed"}
    assert sorted(name for name, final, _ in rows if final) == sorted(names)
    finished = {(record["submission"], record["attempt"]) for record in records}
    assert sorted(name for name, _ in finished) == sorted(names)
    assert sorted(path.name for path in board.deployment.predictions.iterdir()) == sorted(names)


def _away(daemon: RampdProcess, count: int = 1) -> None:
    daemon.wait_for("store.unavailable", count=count)


def test_a_database_that_is_away_while_one_runs_costs_nothing(board: Board) -> None:
    """The run goes on and ends, its result waits in the journal, and is written when the board is there again."""
    (name,) = _insert(board, 1, f"until [ -e {board.root}/go_on ]; do sleep 0.02; done")
    with board_daemon(board) as daemon:
        daemon.wait_for("submission.started")
        wait_until(lambda: set(board.states().values()) == {"training"}, what="training")
        board.server.stop()
        try:
            _away(daemon)
            (board.root / "go_on").touch()
            wait_until(lambda: not list(board.root.glob("running-*")), what="the run's end")
            _away(daemon, 2)  # now the outcome's writer says so too
            assert daemon.find("submission.finished") == []
        finally:
            board.server.start()
        record = daemon.finished(name)[name]
        assert (record["attempt"], record["outcome"]) == (1, "ok")
        assert daemon.stop() == 0
        _check_the_end(board, [name], daemon.find("submission.finished"))
    assert _runs(board) == [name]


def test_a_database_that_goes_away_before_a_run_is_told_costs_nothing(board: Board) -> None:
    """A run that begins and ends while the board is away is told all the same, from its beginning."""
    names = _insert(board, 3, f"until [ -e {board.root}/go_on ]; do sleep 0.02; done")
    board.deployment.dispatcher["n_workers"] = 3
    board.deployment.write_config()
    with board_daemon(board) as daemon:
        daemon.wait_for("submission.started")
        board.server.stop(signal.SIGQUIT)  # as a power cut does
        try:
            _away(daemon)
            (board.root / "go_on").touch()
            wait_until(lambda: not list(board.root.glob("running-*")), what="the runs' end")
        finally:
            board.server.start()
        daemon.finished(*names)
        assert daemon.stop() == 0
        _check_the_end(board, names, daemon.find("submission.finished"))
    history = "SELECT array_agg(state ORDER BY id) FROM rampd_transitions GROUP BY submission_id"
    assert board.query(history) == [(["sent_to_training", "training", "tested", "scored"],)] * 3
    assert sorted(_runs(board)) == sorted(names)


def test_a_database_that_was_away_wakes_nobody_in_vain(board: Board) -> None:
    """What arrives after an outage starts, and the daemon has not said all the time that it was away."""
    with board_daemon(board) as daemon:
        daemon.wait_for("board.connected")
        board.server.stop()
        try:
            _away(daemon)
        finally:
            board.server.start()
        daemon.wait_for("store.recovered")
        (name,) = _insert(board, 1)
        daemon.finished(name)
        assert daemon.stop() == 0
        # Once each of the two that looked: the watch, and a claim that was on its way.
        assert len(daemon.find("store.unavailable")) == len(daemon.find("store.recovered")) <= 2


@pytest.mark.slow
def test_a_database_that_hangs_is_away(board: Board) -> None:
    """One that accepts connections and answers nothing is away after a while, and costs what one that is down costs."""
    (name,) = _insert(board, 1, f"until [ -e {board.root}/go_on ]; do sleep 0.02; done")
    with board_daemon(board) as daemon:
        daemon.wait_for("submission.started")
        wait_until(lambda: set(board.states().values()) == {"training"}, what="training")
        board.server.freeze(frozen=True)
        try:
            (board.root / "go_on").touch()
            daemon.wait_for("store.unavailable", timeout_s=60)
        finally:
            board.server.freeze(frozen=False)
        assert daemon.finished(name)[name]["attempt"] == 1
        assert daemon.stop() == 0
        _check_the_end(board, [name], daemon.find("submission.finished"))
    assert _runs(board) == [name]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_restarts_at_any_moment_lose_and_double_nothing(board: Board, number: signal.Signals) -> None:
    """PostgreSQL ends again and again, orderly or as in a power cut, while thirty submissions are run."""
    moments = random.Random(number)
    names = _insert(board, 30, "sleep 0.1")
    with board_daemon(board) as daemon:
        for _ in range(4):
            begun = len(daemon.find("submission.started"))
            daemon.wait_for("submission.started", count=min(begun + 1, len(names)))
            time.sleep(moments.uniform(0.0, 0.2))
            board.server.stop(number)
            time.sleep(moments.uniform(0.0, 0.3))
            board.server.start()
        daemon.finished(*names, timeout_s=100)
        assert daemon.stop() == 0
        _check_the_end(board, names, daemon.find("submission.finished"))
    assert sorted(_runs(board)) == sorted(names)


@pytest.mark.slow
def test_two_daemons_share_an_event(board: Board) -> None:
    """Two hundred submissions and two daemons with a state_dir each: every one runs once, and both have their part."""
    names = _insert(board, 200, ":")
    with ExitStack() as stack:
        daemons = [
            stack.enter_context(board_daemon(board)),
            stack.enter_context(board_daemon(board, config=second_host(board))),
        ]
        wait_until(
            lambda: sum(len(one.find("submission.finished")) for one in daemons) == len(names),
            timeout_s=100,
            what="the last end",
        )
        shares = [one.find("submission.finished") for one in daemons]
        for one in daemons:
            assert one.stop() == 0
    _check_the_end(board, names, [record for share in shares for record in share])
    assert sorted(_runs(board)) == sorted(names)
    assert min(map(len, shares)) > 20


def test_a_claim_of_another_daemon_is_left_alone_at_a_start(board: Board) -> None:
    """A daemon that starts beside another one puts back what nobody holds, and nothing else."""
    (held, stale) = _insert(board, 2, f"until [ -e {board.root}/go_on ]; do sleep 0.02; done")
    board.query("UPDATE submissions SET state = 'training' WHERE id = %s", [int(stale[-9:])])
    board.deployment.dispatcher["n_workers"] = 1
    board.deployment.write_config()
    with board_daemon(board) as first:
        first.wait_for("submission.recovered", submission=stale)  # as another dispatcher left it
        first.wait_for("submission.started", submission=held)
        with board_daemon(board, config=second_host(board)) as second:
            second.wait_for("submission.started", submission=stale)
            (board.root / "go_on").touch()
            first.finished(held)
            second.finished(stale)
            assert second.stop() == 0
            assert second.find("submission.recovered") == []
        assert first.stop() == 0
    assert sorted(_runs(board)) == [held, stale]


def test_a_lease_that_was_taken_over_has_no_say(board: Board) -> None:
    """A daemon that was cut off and comes back with a result finds another's claim, and drops what it has."""
    (name,) = _insert(board, 1, f"until [ -e {board.root}/go_on ]; do sleep 0.02; done")
    number = int(name[-9:])
    with board_daemon(board) as daemon:
        daemon.wait_for("submission.started")
        wait_until(lambda: board.states()[number] == "training", what="training")
        board.query(
            "UPDATE rampd_leases SET owner = 'another', attempt = attempt + 1 WHERE submission_id = %s", [number]
        )
        (board.root / "go_on").touch()
        daemon.wait_for("submission.superseded", submission=name)
        assert daemon.stop() == 0
        assert daemon.find("submission.finished") == []
    assert board.states() == {number: "training"}
    assert board.query("SELECT DISTINCT train_score FROM submission_score_on_cv_folds WHERE train_score > 0") == [
        (float("inf"),)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_kills_at_random_moments_lose_and_double_nothing(board: Board, seed: int) -> None:
    """Twelve submissions, and a daemon that is killed again and again while it works on them."""
    moments = random.Random(seed)
    names = _insert(board, 12, "sleep 0.15")
    records: list[Record] = []

    def forget_killed_runs() -> None:
        wait_until(lambda: not processes_marked(str(board.deployment.state / "attempts")), what="the end of all runs")
        for folder in board.root.glob("running-*"):
            folder.rmdir()

    for _ in range(4):
        with board_daemon(board) as daemon:
            daemon.wait_for("daemon.started")
            time.sleep(moments.uniform(0.0, 0.6))
            daemon.kill()
            records += daemon.find("submission.finished")
        forget_killed_runs()
    board.deployment.dispatcher["hunger_policy"] = "exit"
    board.deployment.write_config()
    with board_daemon(board) as daemon:
        assert daemon.wait() == 0
        records += daemon.find("submission.finished")
    _check_the_end(board, names, records)


def test_a_row_that_is_locked_is_waited_for(board: Board) -> None:
    """A claim that finds the only waiting row locked for a moment takes it when it is free, without a new look."""
    (name,) = _insert(board, 1)
    locked, free = threading.Event(), threading.Event()

    def lock() -> None:
        with board.connect() as connection, connection.transaction():
            connection.execute("SELECT FROM submissions WHERE id = %s FOR UPDATE", [int(name[-9:])])
            locked.set()
            free.wait(30)

    holder = threading.Thread(target=lock)
    holder.start()
    try:
        assert locked.wait(30)
        with board_daemon(board) as daemon:
            daemon.wait_for("daemon.ready")
            assert daemon.find("submission.started") == []
            free.set()
            daemon.finished(name)
            assert daemon.stop() == 0
    finally:
        free.set()
        holder.join()
