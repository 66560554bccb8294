"""The remote part as what travels: its modules' sources, and the expression that a Dask worker evaluates."""

from __future__ import annotations

import hashlib
import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent
_REMOTE = ("dask_look", "dask_archive", "dask_keepers", "dask_run", "dask_remote")
"""Executed in the Dask worker, in this order."""
_KEEPER = ("supervisor", "launcher", "dask_keeper")
"""Executed in a program of its own, which serves all runs of a Dask worker, in this order."""

EXPRESSION = "exec(loader) or answer"
"""Evaluated there by the builtin `eval`, which every Python knows by the same name: a function of ours would be
pickled by value, which breaks across Python's minor versions, or by reference, which needs rampd on the far side."""

# A module of its own for every version of ours: several daemons may use one cluster. setdefault, because the task's
# thread and the event loop may both be the first.
_LOADER = """
import sys, types
module = sys.modules.get(package + ".dask_remote")
if module is None:
    sys.modules.setdefault(package, types.ModuleType(package)).__path__ = []
    import json, zlib
    for name, source in json.loads(zlib.decompress(sources)):
        loaded = types.ModuleType(package + "." + name)
        loaded.__package__ = package
        exec(compile(source, package + "." + name, "exec"), loaded.__dict__)
        module = sys.modules.setdefault(package + "." + name, loaded)
answer = module.answer(request)
"""


@cache
def _sources() -> bytes:
    """Return the remote part's modules: packed, since the scheduler keeps what every task was sent with."""
    modules = [(name, (_FOLDER / f"{name}.py").read_text(encoding="utf-8")) for name in _REMOTE]
    return zlib.compress(json.dumps(modules).encode())


@cache
def keeper_sources() -> bytes:
    """Return the modules of the program that watches over runs, to be sent with each, packed."""
    packages = [("rampd", ""), ("rampd.workers", "")]
    sources = [(f"rampd.workers.{name}", (_FOLDER / f"{name}.py").read_text(encoding="utf-8")) for name in _KEEPER]
    return zlib.compress(json.dumps(packages + sources).encode())


@cache
def _package() -> str:
    digest = hashlib.sha256(_sources() + keeper_sources()).hexdigest()
    return f"_rampd_{digest[:16]}"


def names_for(request: dict[str, Any]) -> dict[str, Any]:
    """Return the names among which EXPRESSION is evaluated."""
    return {"loader": _LOADER, "package": _package(), "sources": _sources(), "request": request}
