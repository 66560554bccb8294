"""The rival: ramp-engine 0.10.1's dispatcher on stub submissions, with a PostgreSQL of its own that is gone afterwards.

The three packages, which do not declare each other, live with libraries of their time in a virtual environment of
their own: the folder $RAMPD_BENCH_RAMP_ENGINE, else .venv-ramp-engine in the repository, made when it is first needed.
Where there is a choice the rival is spared: `conda info` answers at once unless it is told to take its time (the real
one takes 0.5-1.1 s a submission), the kit imports nothing, there is one team only, its imports are done before the
clock runs, and the leaderboards after the last submission's end do not count.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_REPOSITORY = Path(__file__).parents[2]
_DRIVER = Path(__file__).parent / "ramp_engine_driver.py"
_REQUIREMENTS = (
    "ramp-engine==0.10.1",
    "ramp-database==0.10.1",
    "ramp-utils==0.10.1",
    "SQLAlchemy==1.4.*",  # its models are of 1.x
    "numpy<2",  # psycopg2 writes numpy 2's floats as np.float64(...)
    "pandas<2.2",  # the last for SQLAlchemy 1.4
    "psycopg2-binary",
    "boto3",  # imported at the start, not declared
)
_BUILD_TIMEOUT_S = 600
_POSTGRESQL_TIMEOUT_S = 60
_CONDA = """#!/bin/sh
WAIT
echo '{"envs": ["PREFIX"]}'
"""


@functools.cache
def available() -> str | None:
    """Return None when the rival can run here, else the reason why not; the first call may build its environment."""
    if _postgresql_folder() is None:
        return "no PostgreSQL server (initdb, postgres) in PATH or /usr/lib/postgresql/*/bin"
    if os.geteuid() == 0 and _server_user() is None:
        return "PostgreSQL refuses to run as root, and there is no user postgres or nobody"
    return _build_environment()


def measure(
    root: Path,
    *,
    n_submissions: int,
    n_workers: int,
    ramp_test: Path,
    n_scored: int = 0,
    conda_info_s: float = 0.0,
) -> dict[str, float]:
    """Measure the dispatcher on submissions that all wait when it is launched.

    Parameters
    ----------
    root
        A folder for the deployment and the logs.
    n_submissions
        How many submissions.
    n_workers
        How many may run at a time.
    ramp_test
        What runs as the environment's ramp-test; it must save two folds with the scores acc and nll.
    n_scored
        How many further submissions of the event are scored before.
    conda_info_s
        How long its `conda info` sleeps before it answers.

    Returns
    -------
    Under `seconds` the time from the dispatcher's launch to the end of the last submission, and `ms_each`.

    Raises
    ------
    RuntimeError
        When the rival is not available, fails, or does not score every submission.
    """
    if (reason := available()) is not None:
        raise RuntimeError(reason)
    root = root.resolve()
    deployment, logs, tools = root / "deployment", root / "logs", root / "bin"
    ramp_test_link = root / "environment" / "bin" / "ramp-test"
    for folder in (deployment, logs, tools, ramp_test_link.parent):
        folder.mkdir(parents=True)
    ramp_test_link.symlink_to(ramp_test.resolve())
    conda = tools / "conda"
    wait = f"sleep {conda_info_s:g}" if conda_info_s else ":"
    script = _CONDA.replace("WAIT", wait).replace("PREFIX", str(root / "environment"))
    conda.write_text(script, encoding="utf-8")
    conda.chmod(0o755)
    with _postgresql(logs / "postgresql.log") as (socket_dir, database_user):
        command = [
            *(str(python()), "-I", str(_DRIVER), "--deployment", str(deployment), "--socket-dir", str(socket_dir)),
            *("--database-user", database_user, "--submissions", str(n_submissions), "--workers", str(n_workers)),
            *("--scored", str(n_scored)),
        ]
        found = _run_driver(command, logs, tools, timeout_s=60 + (10 + conda_info_s) * n_submissions + 2 * n_scored)
    if found["states"] != {"scored": n_submissions}:
        raise RuntimeError(f"ramp-engine left the submissions as {found['states']}; see {logs}")
    seconds = found["ended"] - found["begun"]
    return {"seconds": seconds, "ms_each": seconds / n_submissions * 1e3}


def _run_driver(command: list[str], logs: Path, tools: Path, timeout_s: float) -> dict[str, Any]:
    """Return what the driver printed; it and the ramp-tests that it started are gone afterwards."""
    environment = {**os.environ, "PATH": f"{tools}:{os.environ.get('PATH', os.defpath)}"}
    with (
        (logs / "driver.log").open("wb") as log,
        subprocess.Popen(
            _tied_to_us("KILL", command),
            cwd=logs,  # ramp-engine opens its log files at import, where it is
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        ) as driver,
    ):
        try:
            output, _ = driver.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"ramp-engine was not done after {timeout_s:.0f} s; see {logs}") from error
        finally:
            with suppress(ProcessLookupError):
                os.killpg(driver.pid, signal.SIGKILL)
    if driver.returncode != 0:
        raise RuntimeError(f"ramp-engine ended with status {driver.returncode}; see {logs / 'driver.log'}")
    found: dict[str, Any] = json.loads(output)
    return found


@contextmanager
def _postgresql(log_file: Path) -> Iterator[tuple[Path, str]]:
    """Give the folder of a new server's socket and its superuser's name; nothing of it is left afterwards."""
    binaries = _postgresql_folder()
    assert binaries is not None
    user = _server_user()
    # Not below pytest's folders: the server's user may not pass them, and a socket's path is 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="ramp-engine-", dir="/tmp") as name, log_file.open("wb") as log:
        folder = Path(name)
        if user is not None:
            shutil.chown(folder, user)
        output: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "cwd": folder}
        as_user: dict[str, Any] = {} if user is None else {"user": user, "group": _group(user), "extra_groups": []}
        database_user = "ramp"
        subprocess.run(
            [
                *(str(binaries / "initdb"), "--pgdata", str(folder / "data"), "--username", database_user),
                *("--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync"),
            ],
            check=True,
            timeout=_POSTGRESQL_TIMEOUT_S,
            **output,
            **as_user,
        )
        # Reached through the socket alone, in a folder that only its user may enter (0700).
        command = [str(binaries / "postgres"), "-D", str(folder / "data"), "-k", name, "-c", "listen_addresses="]
        with subprocess.Popen(_tied_to_us("INT", command), **output, **as_user) as server:
            try:
                _wait_until_ready(binaries, folder, database_user, server)
                yield folder, database_user
            finally:
                server.send_signal(signal.SIGINT)  # a fast shutdown
                try:
                    server.wait(_POSTGRESQL_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    server.send_signal(signal.SIGQUIT)  # an immediate one


def _wait_until_ready(binaries: Path, folder: Path, database_user: str, server: subprocess.Popen[bytes]) -> None:
    command = [str(binaries / "pg_isready"), "-q", "-h", str(folder), "-U", database_user, "-d", "postgres"]
    deadline = time.monotonic() + _POSTGRESQL_TIMEOUT_S
    while subprocess.run(command, check=False).returncode != 0:
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the PostgreSQL of {binaries} did not start")
        time.sleep(0.05)


def _postgresql_folder() -> Path | None:
    """Return the folder with the newest server's programs, or None."""
    found = shutil.which("initdb")
    folders = [] if found is None else [Path(found).resolve().parent]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True)
    for folder in folders:
        if all((folder / name).exists() for name in ("initdb", "postgres", "pg_isready")):
            return folder
    return None


