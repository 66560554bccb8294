"""What must be true after a fault campaign: read from store, journal, folders, process table and log streams alone.

It shares no code with what it checks, apart from the names of the states.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import sqlite3
from collections import Counter, defaultdict
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from support.daemon import processes_marked

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    from faults.incarnation import Incarnation
    from support.deployment import Deployment

FINAL = {"scored", "training_error", "checking_error"}
FINAL_STATE_OF = {
    "ok": "scored",
    "participant_error": "training_error",
    "timeout": "training_error",
    "cancelled": "checking_error",
    "lost_host": "checking_error",
    "no_capacity": "checking_error",
    "platform_error": "checking_error",
}
# As the documentation draws them; a final state is left by the operator's word alone.
LEGAL = {
    ("new", "sent_to_training"),
    ("new", "checking_error"),
    ("sent_to_training", "new"),
    ("sent_to_training", "training"),
    ("sent_to_training", "checking_error"),
    ("training", "new"),
    ("training", "tested"),
    ("training", "training_error"),
    ("training", "checking_error"),
    ("tested", "scored"),
    *((state, "new") for state in FINAL),
}
_NOT_THE_SAME_WHEN_REPLAYED = {"timestamp", "run", "seq", "replayed", "level", "logger"}


@dataclass
class Finding:
    """What a check came to."""

    problems: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def check(
    event: Deployment, incarnations: Sequence[Incarnation], *, submitted: Collection[str], removed: Collection[str]
) -> Finding:
    """Check one event after its last daemon has ended by itself.

    Parameters
    ----------
    event
        Its folders.
    incarnations
        Every daemon that served it, in order, with what was read of its stream.
    submitted
        Every name that was handed in.
    removed
        Those whose folders were removed again: they may be unknown, or have come to an end.
    """
    finding = Finding()
    with closing(_database(event.state / "submissions.sqlite3")) as store:
        submissions = [dict(row) for row in store.execute("SELECT * FROM submissions")]
        transitions = [dict(row) for row in store.execute("SELECT rowid, * FROM transitions ORDER BY rowid")]
    with closing(_database(event.state / "journal.sqlite3")) as journal:
        attempts = [dict(row) for row in journal.execute("SELECT * FROM attempts ORDER BY submission_id, number")]
        requests = [dict(row) for row in journal.execute("SELECT * FROM requests")]
    retries = Counter(one["submission"] for one in requests if one["kind"] == "retry" and one["accepted"])
    finding.problems += [
        *_store_problems(submissions, submitted, removed),
        *_transition_problems(submissions, transitions, retries),
        *_journal_problems(submissions, attempts, retries),
        *(f"request {one['id']} was not answered" for one in requests if one["answered_at"] is None),
        *_stream_problems(attempts, incarnations, finding.counts),
        *_folder_problems(event, submissions),
        *_leftover_problems(event),
    ]
    finding.counts.update(
        submissions=len(submissions),
        attempts=len(attempts),
        final_attempts=sum(bool(one["final"]) for one in attempts),
        requests=len(requests),
        removed=len(removed),
        daemons=len(incarnations),
        **{f"state_{state}": count for state, count in Counter(one["state"] for one in submissions).items()},
        **{f"outcome_{outcome}": count for outcome, count in Counter(one["outcome"] for one in attempts).items()},
    )
    return finding


def _database(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=0.1)
    connection.row_factory = sqlite3.Row
    return connection


def _store_problems(
    submissions: list[dict[str, Any]], submitted: Collection[str], removed: Collection[str]
) -> Iterator[str]:
    names = [one["name"] for one in submissions]
    for lost in sorted(set(submitted) - set(names) - set(removed)):
        yield f"lost: {lost} is not in the store"
    for name, count in Counter(names).items():
        if count > 1:
            yield f"doubled: {name} has {count} rows"
    for strange in sorted(set(names) - set(submitted)):
        yield f"invented: nobody submitted {strange}"
    for one in submissions:
        if one["state"] not in FINAL:
            yield f"unfinished: {one['name']} is {one['state']}"


def _transition_problems(
    submissions: list[dict[str, Any]], transitions: list[dict[str, Any]], retries: Counter[str]
) -> Iterator[str]:
    names = {one["id"]: one["name"] for one in submissions}
    history: dict[int, list[str]] = defaultdict(list)
    for row in transitions:
        history[row["submission_id"]].append(row["state"])
    for submission_id, states in history.items():
        name = names.get(submission_id)
        if name is None:
            continue  # forgotten with its folder
        if states[0] != "new":
            yield f"{name} began as {states[0]}"
        for step in pairwise(states):
            if step not in LEGAL:
                yield f"{name} went from {step[0]} to {step[1]}"
        ends = sum(state in FINAL for state in states)
        if ends > 1 + retries[name]:
            yield f"finished twice: {name} came to {ends} final states after {retries[name]} retries"


def _journal_problems(
    submissions: list[dict[str, Any]], attempts: list[dict[str, Any]], retries: Counter[str]
) -> Iterator[str]:
    of: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for one in attempts:
        of[one["submission_id"]].append(one)
        label = f"{one['submission']} attempt {one['number']}"
        if one["step"] != "closed" or one["outcome"] is None:
            yield f"{label} is {one['step']} with outcome {one['outcome']}"
            continue
        if json.loads(one["verdict"])["outcome"] != one["outcome"]:
            yield f"{label} has two outcomes"
    for submission in submissions:
        own, name = of[submission["id"]], submission["name"]
        if [one["number"] for one in own] != list(range(1, len(own) + 1)):
            yield f"{name} has attempts {[one['number'] for one in own]}"
        if not own or not own[-1]["final"]:
            yield f"{name} is {submission['state']} without a final attempt"
        elif FINAL_STATE_OF.get(own[-1]["outcome"]) != submission["state"]:
            yield f"{name} is {submission['state']}, its last attempt {own[-1]['outcome']}"
        finals = sum(bool(one["final"]) for one in own)
        if finals > 1 + retries[name]:
            yield f"finished twice: {name} has {finals} final attempts after {retries[name]} retries"


def _stream_problems(
    attempts: list[dict[str, Any]], incarnations: Sequence[Incarnation], counts: Counter[str]
) -> Iterator[str]:
    said: dict[tuple[int, int], dict[str, Any]] = {}
    for number, one in enumerate(incarnations, start=1):
        counts["records"] += len(one.records)
        yield from (f"daemon {number}: {problem}" for problem in _numbering_problems(one, counts))
        for record in (record for record in one.records if record["event"] == "submission.finished"):
            counts["finished_lines"] += 1
            key = (record["submission_id"], record["attempt"])
            content = {name: value for name, value in record.items() if name not in _NOT_THE_SAME_WHEN_REPLAYED}
            counts["finished_lines_again"] += key in said
            if said.setdefault(key, content) != content:
                yield f"{record['submission']} attempt {record['attempt']} was said to end in two ways"
    journaled = {(one["submission_id"], one["number"]): one for one in attempts if one["final"]}
    for key, attempt in journaled.items():
        if key not in said:
            yield f"no submission.finished for {attempt['submission']} attempt {attempt['number']}"
        elif said[key]["outcome"] != attempt["outcome"]:
            yield f"{attempt['submission']}: {said[key]['outcome']} in the stream, {attempt['outcome']} in the journal"
    for key in said.keys() - journaled.keys():
        yield f"the stream has an end that the journal does not know: {said[key]['submission']}"


def _numbering_problems(one: Incarnation, counts: Counter[str]) -> Iterator[str]:
    """Every gap in `seq` is covered by a log.dropped; a daemon that was killed may have lost its tail."""
    numbers = [record["seq"] for record in one.records]
    if numbers != sorted(set(numbers)):
        yield "seq is not in order"
    if one.torn > 1:
        yield f"{one.torn} lines are not whole"
    counts["torn_lines"] += one.torn
    missing = set(range(1, numbers[-1] + 1)) - set(numbers) if numbers else set()
    dropped = [record for record in one.records if record["event"] == "log.dropped"]
    counts["dropped_records"] += sum(record["count"] for record in dropped)
    covered = {number for record in dropped for number in range(record["first_seq"], record["last_seq"] + 1)}
    # What was dropped after the last log.dropped is told by the next one, which a kill may prevent.
    told_until = max((record["seq"] for record in dropped), default=0)
    untold = {number for number in missing - covered if one.process.returncode == 0 or number < told_until}
    if one.is_whole and untold:
        yield f"records {sorted(untold)[:5]} are missing and no log.dropped says so"
    if one.is_whole and one.process.returncode == 0 and sum(record["count"] for record in dropped) != len(missing):
        yield f"{len(missing)} records are missing, log.dropped counts {sum(record['count'] for record in dropped)}"


def digest_of(folder: Path) -> str:
    """Return a digest of a folder's names and contents."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0")
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _folder_problems(event: Deployment, submissions: list[dict[str, Any]]) -> Iterator[str]:
    whole = digest_of(event.root / "template")
    state_of = {one["name"]: one["state"] for one in submissions}
    there = {path.name for path in event.predictions.iterdir()}
    for name in sorted(there):
        if name not in state_of:
            yield f"predictions_dir/{name} belongs to nobody"
        elif digest_of(event.predictions / name) != whole:
            yield f"predictions_dir/{name} is not whole"
    for name, state in state_of.items():
        if state == "scored" and name not in there:
            yield f"{name} is scored without predictions"
        if state == "training_error" and name in there:
            yield f"{name} is a training_error with predictions"
    for left in sorted((event.state / "attempts").iterdir()):
        yield f"attempt folder left over: {left.name}"
    if (event.root / "twice").exists():
        yield f"run twice at once: {(event.root / 'twice').read_text().split()}"


def _leftover_problems(event: Deployment) -> Iterator[str]:
    for pid in processes_marked(str(event.root)):
        yield f"process left over: {pid}"
    with (event.state / "lock").open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield "the lock on state_dir is still held"
    for name in ("journal.sqlite3", "submissions.sqlite3"):
        with closing(_database(event.state / name)) as database:
            try:
                database.execute("BEGIN EXCLUSIVE")
                database.execute("ROLLBACK")
            except sqlite3.OperationalError as error:
                yield f"{name}: {error}"
            if (verdict := database.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
                yield f"{name}: {verdict}"
