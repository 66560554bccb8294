"""One submission on a Dask worker's host, from its archive to its packed results.

Runs inside the Dask worker, sent as source: it needs nothing but the standard library, and distributed itself.
"""

from __future__ import annotations

import io
import marshal
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import time
from contextlib import suppress

from .dask_look import identity_of, look  # noqa: TID252 -- the bundle's own package on the far side

TYPE_CHECKING = False  # what type checkers take for True; `typing` itself is not needed there
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO, Any

MARKER = "RAMPD_ATTEMPT"
SUBMISSIONS = "/:submissions:"
"""Stands in ramp-test's arguments for the folder that is known on this host only."""
TOPIC = "rampd-started"
"""The scheduler's topic on which a run says that its process exists."""
INLINE_BYTES = 256 << 10
"""What may travel with the answer of ``run``; larger results stay in the attempt's folder and are read in pieces."""
_LOOK_S = 0.5
_NICENESS = 10
_MAX_DEPTH = 40
_BOOT = """import marshal, os, sys, types
n = int(os.read(0, 8)); b = b""
while len(b) < n: b += os.read(0, n - len(b))
modules, spec = map(marshal.loads, marshal.loads(b))
for name, code in modules:
    module = types.ModuleType(name); module.__path__ = []; sys.modules[name] = module; exec(code, module.__dict__)
module.main(spec)"""

runs: dict[str, Run] = {}
"""What this Dask worker runs, by attempt."""
_keepers: dict[str, subprocess.Popen[bytes]] = {}
"""Of runs that have ended, by folder: they remove it should this worker end before it was asked to."""
_mode: list[str] = []
"""The containment that works here, once it was found by trying."""
_code: dict[int, bytes] = {}


