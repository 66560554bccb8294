"""A real daemon on a real board: what ramp_database reads back of good, bad, late, lost and never-run submissions."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from support.board_daemon import board_daemon
from support.daemon import wait_until
from support.rampctl import rampctl

if TYPE_CHECKING:
    from support.board import Board

UNTOUCHED = {"acc": [0.0, 0.0, 0.0], "nll": ["inf", "inf", "inf"]}
TRACEBACK = """cat >&2 <<END
Traceback (most recent call last):
  File "submissions/$name/estimator.py", line 1, in <module>
ValueError: é
END
exit 1
"""


def test_everything_is_read_back_by_ramp_database(board: Board) -> None:
    """Submitted through ramp_database, run, and read back through its models, to the last number."""
    board.deployment.worker["timeout"] = 2
    board.deployment.write_config()
    board.deployment.make_stub_environment()
    began = datetime.now(UTC).replace(tzinfo=None)
    good, bad, late = board.submit("good", "bad", "late", behaviours={"bad": TRACEBACK, "late": "exec sleep 60\n"})
    with board_daemon(board, pages=True) as rampd:
        rampd.finished(good, bad, late)
        assert rampd.stop() == 0
    read = board.read()
    found = read["submissions"]

    one = found[good]
    assert (one["state"], one["error_msg"], one["queue_position"]) == ("scored", "", -1)
    assert 1 < one["max_ram"] < 1000
    assert one["folds"] == [
        {
            "state": "scored",
            "times": [0.01, 0.01, 0.01],
            "scores": {"acc": [0.97, 0.95, 0.96], "nll": [0.1, 0.2, 0.15]},
        },
        {
            "state": "scored",
            "times": [0.01, 0.01, 0.01],
            "scores": {"acc": [0.98, 0.96, 0.97], "nll": [0.11, 0.21000000000000002, 0.16]},
        },
    ]
    assert one["bags"] == {
        "acc": {"last": [0.951, 0.961], "valid": ["float64", [0.95, 0.951]], "test": ["float64", [0.96, 0.961]]},
        "nll": {"last": [0.201, 0.151], "valid": ["float64", [0.2, 0.201]], "test": ["float64", [0.15, 0.151]]},
    }
    times = [datetime.fromisoformat(one[key]) for key in ("sent", "training")]
    assert began <= times[0] <= times[1] <= datetime.now(UTC).replace(tzinfo=None)

    for name, message in ((bad, "ValueError: é"), (late, "Worker killed due to timeout after 2s.")):
        one = found[name]
        assert (one["state"], one["queue_position"]) == ("training_error", -1)
        assert message in one["error_msg"]
        assert [(fold["state"], fold["scores"]) for fold in one["folds"]] == [("training_error", UNTOUCHED)] * 2

    sandboxes = [one for one in found.values() if one["name"] == "starting_kit"]
    assert len(sandboxes) == 2
    for one in sandboxes:
        assert (one["state"], one["sent"], one["queue_position"]) == ("new", None, -1)
        assert {fold["state"] for fold in one["folds"]} == {"new"}

    pages = read["leaderboards"]
    for name in ("public_leaderboard_html_no_links", "private_leaderboard_html", "public_competition_leaderboard_html"):
        assert "<td>0.95</td>" in pages[name] or "<td>0.951</td>" in pages[name]
    assert "training_error" in pages["failed_leaderboard_html"]
    assert pages["new_leaderboard_html"] is None
    assert ">good<" in read["teams"]["anna"]["leaderboard_html"]
    assert ">late<" in read["teams"]["anna"]["failed_leaderboard_html"]
    assert read["teams"]["bert"]["leaderboard_html"] is None


def test_a_missing_test_set_leaves_the_worst_and_none(board: Board) -> None:
    """A kit without a test set has no test figures: the score type's worst value stays, and None for the bags."""
    board.deployment.make_stub_environment()
    no_test = (
        'cp -r TEMPLATE "$submission/training_output"; cd "$submission/training_output"\n'
        "rm fold_*/test_time fold_*/y_pred_test.npz; sed -i /^test/d fold_*/scores.csv bagged_scores.csv; exit 0\n"
    ).replace("TEMPLATE", str(board.deployment.root / "template"))
    (name,) = board.submit("good", behaviours={"good": no_test})
    with board_daemon(board) as rampd:
        assert rampd.finished(name)[name]["state"] == "scored"
        assert rampd.stop() == 0
    one = board.read()["submissions"][name]
    assert one["folds"][0]["times"] == [0.01, 0.01, 0.0]
    assert one["folds"][0]["scores"] == {"acc": [0.97, 0.95, 0.0], "nll": [0.1, 0.2, "inf"]}
    assert one["bags"]["nll"] == {"last": [0.201, "inf"], "valid": ["float64", [0.2, 0.201]], "test": ["object", None]}


