"""Folders as wholes: swapped into place at once, removed whatever they are; and opening what may be no file.

Blocking; through `asyncio.to_thread`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import stat
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # renameat2(2)
_FLAT_DEPTH = 10
"""Deep enough to move little, and not so deep that a path of long names has no room (PATH_MAX)."""


@contextmanager
def opened_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a file that somebody else made, to read it: a link is not followed, and a fifo's writer not waited for.

    Raises
    ------
    OSError
        It is no regular file (EINVAL, ELOOP for a link), or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "is no regular file", str(path))
        with open(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def folder_below(root: Path, *way: str) -> Path | None:
    """Return the folder `root`/way…, or None where it, or anything on the way, is a link or no folder.

    Below `root` lies what a submission may have put there: a link on the way would have whoever goes on from the result
    read, change and move what is somebody else's.
    """
    path = root
    for name in way:
        path /= name
        if path.is_symlink() or not path.is_dir():
            return None
    return path


def swap_into_place(staging: Path, final: Path) -> None:
    """Put the folder `staging` at `final`, whole or not at all; what was there before is at `staging` afterwards.

    Atomic where the file system knows renameat2(2) with RENAME_EXCHANGE; elsewhere `final` is missing for an instant.
    """
    if not final.exists() and not final.is_symlink():
        staging.rename(final)
        return
    if _exchange(staging, final):
        return
    aside = staging.with_name(staging.name + ".old")
    final.rename(aside)
    staging.rename(final)
    aside.rename(staging)


def _exchange(one: Path, other: Path) -> bool:
    function = _renameat2()
    if function is None:
        return False
    if function(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(number, os.strerror(number), str(other))


@cache
def _renameat2() -> Any:
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is not None:
        function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    return function


def remove_tree(path: Path) -> None:
    """Remove a folder, a file or a link (never what it points to); silent if it is gone already.

    Folders that their owner made unwritable are made writable first.

    Raises
    ------
    OSError
        Something could not be removed.
    """
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
        return

    def mend(function: Any, name: str, error: Any) -> None:
        problem = error[1]
        if isinstance(problem, FileNotFoundError):
            return
        if not isinstance(problem, PermissionError):
            raise problem
        for folder in (Path(name).parent, Path(name)):
            # What the tree itself lies in is somebody's on purpose, a read-only predictions_dir for one.
            if folder.is_relative_to(path) and folder.is_dir() and not folder.is_symlink():
                folder.chmod(0o700)
        if function in (os.scandir, os.listdir, os.open, os.lstat):
            shutil.rmtree(name, onerror=mend)
        else:
            function(name)

    try:
        shutil.rmtree(path, onerror=mend)
    except (RecursionError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EMFILE:
            raise
        _flatten(path)
        shutil.rmtree(path, onerror=mend)


def _flatten(top: Path) -> None:
    """Bring what lies deep in a tree to its top: rmtree needs a frame and a descriptor for every level."""
    pending = [(top, 0)]
    while pending:
        folder, depth = pending.pop()
        folder.chmod(0o700)
        with os.scandir(folder) as entries:
            folders = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
        for inner in folders:
            if depth < _FLAT_DEPTH:
                pending.append((inner, depth + 1))
            else:
                inner.chmod(0o700)
                pending.append((inner.rename(top / secrets.token_hex(8)), 1))
