"""The journal's tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rampd.states import Outcome, Step

if TYPE_CHECKING:
    from collections.abc import Mapping

_TABLES = """
CREATE TABLE attempts (
    id TEXT PRIMARY KEY,
    submission TEXT NOT NULL,
    submission_id INTEGER NOT NULL,
    number INTEGER NOT NULL,
    worker_type TEXT NOT NULL,
    step TEXT NOT NULL CHECK (step IN (STEPS)),
    opened_at REAL NOT NULL,
    after_cancel INTEGER,
    allocation TEXT,
    launched_at REAL,
    launched_boottime_s REAL,
    boot_id TEXT,
    outcome TEXT CHECK (outcome IN (OUTCOMES)),
    verdict TEXT,
    final INTEGER NOT NULL DEFAULT 0,
    finished TEXT,
    announced INTEGER NOT NULL DEFAULT 0,
    UNIQUE (submission_id, number)
);
CREATE INDEX attempts_by_name ON attempts (submission, number);
CREATE INDEX unfinished_attempts ON attempts (opened_at) WHERE step <> 'closed';
CREATE INDEX unannounced_attempts ON attempts (opened_at) WHERE final = 1 AND announced = 0;
CREATE TABLE counts (submission_id INTEGER PRIMARY KEY, since_number INTEGER NOT NULL);
CREATE TABLE backoffs (submission_id INTEGER PRIMARY KEY, until REAL NOT NULL);
CREATE TABLE requests (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL CHECK (kind IN ('cancel', 'retry')),
    submission TEXT NOT NULL,
    requested_at REAL NOT NULL,
    answered_at REAL,
    answer TEXT,
    accepted INTEGER
);
CREATE UNIQUE INDEX pending_requests ON requests (kind, submission) WHERE answered_at IS NULL;
CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL)
"""
# The checks have a flipped bit in one of these words found when the file is opened.
SCHEMA: Final = _TABLES.replace("STEPS", ", ".join(f"'{step}'" for step in Step)).replace(
    "OUTCOMES", ", ".join(f"'{outcome}'" for outcome in Outcome)
)
LATER_COLUMNS: Final[Mapping[str, Mapping[str, str]]] = {"attempts": {"after_cancel": "INTEGER"}}
"""What files of earlier versions lack. NULL stands for what such a version did not note, and still does not."""
