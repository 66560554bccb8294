"""A server that changes hands: the original dispatcher, rampd, and the original again, with one set of files."""

from __future__ import annotations

import json
import signal
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from support.board import python
from support.daemon import RampdProcess, wait_until
from support.ramp_launch import RampLaunch, order, write_deployment
from support.rampctl import rampctl

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from support.board import Board

_SAYS_SO = "echo $name >>ROOT/runs\n"
_WAITS = "until [ -e ROOT/WORD ]; do sleep 0.05; done\n"


def _submit(board: Board, *titles: str, waits_for: str = "", behaviour: str = "") -> list[str]:
    wait = _WAITS.replace("WORD", waits_for) if waits_for else ""
    names = board.submit(*titles)
    for name in names:
        order(board, name, (_SAYS_SO + wait + behaviour).replace("ROOT", str(board.root)))
    return names


def _of(names: Sequence[str], state: str) -> dict[int, str]:
    return {int(name.removeprefix("submission_")): state for name in names}


def _runs(board: Board) -> Counter[str]:
    return Counter((board.root / "runs").read_text(encoding="utf-8").split())


def _figures(one: Mapping[str, Any]) -> Any:
    """Return what the two dispatchers must agree on: all but when it was, and what the original never writes.

    To twelve digits: the original reads scores with pandas, whose parser may miss a double by its last bit.
    """
    kept = {key: one[key] for key in ("state", "error_msg", "queue_position", "folds", "bags")}
    return json.loads(json.dumps(kept), parse_float=lambda text: round(float(text), 12))


def _with_the_board(board: Board, *words: str) -> list[str]:
    return [*words, "--database-config", str(board.config)]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_a_server_changes_hands_and_back(board: Board, number: signal.Signals) -> None:
    """Whatever way one dispatcher ended, the next takes up what it left; each submission has its one end."""
    environment = write_deployment(board)
    config = board.deployment.config

    with RampLaunch(board, environment) as original:
        good, bad = (*_submit(board, "good"), *_submit(board, "bad", behaviour="echo oh; exit 1\n"))
        original.wait_for({**_of([good], "scored"), **_of([bad], "training_error")})
        running = _submit(board, "r0", "r1", waits_for="go_on")
        original.wait_for(_of(running, "training"))
        sent = _submit(board, "s0", "s1", waits_for="go_on")
        original.wait_for({**_of(running, "training"), **_of(sent, "sent_to_training")})
        original.stop(number)
    # TERM, which `systemctl stop` sends, ends it as KILL does: nothing is put back.
    assert board.states().items() >= {**_of(running, "training"), **_of(sent, "sent_to_training")}.items()
    before = board.read()["submissions"]
    assert _runs(board) == Counter([good, bad, *running])

    checked = rampctl(*_with_the_board(board, "check"), config=config, environment=environment)
    assert checked.status == 0, checked.stdout + checked.stderr
    (board.root / "go_on").touch()
    with RampdProcess(
        config, *_with_the_board(board, "--board-python", str(python())), environment=environment
    ) as rampd:
        rampd.finished(*running, *sent)
        (left,) = _submit(board, "left", waits_for="go_back")
        rampd.wait_for("submission.started", submission=left)
        wait_until(lambda: _runs(board)[left] == 1, timeout_s=30, what="the start")
        assert rampd.stop() == 0
        ends = Counter(record["submission"] for record in rampd.find("submission.finished"))
    assert ends == Counter([*running, *sent])
    assert _runs(board) == Counter([good, bad, *running, *running, *sent, left])
    between = board.read()
    found = between["submissions"]
    assert {name: found[name] for name in (good, bad)} == {name: before[name] for name in (good, bad)}
    assert [_figures(found[name]) for name in (*running, *sent)] == [_figures(before[good])] * 4
    assert found[left]["state"] == "new"
    assert {fold["state"] for fold in found[left]["folds"]} == {"new"}
    for title in ("good", "r0", "r1", "s0", "s1"):
        assert f">{title}<" in between["teams"]["anna"]["leaderboard_html"]

    # And back, without a trace.
    removed = rampctl(*_with_the_board(board, "board", "remove-trigger"), config=config, environment=environment)
    assert removed.status == 0, removed.stderr
    board.query("DROP TABLE rampd_leases, rampd_transitions")
    (board.root / "go_back").touch()
    with RampLaunch(board, environment) as original:
        (fresh,) = _submit(board, "fresh")
        original.wait_for(_of([left, fresh], "scored"))
        original.stop(signal.SIGINT)
    after = board.read()["submissions"]
    assert {name: after[name] for name in before if name != left} == {name: found[name] for name in before}
    assert [_figures(after[name]) for name in (left, fresh)] == [_figures(before[good])] * 2
    assert _runs(board) == Counter([good, bad, *running, *running, *sent, left, left, fresh])
