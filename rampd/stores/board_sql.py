"""What rampd says to the RAMP board's database: every statement, each one transaction.

Times of the board are UTC without a zone. Where our tables may not be made (`leased=False`), an advisory lock an event,
held by one connection, takes the place of leases.
"""

from __future__ import annotations

from dataclasses import dataclass

from rampd.states import FINAL_STATES
from rampd.stores.board_queries import EXPIRED, LEASE_S, LOCK_IS_HELD, OF_EVENT, UTC_NOW, Queries
from rampd.stores.board_tables import LEASES, TRANSITIONS


@dataclass(frozen=True, slots=True)
class Statements(Queries):
    """The queries and the writes, with leases or without."""

    @property
    def _fence(self) -> str:
        """Hold a row, if this daemon may write it: its lease is the one that the claim made."""
        if self.leased:
            return f"""
            SELECT s.id FROM submissions s JOIN {LEASES} l ON l.submission_id = s.id
            WHERE s.id = :id AND s.state = ANY(CAST(:before AS text[])) AND l.owner = :owner AND l.attempt = :attempt
            FOR UPDATE OF s, l
            """
        return f"""
        SELECT s.id FROM submissions s
        WHERE s.id = :id AND s.state = ANY(CAST(:before AS text[])) AND {LOCK_IS_HELD} FOR UPDATE OF s
        """

    def _noted(self, state: str, *, lease: str, of: str = "mine") -> str:
        """Note a transition in our own tables; `lease` says what becomes of the lease."""
        if not self.leased:
            return ""
        return f"""
        , leased AS (
            UPDATE {LEASES} l SET state = '{state}', state_at = now(), {lease} FROM {of} WHERE l.submission_id = {of}.id
        ), noted AS (
            INSERT INTO {TRANSITIONS} (submission_id, state, at) SELECT id, '{state}', now() FROM {of}
        )
        """

    @property
    def _found(self) -> str:
        """Say what was there before, and whether the row was moved: the end of every fenced write."""
        if self.leased:
            return f"""
            SELECT CAST(s.state AS text) AS before, (SELECT count(*) FROM mine) AS moved,
                l.owner IS NOT DISTINCT FROM :owner AND l.attempt IS NOT DISTINCT FROM :attempt AS held
            FROM submissions s LEFT JOIN {LEASES} l ON l.submission_id = s.id WHERE s.id = :id
            """
        return """
        SELECT CAST(s.state AS text) AS before, (SELECT count(*) FROM mine) AS moved, true AS held
        FROM submissions s WHERE s.id = :id
        """

    def _claim(self, which: str) -> str:
        free = f"AND (l.expires_at IS NULL OR l.owner = :owner OR {EXPIRED})" if self.leased else f"AND {LOCK_IS_HELD}"
        lease = attempt = ""
        if self.leased:
            lease = f"""
            , lease AS (
                INSERT INTO {LEASES} AS l (submission_id, owner, attempt, expires_at, state, state_at)
                SELECT id, :owner, 1, now() + interval '{LEASE_S} s', 'sent_to_training', now() FROM chosen
                ON CONFLICT (submission_id) DO UPDATE SET owner = excluded.owner, attempt = l.attempt + 1,
                    expires_at = excluded.expires_at, state = excluded.state, state_at = excluded.state_at
                RETURNING submission_id, attempt
            ), noted AS (
                INSERT INTO {TRANSITIONS} (submission_id, state, at) SELECT id, 'sent_to_training', now() FROM chosen
            )
            """
            attempt = ", (SELECT attempt FROM lease) AS attempt"
        return f"""
        WITH chosen AS (
            SELECT s.id, CAST(extract(epoch FROM {self.queued_in}) AS float8) AS queued_at FROM {self.with_leases}
            WHERE {OF_EVENT} AND s.state = 'new' {free} AND {which}
            ORDER BY {self.queued_in}, s.id LIMIT 1 FOR UPDATE OF s SKIP LOCKED
        ), moved AS (
            UPDATE submissions s SET state = 'sent_to_training', sent_to_training_timestamp = {UTC_NOW}, error_msg = ''
            FROM chosen WHERE s.id = chosen.id RETURNING s.id, s.name
        ), folds AS (
            UPDATE submission_on_cv_folds f SET state = 'sent_to_training' FROM chosen WHERE f.submission_id = chosen.id
        ){lease}
        SELECT moved.id, moved.name AS board_name, 'sent_to_training' AS state, '' AS error_msg, chosen.queued_at,
            CAST(extract(epoch FROM now()) AS float8) AS state_at{attempt}
        FROM moved JOIN chosen USING (id)
        """

    @property
    def claim(self) -> str:
        """Take the oldest that waits and that nobody is at."""
        return self._claim("s.id <> ALL(CAST(:skip AS integer[]))")

    @property
    def claim_one(self) -> str:
        """Take this one, if it waits."""
        return self._claim("s.id = :id")

    @property
    def take(self) -> str:
        """Lease a waiting one as it is, to end it unrun."""
        return f"""
        INSERT INTO {LEASES} AS l (submission_id, owner, attempt, expires_at)
        SELECT id, :owner, 1, now() + interval '{LEASE_S} s' FROM submissions WHERE id = :id AND state = 'new'
        ON CONFLICT (submission_id) DO UPDATE SET owner = excluded.owner, attempt = l.attempt + 1,
            expires_at = excluded.expires_at
        WHERE l.expires_at IS NULL OR l.owner = :owner OR {EXPIRED}
        RETURNING attempt
        """

    def move(self, state: str) -> str:
        """Make one transition, the scores apart."""
        extra = {
            "new": ", queue_position = -1",
            "training": f", training_timestamp = {UTC_NOW}, queue_position = -1",
            "tested": ", error_msg = ''",
        }.get(state, ", error_msg = :error_msg, queue_position = -1, max_ram = coalesce(:max_ram, max_ram)")
        lease = {
            "new": "expires_at = NULL, owner = NULL",
            "training": "expires_at = l.expires_at",
            "tested": "expires_at = l.expires_at",
        }.get(state, "expires_at = NULL")
        return f"""
        WITH mine AS ({self._fence}), moved AS (
            UPDATE submissions s SET state = '{state}'{extra} FROM mine WHERE s.id = mine.id
        ), folds AS (
            UPDATE submission_on_cv_folds f SET state = '{state}' FROM mine WHERE f.submission_id = mine.id
        ){self._noted(state, lease=lease)}
        {self._found}
        """

    @property
    def set_scored(self) -> str:
        """Write times, scores, bags and `scored`: four tables in bulk."""
        return f"""
        WITH mine AS ({self._fence}), moved AS (
            UPDATE submissions s SET state = 'scored', error_msg = '', queue_position = -1,
                max_ram = coalesce(:max_ram, max_ram)
            FROM mine WHERE s.id = mine.id
        ), numbered AS (
            SELECT f.id, CAST(row_number() OVER (ORDER BY f.id) - 1 AS integer) AS number
            FROM submission_on_cv_folds f JOIN mine ON f.submission_id = mine.id
        ), folds AS (
            UPDATE submission_on_cv_folds f SET state = 'scored', train_time = coalesce(x.train, f.train_time),
                valid_time = coalesce(x.valid, f.valid_time), test_time = coalesce(x.test, f.test_time)
            FROM numbered LEFT JOIN unnest(CAST(:numbers AS integer[]), CAST(:train_times AS float8[]),
                CAST(:valid_times AS float8[]), CAST(:test_times AS float8[])) AS x (number, train, valid, test)
                USING (number)
            WHERE f.id = numbered.id
        ), on_folds AS (
            UPDATE submission_score_on_cv_folds o SET train_score = coalesce(x.train, o.train_score),
                valid_score = coalesce(x.valid, o.valid_score), test_score = coalesce(x.test, o.test_score)
            FROM unnest(CAST(:fold_numbers AS integer[]), CAST(:fold_scores AS text[]), CAST(:fold_train AS float8[]),
                CAST(:fold_valid AS float8[]), CAST(:fold_test AS float8[])) AS x (number, name, train, valid, test)
                JOIN numbered ON numbered.number = x.number
                JOIN submission_scores ss ON ss.submission_id = :id
                JOIN event_score_types e ON e.id = ss.event_score_type_id AND e.name = x.name
            WHERE o.submission_on_cv_fold_id = numbered.id AND o.submission_score_id = ss.id
        ), bags AS (
            UPDATE submission_scores ss SET valid_score_cv_bag = coalesce(x.valid, ss.valid_score_cv_bag),
                test_score_cv_bag = coalesce(x.test, ss.test_score_cv_bag),
                valid_score_cv_bags = x.valid_bags, test_score_cv_bags = x.test_bags
            FROM unnest(CAST(:scores AS text[]), CAST(:valid AS float8[]), CAST(:test AS float8[]),
                CAST(:valid_bags AS bytea[]), CAST(:test_bags AS bytea[]))
                AS x (name, valid, test, valid_bags, test_bags)
                JOIN event_score_types e ON e.event_id = :event AND e.name = x.name, mine
            WHERE ss.submission_id = mine.id AND ss.event_score_type_id = e.id
        ){self._noted("scored", lease="expires_at = NULL")}
        {self._found}
        """

    @property
    def requeue(self) -> str:
        """Put what has ended at the end of the queue, with the scores of one that was never run.

        A score type's worst value is known to the kit's code alone, which is not run here; every submission begins
        with it, and a team's sandbox keeps it.
        """
        lease = ""
        if self.leased:
            lease = f"""
            , lease AS (
                INSERT INTO {LEASES} AS l (submission_id, requeued_at, state, state_at)
                SELECT id, now(), 'new', now() FROM mine
                ON CONFLICT (submission_id) DO UPDATE SET owner = NULL, expires_at = NULL,
                    requeued_at = excluded.requeued_at, state = excluded.state, state_at = excluded.state_at
            ), noted AS (
                INSERT INTO {TRANSITIONS} (submission_id, state, at) SELECT id, 'new', now() FROM mine
            )
            """
        return f"""
        WITH mine AS (
            SELECT s.id FROM submissions s WHERE s.id = :id AND s.state = ANY(CAST(:before AS text[])) FOR UPDATE
        ), worst AS (
            SELECT DISTINCT ON (ss.event_score_type_id) ss.event_score_type_id AS type, ss.valid_score_cv_bag AS value
            FROM submission_scores ss JOIN submissions s ON s.id = ss.submission_id
                JOIN event_teams t ON t.id = s.event_team_id
            WHERE t.event_id = :event AND s.state = 'new'
                AND (s.name = :sandbox OR s.sent_to_training_timestamp IS NULL)
        ), moved AS (
            UPDATE submissions s
            SET state = 'new', error_msg = '', queue_position = -1, max_ram = 0, contributivity = 0
            FROM mine WHERE s.id = mine.id
        ), folds AS (
            UPDATE submission_on_cv_folds f SET state = 'new', train_time = 0, valid_time = 0, test_time = 0
            FROM mine WHERE f.submission_id = mine.id
        ), bags AS (
            UPDATE submission_scores ss SET valid_score_cv_bag = coalesce(worst.value, 'NaN'),
                test_score_cv_bag = coalesce(worst.value, 'NaN'),
                valid_score_cv_bags = :none, test_score_cv_bags = :none
            FROM mine, event_score_types e LEFT JOIN worst ON worst.type = e.id
            WHERE ss.submission_id = mine.id AND e.id = ss.event_score_type_id
        ), on_folds AS (
            UPDATE submission_score_on_cv_folds o SET train_score = coalesce(worst.value, 'NaN'),
                valid_score = coalesce(worst.value, 'NaN'), test_score = coalesce(worst.value, 'NaN')
            FROM mine JOIN submission_scores ss ON ss.submission_id = mine.id
                LEFT JOIN worst ON worst.type = ss.event_score_type_id
            WHERE o.submission_score_id = ss.id
        ){lease}
        SELECT CAST(s.state AS text) AS before, (SELECT count(*) FROM mine) AS moved, true AS held
        FROM submissions s WHERE s.id = :id
        """

    @property
    def release_unheld(self) -> str:
        """Put back what nobody holds: at a start also what was this owner's, or what never had a lease.

        What was this owner's and is `tested` has no end in its journal (which was moved away, say), or has it by now.
        """
        free = LOCK_IS_HELD
        if self.leased:
            free = f"(l.owner = :owner OR (s.state <> 'tested' AND (l.expires_at IS NULL OR {EXPIRED})))"
        return self._put_back(f"{free} AND s.id <> ALL(CAST(:held AS integer[]))")

    @property
    def release_abandoned(self) -> str:
        """Put back what another daemon held and no longer renews, and claims of ours that nobody heard of.

        Its owner and attempt stand until somebody claims it: if it comes back first, its results still count.
        """
        return self._put_back(self.abandoned, keep_owner=True)

    def _put_back(self, which: str, *, keep_owner: bool = False) -> str:
        lease = "expires_at = NULL" if keep_owner else "expires_at = NULL, owner = NULL"
        states = "'sent_to_training', 'training'"
        if self.leased:
            states += ", 'tested'"  # without a lease it may be what another dispatcher left, years ago
        return f"""
        WITH mine AS (
            SELECT {self.columns} FROM {self.with_leases}
            WHERE {OF_EVENT} AND s.state IN ({states}) AND {which} FOR UPDATE OF s
        ), moved AS (
            UPDATE submissions s SET state = 'new', queue_position = -1 FROM mine WHERE s.id = mine.id
        ), folds AS (
            UPDATE submission_on_cv_folds f SET state = 'new' FROM mine WHERE f.submission_id = mine.id
        ){self._noted("new", lease=lease)}
        SELECT id, board_name, 'new' AS state, error_msg, queued_at,
            CAST(extract(epoch FROM now()) AS float8) AS state_at
        FROM mine ORDER BY queued_at, id
        """

    @property
    def renew(self) -> str:
        """Renew this owner's leases, and give those that are still its own, with their attempts.

        A renewal may overtake, or be overtaken by, the write that ends a submission: what has ended stays unleased.
        """
        ended = ", ".join(f"'{state}'" for state in sorted(FINAL_STATES))
        return f"""
        UPDATE {LEASES}
        SET expires_at = CASE WHEN state IN ({ended}) THEN NULL ELSE now() + make_interval(secs => :seconds) END
        WHERE owner = :owner AND submission_id = ANY(CAST(:held AS integer[])) RETURNING submission_id AS id, attempt
        """

    def take_back(self, state: str) -> str:
        """Say `training` or `tested` again of what is so here, and was put back while this daemon was cut off."""
        return f"""
        WITH mine AS (
            SELECT s.id FROM submissions s JOIN {LEASES} l ON l.submission_id = s.id
            WHERE s.state = 'new' AND l.owner = :owner AND s.id = ANY(CAST(:held AS integer[]))
                AND ('{state}' = 'tested') = ('tested' IS NOT DISTINCT FROM (
                    SELECT n.state FROM {TRANSITIONS} n WHERE n.submission_id = s.id AND n.state <> 'new'
                    ORDER BY n.id DESC LIMIT 1
                ))
            FOR UPDATE OF s, l
        ), moved AS (
            UPDATE submissions s SET state = '{state}', queue_position = -1 FROM mine WHERE s.id = mine.id
        ), folds AS (
            UPDATE submission_on_cv_folds f SET state = '{state}' FROM mine WHERE f.submission_id = mine.id
        ){self._noted(state, lease=f"expires_at = now() + interval '{LEASE_S} s'")}
        SELECT id FROM mine
        """

    @property
    def place(self) -> str:
        """Number those that wait from 1."""
        return f"""
        WITH places AS (
            SELECT s.id, row_number() OVER (ORDER BY {self.queued_in}, s.id) AS place FROM {self.with_leases}
            WHERE {OF_EVENT} AND s.state = 'new'
        ), locked AS (
            SELECT s.id, places.place FROM submissions s JOIN places USING (id)
            WHERE s.state = 'new' AND s.queue_position IS DISTINCT FROM places.place
            ORDER BY s.id FOR UPDATE OF s SKIP LOCKED
        )
        UPDATE submissions s SET queue_position = locked.place FROM locked WHERE s.id = locked.id
        """
