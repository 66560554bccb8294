"""What befalls a daemon in a fault campaign besides kill -9: each returns the problems that it noticed."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from faults.behaviours import TIMEOUT_S
from faults.checker import digest_of
from faults.incarnation import FIRST

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from faults.campaign import Campaign
    from faults.incarnation import Incarnation


_LOCKED_S = 10.0


@dataclass(frozen=True, slots=True)
class Disturbances:
    """What there is to befall an event of one kind of store."""

    during: Mapping[str, Callable[[Campaign, Incarnation], list[str]]]
    """What comes while a daemon lives."""
    between: Mapping[str, Callable[[Campaign], list[str] | None]]
    """What comes between two daemons; None where there is nothing to do it to yet."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every one."""
        return (*self.during, *self.between)


def _sigstop(campaign: Campaign, life: Incarnation) -> list[str]:
    """Stop the process for longer than a submission may run: what ended in time must not be called late."""
    for _ in range(3):
        campaign.submit()
    life.wait_for("submission.started", timeout_s=10)
    life.signal(signal.SIGSTOP)
    time.sleep(TIMEOUT_S + 1)
    life.signal(signal.SIGCONT)
    return []


def _sigterm_twice(campaign: Campaign, life: Incarnation) -> list[str]:
    life.signal(signal.SIGTERM)
    life.wait(campaign.choices.uniform(0, 0.2))
    life.signal(signal.SIGTERM)
    return [] if life.wait(30) is not None else ["a second SIGTERM did not end the daemon"]


def _sigterm(campaign: Campaign, life: Incarnation) -> list[str]:
    life.signal(signal.SIGTERM)
    return [] if life.wait(60) == 0 else ["SIGTERM did not end the daemon with status 0"]


def _sighup(campaign: Campaign, life: Incarnation) -> list[str]:
    """Reload again and again, with other settings and with broken ones."""
    for n_workers in (1, 5, 2):
        campaign.event.config.write_bytes(b"ramp: [")
        life.signal(signal.SIGHUP)
        campaign.event.dispatcher["n_workers"] = n_workers
        campaign.served.write_configs()
        life.signal(signal.SIGHUP)
        life.wait(0.1)
    campaign.event.dispatcher["n_workers"] = campaign.plan.n_workers
    campaign.served.write_configs()
    life.signal(signal.SIGHUP)
    return []


def _full_disk(campaign: Campaign, life: Incarnation) -> list[str]:
    """Fill the event's file system while submissions run, and make room again."""
    if not campaign.plan.small_disk:
        return ["a full disk was planned without a small one"]
    for _ in range(4):
        campaign.submit()
    ballast = campaign.event.folder / ".ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with suppress(OSError):
                while True:
                    file.write(b"x" * size)
    life.wait(campaign.plan.patience_s)
    ballast.unlink()
    return [] if life.process.poll() is None else ["the daemon did not outlive a full disk"]


def _locked(campaign: Campaign, life: Incarnation) -> list[str]:
    """Hold the write lock of a database from another process, as a backup tool may."""
    name = campaign.choices.choice(campaign.served.databases)
    with closing(sqlite3.connect(campaign.event.state / name, isolation_level=None, timeout=10)) as database:
        database.execute("BEGIN EXCLUSIVE")
        life.wait(min(campaign.plan.patience_s, _LOCKED_S))
        database.execute("ROLLBACK")
    return [] if life.process.poll() is None else [f"the daemon did not outlive a lock on {name}"]


def _reader_goes(campaign: Campaign, life: Incarnation) -> list[str]:
    life.close_reader()
    for _ in range(3):
        campaign.submit()
    life.wait(1.5)
    return [] if life.process.poll() is None else ["the daemon did not outlive its reader"]


def _reader_stalls(campaign: Campaign, life: Incarnation) -> list[str]:
    life.pause_reader()
    for _ in range(5):
        campaign.submit()
    life.wait(campaign.plan.patience_s)
    life.resume_reader()
    return [] if life.process.poll() is None else ["the daemon did not outlive a reader that stalls"]


def _clock_jumps(campaign: Campaign, life: Incarnation) -> list[str]:
    """Set the wall clock forward and back by an hour while submissions run."""
    for offset in ("3600", "-3600", "0", "3600"):
        campaign.submit()
        # In place of a rename: the daemon reads it whenever it looks at its clock.
        temporary = campaign.clock.with_suffix(".new")
        temporary.write_text(offset, encoding="ascii")
        temporary.rename(campaign.clock)
        life.wait(0.3)
    return [] if life.process.poll() is None else ["the daemon did not outlive its clock"]


def _removed_while_queued(campaign: Campaign, life: Incarnation) -> list[str]:
    names = [campaign.submit() for _ in range(campaign.plan.n_workers + 3)]
    for name in names[-2:]:
        campaign.removed.add(name)
        shutil.rmtree(campaign.event.submissions / name)
    life.wait(0.5)
    return []


def _removed_while_running(campaign: Campaign, life: Incarnation) -> list[str]:
    life.wait_for("submission.started", timeout_s=10)
    running = [record["submission"] for record in life.records if record["event"] == "submission.started"]
    for name in running[-2:]:
        campaign.removed.add(name)
        shutil.rmtree(campaign.event.submissions / name, ignore_errors=True)
    life.wait(0.5)
    return []