def _version(folder: Path) -> tuple[int, ...]:
    """Return the version in `…/15/bin` or `…/9.6/bin`."""
    return tuple(int(part) if part.isdigit() else 0 for part in folder.parent.name.split("."))


def _server_user() -> str | None:
    """Return the user that the server runs as: None for ourselves, which is also what root gets without one."""
    if os.geteuid() != 0:
        return None
    import pwd  # noqa: PLC0415 -- POSIX, here only

    names = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in names), None)


def _group(user: str) -> int:
    import pwd  # noqa: PLC0415 -- POSIX, here only

    return pwd.getpwnam(user).pw_gid


def _tied_to_us(signal_name: str, command: list[str]) -> list[str]:
    """Return a command whose process gets the signal when we are killed, where util-linux's setpriv is installed."""
    setpriv = shutil.which("setpriv")
    return command if setpriv is None else [setpriv, "--pdeathsig", signal_name, "--", *command]


def _environment() -> Path:
    return Path(os.environ.get("RAMPD_BENCH_RAMP_ENGINE") or _REPOSITORY / ".venv-ramp-engine").absolute()


def python() -> Path:
    """Return the interpreter of the rival's environment; once `available`, it can import ramp_database."""
    return _environment() / "bin" / "python"


def problem() -> str:
    """Return the rival's problem.py: as many folds, and the same scores, as the stub's training_output has."""
    (text,) = re.findall(r'_PROBLEM = """(.*?)"""', _DRIVER.read_text(encoding="utf-8"), flags=re.DOTALL)
    return str(text)


