"""Files that somebody else made: copied, moved or made ours, without following a link.

Blocking; called through `asyncio.to_thread`. Knows nothing of what the files mean.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from rampd.errors import ResultsError
from rampd.files import remove_tree

if TYPE_CHECKING:
    from pathlib import Path

_MAX_DEPTH = 40
_CHUNK = 1 << 20


_OF_THE_TREE = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.EACCES,
        errno.EPERM,
        errno.ENXIO,
        errno.EINVAL,
        errno.EISDIR,
        errno.ENAMETOOLONG,
    }
)
"""What opening something can fail with because of what it is. Anything else is this machine's: descriptors, a disk."""


def is_of_this_machine(error: OSError) -> bool:
    """Say whether something could not be read for this machine's reasons: no descriptors left, a disk that fails."""
    return error.errno is not None and error.errno not in _OF_THE_TREE


class UnsafeTreeError(Exception):
    """A tree has something that is not copied. The message is a sentence about it."""


@dataclass(slots=True)
class _Copying:
    """How one tree is copied, and what is left of its bounds."""

    bytes_left: int
    files_left: int
    limits: str
    owner: tuple[int, int] | None
    skip: frozenset[str]
    keep_links: bool

    def take(self, name: str, size: int) -> None:
        self.files_left -= 1
        self.bytes_left -= size
        if self.files_left < 0 or self.bytes_left < 0:
            raise UnsafeTreeError(f"it is too large at {name!r}; allowed: {self.limits}")


def copy_tree(
    source: Path,
    destination: Path,
    *,
    max_bytes: int,
    max_files: int,
    owner: tuple[int, int] | None = None,
    skip: frozenset[str] = frozenset(),
    keep_links: bool = False,
) -> None:
    """Copy regular files and folders, and nothing else, to a folder that does not exist yet.

    Parameters
    ----------
    source
        Untrusted. Nothing in it is followed: a link, a fifo, a socket, a device or a file with several hard links
        is an error.
    destination
        Made with mode 0755, its files 0644 (0755 where the owner may execute); times are kept.
    max_bytes, max_files
        Bounds on the whole, by apparent size: a sparse file counts in full, before it is read.
    owner
        uid and gid that the copy gets; None for this process's own.
    skip
        Names that are left out at the top.
    keep_links
        Make links that stay inside the tree again, instead of refusing them.

    Raises
    ------
    UnsafeTreeError
        The source has something that is not copied, or is too large.
    ResultsError
        The destination cannot be written.
    """
    limits = f"{max_bytes} bytes in {max_files} files"
    copying = _Copying(max_bytes, max_files, limits, owner, skip, keep_links)
    try:
        folder = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if is_of_this_machine(error):
            raise ResultsError(f"{source}: cannot be read: {error.strerror}") from error
        raise UnsafeTreeError(f"{source.name!r} is no folder that can be read ({error.strerror})") from error
    try:
        _copy_folder(folder, destination, copying, depth=0)
    finally:
        os.close(folder)


