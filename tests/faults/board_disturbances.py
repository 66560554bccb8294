"""What befalls a daemon that serves a RAMP board besides kill -9: its database, other hosts, and rows that go."""

from __future__ import annotations

import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from faults.board_event import SECOND, BoardEvent
from faults.disturbances import OF_EVERY_STORE, Disturbances
from faults.incarnation import AT_RANDOM
from support.daemon import processes_marked, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from faults.campaign import Campaign
    from faults.incarnation import Incarnation
    from support.board import Board
    from support.postgres import PostgresServer

_PATIENCE_S = 60.0


def _board(campaign: Campaign) -> Board:
    assert isinstance(campaign.served, BoardEvent)
    return campaign.served.board


@contextmanager
def _away(server: PostgresServer, number: signal.Signals) -> Iterator[None]:
    server.stop(number)
    try:
        yield
    finally:
        server.start()


def _still_there(life: Incarnation, what: str) -> list[str]:
    return [] if life.process.poll() is None else [f"the daemon did not outlive {what}"]


def _keep_busy(campaign: Campaign, life: Incarnation) -> None:
    """Have every slot taken, and some wait."""
    for _ in range(campaign.plan.n_workers + 2):
        campaign.submit()
    life.wait_for("submission.started", timeout_s=10)


def _database_restarts(campaign: Campaign, life: Incarnation) -> list[str]:
    """Restart PostgreSQL again and again, orderly or as in a power cut, while submissions run."""
    for _ in range(3):
        for _ in range(3):
            campaign.submit()
        life.wait(campaign.choices.uniform(0.0, 0.4))
        with _away(_board(campaign).server, campaign.choices.choice([signal.SIGINT, signal.SIGQUIT])):
            life.wait(campaign.choices.uniform(0.0, 0.3))
    return _still_there(life, "restarts of its database")


def _database_stops(campaign: Campaign, life: Incarnation) -> list[str]:
    """Stop PostgreSQL for longer than anything that runs meanwhile takes."""
    _keep_busy(campaign, life)
    with _away(_board(campaign).server, signal.SIGINT):
        life.wait(campaign.plan.patience_s)
    return _still_there(life, "an outage of its database")


def _database_stops_and_the_daemon_dies(campaign: Campaign, life: Incarnation) -> list[str]:
    """Kill it while what came to an end waits in its journal; one that starts meanwhile says why it cannot."""
    _keep_busy(campaign, life)
    with _away(_board(campaign).server, signal.SIGQUIT):
        life.wait(campaign.choices.uniform(0.2, 1.0))
        life.signal(signal.SIGKILL)
        life.wait(10)
        early = campaign.start()
        status = early.wait(30)
        early.end()
        campaign.incarnations.append(early)
    failed = [record for record in early.records if record["event"] == "daemon.failed"]
    return [] if status == 1 and len(failed) == 1 else [f"a start without a database: status {status}, {failed}"]


def _database_hangs(campaign: Campaign, life: Incarnation) -> list[str]:
    """Let PostgreSQL accept connections and answer nothing, as with a disk that hangs."""
    _keep_busy(campaign, life)
    server = _board(campaign).server
    server.freeze(frozen=True)
    try:
        life.wait(campaign.plan.patience_s)
    finally:
        server.freeze(frozen=False)
    return _still_there(life, "a database that hangs")


def _connections_are_cut(campaign: Campaign, life: Incarnation) -> list[str]:
    """End every connection, as a firewall or an administrator may, again and again."""
    for _ in range(8):
        campaign.submit()
        _board(campaign).query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        life.wait(campaign.choices.uniform(0.0, 0.2))
    return _still_there(life, "connections that were cut")


def _second_host(campaign: Campaign, life: Incarnation) -> list[str]:
    """Have another host serve the same event for a while; it is killed, or ends orderly."""
    second = campaign.start(host=SECOND)
    problems = []
    try:
        if not second.wait_for("daemon.ready", timeout_s=30):
            problems.append("a second host did not begin")
        for _ in range(2 * campaign.plan.n_workers + 4):
            campaign.submit()
        second.wait_for("submission.finished", timeout_s=10)
        second.wait(campaign.choices.uniform(0.0, 0.6))
        if campaign.choices.random() < 0.5:
            second.signal(signal.SIGTERM)
            if second.wait(60) != 0:
                problems.append("SIGTERM did not end the second host with status 0")
    finally:
        status = second.end()
        campaign.incarnations.append(second)
    if status == -signal.SIGKILL:
        campaign.kills["second_host"] += 1
    return problems


