"""The checker of the fault campaigns finds what is wrong on a board: each fault is planted, and named."""

from __future__ import annotations

import copy
import itertools
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from faults.behaviours import SAYS_SO
from faults.board_event import BoardEvent
from faults.checker import check
from faults.incarnation import FIRST
from support.board import Board
from support.board_daemon import board_daemon

if TYPE_CHECKING:
    from collections.abc import Iterator

    from faults.incarnation import Incarnation
    from support.daemon import Record
    from support.postgres import PostgresServer

_TITLES = ("good", "better", "bad")
_copies = itertools.count(1)


class Served:
    """A board whose event was served to its end, and what its daemon said."""

    def __init__(self, board: Board, names: list[str], records: list[Record]) -> None:
        self.board = board
        self.names = names
        self.records = records

    def problems(self, *, host: str = FIRST) -> list[str]:
        """Return what the checker says."""
        life = SimpleNamespace(
            host=host, records=self.records, torn=0, is_whole=True, process=SimpleNamespace(returncode=0)
        )
        lives = [cast("Incarnation", life)]
        return check(BoardEvent(self.board), lives, submitted=self.names, removed=[]).problems


@pytest.fixture(scope="module")
def original(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Give one that is as it should be; not to be changed."""
    board = Board(postgres, tmp_path_factory.mktemp("served") / "board", "board_checked")
    deployment = board.deployment
    deployment.make_stub_environment()
    deployment.dispatcher["hunger_policy"] = "exit"
    deployment.write_config()
    says_so = SAYS_SO.replace("ROOT", str(board.root))
    behaviours = dict.fromkeys(_TITLES, says_so) | {"bad": f"{says_so}exit 1\n"}
    names = [f"submission_{number:09d}" for number in board.insert(*_TITLES, behaviours=behaviours)]
    with board_daemon(board) as daemon:
        assert daemon.wait() == 0
        yield Served(board, names, daemon.records)
    board.drop()


@pytest.fixture
def served(original: Served) -> Iterator[Served]:
    """Give a copy of its database, to be damaged; the folders are the same."""
    board = copy.copy(original.board)
    board.database = f"board_damaged_{next(_copies)}"
    board.server.copy_database(original.board.database, board.database)
    yield Served(board, original.names, list(original.records))
    board.drop()


def test_what_is_right_is_right(served: Served) -> None:
    """Nothing is found where nothing is wrong."""
    assert served.problems() == []


# Grouped, for each check has ramp_database read everything back, which takes it seconds.
@pytest.mark.parametrize(
    "planted",
    [
        {
            "UPDATE submissions SET state = 'training' WHERE id = 3": "unfinished: submission_000000003 is training",
            "UPDATE submissions SET queue_position = 1 WHERE id = 4": "submission_000000004 is scored and has place 1",
            "UPDATE submissions SET error_msg = 'oh' WHERE id = 4": "000004 is scored and its participant is told 'oh'",
            "UPDATE submissions SET state = 'tested' WHERE name = 'starting_kit'": "is a sandbox, and tested",
        },
        {
            "UPDATE rampd_leases SET expires_at = now() WHERE submission_id = 3": "lease left over: submission 3 until",
            "INSERT INTO rampd_leases (submission_id) VALUES (77)": "lease left over: there is no submission 77",
            "UPDATE rampd_leases SET state = 'new' WHERE submission_id = 4": "submission 4 is scored, its lease says n",
            "DELETE FROM rampd_leases WHERE submission_id = 5": "submission 5 came to its end without a lease",
            "INSERT INTO rampd_transitions (submission_id, state, at) VALUES (3, 'scored', now())": (
                "finished twice: submission_000000003 came to 2 final states"
            ),
            "INSERT INTO rampd_transitions (submission_id, state, at) VALUES (4, 'training', now())": (
                "submission_000000004 went from scored to training"
            ),
        },
        {
            "UPDATE submission_on_cv_folds SET state = 'tested' WHERE submission_id = 3": "3 is scored, its folds test",
            "UPDATE submission_on_cv_folds SET train_time = 7 WHERE submission_id = 4": (
                "submission_000000004 is scored, the figures of its folds are"
            ),
            "UPDATE submission_score_on_cv_folds SET test_score = 0.5 WHERE submission_score_id IN "
            "(SELECT id FROM submission_scores WHERE submission_id = 5)": (
                "submission_000000005 is training_error, the figures of its folds are"
            ),
            "UPDATE submission_scores SET valid_score_cv_bag = 0.5 WHERE submission_id = 3": (
                "submission_000000003 is scored, its bags are"
            ),
            "UPDATE submission_scores SET test_score_cv_bags = "
            "(SELECT test_score_cv_bags FROM submission_scores WHERE submission_id = 5 LIMIT 1) "
            "WHERE submission_id = 4": "submission_000000004 is scored, its bags are",
        },
    ],
    ids=["submissions", "leases", "figures"],
)
def test_a_board_that_is_wrong_is_found(served: Served, planted: dict[str, str]) -> None:
    """In ramp_database's tables or in rampd's own: what each statement damages is named."""
    for statement in planted:
        served.board.query(statement)
    problems = served.problems()
    assert [found for found in planted.values() if not any(found in problem for problem in problems)] == [], problems


def test_what_came_too_late_is_no_end(served: Served) -> None:
    """An outcome that was superseded does not count: without another one the submission has none."""
    end = next(one for one in served.records if one["event"] == "submission.finished")
    late = {**end, "event": "submission.superseded", "seq": served.records[-1]["seq"] + 1}
    served.records.append(late)
    problems = served.problems()
    assert f"{end['submission']} is {end['state']} without a final attempt" in problems, problems


def test_what_another_host_said_is_not_this_ones(served: Served) -> None:
    """Each host's stream is held against its own journal."""
    problems = served.problems(host="second")
    assert f"no submission.finished for {served.names[0]} attempt 1" in problems
    assert f"the stream has an end that the journal does not know: {served.names[0]}" in problems
