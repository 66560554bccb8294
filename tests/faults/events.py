"""The event that a fault campaign is about: its store, how submissions arrive there, and what may befall it."""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from faults.failing_daemon import DIRECTORY_POINTS
from faults.incarnation import FIRST
from support.deployment import Deployment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

FINAL = {"scored", "training_error", "checking_error"}
# As the documentation draws them; a final state is left by the operator's word alone.
LEGAL = frozenset(
    {
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
)
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Memory:
    """What a store has in the end, in the words of all stores."""

    submissions: list[Row]
    """Each with `id`, `name` and `state`."""
    transitions: list[Row]
    """Each with `submission_id` and `state`, in their order; every submission begins as new."""


class EventUnderTest(ABC):
    """One event and its store."""

    points: ClassVar[Mapping[str, str]]
    """Where a daemon of it may kill itself."""
    legal: ClassVar[frozenset[tuple[str, str]]] = LEGAL
    """The transitions that its store may make."""
    hosts: ClassVar[Sequence[str]] = (FIRST,)
    """Whose daemons may serve it, each with a state_dir of its own."""
    databases: ClassVar[Sequence[str]] = ("journal.sqlite3",)
    """The files in a state_dir that are read and written all the time."""
    keeps_what_it_forgot: ClassVar[bool] = False
    """Whether the predictions of a submission that was removed stay."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment

    def config(self, host: str) -> Path:
        """Return the config file of a host's daemon."""
        return self.deployment.config

    def state(self, host: str) -> Path:
        """Return a host's state_dir, which need not be there."""
        return self.deployment.state

    @property
    def states(self) -> dict[str, Path]:
        """The state_dirs in which a daemon has been."""
        every = {host: self.state(host) for host in self.hosts}
        return {host: folder for host, folder in every.items() if (folder / "journal.sqlite3").exists()}

    def write_configs(self) -> None:
        """Write the hosts' configs anew."""
        self.deployment.write_config()

    def options(self, host: str) -> list[str]:
        """Return what rampd and rampctl are told alike."""
        return ["--config", str(self.config(host))]

    def daemon_options(self, host: str) -> list[str]:
        """Return what rampd is told."""
        return self.options(host)

    @abstractmethod
    def submit(self, title: str, script: str) -> str:
        """Hand a submission in; return its name."""

    @abstractmethod
    def memory(self) -> Memory:
        """Read the store."""

    @abstractmethod
    def problems(self, memory: Memory) -> Iterator[str]:
        """Say what is wrong with what this store alone has."""


class DirectoryEvent(EventUnderTest):
    """One whose submissions are folders, on the embedded store."""

    points = DIRECTORY_POINTS
    databases = ("journal.sqlite3", "submissions.sqlite3")

    def submit(self, title: str, script: str) -> str:
        """Put a folder in place by one rename."""
        return self.deployment.submit(title, script).name

    def memory(self) -> Memory:
        """Read the store's file."""
        with closing(database(self.deployment.state / "submissions.sqlite3")) as store:
            return Memory(
                [dict(row) for row in store.execute("SELECT * FROM submissions")],
                [dict(row) for row in store.execute("SELECT rowid, * FROM transitions ORDER BY rowid")],
            )

    def problems(self, memory: Memory) -> Iterator[str]:
        """Find nothing: there is nothing but what `memory` says."""
        yield from ()


def database(path: Path) -> sqlite3.Connection:
    """Open one of a daemon's files."""
    connection = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=0.1)
    connection.row_factory = sqlite3.Row
    return connection


@contextmanager
def directory_event(root: Path, **sections: Mapping[str, Any]) -> Iterator[EventUnderTest]:
    """Give one in an empty folder; `sections` are the config's."""
    deployment = Deployment(root)
    for name, section in sections.items():
        getattr(deployment, name).update(section)
    deployment.write_config()
    yield DirectoryEvent(deployment)
