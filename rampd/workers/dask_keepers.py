"""The keepers of a Dask worker: the programs that start its submissions, and end them should it end itself.

Runs inside the Dask worker, sent as source: it needs nothing but the standard library. One keeper does for all runs
there at once, since a fresh interpreter for each would cost 20 ms; one that has had nothing to do for a while ends.
"""

from __future__ import annotations

import json
import marshal
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from contextlib import suppress

TYPE_CHECKING = False  # what type checkers take for True; `typing` itself is not needed there
if TYPE_CHECKING:
    from typing import Any

MARKER = "RAMPD_ATTEMPT"
_IDLE_S = 30.0
_BOOT = """import marshal, os, sys, types
n = int(os.read(0, 8)); b = b""
while len(b) < n: b += os.read(0, n - len(b))
for name, code in marshal.loads(b):
    module = types.ModuleType(name); module.__path__ = []; sys.modules[name] = module; exec(code, module.__dict__)
module.main()"""

_lock = threading.Lock()
_keepers: dict[tuple[str, ...], Keeper] = {}
"""Those that serve, by the containment that they may use."""
_unreleased: dict[str, tuple[Keeper, str]] = {}
"""Of runs that have begun, by folder, the keeper and its key: it removes the folder should this worker end first."""


class Keeper:
    """A keeper, as seen by the Dask worker that holds its standard input.

    Parameters
    ----------
    modes
        Kinds of containment; see `rampd.workers.launcher`.
    sources
        The program's modules, packed.
    """

    def __init__(self, modes: tuple[str, ...], sources: bytes) -> None:
        self._modes = modes
        self._runs: dict[str, queue.SimpleQueue[list[str]]] = {}
        self._writing = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _BOOT, *modes],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={"PATH": os.defpath},
            cwd="/",
            start_new_session=True,
        )
        code = marshal.dumps(
            [(name, compile(source, name, "exec")) for name, source in json.loads(zlib.decompress(sources))]
        )
        self._write(b"%08d" % len(code) + code)
        threading.Thread(target=self._listen, name="rampd-keeper", daemon=True).start()

    def begin(self, spec: dict[str, Any]) -> queue.SimpleQueue[list[str]]:
        """Start a run; return what brings its reports, the last of which is ``gone``. Called with the lock held."""
        reports: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
        self._runs[spec["key"]] = reports
        self._write(b"run " + json.dumps(spec).encode() + b"\n")
        return reports

    def say(self, word: str, key: str) -> None:
        """Tell the keeper something of a run; one that is gone has ended it already."""
        with suppress(OSError, ValueError):
            self._write(f"{word} {key}\n".encode())

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None  # noqa: S101 -- it was asked for
        with self._writing:
            left = memoryview(data)
            while left:
                left = left[self._process.stdin.write(left) or 0 :]

    def _listen(self) -> None:
        """Pass reports on until the keeper is gone, or sent away because it has been idle."""
        assert self._process.stdout is not None  # noqa: S101 -- it was asked for
        output = self._process.stdout.fileno()
        buffer = b""
        while True:
            if not select.select([output], [], [], _IDLE_S)[0]:
                if self._is_idle_for_good():
                    break
                continue
            data = os.read(output, 1 << 16)
            if not data:
                break
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                self._hear(*line.decode("ascii", "replace").split())
        with _lock:
            self._retire()
            for reports in self._runs.values():
                reports.put(["gone"])
            self._runs.clear()
        with self._writing:
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with suppress(OSError):
                        stream.close()
        self._process.wait()

    def _hear(self, key: str, *words: str) -> None:
        reports = self._runs.get(key)
        if reports is None:
            return
        if words == ("gone",):
            del self._runs[key]
        reports.put(list(words))

    def _is_idle_for_good(self) -> bool:
        """Return whether there is nothing to do; nobody begins anything with this keeper any more then."""
        with _lock:
            if self._runs or any(keeper is self for keeper, _ in _unreleased.values()):
                return False
            self._retire()
            return True

    def _retire(self) -> None:
        if _keepers.get(self._modes) is self:
            del _keepers[self._modes]


def begin(modes: tuple[str, ...], sources: bytes, spec: dict[str, Any]) -> tuple[Keeper, queue.SimpleQueue[list[str]]]:
    """Start a run with a keeper that serves, or with a new one.

    Raises
    ------
    OSError
        There are no more processes.
    """
    with _lock:
        keeper = _keepers.get(modes)
        reports = None
        if keeper is not None:
            with suppress(OSError, ValueError):  # it was killed, and its listener has not heard yet
                reports = keeper.begin(spec)
        if keeper is None or reports is None:
            keeper = _keepers[modes] = Keeper(modes, sources)
            reports = keeper.begin(spec)
        _unreleased[spec["folder"]] = keeper, spec["key"]
    return keeper, reports


def release(folder: str) -> None:
    """Have nobody remove the folder of a run any more."""
    with _lock:
        found = _unreleased.pop(folder, None)
    if found is not None:
        found[0].say("release", found[1])


def clean(folder: str) -> None:
    """End whatever carries an attempt's mark, and remove its folder. Takes as long as that takes."""
    kill_marked(folder)
    shutil.rmtree(folder, ignore_errors=True)
    release(folder)


def kill_marked(marker: str) -> None:
    """Kill every process that carries an attempt's mark, until none is left or five seconds are over."""
    needle = f"{MARKER}={marker}\0".encode()
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline:
        marked = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _is_marked(pid, needle)]
        if not marked:
            return
        for pid in marked:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _is_marked(pid: int, needle: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return needle in file.read() + b"\0"
    except OSError:
        return False
