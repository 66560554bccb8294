"""The checker of the fault campaigns finds what is wrong: each fault is planted, and named."""

from __future__ import annotations

import fcntl
import shutil
import sqlite3
import subprocess
from contextlib import closing
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from faults.behaviours import SAYS_SO
from faults.checker import check
from faults.events import DirectoryEvent
from faults.incarnation import FIRST
from support.daemon import RampdProcess
from support.deployment import Deployment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from faults.incarnation import Incarnation

NAMES = ["good", "better", "bad"]


@dataclass
class Served:
    """An event that was served to its end, and what its daemon said."""

    event: Deployment
    records: list[dict[str, Any]]

    def problems(self, *, submitted: list[str] | None = None, is_whole: bool = True, status: int = 0) -> list[str]:
        """Return what the checker says."""
        life = SimpleNamespace(
            host=FIRST,
            records=self.records,
            torn=0,
            is_whole=is_whole,
            process=SimpleNamespace(returncode=status),
        )
        lives = [cast("Incarnation", life)]
        return check(DirectoryEvent(self.event), lives, submitted=submitted or NAMES, removed=[]).problems

    def sql(self, name: str, statement: str) -> None:
        """Change a database by hand."""
        with closing(sqlite3.connect(self.event.state / name)) as database, database:
            database.execute("PRAGMA ignore_check_constraints=ON")
            database.execute(statement)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Return one that is as it should be; not to be changed."""
    event = Deployment(tmp_path_factory.mktemp("served"), dispatcher={"hunger_policy": "exit"})
    event.make_stub_environment()
    for name in NAMES:
        event.submit(name, SAYS_SO.replace("ROOT", str(event.root)) + ("exit 0" if name == "bad" else ""))
    with RampdProcess(event.config) as daemon:
        assert daemon.wait() == 0
        return Served(event, daemon.records)


@pytest.fixture
def served(original: Served, tmp_path: Path) -> Served:
    """Give a copy of it, to be damaged."""
    root = tmp_path / "copy"
    shutil.copytree(original.event.root, root)
    runs = root / "runs"
    runs.write_text(runs.read_text(encoding="utf-8").replace(str(original.event.root), str(root)), encoding="utf-8")
    copy = object.__new__(Deployment)
    vars(copy).update({**vars(original.event), "root": root})
    return Served(copy, [dict(record) for record in original.records])


def test_what_is_right_is_right(served: Served) -> None:
    """Nothing is found where nothing is wrong."""
    assert served.problems() == []


STORE, JOURNAL = "submissions.sqlite3", "journal.sqlite3"


@pytest.mark.parametrize(
    ("database", "statement", "found"),
    [
        (STORE, "DELETE FROM submissions WHERE name = 'good'", "lost: good"),
        (STORE, "UPDATE submissions SET state = 'new' WHERE name = 'good'", "unfinished: good is new"),
        (STORE, "UPDATE submissions SET name = 'stranger' WHERE name = 'good'", "invented: nobody submitted stranger"),
        (STORE, "INSERT INTO transitions SELECT id, 'scored', 0 FROM submissions WHERE name = 'good'", "scored to sco"),
        (STORE, "INSERT INTO transitions SELECT id, 'scored', 0 FROM submissions WHERE name = 'good'", "finished twi"),
        (JOURNAL, "UPDATE attempts SET step = 'decided' WHERE submission = 'good'", "good attempt 1 is decided"),
        (JOURNAL, "UPDATE attempts SET outcome = NULL WHERE submission = 'good'", "with outcome None"),
        (
            JOURNAL,
            "UPDATE attempts SET outcome = 'timeout' WHERE submission = 'good'",
            "good attempt 1 has two outcomes",
        ),
        (JOURNAL, "UPDATE attempts SET final = 0 WHERE submission = 'good'", "good is scored without a final attempt"),
        (JOURNAL, "UPDATE attempts SET number = 2 WHERE submission = 'good'", "good has attempts [2]"),
        (
            JOURNAL,
            "INSERT INTO requests (kind, submission, requested_at) VALUES ('cancel', 'good', 0)",
            "request 1 was not answered",
        ),
    ],
)
def test_a_database_that_is_wrong_is_found(served: Served, database: str, statement: str, found: str) -> None:
    """In the store or in the journal."""
    served.sql(database, statement)
    assert any(found in problem for problem in served.problems()), served.problems()


def _finished(records: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (record,) = [one for one in records if one["event"] == "submission.finished" and one["submission"] == name]
    return record


def _unsaid(records: list[dict[str, Any]]) -> None:
    _finished(records, "good")["event"] = "submission.detected"


def _said_otherwise(records: list[dict[str, Any]]) -> None:
    records.append({**_finished(records, "good"), "seq": records[-1]["seq"] + 1, "run_s": 1e6, "replayed": True})


def _said_of_nobody(records: list[dict[str, Any]]) -> None:
    records.append({**_finished(records, "good"), "seq": records[-1]["seq"] + 1, "attempt": 7})


def _gap(records: list[dict[str, Any]]) -> None:
    records.pop(1)


def _miscounted(records: list[dict[str, Any]]) -> None:
    gone = records.pop(1)["seq"]
    told = {"event": "log.dropped", "count": 5, "first_seq": gone, "last_seq": gone, "seq": records[-1]["seq"] + 1}
    records.append({**records[0], **told})


def _disordered(records: list[dict[str, Any]]) -> None:
    records[1], records[2] = records[2], records[1]


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (_unsaid, "no submission.finished for good attempt 1"),
        (_said_otherwise, "good attempt 1 was said to end in two ways"),
        (_said_of_nobody, "an end that the journal does not know: good"),
        (_gap, "are missing and no log.dropped says so"),
        (_miscounted, "1 records are missing, log.dropped counts 5"),
        (_disordered, "seq is not in order"),
    ],
)
def test_a_stream_that_is_wrong_is_found(
    served: Served, damage: Callable[[list[dict[str, Any]]], None], found: str
) -> None:
    """What it leaves out, says twice, or says otherwise."""
    damage(served.records)
    assert any(found in problem for problem in served.problems()), served.problems()


def test_what_a_log_dropped_covers_is_no_gap(served: Served) -> None:
    """It says how many, and which."""
    gone = next(one for one in served.records if one["event"] == "submission.queued")
    served.records.remove(gone)
    last = served.records[-1]["seq"]
    told = {"event": "log.dropped", "count": 1, "first_seq": gone["seq"], "last_seq": gone["seq"], "seq": last + 1}
    served.records.append({**served.records[0], **told})
    assert served.problems() == []


def test_predictions_that_are_wrong_are_found(served: Served) -> None:
    """Not whole, missing, left by a failure, or nobody's."""
    predictions = served.event.predictions
    next(path for path in sorted((predictions / "good").rglob("*")) if path.is_file()).write_bytes(b"half")
    shutil.copytree(predictions / "better", predictions / "bad")
    (predictions / "better").rename(predictions / ".rampd-0123")
    problems = served.problems()
    for found in (
        "predictions_dir/good is not whole",
        "better is scored without predictions",
        "bad is a training_error with predictions",
        "predictions_dir/.rampd-0123 belongs to nobody",
    ):
        assert any(found in problem for problem in problems), problems


