"""A fault campaign: one event, many daemons that are killed and hindered, and a check at the end.

Everything random comes from one seed: what is submitted, which faults come when, where a daemon dies. The moments are
real ones, so a run is not repeated to the millisecond; its plan is.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from faults.behaviours import TIMEOUT_S, Behaviour, generate
from faults.board_disturbances import BOARD
from faults.board_event import board_event
from faults.checker import Finding, check
from faults.disturbances import DIRECTORY, Disturbances, rampctl
from faults.events import directory_event
from faults.incarnation import AT_RANDOM, FIRST, Incarnation
from support.daemon import processes_marked, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from faults.events import EventUnderTest
    from support.deployment import Deployment

STORES = {"directory": (directory_event, DIRECTORY), "board": (board_event, BOARD)}
"""How an event of each is made, and what may befall it."""

_LAST_LIFE_S = 240.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How much a campaign does to one event."""

    kills: int
    submissions: int
    n_workers: int = 3
    faults: Sequence[str] | None = None
    """Which of them come, each once, in a random order; None for all that the store has."""
    at_once: int = 0
    """How many submissions are dropped in one go, besides."""
    small_disk: bool = False
    """The event's folder is a file system of its own (needs root): without it a disk cannot be full."""
    patience_s: float = 3.0
    """How long what only takes time lasts: a lock on a file, a reader that stalls."""


