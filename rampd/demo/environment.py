"""The demo's RAMP environment: a plain virtual environment with ramp-workflow and scikit-learn, made once."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Final

from rampd.demo import DemoError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    Say = Callable[[str], None]

REQUIREMENTS: Final = ("ramp-workflow~=0.7.0", "scikit-learn>=1.4,<2", "pandas>=2.2,<4")
BUILD_TIMEOUT_S: Final = 900.0
"""For each of the two steps. Downloads are about 70 MB; pip has time-outs of its own for a dead network."""

_MARKER = "rampd-environment.json"
_LOCK = ".rampd-environment.lock"
_LOG = "rampd-environment.log"
_FETCHED = re.compile(r"^\s*(?:Downloading|Using cached|Processing) (?:\S*/)?(?P<file>\S+\.(?:whl|tar\.gz|zip))(?: |$)")


def build(prefix: Path, *, say: Say) -> None:
    """Make the environment, or leave it alone if it is complete.

    A virtual environment's scripts name its path, so it cannot be made elsewhere and renamed into place. Instead a
    marker is written last: what has none is cleared and made anew, and a lock lets one process at a time do so.

    Parameters
    ----------
    prefix
        A folder that is empty, missing, or an earlier call's.
    say
        Takes one line of progress.

    Raises
    ------
    DemoError
        The folder holds something else, or venv or pip failed.
    """
    prefix = prefix.absolute()
    with _locked(prefix, say):
        if is_complete(prefix):
            return
        _clear(prefix)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        say(f"making a virtual environment with Python {version} in {prefix}")
        venv_hint = f"on Debian: apt-get install python{version}-venv"
        _run([sys.executable, "-m", "venv", str(prefix)], prefix, say, venv_hint)
        say(f"installing {', '.join(REQUIREMENTS)}")
        pip = [str(prefix / "bin" / "python"), "-m", "pip", "install"]
        flags = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--prefer-binary"]
        pip_hint = "look at the network and at pip's own settings (`pip config list`), then run this again"
        _run([*pip, *flags, *REQUIREMENTS], prefix, say, pip_hint)
        staged = prefix / f"{_MARKER}.new"
        staged.write_text(json.dumps(_facts(prefix)), encoding="utf-8")
        staged.replace(prefix / _MARKER)
        say("the environment is complete")


def is_complete(prefix: Path) -> bool:
    """Return whether `build` has nothing to do: made for the same path, Python and requirements, and still there."""
    prefix = prefix.absolute()
    try:
        facts = json.loads((prefix / _MARKER).read_bytes())
    except (OSError, ValueError):
        return False
    return bool(facts == _facts(prefix)) and all((prefix / "bin" / name).exists() for name in ("python", "ramp-test"))


def _facts(prefix: Path) -> dict[str, object]:
    return {
        "prefix": str(prefix),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "requirements": list(REQUIREMENTS),
    }


@contextmanager
def _locked(prefix: Path, say: Say) -> Iterator[None]:
    try:
        prefix.mkdir(parents=True, exist_ok=True)
        if any(prefix.iterdir()) and not (prefix / _LOCK).exists():
            raise DemoError(f"{prefix} holds something that the demo did not make; name another folder")
        descriptor = os.open(prefix / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise DemoError(f"{error.filename}: {error.strerror}; name a folder that can be written to") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that is making {prefix}")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _clear(prefix: Path) -> None:
    for entry in prefix.iterdir():
        if entry.name == _LOCK:  # others wait on it
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _run(argv: Sequence[str], prefix: Path, say: Say, hint: str) -> None:
    """Run one step of the building; its whole output goes to the log in `prefix`, what was fetched to `say`."""
    path = prefix / _LOG
    with path.open("ab") as log:
        status, last_error = _run_logged(argv, log, say)
    if status != 0:
        reason = last_error or f"status {status}"
        raise DemoError(f"`python {' '.join(argv[1:3])}` failed ({reason}); {hint}. Its whole output is in {path}")


def _run_logged(argv: Sequence[str], log: IO[bytes], say: Say) -> tuple[int, str]:
    # PYTHONPATH and PYTHONHOME would let this process's own packages in.
    environment = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "PYTHONHOME"}}
    last_error = ""
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,  # so that whatever pip started ends with it
    )
    deadline = threading.Timer(BUILD_TIMEOUT_S, _kill_group, [process.pid])
    deadline.start()
    with process:
        try:
            assert process.stdout is not None  # noqa: S101 -- it was asked for above
            for line in process.stdout:
                log.write(line)
                text = line.decode(errors="replace").strip()
                if found := _FETCHED.match(text):
                    say(f"fetched {found['file']}")
                elif text.startswith(("ERROR:", "Error:")):
                    last_error = text.partition(":")[2].strip()
        except BaseException:
            _kill_group(process.pid)
            raise
        finally:
            deadline.cancel()
            deadline.join()
    return process.returncode, last_error


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
