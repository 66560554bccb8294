"""An event on a RAMP board in a fault campaign: rows of a real PostgreSQL, and what must be true of them in the end."""

from __future__ import annotations

import csv
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from faults.events import LEGAL, EventUnderTest, Memory
from faults.failing_daemon import BOARD_POINTS
from faults.incarnation import FIRST
from support.board import Board, make_template
from support.board_daemon import second_host
from support.postgres import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from faults.events import Row

SECOND = "second"
_STEPS = ("train", "valid", "test")
# As ramp_database makes a submission: each score type's worst value, and None for the bags.
_WORST = {"acc": 0.0, "nll": "inf"}
_NO_BAGS = ["object", None]
_DATABASE = "board_of_faults"


class BoardEvent(EventUnderTest):
    """One whose submissions are rows, which two hosts may serve."""

    points = BOARD_POINTS
    # What a dead host held is put back for others; the host that comes back first still has the say.
    legal = (
        LEGAL | {("tested", "new")} | {("new", state) for state in ("training", "tested", "training_error", "scored")}
    )
    hosts = (FIRST, SECOND)
    keeps_what_it_forgot = True

    def __init__(self, board: Board) -> None:
        super().__init__(board.deployment)
        self.board = board
        self.write_configs()

    def config(self, host: str) -> Path:
        """Return a host's config: the second one's differs in its state_dir."""
        config = self.deployment.config
        return config if host == FIRST else config.with_name(f"{host}.yml")

    def state(self, host: str) -> Path:
        """Return a host's state_dir."""
        return self.deployment.state if host == FIRST else self.deployment.root / f"state-{host}"

    def write_configs(self) -> None:
        """Write both configs."""
        second_host(self.board, SECOND)

    def options(self, host: str) -> list[str]:
        """Name the config and the database."""
        return [*super().options(host), "--database-config", str(self.board.config)]

    def daemon_options(self, host: str) -> list[str]:
        """Build no leaderboards: they have nothing to do with who runs what."""
        return [*self.options(host), "--board-python", "/nonexistent"]

    def submit(self, title: str, script: str) -> str:
        """Insert what ramp-frontend does."""
        (number,) = self.board.insert(title, behaviours={title: script})
        return f"submission_{number:09d}"

    def memory(self) -> Memory:
        """Read the board's tables and rampd's own beside them."""
        rows = self.board.query(
            "SELECT id, state, error_msg, queue_position FROM submissions WHERE name <> 'starting_kit' ORDER BY id"
        )
        keys = ("id", "state", "error_msg", "queue_position")
        submissions = [{**dict(zip(keys, row, strict=True)), "name": f"submission_{row[0]:09d}"} for row in rows]
        moves = self.board.query("SELECT submission_id, state FROM rampd_transitions ORDER BY id")
        transitions = [{"submission_id": one["id"], "state": "new"} for one in submissions]
        transitions += [{"submission_id": number, "state": state} for number, state in moves]
        return Memory(submissions, transitions)

    def problems(self, memory: Memory) -> Iterator[str]:
        """Say what is wrong with leases, folds and figures; the figures as ramp_database reads them."""
        yield from self._lease_problems(memory)
        found = self.board.read()["submissions"]
        scored = expected_figures(self.deployment.root / "template")
        for one in memory.submissions:
            yield from _row_problems(one)
            yield from _figure_problems(one, found[one["name"]], scored)
        for name, row in found.items():
            if row["name"] == "starting_kit" and (row["state"], row["sent"]) != ("new", None):
                yield f"{name} is a sandbox, and {row['state']}"

    def _lease_problems(self, memory: Memory) -> Iterator[str]:
        state_of = {one["id"]: one["state"] for one in memory.submissions}
        leases = self.board.query("SELECT submission_id, state, expires_at FROM rampd_leases ORDER BY 1")
        for number, state, expires_at in leases:
            if expires_at is not None:
                yield f"lease left over: submission {number} until {expires_at}"
            if number not in state_of:
                yield f"lease left over: there is no submission {number}"
            elif state != state_of[number]:
                yield f"submission {number} is {state_of[number]}, its lease says {state}"
        for number in sorted(state_of.keys() - {number for number, _, _ in leases}):
            yield f"submission {number} came to its end without a lease"


def _row_problems(one: Row) -> Iterator[str]:
    if one["queue_position"] != -1:
        yield f"{one['name']} is {one['state']} and has place {one['queue_position']} in the queue"
    if bool(one["error_msg"]) != (one["state"] != "scored"):
        yield f"{one['name']} is {one['state']} and its participant is told {one['error_msg'][:40]!r}"


def _figure_problems(one: Row, found: Mapping[str, Any], scored: Mapping[str, Any]) -> Iterator[str]:
    name, state = one["name"], one["state"]
    if states := sorted({fold["state"] for fold in found["folds"]} - {state}):
        yield f"{name} is {state}, its folds {', '.join(states)}"
    folds = [{"times": fold["times"], "scores": fold["scores"]} for fold in found["folds"]]
    expected = scored if state == "scored" else _unscored(len(scored["folds"]))
    if folds != expected["folds"]:
        yield f"{name} is {state}, the figures of its folds are {folds}"
    if found["bags"] != expected["bags"]:
        yield f"{name} is {state}, its bags are {found['bags']}"


def expected_figures(template: Path) -> dict[str, Any]:
    """Return what ramp_database must read back of a submission with this training_output, from its files alone."""
    folds = []
    for folder in sorted(template.glob("fold_*")):
        rows = {row.pop("step"): row for row in _rows(folder / "scores.csv")}
        names = [name for name in rows["train"] if name != "time"]
        folds.append(
            {
                "times": [float((folder / f"{step}_time").read_text(encoding="ascii")) for step in _STEPS],
                "scores": {name: [float(rows[step][name]) for step in _STEPS] for name in names},
            }
        )
    bags = _rows(template / "bagged_scores.csv")
    return {"folds": folds, "bags": {name: _bags(bags, name) for name in bags[0].keys() - {"step", "n_bag"}}}


def _bags(rows: list[dict[str, str]], name: str) -> dict[str, Any]:
    of = {step: [float(row[name]) for row in rows if row["step"] == step] for step in ("valid", "test")}
    stored = {step: ["float64", values] for step, values in of.items()}
    return {"last": [values[-1] for values in of.values()], **stored}


def _unscored(n_folds: int) -> dict[str, Any]:
    fold = {"times": [0.0, 0.0, 0.0], "scores": {name: [worst] * 3 for name, worst in _WORST.items()}}
    bags = {name: {"last": [worst, worst], "valid": _NO_BAGS, "test": _NO_BAGS} for name, worst in _WORST.items()}
    return {"folds": [fold] * n_folds, "bags": bags}


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="ascii", newline="") as file:
        return list(csv.DictReader(file))


@contextmanager
def board_event(root: Path, **sections: Mapping[str, Any]) -> Iterator[EventUnderTest]:
    """Give one in an empty folder, on a PostgreSQL of its own; `sections` are the config's."""
    with PostgresServer(log_statements=False) as server:
        make_template(server, root / "made")
        board = Board(server, root, _DATABASE)
        # PostgreSQL copies a database's sequences as they are, without what they log ahead (CREATE DATABASE, strategy
        # wal_log): until a checkpoint, a power cut would have the copy give out its first ids again.
        board.query("CHECKPOINT")
        for name, section in sections.items():
            getattr(board.deployment, name).update(section)
        yield BoardEvent(board)
