"""What keeps a local run to itself: kinds of containment, the user it runs as, its environment, and its mark."""

from __future__ import annotations

import grp
import os
import pwd
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from rampd.errors import WorkerSetupError
from rampd.workers import launcher

MARKER = "RAMPD_ATTEMPT"
"""The environment variable by which a process is known as ours, whatever became of its parents."""


class Containment(StrEnum):
    """What keeps a submission's processes together, best first."""

    PID_NAMESPACE = launcher.PID_NAMESPACE  # the daemon is root: a namespace dies with its PID 1
    USER_AND_PID_NAMESPACE = launcher.USER_AND_PID_NAMESPACE  # the same, for a user without privileges
    SUBREAPER = launcher.SUBREAPER  # orphans are adopted and found; a submission could kill its supervisor


@dataclass(frozen=True, slots=True)
class Identity:
    """The user that submissions run as, where it is not the daemon's own."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def identity_of(user: str | None) -> Identity | None:
    """Look `worker.run_as` up.

    Raises
    ------
    WorkerSetupError
        There is no such user, or the daemon is not root.
    """
    if user is None:
        return None
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise WorkerSetupError(f"worker.run_as: there is no user {user!r} on this machine") from None
    if entry.pw_uid == os.geteuid():
        return None
    if os.geteuid() != 0:
        raise WorkerSetupError(f"worker.run_as: {user!r} needs a daemon that was started as root")
    groups = {group.gr_gid for group in grp.getgrall() if user in group.gr_mem} | {entry.pw_gid}
    return Identity(user, entry.pw_uid, entry.pw_gid, tuple(sorted(groups)))


def base_environment(*, home: Path, temporary: Path, user: str, n_threads: int | None) -> dict[str, str]:
    """Return the environment of a run without its conda part: what the daemon's has beyond this is not passed on."""
    environment = {
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "USER": user,
        "LOGNAME": user,
        # Nothing outside the attempt's folder is the submission's: no packages of the daemon's user.
        "PYTHONNOUSERSITE": "1",
    }
    locale = {name: text for name, text in os.environ.items() if name == "LANG" or name.startswith("LC_")}
    environment |= locale or {"LANG": "C.UTF-8"}
    if "TZ" in os.environ:
        environment["TZ"] = os.environ["TZ"]
    return environment | thread_limits(n_threads)


def thread_limits(n_threads: int | None) -> dict[str, str]:
    """Return the variables that keep numerical libraries to so many threads; none where it is None."""
    return {} if n_threads is None else dict.fromkeys(_THREAD_LIMITS, str(n_threads))


_THREAD_LIMITS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "LOKY_MAX_CPU_COUNT",
)


def is_withheld(name: str) -> bool:
    """Return whether a variable of the daemon's never reaches a submission, whatever `worker.env` asks for."""
    return name.startswith(("AWS_", "LD_")) or name in ("NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY", MARKER)


def start_time_of(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot (proc(5), stat, field 22); None if it is gone.

    A pid alone names no process: it is used again. A zombie counts as gone.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def marked_processes(prefix: str) -> dict[int, str]:
    """Return the living processes whose marker begins with `prefix`: the marker's value by pid. Blocking."""
    needle = f"{MARKER}={prefix}".encode()
    found: dict[int, str] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        for variable in environment.split(b"\0"):
            if variable.startswith(needle) and start_time_of(int(folder.name)) is not None:
                found[int(folder.name)] = os.fsdecode(variable.partition(b"=")[2])
    return found


def kill_marked(prefix: str, *, keep: frozenset[str] = frozenset()) -> list[int]:
    """Kill every process whose marker begins with `prefix` and is not in `keep`, until none is left. Blocking.

    Returns
    -------
    list of int
        The pids that were killed.
    """
    killed: set[int] = set()
    deadline = time.monotonic() + 5.0
    while True:
        alive = [pid for pid, marker in marked_processes(prefix).items() if marker not in keep and pid != os.getpid()]
        if not alive or time.monotonic() > deadline:
            return sorted(killed)
        for pid in alive:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        time.sleep(0.005)