def _build_environment() -> str | None:
    """Make the rival's environment unless it is there already; return what is in the way, or None."""
    if _is_complete():
        return None
    interpreter = _interpreter()
    if interpreter is None:
        return "numpy 1 and ramp-engine need a Python 3.11 or 3.12 with venv, and there is none in PATH"
    install = [str(python()), "-m", "pip", "install", "--quiet", "--only-binary", ":all:", *_REQUIREMENTS]
    for command in ([interpreter, "-m", "venv", str(_environment())], install):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_BUILD_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"ramp-engine's environment could not be made: {error}"
        if done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip() or "nothing said").splitlines()[-1]
            return f"ramp-engine's environment could not be made ({command[2]}): {said}"
    return None if _is_complete() else f"{_environment()} lacks a part of ramp-engine after its installation"


def _is_complete() -> bool:
    """Return whether the environment has everything; one that was left half-way has not."""
    question = (
        "from importlib.metadata import version; from importlib.util import find_spec;"
        "assert {version(f'ramp-{name}') for name in ('engine', 'database', 'utils')} == {'0.10.1'};"
        "assert version('sqlalchemy').startswith('1.') and version('numpy').startswith('1.');"
        "assert all(map(find_spec, ('boto3', 'pandas', 'psycopg2', 'bcrypt', 'yaml')))"
    )
    with suppress(OSError):
        return subprocess.run([python(), "-I", "-c", question], check=False, capture_output=True).returncode == 0
    return False


def _interpreter() -> str | None:
    """Return a Python that numpy 1 has wheels for, or None."""
    question = "import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))"
    for candidate in (sys.executable, "python3.11", "python3.12", "python3"):
        found = shutil.which(candidate)
        if (
            found is not None
            and subprocess.run([found, "-c", question], check=False, capture_output=True).returncode == 0
        ):
            return found
    return None


def main() -> int:
    """Measure with the stub of the other benchmarks, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description="Measure ramp-engine's dispatcher on stub submissions.")
    parser.add_argument("--submissions", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--conda-info", type=float, default=0.0, metavar="SECONDS", help="how long `conda info` takes")
    arguments = parser.parse_args()
    if (reason := available()) is not None:
        sys.stderr.write(f"{reason}\n")
        return 1
    sys.path.insert(0, str(Path(__file__).parents[1]))  # tests' helpers
    from support.deployment import Deployment  # noqa: PLC0415 -- after the line above

    with tempfile.TemporaryDirectory() as name:
        event = Deployment(Path(name) / "stub")
        event.make_stub_environment()
        figures = measure(
            Path(name) / "rival",
            n_submissions=arguments.submissions,
            n_workers=arguments.workers,
            ramp_test=event.environment / "bin" / "ramp-test",
            conda_info_s=arguments.conda_info,
        )
    sys.stdout.write(f"{json.dumps(figures)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
