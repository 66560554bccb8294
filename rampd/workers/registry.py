"""Which worker a `worker_type` names: the entry points of the group ``rampd.workers``, ours among them.

A worker's module is imported only when an event asks for it, so that a conda-only daemon never pays for boto,
asyncssh or distributed.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from rampd.config import UnknownWorkerTypeError
from rampd.workers.base import Worker

if TYPE_CHECKING:
    from rampd.config import WorkerConfig

GROUP = "rampd.workers"


_OWN = {
    name: EntryPoint(name=name, value=value, group=GROUP)
    for name, value in {
        "aws": "rampd.workers.aws:AwsWorker",
        "conda": "rampd.workers.conda:CondaWorker",
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
    except Exception as error:
        raise UnknownWorkerTypeError(
            f"found {worker_type!r}, which cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, Worker)):
        raise UnknownWorkerTypeError(f"found {worker_type!r}, which names no subclass of rampd.workers.base.Worker")
    if undefined := sorted(loaded.__abstractmethods__):
        raise UnknownWorkerTypeError(f"found {worker_type!r}, which does not define {', '.join(undefined)}")
    return loaded


def worker_model(worker_type: str) -> type[WorkerConfig]:
    """Return the model of a config's `worker` section for `worker_type`; see `worker_class`."""
    return worker_class(worker_type).config_model