class Run:
    """One submission on this host, with a keeper of its own that outlives neither it nor the Dask worker."""

    def __init__(self, request: dict[str, Any], folder: str) -> None:
        self.request = request
        self.folder = folder
        self.keeper: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._word = ""
        self._buffer = b""
        self._pid: int | None = None

    def go(self) -> tuple[dict[str, Any], bytes]:
        """Unpack, run, pack."""
        found = look(self.request)
        identity = identity_of(self.request["run_as"])
        self._unpack(identity)
        self._start(found, identity)
        ended = self._wait()
        self.close(kills=False)
        if "status" not in ended:
            clean(self.folder)
            return ended, b""
        return self._pack(ended)

    def tell(self, word: str) -> None:
        """Have it ended; called from other threads, at any moment, more than once."""
        with self._lock:
            self._word = word if self._word != "kill" else "kill"
            self._say(word)

    def _say(self, word: str) -> None:
        keeper = self.keeper
        if keeper is not None and keeper.stdin is not None and not keeper.stdin.closed:
            with suppress(OSError):
                keeper.stdin.write(f"{word} run\n".encode())

    def _unpack(self, identity: tuple[int, int, list[int]] | None) -> None:
        request = self.request
        os.makedirs(self.folder, 0o700, exist_ok=True)
        for name in ("home", "tmp", "submissions"):
            os.mkdir(f"{self.folder}/{name}", 0o700)
        staged = f"{self.folder}/submission.tar"
        archive = io.BytesIO(request["archive"]) if request["archive"] is not None else None
        try:
            _extract(archive or staged, f"{self.folder}/submissions", request)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(staged)
        if identity is not None:
            for folder, _, files in os.walk(self.folder):
                for path in (folder, *(f"{folder}/{name}" for name in files)):
                    os.chown(path, identity[0], identity[1], follow_symlinks=False)

    def _start(self, found: dict[str, Any], identity: tuple[int, int, list[int]] | None) -> None:
        request, folder = self.request, self.folder
        modes = _mode or [
            *(["pid_namespace"] if os.geteuid() == 0 else []),
            *(["user_and_pid_namespace"] if identity is None else []),
            "subreaper",
        ]
        # Its own environment carries the mark as well: whoever ends what is left of an attempt ends the keeper, too.
        keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _BOOT, folder, *modes],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={"PATH": os.defpath, MARKER: folder},
            cwd="/",
            start_new_session=True,
        )
        spec = {
            "key": "run",
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
        code = marshal.dumps((_keeper_code(request["keeper"]), marshal.dumps(spec)))
        with self._lock:
            self.keeper = keeper
            assert keeper.stdin is not None  # noqa: S101 -- it was asked for
            keeper.stdin.write(b"%08d" % len(code) + code)
            if self._word:
                self._say(self._word)

    def _wait(self) -> dict[str, Any]:
        """Follow the keeper's reports to the end of the run; end it at its deadline, or with the Dask worker."""
        begun = time.monotonic()
        deadline = begun + self.request["deadline_s"]
        ended: dict[str, Any] = {}
        timed_out = False
        for word, rest in self._reports():
            if word == "gone":
                break
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
        if word == "ready":
            _mode[:] = rest
        elif word == "pid":
            self._pid = int(rest[0])
        elif word == "started":
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

    def _reports(self) -> Iterator[tuple[str, list[str]]]:
        """Yield the keeper's reports, and now and then an empty one; ends with the keeper."""
        assert self.keeper is not None and self.keeper.stdout is not None  # noqa: S101, PT018 -- it was asked for
        output = self.keeper.stdout.fileno()
        while True:
            if not select.select([output], [], [], _LOOK_S)[0]:
                yield "", []
                continue
            data = os.read(output, 1 << 16)
            if not data:
                return
            *lines, self._buffer = (self._buffer + data).split(b"\n")
            for line in lines:
                words = line.decode("ascii", "replace").split()
                yield (words[0], words[1:]) if words[0] == "ready" else (words[1], words[2:])

    def close(self, *, kills: bool = True) -> None:
        """Let the keeper go: killed once nothing is left of the run, it leaves the folder alone."""
        with self._lock:
            keeper, self.keeper = self.keeper, None
        if keeper is None:
            return
        if kills:
            kill_marked(self.folder)
        _keepers[self.folder] = keeper

    def _pack(self, ended: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        request = self.request
        submission = f"{self.folder}/submissions/{request['submission']}"
        log_bytes = _size_of(f"{self.folder}/log")
        packed = f"{self.folder}/results.tar"
        refused = pack(f"{submission}/training_output", packed, request["max_bytes"], request["max_files"])
        size = _size_of(packed)
        ended |= {"folder": self.folder, "refused": refused, "results_bytes": size, "kept_log_bytes": log_bytes or 0}
        for name in ("submissions", "home", "tmp"):
            shutil.rmtree(f"{self.folder}/{name}", ignore_errors=True)
        if (size or 0) + (log_bytes or 0) > INLINE_BYTES:
            return ended | {"inline": False}, b""
        payload = b""
        for path in (f"{self.folder}/log", packed):
            with suppress(FileNotFoundError), open(path, "rb") as file:
                payload += file.read()
        release(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)
        return ended | {"inline": True}, payload


def release(folder: str) -> None:
    """End the keeper of a run that has ended."""
    keeper = _keepers.pop(folder, None)
    if keeper is None:
        return
    keeper.kill()
    for stream in (keeper.stdin, keeper.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()
    keeper.wait()


def clean(folder: str) -> None:
    """End whatever carries an attempt's mark, and remove its folder. Takes as long as that takes."""
    kill_marked(folder)
    release(folder)
    shutil.rmtree(folder, ignore_errors=True)


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


def _extract(archive: IO[bytes] | str, destination: str, request: dict[str, Any]) -> None:
    """Unpack a submission: regular files and folders below one folder, and nothing else."""
    files, size = request["max_files"], request["max_bytes"]
    path, stream = (archive, None) if isinstance(archive, str) else (None, archive)
    with tarfile.open(path, fileobj=stream) as tar:
        for member in tar:
            parts = member.name.split("/")
            files, size = files - 1, size - member.size
            if files < -1 or size < 0 or not (member.isreg() or member.isdir()):
                raise tarfile.TarError(f"{member.name!r} is refused")
            if parts[0] != request["submission"] or not {"", ".", ".."}.isdisjoint(parts) or len(parts) > _MAX_DEPTH:
                raise tarfile.TarError(f"{member.name!r} leaves the folder")
            path = os.path.join(destination, *parts)
            if member.isdir():
                os.makedirs(path, 0o755, exist_ok=True)
                continue
            os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
            content = tar.extractfile(member)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644), "wb") as file:
                shutil.copyfileobj(content, file)  # type: ignore[arg-type] # a regular file has content


class _Refused(Exception):  # noqa: N818 -- what the folder is
    pass


def pack(folder: str, packed: str, max_bytes: int, max_files: int) -> str:
    """Pack a training_output that nobody can write to any more; return why it is refused, or nothing.

    Links are not followed: what a participant's process made is not to be trusted with what this user may read.
    """
    try:
        info = os.lstat(folder)
    except FileNotFoundError:
        return ""
    if not stat.S_ISDIR(info.st_mode):
        return ""
    left = [max_bytes, max_files]
    try:
        with tarfile.open(packed, "w", format=tarfile.GNU_FORMAT) as tar:
            _pack_folder(tar, folder, "", left)
    except _Refused as refused:
        with suppress(FileNotFoundError):
            os.unlink(packed)
        return str(refused)
    return ""


def _pack_folder(tar: tarfile.TarFile, folder: str, name: str, left: list[int]) -> None:
    if name.count("/") >= _MAX_DEPTH:
        raise _Refused("its folders are nested deeper than 40")
    with suppress(PermissionError):  # a submission may have taken its own permissions
        os.chmod(folder, 0o700)
    for entry in sorted(os.listdir(folder)):
        path, inside = f"{folder}/{entry}", f"{name}{entry}"
        info = os.lstat(path)
        left[1] -= 1
        if left[1] < 0:
            raise _Refused(f"it is too large at {entry!r}")
        if stat.S_ISDIR(info.st_mode):
            member = tarfile.TarInfo(inside)
            member.type = tarfile.DIRTYPE
            tar.addfile(member)
            _pack_folder(tar, path, f"{inside}/", left)
            continue
        if not stat.S_ISREG(info.st_mode):
            raise _Refused(f"{entry!r} is {'a link' if stat.S_ISLNK(info.st_mode) else 'no regular file'}")
        if info.st_nlink > 1:
            raise _Refused(f"{entry!r} has several hard links")
        left[0] -= info.st_size
        if left[0] < 0:
            raise _Refused(f"it is too large at {entry!r}")
        with suppress(PermissionError):
            os.chmod(path, 0o600)
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            member = tarfile.TarInfo(inside)
            member.size = info.st_size
            tar.addfile(member, file)


def _size_of(path: str) -> int | None:
    try:
        return os.lstat(path).st_size
    except FileNotFoundError:
        return None


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


def _keeper_code(sources: list[tuple[str, str]]) -> bytes:
    """Return the keeper's program as this interpreter's own code: compiled once, not for every run."""
    version = hash(tuple(sources))
    if version not in _code:
        compiled = [(name, compile(source, name, "exec")) for name, source in sources]
        _code[version] = marshal.dumps(compiled)
    return _code[version]


def _announce(attempt: str, pid: int | None) -> None:
    """Tell whoever listens at the scheduler that the process exists."""
    from distributed import get_worker  # noqa: PLC0415 -- there, not here

    get_worker().log_event(TOPIC, {"attempt": attempt, "pid": pid})


def _worker_is_closing() -> bool:
    from distributed import get_worker  # noqa: PLC0415 -- there, not here

    return get_worker().status.name in ("closing", "closed", "failed", "stopping")
