"""A RAMP board for tests: a database that ramp_database made, its event's folders, and submissions that arrive."""

from __future__ import annotations

import json
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import yaml

from benchmarks import rival_ramp_engine
from rampd.stores.board_arrays import stored_none
from support.deployment import Deployment
from support.requirements import give_up

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from support.postgres import PostgresServer

_PROGRAM: Final = "board_program.py"
_TEMPLATE: Final = "board_template"
EVENT: Final = "iris_test"
USERS: Final = ("anna", "bert")


def python() -> Path:
    """Return the interpreter of an environment with ramp_database, made when it is first needed."""
    if (reason := rival_ramp_engine.available()) is not None:
        give_up(reason)
    return rival_ramp_engine.python()


def ask(database: Mapping[str, Any], do: str, **arguments: Any) -> Any:
    """Have ramp_database do something to a database, and return what it says."""
    from pathlib import Path  # noqa: PLC0415 -- typing alone above

    done = subprocess.run(
        [str(python()), "-I", str(Path(__file__).with_name(_PROGRAM))],
        input=json.dumps({"database": dict(database), "do": do, **arguments}),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def make_template(server: PostgresServer, root: Path) -> None:
    """Make the database that every test's is a copy of; its kit lies below `root`."""
    kit, data = root / "ramp-kits" / "iris", root / "ramp-data" / "iris"
    (kit / "submissions" / "starting_kit").mkdir(parents=True)
    data.mkdir(parents=True)
    (kit / "problem.py").write_text(rival_ramp_engine.problem(), encoding="utf-8")
    (kit / "submissions" / "starting_kit" / "estimator.py").write_text("# nothing\n", encoding="utf-8")
    server.copy_database("template1", _TEMPLATE)
    ask(
        server.section(_TEMPLATE),
        "make",
        problem="iris",
        name=EVENT,
        kit=str(kit),
        data=str(data),
        submissions=str(root / "submissions"),
        users=list(USERS),
    )


@dataclass(slots=True)
class Board:
    """One board and its deployment below `root`."""

    server: PostgresServer
    root: Path
    database: str
    deployment: Deployment = field(init=False)

    def __post_init__(self) -> None:
        self.server.copy_database(_TEMPLATE, self.database)
        self.deployment = Deployment(self.root, event=EVENT, dispatcher={"settle_time": 0})
        with self.connect() as connection:
            connection.execute("UPDATE events SET path_ramp_submissions = %s", [str(self.deployment.submissions)])
        self.config.write_text(
            yaml.safe_dump({"flask": {"secret_key": "abc"}, "sqlalchemy": self.section}), encoding="utf-8"
        )

    @property
    def config(self) -> Path:
        """The deployment's own file, for --database-config."""
        return self.root / "config.yml"

    @property
    def section(self) -> dict[str, Any]:
        """Where the database is."""
        return self.server.section(self.database)

    def connect(self, user: str | None = None) -> Any:
        """Connect to the board's database."""
        return self.server.connect(self.database, *([user] if user else []))

    def drop(self) -> None:
        """Drop the database."""
        self.server.drop_database(self.database)

    def submit(self, *names: str, user: str = USERS[0], behaviours: Mapping[str, str] | None = None) -> list[str]:
        """Submit through ramp_database; return the folders' names."""
        ids = ask(self.section, "submit", name=EVENT, to=[[user, name] for name in names], files=dict(behaviours or {}))
        return [f"submission_{number:09d}" for number in ids]

    def read(self) -> Any:
        """Read everything back through ramp_database."""
        return ask(self.section, "read", name=EVENT)

    def insert(self, *names: str, behaviours: Mapping[str, str] | None = None) -> list[int]:
        """Do as `submit` does, in plain SQL: a thousand times faster. Return the ids."""
        with self.connect() as connection, connection.transaction():
            return [self._insert(connection, name, (behaviours or {}).get(name)) for name in names]

    def _insert(self, connection: Any, name: str, behaviour: str | None) -> int:
        (number,) = connection.execute(_SUBMISSION, {"name": name, "team": USERS[0]}).fetchone()
        connection.execute(_SCORES, {"id": number, "none": stored_none()})
        connection.execute(_FOLDS, {"id": number})
        connection.execute(_ON_FOLDS, {"id": number})
        folder = self.deployment.submissions / f"submission_{number:09d}"
        folder.mkdir()
        (folder / "estimator.py").write_text("# nothing\n", encoding="utf-8")
        if behaviour is not None:
            (folder / "behave.sh").write_text(behaviour, encoding="utf-8")
        return int(number)

    def states(self) -> dict[int, str]:
        """Return the state of every submission, sandboxes apart, by id."""
        with self.connect() as connection:
            return dict(connection.execute("SELECT id, state FROM submissions WHERE name <> 'starting_kit'").fetchall())

    @contextmanager
    def after_a_minute(self) -> Iterator[None]:
        """Have what is leased now expired, for whoever connects in the block: what a wait would do.

        What was parked, too. The server is one that has been up for long, to them: leases expire a minute after its
        start at the earliest.
        """
        self.query("UPDATE rampd_leases SET expires_at = expires_at - interval '11 min'")
        self.query(
            "CREATE FUNCTION public.pg_postmaster_start_time() RETURNS timestamptz LANGUAGE sql "
            "AS $$ SELECT CAST('-infinity' AS timestamptz) $$"
        )
        self.query(f"ALTER DATABASE {self.database} SET search_path = public, pg_catalog")
        try:
            yield
        finally:
            self.query(f"ALTER DATABASE {self.database} RESET search_path")
            self.query("DROP FUNCTION public.pg_postmaster_start_time()")

    def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Ask the database."""
        with self.connect() as connection:
            cursor = connection.execute(statement, parameters)
            return list(cursor.fetchall()) if cursor.description else []


# What ramp_database's add_submission leaves behind (ramp_database/tools/submission.py, 0.10.1).
_SUBMISSION = """
INSERT INTO submissions (event_team_id, name, hash_, submission_timestamp, state, queue_position, error_msg, max_ram,
    type, is_valid, is_to_ensemble, is_in_competition, contributivity, historical_contributivity)
SELECT t.id, %(name)s, md5(random()::text), clock_timestamp() AT TIME ZONE 'utc', 'new', -1, '', 0,
    'live', true, true, true, 0, 0
FROM event_teams t JOIN teams ON teams.id = t.team_id WHERE teams.name = %(team)s RETURNING id
"""
_SCORES = """
INSERT INTO submission_scores (submission_id, event_score_type_id, valid_score_cv_bag, test_score_cv_bag,
    valid_score_cv_bags, test_score_cv_bags)
SELECT %(id)s, e.id, worst, worst, %(none)s, %(none)s
FROM (SELECT *, CASE name WHEN 'acc' THEN 0 ELSE 'inf'::float8 END AS worst FROM event_score_types) e ORDER BY e.id
"""
_FOLDS = """
INSERT INTO submission_on_cv_folds (submission_id, cv_fold_id, state, train_time, valid_time, test_time, contributivity,
    best, error_msg)
SELECT %(id)s, id, 'new', 0, 0, 0, 0, false, '' FROM cv_folds ORDER BY id
"""
_ON_FOLDS = """
INSERT INTO submission_score_on_cv_folds (submission_on_cv_fold_id, submission_score_id, train_score, valid_score,
    test_score)
SELECT f.id, ss.id, ss.valid_score_cv_bag, ss.valid_score_cv_bag, ss.valid_score_cv_bag
FROM submission_on_cv_folds f JOIN submission_scores ss USING (submission_id) WHERE f.submission_id = %(id)s
"""
