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

from faults.events import FINAL, database
from support.daemon import processes_marked

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    from faults.events import EventUnderTest, Memory, Row
    from faults.incarnation import Incarnation

FINAL_STATE_OF = {
    "ok": "scored",
    "participant_error": "training_error",
    "timeout": "training_error",
    "cancelled": "checking_error",
    "lost_host": "checking_error",
    "no_capacity": "checking_error",
    "platform_error": "checking_error",
}
_NEEDS_A_RUN = {"ok", "participant_error", "timeout"}
_NOT_THE_SAME_WHEN_REPLAYED = {"timestamp", "run", "seq", "replayed", "level", "logger"}


@dataclass
class Finding:
    """What a check came to."""

    problems: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def check(
    event: EventUnderTest,
    incarnations: Sequence[Incarnation],
    *,
    submitted: Collection[str],
    removed: Collection[str],
) -> Finding:
    """Check one event after its last daemon has ended by itself.

    Parameters
    ----------
    event
        Its store and folders.
    incarnations
        Every daemon that served it, in order, with what was read of its stream.
    submitted
        Every name that was handed in.
    removed
        Those that were removed again: they may be unknown, or have come to an end.
    """
    finding = Finding()
    memory = event.memory()
    attempts: list[Row] = []
    requests: list[Row] = []
    for host, state in event.states.items():
        with closing(database(state / "journal.sqlite3")) as journal:
            own = journal.execute("SELECT * FROM attempts ORDER BY submission_id, number")
            attempts += [{**dict(row), "host": host} for row in own]
            requests += [dict(row) for row in journal.execute("SELECT * FROM requests")]
    retries = Counter(one["submission"] for one in requests if one["kind"] == "retry" and one["accepted"])
    superseded = _superseded(incarnations)
    finding.problems += [
        *_store_problems(memory.submissions, submitted, removed),
        *_transition_problems(memory, event.legal, retries),
        *_journal_problems(memory.submissions, attempts, retries, superseded),
        *(f"request {one['id']} was not answered" for one in requests if one["answered_at"] is None),
        *_stream_problems(attempts, incarnations, superseded, finding.counts),
        *_run_problems(event, attempts),
        *_folder_problems(event, memory.submissions, removed),
        *_leftover_problems(event),
        *event.problems(memory),
    ]
    finding.counts.update(
        submissions=len(memory.submissions),
        attempts=len(attempts),
        final_attempts=sum(bool(one["final"]) for one in attempts),
        superseded=len(superseded),
        requests=len(requests),
        removed=len(removed),
        daemons=len(incarnations),
        **{f"state_{state}": count for state, count in Counter(one["state"] for one in memory.submissions).items()},
        **{f"outcome_{outcome}": count for outcome, count in Counter(one["outcome"] for one in attempts).items()},
    )
    return finding


def _superseded(incarnations: Sequence[Incarnation]) -> set[tuple[str, int, int]]:
    """Return the attempts whose outcome came too late: another host had claimed the submission, and has the say."""
    return {
        (life.host, record["submission_id"], record["attempt"])
        for life in incarnations
        for record in life.records
        if record["event"] == "submission.superseded"
    }


def _store_problems(submissions: Sequence[Row], submitted: Collection[str], removed: Collection[str]) -> Iterator[str]:
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


def _transition_problems(memory: Memory, legal: Collection[tuple[str, str]], retries: Counter[str]) -> Iterator[str]:
    names = {one["id"]: one["name"] for one in memory.submissions}
    history: dict[int, list[str]] = defaultdict(list)
    for row in memory.transitions:
        history[row["submission_id"]].append(row["state"])
    for submission_id, states in history.items():
        name = names.get(submission_id)
        if name is None:
            continue  # forgotten with its folder
        if states[0] != "new":
            yield f"{name} began as {states[0]}"
        for step in pairwise(states):
            if step not in legal:
                yield f"{name} went from {step[0]} to {step[1]}"
        ends = sum(state in FINAL for state in states)
        if ends > 1 + retries[name]:
            yield f"finished twice: {name} came to {ends} final states after {retries[name]} retries"