def test_a_platform_failure_says_so(board: Board) -> None:
    """What fails for the platform's reasons until its attempts are used up is checking_error, not the participant's."""
    board.deployment.worker["max_attempts"] = 1
    board.deployment.write_config()
    board.deployment.make_stub_environment()
    broken = "echo 'Traceback (most recent call last):' >&2; echo 'ImportError: no kit' >&2; exit 1\n"
    (name,) = board.submit("lost", behaviours={"lost": broken})
    with board_daemon(board) as rampd:
        assert rampd.finished(name)[name]["outcome"] == "platform_error"
        assert rampd.stop() == 0
    one = board.read()["submissions"][name]
    assert one["state"] == "checking_error"
    assert "platform failed" in one["error_msg"]
    assert "no kit" not in one["error_msg"]
    assert {fold["state"] for fold in one["folds"]} == {"checking_error"}


def test_those_that_wait_are_numbered(board: Board) -> None:
    """While one runs the others have their places from 1, in the order of arrival; all move up as it ends."""
    board.deployment.dispatcher["n_workers"] = 1
    board.deployment.write_config()
    board.deployment.make_stub_environment()
    go_on = board.root / "go_on"
    wait = f"until [ -e {go_on} ]; do sleep 0.05; done\n"
    ids = board.insert("one", "two", "three", behaviours={"one": wait})

    def places() -> list[int]:
        rows = board.query("SELECT queue_position FROM submissions WHERE id >= %s ORDER BY id", ids[:1])
        return [row[0] for row in rows]

    with board_daemon(board) as rampd:
        rampd.wait_for("submission.started")
        wait_until(lambda: places() == [-1, 1, 2], what="the queue's numbering")
        (four,) = board.insert("four")
        wait_until(lambda: places() == [-1, 1, 2, 3], what="the queue's numbering")
        go_on.touch()
        rampd.finished(*(f"submission_{number:09d}" for number in (*ids, four)))
        assert places() == [-1, -1, -1, -1]
        assert rampd.stop() == 0


def test_a_retry_begins_with_the_worst(board: Board) -> None:
    """What is run again by the operator's word loses its old scores at once, and fails with none of them."""
    board.deployment.make_stub_environment()
    (number,) = board.insert("one")
    name = f"submission_{number:09d}"
    with board_daemon(board) as rampd:
        assert rampd.finished(name)[name]["state"] == "scored"
        (board.deployment.submissions / name / "behave.sh").write_text("exit 3\n", encoding="utf-8")
        asked = rampctl("retry", name, "--database-config", str(board.config), config=board.deployment.config)
        assert (asked.status, asked.stderr) == (0, "")
        rampd.wait_for("submission.finished", submission=name, outcome="participant_error")
        assert rampd.stop() == 0
    one = board.read()["submissions"][name]
    assert one["state"] == "training_error"
    assert [(fold["times"], fold["scores"]) for fold in one["folds"]] == [([0.0, 0.0, 0.0], UNTOUCHED)] * 2
    assert one["bags"]["acc"] == {"last": [0.0, 0.0], "valid": ["object", None], "test": ["object", None]}