def _dead_host(campaign: Campaign) -> list[str] | None:
    """Kill the other host while it works, and have this one run what it held, once its leases have expired."""
    board = _board(campaign)
    dead = campaign.start(campaign.choices.choice(_DEATHS), host=SECOND)
    try:
        dead.wait_for("daemon.ready", timeout_s=30)
        for _ in range(2 * campaign.plan.n_workers + 4):
            campaign.submit()
        dead.wait_for("submission.started", timeout_s=20)
        dead.wait(campaign.choices.uniform(0.0, 0.6))
    finally:
        dead.end()
        campaign.incarnations.append(dead)
    campaign.kills["dead_host"] += 1
    state = campaign.served.state(SECOND)
    attempts = str(state / "attempts")
    wait_until(lambda: not processes_marked(attempts), timeout_s=20, what="the end of a dead host's runs")
    owner = (state / "board_owner").read_text(encoding="ascii").strip()
    campaign.disturbed["dead_host_held"] += len(_held_by(board, owner))
    with board.after_a_minute():
        life = campaign.start()
        try:
            life.wait_for("daemon.ready", timeout_s=30)
            deadline = time.monotonic() + _PATIENCE_S
            while (left := _held_by(board, owner)) and time.monotonic() < deadline:
                life.wait(0.1)
            life.wait(campaign.choices.uniform(0.0, 1.0))
        finally:
            life.end()
            campaign.incarnations.append(life)
    campaign.kills[AT_RANDOM] += 1
    return [f"what a dead host held was not taken up: {left}"] if left else []


_DEATHS = (
    None,
    "board.claim:after:2",
    "journal.decide:after:1",
    "predictions.swap:after:1",
    "board.set_tested:after:1",
)


def _held_by(board: Board, owner: str) -> list[tuple[Any, ...]]:
    """Return what an owner's leases still keep from everybody else."""
    return board.query(
        "SELECT id, s.state FROM submissions s JOIN rampd_leases l ON submission_id = id "
        "WHERE owner = %s AND expires_at IS NOT NULL ORDER BY id",
        [owner],
    )


def _deleted(campaign: Campaign, life: Incarnation) -> list[str]:
    """Delete rows of submissions that wait, and of some that run, as an administrator's tools may."""
    names = [campaign.submit() for _ in range(campaign.plan.n_workers + 3)]
    life.wait_for("submission.started", timeout_s=10)
    running = [record["submission"] for record in life.records if record["event"] == "submission.started"]
    for name in {*names[-2:], *running[-2:]}:
        campaign.removed.add(name)
        board, number = _board(campaign), int(name.removeprefix("submission_"))
        with board.connect() as connection, connection.transaction():
            for statement in _DELETE:
                connection.execute(statement, [number])
    life.wait(0.5)
    return _still_there(life, "rows that were deleted")


_DELETE = (
    "SELECT FROM submissions WHERE id = %s FOR UPDATE",
    (
        "DELETE FROM submission_score_on_cv_folds WHERE submission_score_id IN "
        "(SELECT id FROM submission_scores WHERE submission_id = %s)"
    ),
    "DELETE FROM submission_on_cv_folds WHERE submission_id = %s",
    "DELETE FROM submission_scores WHERE submission_id = %s",
    "DELETE FROM submissions WHERE id = %s",
)

BOARD = Disturbances(
    {
        **OF_EVERY_STORE.during,
        "database_restarts": _database_restarts,
        "database_stops": _database_stops,
        "database_stops_and_the_daemon_dies": _database_stops_and_the_daemon_dies,
        "database_hangs": _database_hangs,
        "connections_are_cut": _connections_are_cut,
        "second_host": _second_host,
        "deleted": _deleted,
    },
    {**OF_EVERY_STORE.between, "dead_host": _dead_host},
)