def _copy_folder(folder: int, destination: Path, copying: _Copying, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise UnsafeTreeError(f"its folders are nested deeper than {_MAX_DEPTH}")
    with _writing(destination):
        destination.mkdir()
        destination.chmod(0o755)  # whatever the umask is
    for name in _names(folder, copying):
        if depth == 0 and name in copying.skip:
            continue
        try:
            info = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            raise UnsafeTreeError(f"{name!r} went away while it was copied") from None
        if stat.S_ISDIR(info.st_mode):
            copying.take(name, 0)
            inner = _open(name, folder, os.O_DIRECTORY)
            try:
                _copy_folder(inner, destination / name, copying, depth + 1)
            finally:
                os.close(inner)
        elif stat.S_ISREG(info.st_mode):
            if info.st_nlink > 1:
                raise UnsafeTreeError(f"{name!r} has several hard links")
            copying.take(name, info.st_size)
            _copy_file(folder, name, destination / name, info, copying.owner)
        elif stat.S_ISLNK(info.st_mode) and copying.keep_links:
            copying.take(name, 0)
            _copy_link(folder, name, destination / name, depth)
        else:
            raise UnsafeTreeError(f"{name!r} is {_kind(info.st_mode)}")
    if copying.owner is not None:
        with _writing(destination):
            os.chown(destination, *copying.owner)


def move_tree(source: Path, destination: Path, *, max_bytes: int, max_files: int) -> None:
    """Move a tree to where nothing is yet: by one rename, or by a copy where that is another file system.

    Raises
    ------
    UnsafeTreeError, ResultsError
        As `copy_tree`; nothing is left at the destination.
    """
    with _writing(destination):
        try:
            source.rename(destination)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        else:
            return
    try:
        copy_tree(source, destination, max_bytes=max_bytes, max_files=max_files)
    except BaseException:
        remove_tree(destination)
        raise


def _copy_link(folder: int, name: str, target: Path, depth: int) -> None:
    points_to = os.readlink(name, dir_fd=folder)
    if not stays_inside(points_to, depth):
        raise UnsafeTreeError(f"{name!r} is a link that leaves the folder")
    with _writing(target):
        target.symlink_to(points_to)


def stays_inside(points_to: str, depth: int) -> bool:
    """Say whether a link that lies `depth` folders below a tree's top stays in the tree, whatever else is in it.

    Going up is safe only at the beginning, where the folders are known to be real: `a/..` leaves the tree where `a`
    is a link itself.
    """
    if points_to.startswith("/"):
        return False
    parts = [part for part in points_to.split("/") if part not in ("", ".")]
    ups = 0
    while ups < len(parts) and parts[ups] == "..":
        ups += 1
    return ups <= depth and ".." not in parts[ups:]


def secure_tree(path: Path, *, max_bytes: int, max_files: int) -> None:
    """Make a tree that nobody else holds ours, where it is: regular files and folders only, owner and modes set.

    Cheaper than `copy_tree`, and as good where every process that could write to it has ended.

    Raises
    ------
    UnsafeTreeError
        It has something that is refused, as in `copy_tree`.
    ResultsError
        Its owner or a mode cannot be changed.
    """
    copying = _Copying(max_bytes, max_files, f"{max_bytes} bytes in {max_files} files", None, frozenset(), False)
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if is_of_this_machine(error):
            raise ResultsError(f"{path}: cannot be read: {error.strerror}") from error
        raise UnsafeTreeError(f"{path.name!r} is no folder that can be read ({error.strerror})") from error
    try:
        with _writing(path):
            _secure_folder(folder, copying, depth=0)
    finally:
        os.close(folder)


def _secure_folder(folder: int, copying: _Copying, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise UnsafeTreeError(f"its folders are nested deeper than {_MAX_DEPTH}")
    _take_over(folder, os.fstat(folder), 0o755)
    for name in _names(folder, copying):
        info = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISDIR(info.st_mode):
            copying.take(name, 0)
            inner = _open(name, folder, os.O_DIRECTORY)
            try:
                _secure_folder(inner, copying, depth + 1)
            finally:
                os.close(inner)
            continue
        if not stat.S_ISREG(info.st_mode):
            raise UnsafeTreeError(f"{name!r} is {_kind(info.st_mode)}")
        if info.st_nlink > 1:
            raise UnsafeTreeError(f"{name!r} has several hard links")
        copying.take(name, info.st_size)
        if not _is_ours(info, 0o644):
            file = _open(name, folder)
            try:
                _take_over(file, info, 0o644)
            finally:
                os.close(file)


def _is_ours(info: os.stat_result, mode: int) -> bool:
    return stat.S_IMODE(info.st_mode) == mode and info.st_uid == os.geteuid()


def _take_over(descriptor: int, info: os.stat_result, mode: int) -> None:
    if info.st_uid != os.geteuid():
        os.fchown(descriptor, os.geteuid(), os.getegid())
    if stat.S_IMODE(info.st_mode) != mode:
        os.fchmod(descriptor, mode)


def _names(folder: int, copying: _Copying) -> list[str]:
    """Return a folder's names in order; one with more of them than may be copied is not read to its end."""
    most = copying.files_left + len(copying.skip)
    with os.scandir(folder) as entries:
        names = [entry.name for entry in islice(entries, most + 1)]
    if len(names) > most:
        raise UnsafeTreeError(f"it is too large at {names[-1]!r}; allowed: {copying.limits}")
    return sorted(names)


def _open(name: str, folder: int, flags: int = 0) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | flags, dir_fd=folder)
    except OSError as error:
        if is_of_this_machine(error):
            raise ResultsError(f"{name!r} cannot be read: {error.strerror}") from error
        raise UnsafeTreeError(f"{name!r} cannot be read ({error.strerror})") from error


def _copy_file(folder: int, name: str, target: Path, info: os.stat_result, owner: tuple[int, int] | None) -> None:
    source = _open(name, folder)
    try:
        found = os.fstat(source)
        if not stat.S_ISREG(found.st_mode) or found.st_ino != info.st_ino:
            raise UnsafeTreeError(f"{name!r} changed while it was copied")
        mode = 0o755 if info.st_mode & stat.S_IXUSR else 0o644
        with _writing(target):
            copy = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
            try:
                os.fchmod(copy, mode)
                _copy_bytes(source, copy, info.st_size)
                os.utime(copy, ns=(info.st_atime_ns, info.st_mtime_ns))
                if owner is not None:
                    os.fchown(copy, *owner)
            finally:
                os.close(copy)
    finally:
        os.close(source)


def _copy_bytes(source: int, target: int, size: int) -> None:
    """Copy no more than `size` bytes: a file that grows meanwhile is cut where it was counted."""
    left = size
    while left > 0:
        chunk = os.read(source, min(left, _CHUNK))
        if not chunk:
            return
        left -= len(chunk)
        view = memoryview(chunk)
        while view:
            view = view[os.write(target, view) :]


def _kind(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "a link"
    if stat.S_ISFIFO(mode):
        return "a fifo"
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a device"


class _writing:  # noqa: N801 -- used as a statement
    """Turns what goes wrong on our side of a copy into ResultsError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise ResultsError(f"{self._path}: cannot be written: {error.strerror}") from error


def copy_submission(
    source: Path, destination: Path, *, max_bytes: int, max_files: int, owner: tuple[int, int] | None = None
) -> None:
    """Make an attempt's private copy of a submission.

    A `training_output` at its top is left out: one that a participant sent along must never count as a result. Links
    that stay inside the submission are kept.
    """
    copy_tree(
        source,
        destination,
        max_bytes=max_bytes,
        max_files=max_files,
        owner=owner,
        skip=frozenset({"training_output", "__pycache__"}),
        keep_links=True,
    )
