"""A submission's run on a far machine, as commands for the shell there and what they answer. No I/O but its own text.

A run outlives the connection that started it: `far_side.sh` is copied into a folder of its own under the far user's
home, starts a wrapper that has nothing of the connection's, and answers short commands afterwards. Every command may
be repeated, whether or not an earlier one got through: there is one wrapper, ever.

What comes back is untrusted, since submissions run as the same user: it is parsed strictly and bounded, and nothing
but the run's own fate follows from it.
"""

from __future__ import annotations

import io
import math
import re
import shlex
import tarfile
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Final

from rampd.errors import WorkerError
from rampd.remote.hosts import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rampd.remote.hosts import Completed

IMDS_URL: Final = "http://169.254.169.254"
"""Where an instance asks about itself (AWS, "Instance metadata service")."""
MAX_SAID_BYTES: Final = 64 << 10
"""What a command may answer, but for log and archives: one line, and what a far login shell may print before it."""
_RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FOLDER: Final = ".rampd"
"""Under the far user's home; a run's own folder in it is called like the run."""
_HEAD: Final = "rampd-run 1"
"""How an answer begins: the protocol's name and version. The script's, too."""
_MAX_STATUS: Final = 255
_MAX_DIGITS: Final = 16


class FarSideError(WorkerError):
    """The far side did not answer as it should: the image is not prepared, or somebody meddles with it."""


class RunState(StrEnum):
    """What the far side says of a run."""

    ABSENT = "absent"  # never launched, or cleaned up
    STARTING = "starting"  # the wrapper lives; the login profile is at work
    RUNNING = "running"  # ramp-test has been started
    EXITED = "exited"  # nothing runs any more, and how it ended is known
    LOST = "lost"  # the wrapper is gone without a word: a reboot, or somebody killed it; or stopped before the launch


class Ending(StrEnum):
    """Why an exited run ended."""

    OK = "ok"  # by itself, with whatever status
    TIMEOUT = "timeout"  # ended over there, at its deadline
    STOPPED = "stopped"  # ended by `stop`
    DISK_FULL = "disk-full"  # it failed, and nothing more goes onto the disk there
    PROFILE = "profile"  # the login profile did not come to its end
    NO_KIT = "no-kit"  # there is no such folder as remote_ramp_kit_folder
    NO_RAMP_TEST = "no-ramp-test"  # not on the login profile's PATH
    NO_MPROF = "no-mprof"  # memory_profiling, and memory-profiler is not in the image

    @property
    def is_participants(self) -> bool:
        """Whether the exit status is ramp-test's own, and so the participant's."""
        return self in {Ending.OK, Ending.TIMEOUT}


class Problem(StrEnum):
    """Why a command was refused."""

    DISK_FULL = "disk-full"
    NO_KIT = "no-kit"
    KIT_NOT_WRITABLE = "kit-not-writable"
    BAD_ARCHIVE = "bad-archive"  # cut short, most likely
    HOME_NOT_WRITABLE = "home-not-writable"  # the far user's
    NO_TAR = "no-tar"


@dataclass(frozen=True, slots=True)
class DetachedRun:
    """What finds a run again."""

    run_id: str
    """The attempt's id: the mark that its processes carry."""
    submission: str
    kit_folder: str
    """`remote_ramp_kit_folder`; a path, absolute or from ``~/``."""

    def __post_init__(self) -> None:
        if _RUN_ID.fullmatch(self.run_id) is None:
            raise ValueError(f"not a run's id: {self.run_id!r}")


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How it is to run."""

    timeout_s: float
    """Enforced over there, from the wrapper's start, whether anybody looks or not."""
    max_log_bytes: int
    environment: Mapping[str, str] = field(default_factory=dict)
    """Set after the login profile, for ramp-test alone: thread limits, `worker.env`."""
    memory_profiling: bool = False
    imds_url: str | None = IMDS_URL
    """Where to look for a spot notice; None: nowhere."""
    look_every_s: int = 5
    """How often; AWS says 5 s ("Spot Instance interruption notices")."""


@dataclass(frozen=True, slots=True)
class RunStatus:
    """What the far side says of a run at one moment."""

    state: RunState
    log_bytes: int
    """The log's size over there. Once the run has exited it grows no more."""
    spot_notice: bool = False
    """AWS is about to take the instance back."""
    exit_status: int | None = None
    """128+n for signal n, 124 at a timeout; None where it has not exited."""
    ending: Ending | None = None
    max_rss_bytes: int | None = None
    """Peak resident memory of its largest process, where that could be measured."""
    log_capped_bytes: int = 0
    """What it printed beyond `RunSettings.max_log_bytes`, and was not kept."""
    problem: Problem | None = None
    """Why the command was refused."""


@dataclass(frozen=True, slots=True)
class FarCommand:
    """A command for the far shell, and its standard input."""

    command: str
    input: bytes = b""


@cache
def _script() -> bytes:
    return (resources.files("rampd.remote") / "far_side.sh").read_bytes()