def test_a_run_too_many_is_found(served: Served) -> None:
    """An attempt that ran twice, one that did not run and was judged all the same, and one of nobody's."""
    runs = served.event.root / "runs"
    first, second, third = runs.read_text(encoding="utf-8").splitlines()
    stranger = f"{served.event.state}/attempts/0123/submissions/good"
    runs.write_text(f"{first}\n{first}\n{third}\n{stranger}\n", encoding="utf-8")
    problems = served.problems()
    for found in (
        f"run twice: {first.rpartition('/')[2]} attempt 1 ran 2 times",
        f"{second.rpartition('/')[2]} attempt 1 is",
        "a run of attempt 0123, which no journal knows",
    ):
        assert any(found in problem for problem in problems), problems


def test_what_is_left_over_is_found(served: Served) -> None:
    """A folder, a process, a lock, a transaction, and a run beside itself."""
    event = served.event
    (event.state / "attempts" / "0123").mkdir()
    (event.root / "twice").write_text("good\n", encoding="utf-8")
    with (
        subprocess.Popen(["sleep", "600"], env={"MARK": str(event.root)}) as process,
        (event.state / "lock").open("rb") as lock,
        closing(sqlite3.connect(event.state / JOURNAL, isolation_level=None)) as database,
    ):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            database.execute("BEGIN IMMEDIATE")
            problems = served.problems()
        finally:
            process.kill()
    for found in (
        "attempt folder left over: 0123",
        f"process left over: {process.pid}",
        "lock on state_dir is still held",
        "journal.sqlite3: database is locked",
        "run twice at once: ['good']",
    ):
        assert any(found in problem for problem in problems), problems
