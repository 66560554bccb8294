"""Real Dask clusters on loopback: a scheduler and workers as child processes, their hosts 127.0.0.x."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import psutil

from support.daemon import is_alive, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

PATIENCE_S = 60.0
_OF_ANOTHER_VERSION = """
import distributed.versions
true = distributed.versions.version
distributed.versions.version = lambda package: "VERSION" if package == "distributed" else true(package)
from dask.__main__ import main
main()
"""


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nobody listens on at this moment."""
    with socket.socket() as one:
        one.bind((host, 0))
        port: int = one.getsockname()[1]
        return port


@dataclass
class DaskProcess:
    """A `dask scheduler` or `dask worker` command, with all that it started."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """Of the command itself: for workers, of their nannies."""
        return self.process.pid

    def workers(self) -> list[psutil.Process]:
        """Return the processes that tasks run in, below the nannies'."""
        children = psutil.Process(self.pid).children(recursive=True)
        return [one for one in children if is_alive(one) and "spawn_main" in _command_of(one)]

    def send(self, number: int) -> None:
        """Send a signal to the command itself."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """Kill the command and everything below it; runs' keepers are left to notice.

        Python's resource tracker is, too: only it removes the semaphores of the queues between a nanny and its worker
        (six files in /dev/shm), as soon as both are gone.
        """
        below = psutil.Process(self.pid).children(recursive=True)
        trackers = [one for one in below if "resource_tracker" in _command_of(one)]
        for one in (psutil.Process(self.pid), *(one for one in below if _is_dask(one))):
            one.kill()
        self.process.wait(PATIENCE_S)
        wait_until(lambda: not any(map(is_alive, trackers)), timeout_s=PATIENCE_S, what="the resource tracker's end")

    def stop(self) -> None:
        """End it, gently first, whatever state it is in."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()


def _is_dask(process: psutil.Process) -> bool:
    command = _command_of(process)
    return any(words in command for words in ("spawn_main", "-m dask"))


def _command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


@dataclass
class DaskCluster:
    """A cluster below `root`. Use it as a context manager: whatever happens, nothing of it is left.

    Each host has a temporary folder of its own: `scratch(host)`.
    """

    root: Path
    tls: Mapping[str, Path] | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    """Dask's own settings, as environment variables."""
    port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.processes: list[DaskProcess] = []
        self.root.mkdir(parents=True, exist_ok=True)

    @property
    def address(self) -> str:
        """The scheduler's address."""
        return f"{'tls' if self.tls else 'tcp'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self.processes:
            if one.process.poll() is None:
                one.kill()

    def scratch(self, host: str = "127.0.0.1") -> Path:
        """Return the temporary folder of a host."""
        folder = self.root / f"scratch-{host}"
        folder.mkdir(exist_ok=True)
        return folder

    def left_on(self, host: str = "127.0.0.1") -> list[str]:
        """Return what rampd left in a host's temporary folder."""
        return sorted(str(path.relative_to(self.root)) for path in self.scratch(host).glob("rampd-*"))

    def scheduler(self) -> DaskProcess:
        """Start a scheduler, and wait until it listens."""
        arguments = ["scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard", "--no-show"]
        started = self._start(arguments, "127.0.0.1", sys.executable)
        wait_until(self._listens, timeout_s=PATIENCE_S, what="the scheduler")
        return started

    def _listens(self) -> bool:
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", self.port)) == 0

    def worker(
        self,
        host: str = "127.0.0.1",
        *more: str,
        count: int = 1,
        slots: int | None = 1,
        nthreads: int = 1,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
        address: str | None = None,
        version: str | None = None,
    ) -> DaskProcess:
        """Start workers on a host; they come when they come. They say that they are of `version`, if it is given."""
        arguments = ["worker", address or self.address, "--host", host, "--nworkers", str(count)]
        arguments += ["--nthreads", str(nthreads), "--no-dashboard", "--memory-limit", "0"]
        arguments += ["--local-directory", str(self.root / f"dask-{host}"), *more]
        if slots is not None:
            arguments += ["--resources", f"slot={slots}"]
        program = ["-m", "dask"] if version is None else ["-c", _OF_ANOTHER_VERSION.replace("VERSION", version)]
        return self._start(arguments, host, python, environment, program=program)

    def _start(
        self,
        arguments: list[str],
        host: str,
        python: str,
        environment: Mapping[str, str] | None = None,
        *,
        program: Sequence[str] = ("-m", "dask"),
    ) -> DaskProcess:
        if self.tls:
            arguments = arguments + [
                word for name, path in self.tls.items() for word in (f"--{name.replace('_', '-')}", str(path))
            ]
        log = self.root / f"{arguments[0]}-{len(self.processes)}.log"
        variables = {key: text for key, text in os.environ.items() if not key.startswith("DASK_")}
        variables |= {"TMPDIR": str(self.scratch(host)), **self.settings, **(environment or {})}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [python, *program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=variables,
                cwd=self.root,
                start_new_session=True,
            )
        started = DaskProcess(process, log)
        self.processes.append(started)
        return started

    def restart_scheduler(self) -> DaskProcess:
        """Kill the scheduler and start another one at its address."""
        scheduler = next(one for one in self.processes if one.log.name.startswith("scheduler"))
        scheduler.process.send_signal(signal.SIGKILL)
        scheduler.process.wait(PATIENCE_S)
        self.processes.remove(scheduler)
        return self.scheduler()


def dask_section(cluster: DaskCluster, **more: Any) -> dict[str, Any]:
    """Return a config's `worker` section for a cluster."""
    names = {"tls_ca_file": "tls_ca_file", "tls_cert": "tls_client_cert", "tls_key": "tls_client_key"}
    tls = {names[name]: str(path) for name, path in (cluster.tls or {}).items()}
    return {"worker_type": "dask", "dask_scheduler": cluster.address, **tls, **more}
