"""For tests, ours and those of plug-in authors: fakes, and the contract suites that fakes and real parts both pass.

Importing this package needs pytest (``pip install rampd[test]``); the daemon never imports it.
"""

from rampd.testing.in_memory_store import InMemoryStore
from rampd.testing.stores import StoreContract
from rampd.testing.workers import FakeAllocation, FakeRun, FakeWorker, WorkerContract, make_job

__all__ = ["FakeAllocation", "FakeRun", "FakeWorker", "InMemoryStore", "StoreContract", "WorkerContract", "make_job"]