def _journal_problems(
    submissions: Sequence[Row],
    attempts: Sequence[Row],
    retries: Counter[str],
    superseded: Collection[tuple[str, int, int]],
) -> Iterator[str]:
    of: dict[int, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for one in attempts:
        of[one["submission_id"]][one["host"]].append(one)
        label = f"{one['submission']} attempt {one['number']}"
        if one["step"] != "closed" or one["outcome"] is None:
            yield f"{label} is {one['step']} with outcome {one['outcome']}"
            continue
        if json.loads(one["verdict"])["outcome"] != one["outcome"]:
            yield f"{label} has two outcomes"
    for submission in submissions:
        by_host, name = of[submission["id"]], submission["name"]
        for own in by_host.values():
            if [one["number"] for one in own] != list(range(1, len(own) + 1)):
                yield f"{name} has attempts {[one['number'] for one in own]}"
        finals = [
            one
            for own in by_host.values()
            for one in own
            if one["final"] and (one["host"], one["submission_id"], one["number"]) not in superseded
        ]
        # The store's last word is the last of one host at least; which of several spoke last, no journal says.
        last = [own[-1]["outcome"] for own in by_host.values() if own[-1] in finals]
        if not last:
            yield f"{name} is {submission['state']} without a final attempt"
        elif submission["state"] not in {FINAL_STATE_OF.get(outcome) for outcome in last}:
            yield f"{name} is {submission['state']}, its last attempt {', '.join(map(str, last))}"
        if len(finals) > 1 + retries[name]:
            yield f"finished twice: {name} has {len(finals)} final attempts after {retries[name]} retries"


def _stream_problems(
    attempts: Sequence[Row],
    incarnations: Sequence[Incarnation],
    superseded: Collection[tuple[str, int, int]],
    counts: Counter[str],
) -> Iterator[str]:
    said: dict[tuple[str, int, int], dict[str, Any]] = {}
    for number, one in enumerate(incarnations, start=1):
        counts["records"] += len(one.records)
        yield from (f"daemon {number}: {problem}" for problem in _numbering_problems(one, counts))
        for record in (record for record in one.records if record["event"] == "submission.finished"):
            counts["finished_lines"] += 1
            key = (one.host, record["submission_id"], record["attempt"])
            content = {name: value for name, value in record.items() if name not in _NOT_THE_SAME_WHEN_REPLAYED}
            counts["finished_lines_again"] += key in said
            if said.setdefault(key, content) != content:
                yield f"{record['submission']} attempt {record['attempt']} was said to end in two ways"
    final = {(one["host"], one["submission_id"], one["number"]): one for one in attempts if one["final"]}
    journaled = {key: attempt for key, attempt in final.items() if key not in superseded}
    for key, attempt in journaled.items():
        if key not in said:
            yield f"no submission.finished for {attempt['submission']} attempt {attempt['number']}"
        elif said[key]["outcome"] != attempt["outcome"]:
            yield f"{attempt['submission']}: {said[key]['outcome']} in the stream, {attempt['outcome']} in the journal"
    for key in said.keys() - journaled.keys():
        yield f"the stream has an end that the journal does not know: {said[key]['submission']}"


def _run_problems(event: EventUnderTest, attempts: Sequence[Row]) -> Iterator[str]:
    """Each attempt runs once at most, and one that was judged by its run has run."""
    folders = [str(event.state(host) / "attempts") + "/" for host in event.hosts]
    path = event.deployment.root / "runs"
    runs = Counter[str]()
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        (folder,) = [one for one in folders if line.startswith(one)]
        runs[line.removeprefix(folder).partition("/")[0]] += 1
    known = {one["id"]: one for one in attempts}
    for attempt_id, count in runs.items():
        if attempt_id not in known:
            yield f"a run of attempt {attempt_id}, which no journal knows"
        elif count > 1:
            one = known[attempt_id]
            yield f"run twice: {one['submission']} attempt {one['number']} ran {count} times"
    for one in attempts:
        if one["outcome"] in _NEEDS_A_RUN and runs[one["id"]] != 1:
            yield f"{one['submission']} attempt {one['number']} is {one['outcome']} without a run"


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


def _folder_problems(event: EventUnderTest, submissions: Sequence[Row], removed: Collection[str]) -> Iterator[str]:
    forgotten = set(removed) if event.keeps_what_it_forgot else set()
    deployment = event.deployment
    whole = digest_of(deployment.root / "template")
    state_of = {one["name"]: one["state"] for one in submissions}
    there = {path.name for path in deployment.predictions.iterdir()}
    for name in sorted(there):
        if name not in state_of and name not in forgotten:
            yield f"predictions_dir/{name} belongs to nobody"
        elif digest_of(deployment.predictions / name) != whole:
            yield f"predictions_dir/{name} is not whole"
    for name, state in state_of.items():
        if state == "scored" and name not in there:
            yield f"{name} is scored without predictions"
        if state == "training_error" and name in there:
            yield f"{name} is a training_error with predictions"
    for folder in event.states.values():
        for left in sorted((folder / "attempts").iterdir()):
            yield f"attempt folder left over: {left.name}"
    if (deployment.root / "twice").exists():
        yield f"run twice at once: {(deployment.root / 'twice').read_text().split()}"


def _leftover_problems(event: EventUnderTest) -> Iterator[str]:
    for pid in processes_marked(str(event.deployment.root)):
        yield f"process left over: {pid}"
    for folder in event.states.values():
        with (folder / "lock").open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield "the lock on state_dir is still held"
        for name in event.databases:
            with closing(database(folder / name)) as file:
                try:
                    file.execute("BEGIN EXCLUSIVE")
                    file.execute("ROLLBACK")
                except sqlite3.OperationalError as error:
                    yield f"{name}: {error}"
                if (verdict := file.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
                    yield f"{name}: {verdict}"
