# mypy: disable-error-code="import-not-found"
"""Does to a RAMP board what ramp-frontend and its admins do, with ramp_database's own tools, and reads all of it back.

Run by `support.board` with the interpreter of another environment: one JSON object on stdin, one on stdout.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from ramp_database.model import Event, EventTeam, Submission
from ramp_database.tools import database, event, submission, team, user
from ramp_database.utils import session_scope


def make(session: Any, *, problem: str, name: str, kit: str, data: str, submissions: str, users: list[str]) -> None:
    """Make the problem, an event, and users who each are a team that has signed up; an admin need not wait."""
    database.add_extension(session, "py")
    database.add_submission_file_type(session, "code", is_editable=True, max_size=10**5)
    database.add_submission_file_type_extension(session, "code", "py")
    event.add_problem(session, problem, kit, data)
    event.add_event(session, problem, name, "Iris", "starting_kit", submissions, is_public=True)
    for one in users:
        user.add_user(session, one, "password", "Last", one, f"{one}@example.org", access_level="admin")
        team.sign_up_team(session, name, one)


def submit(session: Any, *, name: str, to: list[list[str]], files: dict[str, str]) -> list[int]:
    """Submit for each (user, name), and return the ids."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "estimator.py").write_text("# nothing\n", encoding="utf-8")
        ids = []
        for who, what in to:
            made = submission.add_submission(session, name, who, what, folder)
            # What the stub ramp-test obeys; no workflow element, so ramp_database does not copy it.
            if what in files:
                (Path(made.path) / "behave.sh").write_text(files[what], encoding="utf-8")
            ids.append(made.id)
        return ids


def read(session: Any, *, name: str) -> dict[str, Any]:
    """Return everything that a dispatcher writes, through ramp_database's models."""
    found = session.query(Event).filter_by(name=name).one()
    event_teams = session.query(EventTeam).filter_by(event=found).all()
    rows = session.query(Submission).join(EventTeam).filter(EventTeam.event == found).order_by(Submission.id).all()
    return {
        "submissions": {row.basename: _read_one(session, row) for row in rows},
        "leaderboards": {key: value for key, value in vars(found).items() if "leaderboard_html" in key},
        "teams": {
            one.team.name: {key: value for key, value in vars(one).items() if "leaderboard_html" in key}
            for one in event_teams
        },
    }


def _read_one(session: Any, row: Any) -> dict[str, Any]:
    folds = sorted(row.on_cv_folds, key=lambda fold: fold.id)
    return {
        "name": row.name,
        "state": row.state,
        "error_msg": row.error_msg,
        "queue_position": row.queue_position,
        "max_ram": row.max_ram,
        "sent": row.sent_to_training_timestamp and row.sent_to_training_timestamp.isoformat(),
        "training": row.training_timestamp and row.training_timestamp.isoformat(),
        "folds": [
            {
                "state": fold.state,
                "times": [fold.train_time, fold.valid_time, fold.test_time],
                "scores": {
                    score.name: [_plain(getattr(score, f"{step}_score")) for step in ("train", "valid", "test")]
                    for score in fold.scores
                },
            }
            for fold in folds
        ],
        "bags": {
            score.score_name: {
                "last": [_plain(score.valid_score_cv_bag), _plain(score.test_score_cv_bag)],
                "valid": _array(score.valid_score_cv_bags),
                "test": _array(score.test_score_cv_bags),
            }
            for score in row.scores
        },
    }


def _array(stored: Any) -> Any:
    return [str(stored.dtype), stored.tolist()]


def _plain(value: Any) -> Any:
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def main() -> None:
    """Do what stdin says."""
    asked = json.load(sys.stdin)
    with session_scope(asked.pop("database")) as session:
        does: dict[str, Any] = {"make": make, "submit": submit, "read": read}
        done = does[asked.pop("do")](session, **asked)
        session.commit()
    json.dump(done, sys.stdout)


if __name__ == "__main__":
    main()
