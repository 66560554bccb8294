"""One submission on a Dask worker's host, from its archive to its packed results.

Runs inside the Dask worker, sent as source: it needs nothing but the standard library, and distributed itself.
"""

from __future__ import annotations

import io
import os
import queue
import shutil
import threading
import time
from contextlib import suppress

from .dask_archive import content_of, extract, pack, size_of  # noqa: TID252 -- the bundle's own package on the far side
from .dask_keepers import MARKER, begin, clean, release  # noqa: TID252 -- as above
from .dask_look import identity_of, look  # noqa: TID252 -- as above

TYPE_CHECKING = False  # what type checkers take for True; `typing` itself is not needed there
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from .dask_keepers import Keeper  # noqa: TID252 -- as above

SUBMISSIONS = "/:submissions:"
"""Stands in ramp-test's arguments for the folder that is known on this host only."""
TOPIC = "rampd-started"
"""The scheduler's topic on which a run says that its process exists."""
INLINE_BYTES = 256 << 10
"""What may travel with the answer of ``run``; larger results stay in the attempt's folder and are read in pieces."""
_LOOK_S = 0.5
_NICENESS = 10

runs: dict[str, Run] = {}
"""What this Dask worker runs, by owner and attempt."""


class Run:
    """One submission on this host, held by a keeper that does not outlive the Dask worker."""

    def __init__(self, request: dict[str, Any], folder: str) -> None:
        self.request = request
        self.folder = folder
        self._key = f"{request['owner']}/{request['attempt']}"
        self._keeper: Keeper | None = None
        self._reports: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._word = ""
        self._pid: int | None = None
        self._is_started = False

    def go(self) -> tuple[dict[str, Any], bytes]:
        """Unpack, run, pack."""
        found = look(self.request)
        identity = identity_of(self.request["run_as"])
        self._unpack(identity)
        self._start(found, identity)
        ended = self._wait()
        if "status" not in ended:
            clean(self.folder)
            return ended, b""
        return self._pack(ended)

    def tell(self, word: str) -> None:
        """Have it ended; called from other threads, at any moment, more than once."""
        with self._lock:
            self._word = word if self._word != "kill" else "kill"
            if self._keeper is not None:
                self._keeper.say(word, self._key)

    def abandon(self) -> None:
        """End what was begun, and leave nothing of it."""
        self.tell("kill")
        clean(self.folder)

    def _unpack(self, identity: tuple[int, int, list[int]] | None) -> None:
        request = self.request
        os.makedirs(self.folder, 0o700, exist_ok=True)
        for name in ("home", "tmp", "submissions"):
            os.mkdir(f"{self.folder}/{name}", 0o700)
        staged = f"{self.folder}/submission.tar"
        archive = io.BytesIO(request["archive"]) if request["archive"] is not None else None
        try:
            extract(archive or staged, f"{self.folder}/submissions", request)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(staged)
        if identity is not None:
            for folder, _, files in os.walk(self.folder):
                for path in (folder, *(f"{folder}/{name}" for name in files)):
                    os.chown(path, identity[0], identity[1], follow_symlinks=False)

    def _start(self, found: dict[str, Any], identity: tuple[int, int, list[int]] | None) -> None:
        request, folder = self.request, self.folder
        modes = (
            *(["pid_namespace"] if os.geteuid() == 0 else []),
            *(["user_and_pid_namespace"] if identity is None else []),
            "subreaper",
        )
        spec = {
            "key": self._key,
            "command": [
                f"{found['prefix']}/bin/ramp-test",
                *(f"{folder}/submissions" if word == SUBMISSIONS else word for word in request["arguments"]),
            ],
            "environment": _environment(request, found, folder),
            "folder": folder,
            "log": f"{folder}/log",
            "max_log_bytes": request["max_log_bytes"],
            "niceness": _NICENESS,
            "identity": identity,
        }
        keeper, self._reports = begin(modes, request["keeper"], spec)
        with self._lock:
            self._keeper = keeper
            if self._word:
                keeper.say(self._word, self._key)

    def _wait(self) -> dict[str, Any]:
        """Follow the keeper's reports to the end of the run; end it at its deadline, or with the Dask worker."""
        begun = time.monotonic()
        deadline = begun + self.request["deadline_s"]
        ended: dict[str, Any] = {}
        timed_out = False
        for word, rest in self._words():
            ended |= self._heard(word, rest)
            if _worker_is_closing():
                self.tell("kill")
            elif time.monotonic() > deadline and not timed_out:
                timed_out = True
                self.tell("stop")
        if not ended:
            return {"lost": "the run's supervisor was killed"}
        return ended | {"timed_out": timed_out, "run_s": time.monotonic() - begun, "pid": self._pid}

    def _heard(self, word: str, rest: list[str]) -> dict[str, Any]:
        """Take in one report; return how the run ended, if it is that."""
        if word in ("pid", "started"):
            # The supervisor may speak before the keeper comes to say who it is.
            self._pid = int(rest[0]) if word == "pid" else self._pid
            self._is_started |= word == "started"
            if self._is_started and self._pid is not None:
                _announce(self.request["attempt"], self._pid)
        elif word == "failed":
            return {"failed": [int(rest[0]), rest[1]]}
        elif word == "ended":
            status, number, max_rss, log_bytes, capped, log_errno = map(int, rest)
            return {
                "status": status,
                "signal": number,
                "max_rss_bytes": max_rss,
                "log_bytes": log_bytes,
                "log_capped": bool(capped),
                "log_errno": log_errno,
            }
        return {}

    def _words(self) -> Iterator[tuple[str, list[str]]]:
        """Yield the keeper's reports until the run is gone, and now and then an empty one."""
        while True:
            try:
                word, *rest = self._reports.get(timeout=_LOOK_S)
            except queue.Empty:
                word, rest = "", []
            if word == "gone":
                return
            yield word, rest

    def _pack(self, ended: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        request = self.request
        submission = f"{self.folder}/submissions/{request['submission']}"
        log_bytes = size_of(f"{self.folder}/log")
        packed = f"{self.folder}/results.tar"
        refused = pack(f"{submission}/training_output", packed, request["max_bytes"], request["max_files"])
        size = size_of(packed)
        ended |= {"folder": self.folder, "refused": refused, "results_bytes": size, "kept_log_bytes": log_bytes or 0}
        for name in ("submissions", "home", "tmp"):
            shutil.rmtree(f"{self.folder}/{name}", ignore_errors=True)
        if (size or 0) + (log_bytes or 0) > INLINE_BYTES:
            return ended | {"inline": False}, b""
        payload = content_of(f"{self.folder}/log", log_bytes or 0) + content_of(packed, size or 0)
        shutil.rmtree(self.folder, ignore_errors=True)
        release(self.folder)
        return ended | {"inline": True}, payload


def _environment(request: dict[str, Any], found: dict[str, Any], folder: str) -> dict[str, str]:
    """Return the environment of a run: as the conda worker's, with nothing of the Dask worker's but its locale."""
    prefix = found["prefix"]
    environment = {name: text for name, text in os.environ.items() if name == "LANG" or name.startswith("LC_")}
    environment = environment or {"LANG": "C.UTF-8"}
    if "TZ" in os.environ:
        environment["TZ"] = os.environ["TZ"]
    environment |= {
        "HOME": f"{folder}/home",
        "TMPDIR": f"{folder}/tmp",
        "USER": found["user"],
        "LOGNAME": found["user"],
    }
    environment |= {"PYTHONNOUSERSITE": "1", "PATH": f"{prefix}/bin:/usr/local/bin:/usr/bin:/bin"}
    if os.path.isdir(f"{prefix}/conda-meta"):
        environment |= {"CONDA_PREFIX": prefix, "CONDA_DEFAULT_ENV": request["conda_env"]}
    else:
        environment["VIRTUAL_ENV"] = prefix
    given: dict[str, str] = request["environment"]
    return environment | given | {MARKER: folder}


def _announce(attempt: str, pid: int) -> None:
    """Tell whoever listens at the scheduler that the process exists."""
    from distributed import get_worker  # noqa: PLC0415 -- there, not here

    get_worker().log_event(TOPIC, {"attempt": attempt, "pid": pid})


def _worker_is_closing() -> bool:
    from distributed import get_worker  # noqa: PLC0415 -- there, not here

    return get_worker().status.name in ("closing", "closed", "failed", "stopping")
