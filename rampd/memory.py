"""What a process that is to run for months does so that its memory stays as it was.

Nothing here knows what a daemon is.
"""

from __future__ import annotations

import ctypes
import pathlib
import sys
from contextlib import suppress

_M_ARENA_MAX = -8
"""mallopt(3), malloc.h."""


def keep_steady() -> None:
    """Do it, for the rest of this process; to be called before it starts threads. Idempotent."""
    _share_one_arena()
    _keep_path_names_out_of_the_interned()


def _share_one_arena() -> None:
    """Have all threads use the one heap that what others freed is in (glibc; elsewhere nothing is done).

    By default each thread's malloc gets a heap of its own, which keeps the most that it ever needed: those of the
    database's, the pool's and the log's threads take 1.2 MB together. They hold Python's lock most of the time, and so
    seldom wait for one another's malloc.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def _keep_path_names_out_of_the_interned() -> None:
    """Keep pathlib from interning the parts of paths.

    pathlib gives every part of a path to `sys.intern`, which serves programs that hold many paths at once, and only
    them. A daemon's paths go with their attempts, and each attempt brings four names that are never seen again:

    - CPython 3.12.0 to 3.12.5 (Ubuntu 24.04 has 3.12.3) never frees an interned string: a leak without end
      (https://github.com/python/cpython/issues/113993).
    - Others free it, but not its entry in the interpreter's table, which is written anew when it is full of such
      entries: into 1.9 MB instead of 0.9 after some 2,000 submissions, and later within glibc's heap, which takes even
      such pieces once one was freed (mallopt(3), M_MMAP_THRESHOLD), beside a hole of 1.8 MB: after some 18,000.

    pathlib uses names so given by value only: nothing but this changes.
    """
    for module in (pathlib, sys.modules.get("pathlib._local")):  # 3.13 has the code in the latter
        if module is not None and getattr(module, "sys", None) is sys:
            vars(module)["sys"] = _SysOfPathlib()


class _SysOfPathlib:
    """`sys`, but for an `intern` that gives back what it is given."""

    def __getattr__(self, name: str) -> object:
        return getattr(sys, name)

    @staticmethod
    def intern(text: str) -> str:
        return text
