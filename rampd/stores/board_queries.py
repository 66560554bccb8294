"""What rampd asks the RAMP board's database: every query, and the parts that queries and writes are made of.

Times of the board are UTC without a zone; ours have one. Every value is a parameter: what is composed here are
constants of this package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rampd.stores.board_tables import HAS_TRIGGER, LEASES, TRANSITIONS

LEASE_S: Final = 60
"""How long a lease lasts without being renewed."""
PARKED_S: Final = 600
"""How long one lasts that its daemon left behind on purpose: its run goes on (AWS), and a restart takes it over."""

LOST_CLAIM_S: Final = 30
"""After how long a claim that this daemon knows nothing of is one whose answer was lost: longer than any statement."""

UTC_NOW = "now() AT TIME ZONE 'utc'"
# A server that came back a moment ago has kept everybody from renewing: they get their time first.
EXPIRED = f"""
(l.expires_at < now() AND pg_postmaster_start_time() < now() - interval '{LEASE_S} s')
"""
OF_EVENT = "t.event_id = :event AND s.name <> :sandbox"
FROM = "submissions s JOIN event_teams t ON t.id = s.event_team_id"

# The lock's connection is one of this daemon's own; a lock that was lost with it protects nothing any more.
LOCK_IS_HELD = """
EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = :lock_pid AND classid = :lock_class
    AND objid = :lock_object AND objsubid = 2 AND granted)