@dataclass
class Campaign:
    """One event, and what is done to it. Made by `campaign_on`.

    Parameters
    ----------
    root
        An empty folder.
    seed
        Of everything random.
    plan
        How much.
    served
        The event and its store.
    disturbances
        What there is to choose from.
    """

    root: Path
    seed: int
    plan: Plan
    served: EventUnderTest
    disturbances: Disturbances
    incarnations: list[Incarnation] = field(default_factory=list)
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)
    kills: Counter[str] = field(default_factory=Counter)
    """By where they hit."""
    disturbed: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.choices = random.Random(self.seed)
        self.event.make_stub_environment()
        self.clock = self.root / "clock"
        self.clock.write_text("0", encoding="ascii")
        for name in ("locks", "tries"):
            (self.root / name).mkdir()

    @property
    def event(self) -> Deployment:
        """The event's folders and config."""
        return self.served.deployment

    def run(self) -> Finding:
        """Do it all; return what the checks came to."""
        with self._disk():
            faults = list(self.disturbances.names if self.plan.faults is None else self.plan.faults)
            self._faults = faults
            self.choices.shuffle(faults)
            points = self._points()
            while sum(self.kills.values()) < self.plan.kills or faults:
                self._submit_some()
                # Faults are spread over the lives; those that are left after the last kill have lives of their own.
                left = max(1, self.plan.kills - sum(self.kills.values()))
                fault = faults.pop() if faults and self.choices.random() < len(faults) / left else None
                self._live(fault, next(points) if fault is None and self.choices.random() < 0.6 else None)
            self._let_it_end()
            return self.check()

    def check(self) -> Finding:
        """Say what is wrong, after the last daemon's end."""
        finding = check(self.served, self.incarnations, submitted=list(self.behaviours), removed=self.removed)
        finding.problems += [*self.problems, *self._injustices()]
        finding.counts.update(kills=sum(self.kills.values()))
        return finding

    def _points(self) -> Iterator[str]:
        """Give kill points, each before and after, in random order and again and again."""
        while True:
            every = [(name, side) for name in self.served.points for side in ("before", "after")]
            self.choices.shuffle(every)
            for name, side in every:
                yield f"{name}:{side}:{self.choices.choice([1, 1, 2, 4])}"

    @contextmanager
    def _disk(self) -> Iterator[None]:
        if not self.plan.small_disk:
            yield
            return
        folder = str(self.event.folder)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", folder], check=True)
        try:
            self.event.submissions.mkdir()
            self.served.write_configs()
            yield
        finally:
            self._end_everything()
            subprocess.run(["umount", folder], check=True)

    def submit(self, behaviour: Behaviour | None = None) -> str:
        """Hand one submission in; return its name."""
        chosen = behaviour or generate(self.choices, self.root)
        name = self.served.submit(f"s{len(self.behaviours):05d}", chosen.script)
        self.behaviours[name] = chosen
        return name

    def _submit_some(self) -> None:
        if not self.behaviours and self.plan.at_once:
            for _ in range(self.plan.at_once):
                self.submit()
        lives_left = max(1, self.plan.kills - sum(self.kills.values()))
        left = self.plan.submissions + self.plan.at_once - len(self.behaviours)
        for _ in range(min(left, round(self.choices.uniform(0, 2.5) * left / lives_left))):
            self.submit()

    def start(self, kill_point: str | None = None, *, host: str = FIRST) -> Incarnation:
        """Start a host's next daemon."""
        variables = {"RAMPD_FAULT_CLOCK": str(self.clock)}
        if kill_point is not None:
            variables["RAMPD_FAULT_KILL"] = kill_point
        life = Incarnation(self.served.daemon_options(host), variables, self.root / "stderr", host)
        life.start()
        return life

    def _live(self, fault: str | None, kill_point: str | None, *, patience_s: float | None = None) -> None:
        """Let a daemon live for a moment, disturb it, and kill it.

        Parameters
        ----------
        fault, kill_point
            What happens to it, and where it dies; None: nothing, and anywhere.
        patience_s
            How long it has to come to the kill point; None: for a moment as well.
        """
        if fault is not None and fault in self.disturbances.between:
            problems = self.disturbances.between[fault](self)
            if problems is not None:
                self.disturbed[fault] += 1
                self.problems += problems
                return
            self._faults.insert(0, fault)
            fault = None
        life = self.start(kill_point)
        try:
            if fault is not None:
                life.wait_for("daemon.ready", timeout_s=30)
                self.disturbed[fault] += 1
                self.problems += self.disturbances.during[fault](self, life)
            if kill_point is None:
                life.wait(self.choices.uniform(0.1, 1.2))
            else:
                life.wait_for("daemon.ready", timeout_s=30)
                if life.wait(patience_s or self.choices.uniform(0.5, 1.2)) is None:
                    kill_point = None  # it did not come to that; it dies all the same
        finally:
            status = life.end()
            self.incarnations.append(life)
        if status == -signal.SIGKILL:
            self.kills[kill_point.rpartition(":")[0] if kill_point else AT_RANDOM] += 1
        elif status != 0 and not (fault == "sigterm_twice" and status == 1):
            self.problems.append(f"a daemon ended with status {status} during {fault or kill_point}")

    def _let_it_end(self) -> None:
        """Let the last daemon bring everything to its end, undisturbed."""
        self.clock.write_text("0", encoding="ascii")
        for host in self.served.states:
            rampctl(self, "resume", host=host)
        while len(self.behaviours) < self.plan.submissions + self.plan.at_once:
            self.submit()
        self.event.dispatcher |= {"hunger_policy": "exit"}
        self.served.write_configs()
        # Once more where the last lines could not be written: a daemon that ends says what is still unsaid.
        for host in [*self.served.hosts] * 2:
            life = self.start(host=host)
            status = life.wait(_LAST_LIFE_S)
            life.end()
            self.incarnations.append(life)
            if status != 0:
                self.problems.append(f"the last daemon ended with status {status}")
        wait_until(lambda: not processes_marked(str(self.root)), timeout_s=20, what="the end of every process")

    def _end_everything(self) -> None:
        for life in self.incarnations:
            if life.process.poll() is None:
                life.end()

    def _injustices(self) -> Iterator[str]:
        """Return what participants were told that they do not deserve: the platform's faults are not theirs."""
        told: dict[str, set[str]] = {}
        for life in self.incarnations:
            for record in life.records:
                if record["event"] == "submission.finished":
                    told.setdefault(record["submission"], set()).add(record["outcome"])
        for name, outcomes in told.items():
            wrong = outcomes - self.behaviours[name].deserves - {"cancelled", "platform_error"}
            if wrong:
                yield f"{name} ({self.behaviours[name].kind}) was told {sorted(wrong)}"


@contextmanager
def campaign_on(store: str, root: Path, seed: int, plan: Plan) -> Iterator[Campaign]:
    """Give a campaign on a store (of `STORES`); what serves the store is gone afterwards."""
    make_event, disturbances = STORES[store]
    dispatcher = {"n_workers": plan.n_workers, "settle_time": 0.05, "shutdown_grace": 0.3}
    with make_event(root, dispatcher=dispatcher, worker={"timeout": TIMEOUT_S}) as served:
        yield Campaign(root, seed, plan, served, disturbances)


def report(campaign: Campaign, finding: Finding, *, began: float) -> str:
    """Return one campaign's figures as a line of JSON."""
    return json.dumps(
        {
            "seed": campaign.seed,
            "took_s": round(time.monotonic() - began, 1),
            "problems": finding.problems,
            "disturbed": dict(sorted(campaign.disturbed.items())),
            "killed_at": dict(sorted(campaign.kills.items())),
            "counts": dict(sorted(finding.counts.items())),
        }
    )
