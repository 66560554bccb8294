"""How a daemon hears of submissions, how often it asks, and what it does where it may make no tables."""

from __future__ import annotations

import sys
from itertools import pairwise
from typing import TYPE_CHECKING

from support.board_daemon import board_daemon, second_host
from support.daemon import RampdProcess, processes_marked, wait_until
from support.postgres import PASSWORD
from support.rampctl import rampctl
from support.service_manager import ServiceManager

if TYPE_CHECKING:
    import pytest

    from support.board import Board
    from support.rampctl import Said


def operator(board: Board, *words: str) -> Said:
    """Run rampctl on the board."""
    return rampctl(*words, "--database-config", str(board.config), config=board.deployment.config)


def _statements(board: Board) -> list[float]:
    """Return when each statement of the daemon's came, in seconds, by the server's clock."""
    return [float(line.split("|")[2]) for line in board.server.statements(board.database) if "LOG:" in line]


def test_an_idle_event_is_asked_for_every_five_seconds(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """One statement a look, and no look sooner than five seconds after the last; under a service manager, too."""
    board.deployment.make_stub_environment()
    manager = ServiceManager(board.root / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
    with manager, board_daemon(board) as daemon:
        daemon.wait_for("daemon.ready")
        begun = _statements(board)[-1]

        def looks() -> list[float]:
            # What belongs to the start is over within two seconds of it: the queue is numbered after one.
            return [at for at in _statements(board) if at > begun + 2]

        wait_until(lambda: len(looks()) >= 3, timeout_s=60, what="three looks")
        assert all(later - earlier > 4.9 for earlier, later in pairwise(looks())), looks()
        assert daemon.stop() == 0


def test_the_trigger_wakes_a_daemon_that_runs_already(board: Board) -> None:
    """Installed beside a daemon, it has new submissions start at once; taken out again, they are looked for."""
    board.deployment.make_stub_environment()
    with board_daemon(board) as daemon:
        assert daemon.wait_for("board.connected")["trigger"] is False
        assert operator(board, "board", "install-trigger").status == 0
        assert operator(board, "board", "install-trigger").status == 0
        assert "installed" in _detail(board, "trigger")
        (first,) = board.insert("one")
        daemon.finished(f"submission_{first:09d}")
        # It looks every 30 s now: what starts within ten was called for.
        (second,) = board.insert("two")
        daemon.wait_for("submission.started", submission=f"submission_{second:09d}", timeout_s=10)
        daemon.finished(f"submission_{second:09d}")
        assert operator(board, "board", "remove-trigger").status == 0
        assert "5 s" in _detail(board, "trigger")
        (third,) = board.insert("three")
        daemon.finished(f"submission_{third:09d}")
        assert daemon.stop() == 0
    assert board.query("SELECT count(*) FROM pg_proc WHERE proname = 'rampd_notify'") == [(0,)]


def _detail(board: Board, name: str) -> str:
    said = operator(board, "check", "--json")
    (finding,) = (one for one in said.data["findings"] if one["name"] == name)
    return str(finding["detail"])


def test_a_user_that_may_make_no_tables_serves_alone(board: Board) -> None:
    """Without leases the event's advisory lock lets one daemon work, and the next one says why it does not."""
    board.deployment.make_stub_environment()
    user = f"visitor_{board.database}"
    board.query(f"CREATE ROLE {user} LOGIN PASSWORD '{PASSWORD}'")  # names of our own
    try:
        board.query(f"GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA public TO {user}")
        board.config.write_text(
            board.config.read_text(encoding="utf-8").replace("username: mrramp", f"username: {user}"), encoding="utf-8"
        )
        assert "GRANT CREATE" in _detail(board, "leases")
        (number,) = board.insert("one")
        name = f"submission_{number:09d}"
        with board_daemon(board) as first:
            assert first.wait_for("board.connected")["leased"] is False
            first.finished(name)
            with board_daemon(board, config=second_host(board)) as second:
                assert second.wait() == 1
                assert b"another daemon serves iris_test" in second.stderr
            assert operator(board, "retry", name).status == 0
            first.wait_for("submission.finished", submission=name, attempt=2)
            assert first.stop() == 0
        one = board.query("SELECT state, train_time FROM submission_on_cv_folds WHERE submission_id = %s", [number])
        assert one == [("scored", 0.01)] * 2
        assert board.query("SELECT to_regclass('rampd_leases')") == [(None,)]
    finally:
        board.query(f"DROP OWNED BY {user}")
        board.query(f"DROP ROLE {user}")


def test_rampctl_works_without_a_daemon(board: Board) -> None:
    """Status, scores, run, cancel and check speak of the board; submissions are not made here."""
    board.deployment.make_stub_environment()
    first, second = (f"submission_{number:09d}" for number in board.insert("one", "two"))
    status = operator(board, "status", "--json").data
    assert [(one["name"], one["state"], one["position"]) for one in status["submissions"]] == [
        (first, "new", 1),
        (second, "new", 2),
    ]
    assert operator(board, "run", second).status == 0
    scores = operator(board, "scores", "--json").data
    assert [entry["name"] for entry in scores["entries"]] == [second]
    assert scores["entries"][0]["scores"]["acc"]["test"]["bagged"] == 0.961
    assert operator(board, "cancel", first).status == 0
    refused = operator(board, "submit", str(board.deployment.submissions / first))
    assert (refused.status, "ramp-frontend" in refused.stderr) == (1, True)
    sandbox = operator(board, "run", "submission_000000001")
    assert (sandbox.status, "never run" in sandbox.stderr) == (2, True)
    missing = operator(board, "status", "submission_000000999")
    assert (missing.status, "no submission named" in missing.stderr) == (2, True)
    with board_daemon(board) as daemon:
        assert daemon.finished(first)[first]["outcome"] == "cancelled"
        assert daemon.stop() == 0
    assert board.query("SELECT error_msg FROM submissions WHERE id = %s", [int(first[-9:])]) == [
        ("Cancelled by the organizers.",)
    ]


def test_check_says_what_is_wrong(board: Board) -> None:
    """A wrong folder, event, password, database or server is one failed finding with a sentence each."""
    board.deployment.make_stub_environment()
    assert operator(board, "check").status == 0
    text = board.config.read_text(encoding="utf-8")

    def wrong(old: str, new: str) -> str:
        board.config.write_text(text.replace(old, new), encoding="utf-8")
        said = operator(board, "check", "--json")
        assert said.status == 1
        assert PASSWORD not in said.stdout + said.stderr
        (finding,) = (one for one in said.data["findings"] if not one["is_ok"])
        return str(finding["detail"])

    assert "password authentication failed" in wrong(f"password: {PASSWORD}", "password: another")
    assert "cannot be used" in wrong(f"port: {board.server.port}", "port: 1")
    assert "is no RAMP board" in wrong(f"database: {board.database}", "database: postgres")
    board.config.write_text(text, encoding="utf-8")
    board.query("UPDATE events SET path_ramp_submissions = '/elsewhere'")
    assert "/elsewhere" in wrong("", "")
    board.query("UPDATE events SET name = 'another'")
    assert "has no event 'iris_test'; there is: another" in wrong("", "")


def test_an_event_of_a_folder_is_served_while_it_is_open(board: Board) -> None:
    """Under --events-dir what runs at the closing ends, nothing more is claimed, and an opening lets the rest go on."""
    board.deployment.make_stub_environment()
    board.deployment.dispatcher["n_workers"] = 1
    board.deployment.write_config()
    go_on = board.root / "go_on"
    wait = f"until [ -e {go_on} ]; do sleep 0.02; done\n"
    first, second = (f"submission_{number:09d}" for number in board.insert("one", "two", behaviours={"one": wait}))
    command = (sys.executable, "-m", "rampd", "--events-dir", str(board.root / "events"))
    options = ("--database-config", str(board.config), "--board-python", "/nonexistent")
    with RampdProcess(None, *options, command=command) as daemon:
        daemon.wait_for("submission.started", submission=first)
        board.query("UPDATE events SET closing_timestamp = now() AT TIME ZONE 'utc' - interval '1 s'")
        daemon.wait_for("board.event_closed")
        go_on.touch()
        daemon.finished(first)
        assert board.states()[int(second[-9:])] == "new"
        board.query("UPDATE events SET closing_timestamp = '2100-01-01'")
        daemon.wait_for("board.event_opened")
        daemon.finished(second)
        assert daemon.stop() == 0
        opened = daemon.records.index(daemon.find("board.event_opened")[0])
        assert opened < daemon.records.index(daemon.find("submission.started", submission=second)[0])


def test_what_a_dead_host_held_is_run_by_another(board: Board) -> None:
    """A daemon that is killed and does not come back loses its leases after a minute, to the other one."""
    board.deployment.make_stub_environment()
    run = f"echo $name >>{board.root}/runs; until [ -e {board.root}/go_on ]; do sleep 0.02; done\n"
    (number,) = board.insert("one", behaviours={"one": run})
    name = f"submission_{number:09d}"
    with board_daemon(board, config=second_host(board, "dead")) as dead:
        dead.wait_for("submission.started")
        wait_until(lambda: board.states()[number] == "training", what="training")
        wait_until((board.root / "runs").exists, timeout_s=30, what="the start")
        dead.kill()
    wait_until(lambda: not processes_marked(str(board.root / "state-dead")), what="the end of the run")
    (board.root / "go_on").touch()
    with board_daemon(board) as daemon:
        daemon.wait_for("daemon.ready")
        assert board.states() == {number: "training"}
        board.query("UPDATE rampd_leases SET expires_at = expires_at - interval '1 min'")  # as if it had gone by
        # The server must be up for a minute, too: in a whole run of the tests it is.
        daemon.wait_for("submission.recovered", submission=name, timeout_s=100)
        assert daemon.finished(name)[name]["attempt"] == 1
        assert daemon.stop() == 0
    assert board.query("SELECT attempt FROM rampd_leases") == [(2,)]
    assert (board.root / "runs").read_text(encoding="utf-8").split() == [name, name]