def _operators(campaign: Campaign, life: Incarnation) -> list[str]:
    """Ten operators at once, who ask for everything there is."""
    for _ in range(6):
        campaign.submit()
    names = campaign.choices.sample(list(campaign.behaviours), min(8, len(campaign.behaviours)))
    here = [name for name in names if name not in campaign.removed] or ["of_nobody"]
    words = [
        ["status", "--json"],
        ["status"],
        ["cancel", here[0]],
        ["cancel", here[-1]],
        ["retry", here[0]],
        ["retry", here[len(here) // 2]],
        ["drain"],
        ["resume"],
        ["scores"],
        ["status", here[0]],
    ]
    asking = [_ask(campaign, *one) for one in words]
    problems = []
    for process, one in zip(asking, words, strict=True):
        _, stderr = process.communicate(timeout=60)
        # 1: refused (it has ended already); 2: not known yet. Everything else is a fault of ours.
        if process.returncode not in {0, 1, 2} or b"Traceback" in stderr:
            problems.append(f"rampctl {one} ended with {process.returncode}: {stderr.decode()[-300:]}")
    rampctl(campaign, "resume")
    return problems


def _ask(campaign: Campaign, *words: str, host: str = FIRST) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "rampd.cli.rampctl", *words, *campaign.served.options(host)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def rampctl(campaign: Campaign, *words: str, host: str = FIRST) -> None:
    """Run one command to its end."""
    process = _ask(campaign, *words, host=host)
    process.communicate(timeout=60)


def _second_daemon(campaign: Campaign, life: Incarnation) -> list[str]:
    """Start another one on the same event: it must go at once, and name the first."""
    second = campaign.start()
    status = second.wait(20)
    second.end()
    return [] if status == os.EX_TEMPFAIL else [f"a second daemon ended with {status}"]


def _corrupt_journal(campaign: Campaign) -> list[str] | None:
    return _corrupt(campaign, "journal.sqlite3")


def _corrupt_store(campaign: Campaign) -> list[str] | None:
    return _corrupt(campaign, "submissions.sqlite3")


def _corrupt(campaign: Campaign, name: str) -> list[str] | None:
    """Damage a database between two daemons: the next one refuses, says how to restore it, and touches nothing."""
    event = campaign.event
    path = event.state / name
    if not path.exists() or path.stat().st_size < 1 << 14:
        return None  # there is nothing to damage yet
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    backup = campaign.root / "backup"
    shutil.copytree(event.state, backup, ignore=shutil.ignore_patterns("attempts", "lock"))
    before = digest_of(event.submissions), digest_of(event.predictions)
    data = bytearray(path.read_bytes())
    how, damaged = _damage(campaign, data)
    path.write_bytes(damaged)
    life = campaign.start()
    status = life.wait(30)
    life.end()
    campaign.incarnations.append(life)
    problems = []
    failed = [record for record in life.records if record["event"] == "daemon.failed"]
    if (
        status != 1
        or len(failed) != 1
        or "Restore the file" not in failed[0]["error"]
        or name not in failed[0]["error"]
    ):
        problems.append(f"{name}, {how}: status {status}, {failed}")
    if (digest_of(event.submissions), digest_of(event.predictions)) != before:
        problems.append(f"{name}, {how}: submissions or predictions were touched")
    for leftover in event.state.glob(f"{name}*"):
        leftover.unlink()
    for file in backup.glob(f"{name}*"):
        shutil.copy2(file, event.state / file.name)
    shutil.rmtree(backup)
    return problems


def _damage(campaign: Campaign, data: bytearray) -> tuple[str, bytes]:
    page_size = int.from_bytes(data[16:18], "big") or 65536
    match campaign.choices.choice(["truncated", "header", "page", "state"]):
        case "truncated":
            return "truncated", bytes(data[: page_size * max(1, len(data) // page_size // 2) + page_size // 3])
        case "header":
            data[campaign.choices.randrange(0, 16)] ^= 0xFF
            return "a flipped byte in the header", bytes(data)
        case "page":
            # The kind of the first page's tree, which has the schema.
            data[100] ^= 0xFF
            return "a flipped byte in a page", bytes(data)
        case _:
            where = next((at for word in (b"closed", b"scored", b"new") if (at := data.rfind(word)) > page_size), 100)
            data[where] ^= 0x01
            return f"a flipped byte in a value at {where}", bytes(data)


OF_EVERY_STORE = Disturbances(
    {
        "sigstop": _sigstop,
        "sigterm": _sigterm,
        "sigterm_twice": _sigterm_twice,
        "sighup": _sighup,
        "full_disk": _full_disk,
        "locked": _locked,
        "reader_goes": _reader_goes,
        "reader_stalls": _reader_stalls,
        "clock_jumps": _clock_jumps,
        "operators": _operators,
        "second_daemon": _second_daemon,
    },
    {"corrupt_journal": _corrupt_journal},
)
DIRECTORY = Disturbances(
    {
        **OF_EVERY_STORE.during,
        "removed_while_queued": _removed_while_queued,
        "removed_while_running": _removed_while_running,
    },
    {**OF_EVERY_STORE.between, "corrupt_store": _corrupt_store},
)
