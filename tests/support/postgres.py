"""A PostgreSQL of the tests' own: a cluster in a temporary folder, on a loopback port, gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import psycopg
from psycopg import sql

from support.requirements import give_up

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

_PATIENCE_S = 60.0
# Its own child is the same process for the whole of a session, however often a test ends the server: what a test
# leaves behind is told by new children.
_KEEPER = """
while read -r _; do "$@" & echo $!; wait $!; echo over; done
"""
ADMIN = "mrramp"
PASSWORD = "made up on the spot"  # noqa: S105 -- of a server that nobody else reaches, and that is gone in a minute
HOST = "127.0.0.1"


def binaries() -> Path | None:
    """Return the folder of the newest server's programs, None where there is no server."""
    found = sorted(
        (folder for folder in Path("/usr/lib/postgresql").glob("*/bin") if (folder / "initdb").exists()),
        key=lambda folder: [int(part) for part in folder.parent.name.split(".")],
    )
    on_path = shutil.which("initdb")
    return found[-1] if found else Path(on_path).resolve().parent if on_path else None


def needs_postgresql() -> Path:
    """Go on only where there is a server that this user may run; return its folder of programs."""
    folder = binaries()
    if folder is None:
        give_up("needs a PostgreSQL server (apt-get install postgresql)")
    if os.geteuid() == 0 and _user() is None:
        give_up("needs a user other than root for PostgreSQL (postgres or nobody)")
    return folder


def _user() -> str | None:
    """Return whom the server runs as: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in names), None)


class PostgresServer:
    """One cluster; started by `start`, as often as it was stopped."""

    def __init__(self, *, log_statements: bool = True) -> None:
        self._log_statement = "all" if log_statements else "none"
        self._binaries = needs_postgresql()
        # Not below pytest's folders, which the server's user may not pass.
        self._folder = Path(tempfile.mkdtemp(prefix="rampd-postgresql-", dir="/tmp"))
        self._keeper: subprocess.Popen[str] | None = None
        self._pid: int | None = None
        self.port = _free_port()
        self.log = self._folder / "log"

    def __enter__(self) -> Self:
        user = _user()
        if user is not None:
            shutil.chown(self._folder, user)
        password_file = self._folder / "password"
        password_file.write_text(PASSWORD, encoding="ascii")
        if user is not None:
            shutil.chown(password_file, user)
        command = [
            *(str(self._binaries / "initdb"), "--pgdata", str(self._folder / "data"), "--username", ADMIN),
            *("--auth", "scram-sha-256", "--pwfile", str(password_file), "--encoding", "UTF8", "--locale", "C"),
            "--no-sync",
        ]
        self._run(command)
        command = [
            *("setpriv", "--pdeathsig", "TERM", "--", "sh", "-c", _KEEPER, "sh"),
            *(
                "setpriv",
                "--pdeathsig",
                "INT",
                "--",
                str(self._binaries / "postgres"),
                "-D",
                str(self._folder / "data"),
            ),
            *("-k", str(self._folder), "-p", str(self.port), "-c", f"listen_addresses={HOST}"),
            *("-c", f"log_statement={self._log_statement}", "-c", "log_line_prefix=%a|%d|%n|"),
            # In its own folder, which goes with it: of a server that is killed, others stay in /dev/shm.
            *("-c", "dynamic_shared_memory_type=mmap"),
        ]
        with self.log.open("ab") as log:
            self._keeper = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
                cwd=self._folder,
                **self._as_user(),
            )
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):  # killed from outside, after the last test that needs it: those would fail
            self.stop()
        assert self._keeper is not None
        self._keeper.communicate(timeout=_PATIENCE_S)
        shutil.rmtree(self._folder)

    def _as_user(self) -> dict[str, Any]:
        user = _user()
        if user is None:
            return {}
        return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}

    def _run(self, command: Sequence[str]) -> None:
        subprocess.run(
            command, check=True, capture_output=True, timeout=_PATIENCE_S, cwd=self._folder, **self._as_user()
        )

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        keeper = self._keeper
        assert keeper is not None
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        keeper.stdin.write("start\n")
        self._pid = int(keeper.stdout.readline())
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            with suppress(psycopg.OperationalError), self.connect() as connection:
                connection.execute("SELECT 1")
                return
            assert time.monotonic() < deadline, self.log.read_text(errors="replace")[-2000:]
            time.sleep(0.05)

    def stop(self, number: int = signal.SIGINT) -> None:
        """End the server: SIGINT is a fast shutdown, SIGQUIT one without any, as a power cut is."""
        if self._pid is None:
            return
        assert self._keeper is not None
        assert self._keeper.stdout is not None
        os.kill(self._pid, number)
        assert self._keeper.stdout.readline() == "over\n"
        self._pid = None

    def freeze(self, *, frozen: bool) -> None:
        """Have the server stand still, as one does whose disk hangs: it accepts connections and answers nothing."""
        assert self._pid is not None
        server = psutil.Process(self._pid)
        if frozen:
            server.suspend()  # first: it begins no more connections
        for process in server.children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # a connection that was just closed
                process.suspend() if frozen else process.resume()
        if not frozen:
            server.resume()

    def connect(self, database: str = "postgres", user: str = ADMIN) -> psycopg.Connection[Any]:
        """Connect, in autocommit."""
        return psycopg.connect(
            host=HOST, port=self.port, user=user, password=PASSWORD, dbname=database, autocommit=True, connect_timeout=5
        )

    def section(self, database: str, *, user: str = ADMIN, drivername: str = "postgresql") -> dict[str, Any]:
        """Return a deployment's section `sqlalchemy`."""
        return {
            "drivername": drivername,
            "username": user,
            "password": PASSWORD,
            "host": HOST,
            "port": self.port,
            "database": database,
        }

    def copy_database(self, template: str, name: str) -> None:
        """Make a database as a copy of another one, to which nobody may be connected."""
        with self.connect() as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
            )

    def drop_database(self, name: str) -> None:
        """Drop a database, whoever is connected to it."""
        with self.connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def statements(self, database: str, application: str = "rampd") -> list[str]:
        """Return what an application has said to a database so far."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return [line for line in lines if line.startswith(f"{application}|{database}|")]


def _free_port() -> int:
    with socket.socket() as one:
        one.bind((HOST, 0))
        return int(one.getsockname()[1])
