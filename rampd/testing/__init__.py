"""For tests, ours and those of plug-in authors: fakes, and the contract suites that fakes and real parts both pass.

Importing this package needs pytest (``pip install 'rampd[testing]'``); the daemon never imports it.
"""

import pytest

# Before they are imported: whoever subclasses a suite wants to see both sides of an assertion that fails.
pytest.register_assert_rewrite("rampd.testing.stores", "rampd.testing.workers")

from rampd.testing.in_memory_store import InMemoryStore  # noqa: E402
from rampd.testing.stores import StoreContract  # noqa: E402
from rampd.testing.workers import (  # noqa: E402
    FakeAllocation,
    FakeRun,
    FakeWorker,
    ResumableWorkerContract,
    WorkerContract,
    make_job,
)

__all__ = [
    "FakeAllocation",
    "FakeRun",
    "FakeWorker",
    "InMemoryStore",
    "ResumableWorkerContract",
    "StoreContract",
    "WorkerContract",
    "make_job",
]
