"""The RAMP board's tables: which of ramp-database's are read and written, and our own two beside them.

ramp-database's are those of 0.10.1 and its git head (`ramp_database/model/`). Ours are made at the first start that
may make them; `rampctl board install-trigger` adds a trigger to theirs.
"""

from __future__ import annotations

from typing import Final

LEASES: Final = "rampd_leases"
TRANSITIONS: Final = "rampd_transitions"
CHANNEL: Final = "rampd_event_"
TRIGGER: Final = "rampd_notify"

# No foreign keys: ramp_database's own tools drop and delete as if we were not there.
MAKE_TABLES: Final = (
    f"""
    CREATE TABLE IF NOT EXISTS {LEASES} (
        submission_id integer PRIMARY KEY,
        owner text,
        attempt integer NOT NULL DEFAULT 0,
        expires_at timestamptz,
        requeued_at timestamptz,
        state text,
        state_at timestamptz
    )
    """,
    f"""
    CREATE TABLE IF NOT EXISTS {TRANSITIONS} (
        id bigserial PRIMARY KEY,
        submission_id integer NOT NULL,
        state text NOT NULL,
        at timestamptz NOT NULL
    )
    """,
    f"CREATE INDEX IF NOT EXISTS {TRANSITIONS}_of ON {TRANSITIONS} (submission_id, id)",
)

HAS_TABLES: Final = f"""
SELECT to_regclass('{LEASES}') IS NOT NULL AND to_regclass('{TRANSITIONS}') IS NOT NULL AS there,
    has_table_privilege(current_user, 'submissions', 'UPDATE') AS writable
"""

MAY_CREATE: Final = "SELECT has_schema_privilege(current_user, current_schema(), 'CREATE') AS may"

INSTALL_TRIGGER: Final = (
    f"""
    CREATE OR REPLACE FUNCTION {TRIGGER}() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_notify('{CHANNEL}' || event_id, CAST(NEW.id AS text)) FROM event_teams WHERE id = NEW.event_team_id;
        RETURN NULL;
    END $$
    """,
    f"""
    CREATE OR REPLACE TRIGGER {TRIGGER} AFTER INSERT OR UPDATE OF state ON submissions
    FOR EACH ROW WHEN (NEW.state = 'new') EXECUTE FUNCTION {TRIGGER}()
    """,
)
REMOVE_TRIGGER: Final = (
    f"DROP TRIGGER IF EXISTS {TRIGGER} ON submissions",
    f"DROP FUNCTION IF EXISTS {TRIGGER}()",
)
HAS_TRIGGER: Final = f"""
EXISTS (SELECT FROM pg_trigger WHERE tgname = '{TRIGGER}' AND tgrelid = to_regclass('submissions') AND tgenabled <> 'D')
"""

NEEDED: Final = {
    "events": ("id", "name", "ramp_sandbox_name", "path_ramp_submissions", "opening_timestamp", "closing_timestamp"),
    "event_teams": ("id", "event_id"),
    "event_score_types": ("id", "event_id", "name"),
    "submissions": (
        *("id", "event_team_id", "name", "state", "error_msg", "queue_position", "max_ram", "submission_timestamp"),
        *("sent_to_training_timestamp", "training_timestamp"),
    ),
    "submission_on_cv_folds": ("id", "submission_id", "state", "train_time", "valid_time", "test_time"),
    "submission_scores": (
        *("id", "submission_id", "event_score_type_id", "valid_score_cv_bag", "test_score_cv_bag"),
        *("valid_score_cv_bags", "test_score_cv_bags"),
    ),
    "submission_score_on_cv_folds": (
        *("id", "submission_on_cv_fold_id", "submission_score_id", "train_score", "valid_score", "test_score"),
    ),
}
"""The columns that are read or written."""

COLUMNS_THERE: Final = """
SELECT table_name, column_name FROM information_schema.columns
WHERE table_name = ANY(CAST(:tables AS text[])) AND table_schema = ANY(current_schemas(false))
"""

EVENT: Final = """
SELECT id, ramp_sandbox_name AS sandbox, path_ramp_submissions AS submissions_dir,
    now() AT TIME ZONE 'utc' BETWEEN opening_timestamp AND closing_timestamp AS is_open
FROM events WHERE name = :name
"""
EVENT_NAMES: Final = "SELECT name FROM events ORDER BY name"

FORGET_GONE: Final = f"""
DELETE FROM {LEASES} WHERE NOT EXISTS (SELECT FROM submissions WHERE id = submission_id)
"""
