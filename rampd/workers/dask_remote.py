"""The remote part: what a Dask worker does for rampd. Sent as source, so that nothing need be installed there.

`answer` takes a request (plain data) and returns bytes: one line of JSON, and what belongs to it. It is called in two
ways: ``run`` as a task, in the Dask worker's thread, where it blocks until the submission has ended; everything else
on the Dask worker's event loop, where it must be quick.

Folders, below the worker host's temporary folder: ``rampd-<owner>/attempts/<attempt>`` goes with the attempt, and
``rampd-<owner>/fences/<attempt>`` is made once: Dask runs a task again when its worker died, a submission must not.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tarfile
import tempfile
import threading
from contextlib import suppress

from .dask_archive import open_plain  # noqa: TID252 -- the bundle's own package on the far side
from .dask_keepers import clean  # noqa: TID252 -- as above
from .dask_look import Missing, look  # noqa: TID252 -- as above
from .dask_run import Run, runs  # noqa: TID252 -- as above

TYPE_CHECKING = False  # what type checkers take for True; `typing` itself is not needed there
if TYPE_CHECKING:
    from typing import Any

_LARGEST_READ_BYTES = 4 << 20
_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
_FILES = {"log": "log", "results": "results.tar"}


def answer(request: dict[str, Any]) -> bytes:
    """Do what is asked; nothing is raised, since Dask would send it as a pickle."""
    try:
        head, payload = _ANSWERS[request["do"]](request)
    except Missing as error:
        head, payload = {"missing": error.missing, "existing": error.existing}, b""
    except tarfile.TarError as error:
        head, payload = {"error": f"the submission's archive cannot be read: {error}"}, b""
    except OSError as error:
        head, payload = {"error": f"{error.filename or 'a file'}: {error.strerror or error}"}, b""
    except Exception as error:  # noqa: BLE001 -- the edge of the wire
        head, payload = {"error": f"{type(error).__name__}: {error}"}, b""
    return json.dumps(head).encode() + b"\n" + payload


def _base(request: dict[str, Any]) -> str:
    if not _NAME.fullmatch(request["owner"]):
        raise ValueError("no owner's name")
    return os.path.join(request["temporary"] or tempfile.gettempdir(), f"rampd-{request['owner']}")


def _folder(request: dict[str, Any], kind: str = "attempts") -> str:
    if not _NAME.fullmatch(request["attempt"]):
        raise ValueError("no attempt's name")
    return os.path.join(_base(request), kind, request["attempt"])


def _name(request: dict[str, Any]) -> str:
    """Return the name of a run, whoever else uses this Dask worker."""
    return f"{request['owner']}/{request['attempt']}"


def _make_base(request: dict[str, Any]) -> None:
    base = _base(request)
    # Passable, not readable: attempts may belong to another user (worker.run_as).
    for folder in (base, f"{base}/attempts", f"{base}/fences"):
        with suppress(FileExistsError):
            os.mkdir(folder, 0o711)
        info = os.lstat(folder)
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
            raise OSError(1, "belongs to somebody else; remove it", folder)


def _fence(request: dict[str, Any]) -> bool:
    """Make the attempt's fence; False if it is there, and so the attempt was run or withdrawn here before."""
    while True:
        _make_base(request)
        try:
            os.close(os.open(_folder(request, "fences"), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            return False
        except FileNotFoundError:
            continue  # the last of the attempts before this one took the folder with it, just now
        return True


def _look(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    return look(request), b""


def _put(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Take one piece of a submission's archive that is too large to travel with its task."""
    _make_base(request)
    folder = _folder(request)
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    path = f"{folder}/submission.tar"
    with open(path, "r+b" if request["offset"] else "wb") as file:
        if file.seek(0, os.SEEK_END) != request["offset"]:
            raise OSError(5, "pieces of the submission are out of order", path)
        file.write(request["piece"])
    return {}, b""


def _read(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Return a piece of the log, or of the packed results."""
    path = f"{_folder(request)}/{_FILES[request['file']]}"
    descriptor = open_plain(path)
    if descriptor is None:
        return {"is_there": False}, b""
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        file.seek(request["offset"])
        return {"is_there": True}, file.read(min(request["size"], _LARGEST_READ_BYTES))


def _withdraw(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Keep a task that has not begun from ever beginning."""
    return {"withdrawn": _fence(request)}, b""


def _end(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Have a run ended: ``stop`` with TERM, 5 s, KILL; ``kill`` at once. Its task then ends by itself."""
    run = runs.get(_name(request))
    if run is not None:
        run.tell(request["do"])
    return {"runs": run is not None}, b""


def _list(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Return the attempts that have anything here, and which of them this very Dask worker runs."""
    base = _base(request)
    found: set[str] = set()
    for kind in ("attempts", "fences"):
        with suppress(OSError):
            found |= set(os.listdir(f"{base}/{kind}"))
    active = sorted(run.request["attempt"] for run in list(runs.values()) if run.request["owner"] == request["owner"])
    return {"attempts": sorted(found), "active": active}, b""


def _remove(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """End what is left of an attempt and remove it, in the background if it takes time: asked until it is gone."""
    folder, fence = _folder(request), _folder(request, "fences")
    run = runs.get(_name(request))
    if run is not None:
        run.tell("kill")
        return {"gone": False}, b""
    if os.path.lexists(folder):
        cleaning = f"rampd-remove-{_name(request)}"
        if all(thread.name != cleaning for thread in threading.enumerate()):
            threading.Thread(target=clean, args=(folder,), name=cleaning, daemon=True).start()
        return {"gone": False}, b""
    with suppress(FileNotFoundError):
        os.unlink(fence)
    _remove_base(request)
    return {"gone": True}, b""


def _unfence(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Take the fences of attempts away of which nothing else is left here, and whose tasks the scheduler forgot."""
    for attempt in request["attempts"]:
        one = {**request, "attempt": attempt}
        if _name(one) not in runs and not os.path.lexists(_folder(one)):
            with suppress(FileNotFoundError):
                os.unlink(_folder(one, "fences"))
    _remove_base(request)
    return {}, b""


def _remove_base(request: dict[str, Any]) -> None:
    base = _base(request)
    for path in (f"{base}/attempts", f"{base}/fences", base):
        with suppress(OSError):  # others are still there
            os.rmdir(path)


def _run(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Run a submission to its end; see `dask_run.Run`."""
    if not _fence(request):
        return {"fenced": True}, b""
    run = Run(request, _folder(request))
    runs[_name(request)] = run
    try:
        return run.go()
    except BaseException:
        run.abandon()
        raise
    finally:
        runs.pop(_name(request), None)


_ANSWERS = {
    "look": _look,
    "put": _put,
    "run": _run,
    "read": _read,
    "withdraw": _withdraw,
    "stop": _end,
    "kill": _end,
    "list": _list,
    "remove": _remove,
    "unfence": _unfence,
}
