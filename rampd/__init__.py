"""rampd: an asyncio-native dispatcher daemon for RAMP machine-learning challenges.

The names below are what a plug-in is written with (docs/workers.md). Each is imported when it is asked for: importing
rampd costs nothing.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rampd.config_sections import WorkerConfig
    from rampd.copying import copy_submission
    from rampd.errors import (
        RampdError,
        ResultsError,
        WorkerError,
        WorkerLostError,
        WorkerSetupError,
        WorkerUnavailableError,
    )
    from rampd.files import remove_tree
    from rampd.models import Exit, Job, Results
    from rampd.ramp_test.command import argv as ramp_test_argv
    from rampd.states import Outcome
    from rampd.workers.base import Allocation, Worker, WorkerContext
    from rampd.workers.base_worker import BaseWorker, _get_traceback

__all__ = [
    "Allocation",
    "BaseWorker",
    "Exit",
    "Job",
    "Outcome",
    "RampdError",
    "Results",
    "ResultsError",
    "Worker",
    "WorkerConfig",
    "WorkerContext",
    "WorkerError",
    "WorkerLostError",
    "WorkerSetupError",
    "WorkerUnavailableError",
    "_get_traceback",
    "copy_submission",
    "ramp_test_argv",
    "remove_tree",
]

if not TYPE_CHECKING:  # else every name would be one

    def __getattr__(name: str) -> object:
        from importlib import import_module  # noqa: PLC0415 -- as everything here

        for module, names in _HOMES.items():
            if name in names:
                return getattr(import_module(module), "argv" if name == "ramp_test_argv" else name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return [*__all__, "__version__"]


_HOMES = {
    "rampd.config_sections": ("WorkerConfig",),
    "rampd.copying": ("copy_submission",),
    "rampd.errors": (
        "RampdError",
        "ResultsError",
        "WorkerError",
        "WorkerLostError",
        "WorkerSetupError",
        "WorkerUnavailableError",
    ),
    "rampd.files": ("remove_tree",),
    "rampd.models": ("Exit", "Job", "Results"),
    "rampd.ramp_test.command": ("ramp_test_argv",),
    "rampd.states": ("Outcome",),
    "rampd.workers.base": ("Allocation", "Worker", "WorkerContext"),
    "rampd.workers.base_worker": ("BaseWorker", "_get_traceback"),
}
