# mypy: disable-error-code="import-not-found"
"""Runs ramp-engine's own Dispatcher, unchanged, on stub submissions; rival_ramp_engine.py starts it in its environment.

Problem, event, user, team and submissions are made by ramp-database's own tools. The kit is a few lines that import
nothing of ramp-workflow. A trigger in the database notes when each submission ends, so that nobody has to poll. What it
found goes to stdout as one JSON object; the libraries log to stderr and to files in the current directory.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

_PROBLEM = """import numpy as np

problem_title = "Iris"


class Estimator:
    element_names = ["estimator.py"]


class Score:
    def __init__(self, name, is_lower_the_better, worst):
        self.name, self.precision, self.is_lower_the_better, self.worst = name, 2, is_lower_the_better, worst
        self.minimum, self.maximum = 0.0, 1.0 if worst == 0.0 else worst


workflow = Estimator()
score_types = [Score("acc", False, 0.0), Score("nll", True, float("inf"))]


def get_train_data(path="."):
    return np.zeros((10, 1)), np.zeros(10)


def get_cv(X, y):
    return [(np.arange(5), np.arange(5, 10)), (np.arange(5, 10), np.arange(5))]
"""
"""As many folds, and the same scores, as the stub's training_output has."""

_NOTE_ENDS = """
CREATE TABLE benchmark_ends (submission_id integer PRIMARY KEY, ended_at double precision NOT NULL);
CREATE FUNCTION benchmark_note_end() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.state::text = 'scored' OR NEW.state::text LIKE '%error' THEN
        INSERT INTO benchmark_ends VALUES (NEW.id, extract(epoch FROM clock_timestamp())) ON CONFLICT DO NOTHING;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER benchmark_note_end AFTER UPDATE OF state ON submissions
    FOR EACH ROW EXECUTE FUNCTION benchmark_note_end();
"""

_PROBLEM_NAME = "iris"
_EVENT_NAME = "iris_benchmark"
_USER = "participant"
_OLD = "old"


def main() -> None:
    """Fill the database, serve the event, print when it began and ended and the states."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--deployment", type=Path, required=True)
    parser.add_argument("--socket-dir", required=True, help="where PostgreSQL's socket is")
    parser.add_argument("--database-user", required=True)
    parser.add_argument("--submissions", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--scored", type=int, default=0, help="how many more are scored already")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")

    config, event_config = write_deployment(arguments.deployment, arguments.socket_dir, arguments.database_user)
    fill(config, event_config, arguments.submissions, arguments.scored)
    json.dump(serve(config, event_config, arguments.workers), sys.stdout)


def write_deployment(deployment: Path, socket_dir: str, database_user: str) -> tuple[str, str]:
    """Write the kit and both configs; JSON is YAML too."""
    kit = deployment / "ramp-kits" / _PROBLEM_NAME
    starting_kit = kit / "submissions" / "starting_kit"
    event = deployment / "events" / _EVENT_NAME
    for folder in (starting_kit, event, deployment / "ramp-data" / _PROBLEM_NAME):
        folder.mkdir(parents=True)
    (kit / "problem.py").write_text(_PROBLEM, encoding="utf-8")
    (starting_kit / "estimator.py").write_text("# nothing\n", encoding="utf-8")
    database = {
        "drivername": "postgresql",
        "username": database_user,
        "password": "",
        "host": socket_dir,
        "port": 5432,
        "database": "postgres",
    }
    ramp = {
        "problem_name": _PROBLEM_NAME,
        "event_name": _EVENT_NAME,
        "event_title": "Iris",
        "event_is_public": True,
    }
    worker = {"worker_type": "conda", "conda_env": "base"}
    config, event_config = deployment / "config.yml", event / "config.yml"
    config.write_text(json.dumps({"sqlalchemy": database}), encoding="utf-8")
    event_config.write_text(json.dumps({"ramp": ramp, "worker": worker}), encoding="utf-8")
    return str(config), str(event_config)


def _score(submission: Any) -> None:
    """Make a submission one that was scored before."""
    submission.set_state("scored")
    for fold in submission.on_cv_folds:
        fold.train_time = fold.valid_time = fold.test_time = 0.01
        for score in fold.scores:
            score.train_score = score.valid_score = score.test_score = 0.5
    for score in submission.scores:
        score.valid_score_cv_bag = score.test_score_cv_bag = 0.5
        score.valid_score_cv_bags = score.test_score_cv_bags = [0.5, 0.5]


def fill(config: str, event_config: str, n_submissions: int, n_scored: int) -> None:
    """Make one event with one user, whose team has submissions in state new, and others that are scored already."""
    from ramp_database.tools import database, event, submission, team, user  # noqa: PLC0415 -- in its environment only
    from ramp_database.utils import session_scope  # noqa: PLC0415
    from ramp_utils import generate_ramp_config, read_config  # noqa: PLC0415

    ramp = generate_ramp_config(event_config, config)
    starting_kit = ramp["ramp_sandbox_dir"]
    with session_scope(read_config(config, filter_section="sqlalchemy")) as session:
        database.add_extension(session, "py")
        database.add_submission_file_type(session, "code", is_editable=True, max_size=10**5)
        database.add_submission_file_type_extension(session, "code", "py")
        event.add_problem(session, _PROBLEM_NAME, ramp["ramp_kit_dir"], ramp["ramp_data_dir"])
        event.add_event(
            *(session, _PROBLEM_NAME, _EVENT_NAME, ramp["event_title"]),
            *(ramp["sandbox_name"], ramp["ramp_submissions_dir"]),
            is_public=True,
        )
        # An admin need not wait between two submissions.
        user.add_user(session, _USER, "password", "Last", "First", "participant@example.org", access_level="admin")
        team.sign_up_team(session, _EVENT_NAME, _USER)
        for number in range(n_scored):
            _score(submission.add_submission(session, _EVENT_NAME, _USER, f"{_OLD}{number:05d}", starting_kit))
        for number in range(n_submissions):
            submission.add_submission(session, _EVENT_NAME, _USER, f"s{number:05d}", starting_kit)
        session.connection().exec_driver_sql(_NOTE_ENDS.replace("%", "%%"))
        session.commit()


def serve(config: str, event_config: str, n_workers: int) -> dict[str, Any]:
    """Launch the dispatcher as `ramp-launch dispatcher` does, until there is nothing left to do.

    Returns
    -------
    The times, in seconds since the epoch, of the launch and of the last submission's end, and how many submissions
    are in each state, the sandbox not counted.
    """
    from ramp_database.utils import session_scope  # noqa: PLC0415 -- in its environment only
    from ramp_engine import CondaEnvWorker  # noqa: PLC0415
    from ramp_engine.dispatcher import Dispatcher  # noqa: PLC0415
    from ramp_utils import read_config  # noqa: PLC0415

    dispatcher = Dispatcher(
        config=config, event_config=event_config, worker=CondaEnvWorker, n_workers=n_workers, hunger_policy="exit"
    )
    begun = time.time()
    dispatcher.launch()
    with session_scope(read_config(config, filter_section="sqlalchemy")) as session:
        connection = session.connection()
        ended = connection.exec_driver_sql("SELECT max(ended_at) FROM benchmark_ends").scalar()
        states = connection.exec_driver_sql(
            "SELECT state::text, count(*) FROM submissions WHERE name LIKE 's0%%' GROUP BY state"
        ).fetchall()
    return {"begun": begun, "ended": ended, "states": dict(states)}


if __name__ == "__main__":
    main()
