"""Which worker a `worker_type` names: the entry points of the group ``rampd.workers``, ours among them.

A worker's module is imported only when an event asks for it, so that a conda-only daemon never pays for boto,
asyncssh or distributed. Plug-ins come in two kinds, a `Worker` or a `BaseWorker`; the second is made one of the first.
"""

from __future__ import annotations

import sys
import traceback
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from rampd.config import UnknownWorkerTypeError, WorkerConfig
from rampd.workers.base import Worker
from rampd.workers.base_worker import BaseWorker

GROUP = "rampd.workers"


_OWN = {
    name: EntryPoint(name=name, value=value, group=GROUP)
    for name, value in {
        "aws": "rampd.workers.aws:AwsWorker",
        "conda": "rampd.workers.conda:CondaWorker",
        "dask": "rampd.workers.dask:DaskWorker",
    }.items()
}
"""Known without the 20 ms that it takes to look through everything that is installed."""


def installed() -> dict[str, EntryPoint]:
    """Return the installed worker types by name."""
    return {point.name: point for point in entry_points(group=GROUP)}


def worker_class(worker_type: str) -> type[Worker[Any]]:
    """Return the class that `worker_type` names: an installed name, or ``package.module:Class``.

    Raises
    ------
    UnknownWorkerTypeError
        There is none, it cannot be imported, or it is no `Worker`; the message says what is installed.
    """
    if ":" in worker_type:
        point: EntryPoint | None = EntryPoint(name=worker_type, value=worker_type, group=GROUP)
    elif worker_type in _OWN:
        point = _OWN[worker_type]
    else:
        point = (points := installed()).get(worker_type)
    if point is None:
        there = ", ".join(sorted({*_OWN, *points}))
        raise UnknownWorkerTypeError(f"found {worker_type!r}; allowed: {there}, or package.module:Class of your own")
    if point.pattern.match(point.value) is None:
        raise UnknownWorkerTypeError(f"found {worker_type!r}; allowed: an installed name, or package.module:Class")
    try:
        loaded = point.load()
    except (Exception, SystemExit) as error:
        raise UnknownWorkerTypeError(
            f"found {worker_type!r}, which cannot be imported: {_cause(error, point)}"
        ) from error
    return _checked(worker_type, loaded)


def _cause(error: BaseException, point: EntryPoint) -> str:
    """Return what went wrong at an import, and where."""
    cause = f"{type(error).__name__}: {error}"
    if isinstance(error, ModuleNotFoundError) and error.name and f"{point.module}.".startswith(f"{error.name}."):
        return f"{cause} (install it into {sys.prefix}, or add its folder to PYTHONPATH)"
    # The import machinery's own frames say nothing to anybody.
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    where = frames[-1] if frames and frames[-1].filename != __file__ else None
    return f"{cause} ({where.filename}:{where.lineno})" if where else cause


def _checked(worker_type: str, loaded: object) -> type[Worker[Any]]:
    """Return what was loaded as a `Worker`, if it is fit to be one."""
    if not (isinstance(loaded, type) and issubclass(loaded, Worker | BaseWorker)):
        hint = ""
        if isinstance(loaded, type) and any(base.__name__ == "BaseWorker" for base in loaded.__mro__):
            hint = "; have its module say `from rampd import BaseWorker`"
        raise UnknownWorkerTypeError(
            f"found {worker_type!r}, which names no subclass of rampd.Worker or rampd.BaseWorker{hint}"
        )
    if undefined := sorted(loaded.__abstractmethods__):
        raise UnknownWorkerTypeError(f"found {worker_type!r}, which does not define {', '.join(undefined)}")
    model: object = loaded.config_model
    is_model = isinstance(model, type) and issubclass(model, WorkerConfig)
    if not is_model and not (model is None and issubclass(loaded, BaseWorker)):
        raise UnknownWorkerTypeError(f"found {worker_type!r}, whose config_model is no subclass of rampd.WorkerConfig")
    if issubclass(loaded, Worker):
        return loaded
    from rampd.workers.threaded import adapted  # noqa: PLC0415 -- only an event with such a plug-in pays for it

    return adapted(loaded)


def worker_model(worker_type: str) -> type[WorkerConfig]:
    """Return the model of a config's `worker` section for `worker_type`; see `worker_class`."""
    return worker_class(worker_type).config_model