def install(run: DetachedRun, settings: RunSettings) -> FarCommand:
    """Return the command that makes the run's folder, or renews what is in it. The first of all; answers `parse`."""
    lines = {
        "id": run.run_id,
        "name": run.submission,
        "kit": run.kit_folder,
        "timeout_s": str(max(1, math.ceil(settings.timeout_s))),
        "max_log_bytes": str(settings.max_log_bytes),
        "memory_profiling": str(int(settings.memory_profiling)),
        "imds_url": settings.imds_url or "",
        "look_every_s": str(max(1, settings.look_every_s)),
    }
    for name in settings.environment:
        if _ENV_NAME.fullmatch(name) is None:
            raise ValueError(f"not a variable's name: {name!r}")
    files = {
        "settings": "".join(f"{name}={shlex.quote(value)}\n" for name, value in lines.items()),
        "environment": "".join(f"export {name}={shlex.quote(text)}\n" for name, text in settings.environment.items()),
    }
    members = {name: text.encode("utf-8", "surrogateescape") for name, text in files.items()}
    members["far_side"] = _script()
    folder = _folder(run)
    script = (
        f"umask 077; f={folder}; n=$f/new.$$; "
        # The script last: it is what the other commands look for.
        'if mkdir -p "$n" && tar -xof - -C "$n" && for one in settings environment far_side; do '
        'mv "$n/$one" "$f/$one" || exit 1; done && rmdir "$n"; then exec sh "$f/far_side" say; fi; '
        'cat >/dev/null; p=disk-full; [ -w "$HOME" ] || p=home-not-writable; command -v tar >/dev/null || p=no-tar; '
        f'rm -rf "$n"; echo "{_HEAD} {run.run_id} problem=$p"; exit 1'
    )
    return FarCommand(_in_sh(script), _archive(members))


def _archive(members: Mapping[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            member.mode = 0o600
            tar.addfile(member, io.BytesIO(data))
    return archive.getvalue()


def upload(run: DetachedRun) -> str:
    """Return the command that reads an archive with the submission's one folder, and puts it into the kit.

    Answers `parse`; does nothing where the run was launched already.
    """
    return _ask(run, "upload")


def launch(run: DetachedRun) -> str:
    """Return the command that starts the run, if nobody has yet, and answers `parse` once ramp-test is running.

    It waits for the login profile, a minute at the most, and may then answer `RunState.STARTING`.
    """
    return _ask(run, "launch")


def poll(run: DetachedRun, log_offset: int, max_bytes: int) -> str:
    """Return the command that answers `parse` with up to so many bytes of the log from an offset on."""
    return _ask(run, "poll", str(log_offset), str(max_bytes))


def stop(run: DetachedRun) -> str:
    """Return the command that ends the run with all its processes (TERM, 5 s, KILL), for good; answers `parse`.

    Takes up to 20 s. What was not launched cannot be launched any more.
    """
    return _ask(run, "stop")


def collect(run: DetachedRun) -> str:
    """Return the command that writes an archive of `training_output` and `mprof.dat`, as far as there are any."""
    return _in_sh(f'f={_folder(run)}/far_side; [ -r "$f" ] || exit 3; exec sh "$f" collect')


def cleanup(run: DetachedRun) -> str:
    """Return the command that stops the run and removes all that is there of it; answers `parse`."""
    return _ask(run, "cleanup")


def _ask(run: DetachedRun, *words: str) -> str:
    absent = f'{{ echo "{_HEAD} {run.run_id} state=absent"; exit 0; }}'
    return _in_sh(f'f={_folder(run)}/far_side; [ -r "$f" ] || {absent}; exec sh "$f" {shlex.join(words)}')


def _folder(run: DetachedRun) -> str:
    return f'"$HOME"/{_FOLDER}/{shlex.quote(run.run_id)}'


def _in_sh(script: str) -> str:
    """Return a script as a command of whatever shell the far user has."""
    return f"exec sh -c {shlex.quote(script)}"


def parse(run: DetachedRun, answer: Completed) -> tuple[RunStatus, bytes]:
    """Read what a command answered: the run's status, and what followed it (a poll's piece of the log).

    Raises
    ------
    FarSideError
        There is no such answer in it.
    """
    head = f"{_HEAD} {run.run_id} ".encode()
    at = answer.stdout.find(head)
    # What comes before is the login shell's: a line that an image's .bashrc prints.
    if at < 0 or (at > 0 and answer.stdout[at - 1 : at] != b"\n"):
        said = printable((answer.stderr or answer.stdout).decode("utf-8", "replace").strip())
        raise FarSideError(
            f"the far shell answered nothing that is of rampd (status {answer.status}): {said or 'nothing'}"
        )
    line, _, rest = answer.stdout[at + len(head) :].partition(b"\n")
    try:
        return _status(dict(word.split("=", 1) for word in line.decode("ascii").split(" "))), rest
    except ValueError as error:
        raise FarSideError(f"the far side's answer makes no sense: {printable(repr(line))}") from error


def _status(said: Mapping[str, str]) -> RunStatus:
    problem, ending, status = (said.get(key, "-") for key in ("problem", "word", "status"))
    state = RunState(said.get("state", RunState.ABSENT))
    has_exited = state is RunState.EXITED
    rss_kb = _number(said.get("rss", "-"))
    return RunStatus(
        state,
        log_bytes=_number(said.get("log", "0")) or 0,
        spot_notice=said.get("spot") == "1",
        exit_status=_number(status, _MAX_STATUS) if has_exited else None,
        ending=Ending(ending) if has_exited else None,
        max_rss_bytes=rss_kb * 1024 if rss_kb else None,
        log_capped_bytes=_number(said.get("more", "-")) or 0,
        problem=None if problem == "-" else Problem(problem),
    )


def _number(text: str, limit: int = 1 << 50) -> int | None:
    """Return a number that the far side wrote; None for its dash."""
    if text == "-":
        return None
    if not text.isascii() or not text.isdigit() or len(text) > _MAX_DIGITS or int(text) > limit:
        raise ValueError(text)
    return int(text)