"""
LOCK_CLASS: Final = 0x72616D70
"""The advisory locks' first key; the second is the event's id."""
LOCK: Final = "SELECT pg_try_advisory_lock(%(class)s, %(object)s)"


@dataclass(frozen=True, slots=True)
class Queries:
    """The queries, with leases or without."""

    leased: bool

    @property
    def with_leases(self) -> str:
        """Submissions, their teams, and their leases where there are any: what all others select from."""
        if self.leased:
            return f"{FROM} LEFT JOIN {LEASES} l ON l.submission_id = s.id"
        return FROM

    @property
    def queued_in(self) -> str:
        """When a submission joined the queue: at its arrival, or when an operator had it run again."""
        submitted = "s.submission_timestamp AT TIME ZONE 'utc'"
        return f"greatest(l.requeued_at, {submitted})" if self.leased else submitted

    @property
    def columns(self) -> str:
        """What becomes a `Submission`."""
        state_at = """
        CASE s.state WHEN 'new' THEN s.submission_timestamp
            WHEN 'sent_to_training' THEN s.sent_to_training_timestamp
            ELSE coalesce(s.training_timestamp, s.submission_timestamp) END AT TIME ZONE 'utc'
        """
        if self.leased:
            state_at = f"CASE WHEN l.state = s.state THEN l.state_at ELSE {state_at} END"
        return f"""
        s.id, s.name AS board_name, CAST(s.state AS text) AS state, coalesce(s.error_msg, '') AS error_msg,
        CAST(extract(epoch FROM {self.queued_in}) AS float8) AS queued_at,
        CAST(extract(epoch FROM {state_at}) AS float8) AS state_at
        """

    @property
    def is_waiting(self) -> str:
        """Say whether one waits that `claim` would have to take: it was locked for a moment then."""
        free = f"AND (l.expires_at IS NULL OR l.owner = :owner OR {EXPIRED})" if self.leased else ""
        return f"""
        SELECT EXISTS (SELECT FROM {self.with_leases} WHERE {OF_EVENT} AND s.state = 'new' {free}
            AND s.id <> ALL(CAST(:skip AS integer[]))) AS waits
        """

    @property
    def attempt_of(self) -> str:
        """Give the attempt under which this owner last held a submission."""
        return f"SELECT attempt FROM {LEASES} WHERE submission_id = :id AND owner = :owner"

    @property
    def whose(self) -> str:
        """Say whether this owner was the last to claim a submission."""
        return f"""
        SELECT CAST(s.state AS text) AS state, l.owner IS NOT DISTINCT FROM :owner AS ours
        FROM submissions s LEFT JOIN {LEASES} l ON l.submission_id = s.id WHERE s.id = :id
        """

    @property
    def abandoned(self) -> str:
        """What nobody works on: its lease has expired, or it is a claim of ours whose answer was lost on the way.

        What is `tested` here has its end in this daemon's journal; elsewhere its host may have died just then.
        """
        if self.leased:
            return f"""
            (({EXPIRED} AND l.owner <> :owner) OR (l.owner = :owner AND s.id <> ALL(CAST(:held AS integer[]))
                AND s.state <> 'tested' AND l.state_at < now() - interval '{LOST_CLAIM_S} s'))
            """
        return f"""
        (s.id <> ALL(CAST(:held AS integer[])) AND s.state = 'sent_to_training'
            AND s.sent_to_training_timestamp < {UTC_NOW} - interval '{LOST_CLAIM_S} s' AND {LOCK_IS_HELD})
        """

    @property
    def look(self) -> str:
        """Say what waits, what was abandoned, whether the event is open and whether the trigger is there."""
        return f"""
        SELECT array_agg(s.id ORDER BY {self.queued_in}, s.id) FILTER (WHERE s.state = 'new') AS waiting,
            count(*) FILTER (WHERE s.state = 'new' AND coalesce(s.queue_position, -1) < 1) AS unplaced,
            count(*) FILTER (WHERE s.state <> 'new' AND {self.abandoned}) AS abandoned,
            (SELECT {UTC_NOW} BETWEEN opening_timestamp AND closing_timestamp FROM events WHERE id = :event) AS is_open,
            {HAS_TRIGGER} AS has_trigger
        FROM {self.with_leases} WHERE {OF_EVENT} AND s.state IN ('new', 'sent_to_training', 'training', 'tested')
        """

    @property
    def one(self) -> str:
        """Give one submission."""
        return f"SELECT {self.columns} FROM {self.with_leases} WHERE {OF_EVENT} AND s.id = :id"

    @property
    def every(self) -> str:
        """Give all submissions: those that wait as they will run, the others by id."""
        return f"""
        SELECT {self.columns} FROM {self.with_leases} WHERE {OF_EVENT}
        ORDER BY s.state = 'new', CASE WHEN s.state = 'new' THEN {self.queued_in} END, s.id
        """

    @property
    def counts(self) -> str:
        """Count them by state."""
        return f"SELECT CAST(s.state AS text) AS state, count(*) AS n FROM {FROM} WHERE {OF_EVENT} GROUP BY s.state"

    @property
    def sandbox(self) -> str:
        """Say whether a row of the event is a team's sandbox."""
        return f"SELECT s.name = :sandbox AS is_sandbox FROM {FROM} WHERE t.event_id = :event AND s.id = :id"

    @property
    def history(self) -> str:
        """Give every transition of one submission."""
        transitions = ""
        if self.leased:
            transitions = f"""
            UNION ALL
            SELECT state, CAST(extract(epoch FROM at) AS float8), id FROM {TRANSITIONS} WHERE submission_id = :id
            """
        return f"""
        SELECT 'new' AS state, CAST(extract(epoch FROM submission_timestamp AT TIME ZONE 'utc') AS float8) AS at,
            0 AS place
        FROM submissions WHERE id = :id {transitions} ORDER BY at, place
        """

    def figures(self, *, of_one: bool = False) -> str:
        """Give the scores of every scored submission, or of the one whose `id` is given."""
        one = "AND s.id = :id" if of_one else ""
        return f"""
        SELECT s.id, e.name, ss.valid_score_cv_bag AS valid_bag, ss.test_score_cv_bag AS test_bag,
            ss.test_score_cv_bags IS DISTINCT FROM CAST(:none AS bytea) AS has_test,
            array_agg(o.train_score ORDER BY o.submission_on_cv_fold_id) AS train,
            array_agg(o.valid_score ORDER BY o.submission_on_cv_fold_id) AS valid,
            array_agg(o.test_score ORDER BY o.submission_on_cv_fold_id) AS test
        FROM {FROM} JOIN submission_scores ss ON ss.submission_id = s.id
            JOIN event_score_types e ON e.id = ss.event_score_type_id
            LEFT JOIN submission_score_on_cv_folds o ON o.submission_score_id = ss.id
        WHERE {OF_EVENT} AND s.state = 'scored' {one} GROUP BY s.id, e.id, ss.id ORDER BY s.id, e.id
        """
