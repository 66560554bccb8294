"""Archives on a Dask worker's host: a submission that is unpacked, a training_output that is packed.

Runs inside the Dask worker, sent as source: it needs nothing but the standard library. `rampd.remote.archive` is the
other end, here.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
from contextlib import suppress

TYPE_CHECKING = False  # what type checkers take for True; `typing` itself is not needed there
if TYPE_CHECKING:
    from typing import IO, Any

_MAX_DEPTH = 40


def extract(archive: IO[bytes] | str, destination: str, request: dict[str, Any]) -> None:
    """Unpack a submission: regular files, folders and links that stay inside, below one folder, and nothing else.

    Raises
    ------
    tarfile.TarError, OSError
    """
    files, size = request["max_files"], request["max_bytes"]
    path, stream = (archive, None) if isinstance(archive, str) else (None, archive)
    with tarfile.open(path, fileobj=stream) as tar:
        for member in tar:
            parts = member.name.split("/")
            files, size = files - 1, size - member.size
            if files < -1 or size < 0 or not (member.isreg() or member.isdir() or member.issym()):
                raise tarfile.TarError(f"{member.name!r} is refused")
            if parts[0] != request["submission"] or not {"", ".", ".."}.isdisjoint(parts) or len(parts) > _MAX_DEPTH:
                raise tarfile.TarError(f"{member.name!r} leaves the folder")
            path = os.path.join(destination, *parts)
            if member.isdir():
                os.makedirs(path, 0o755, exist_ok=True)
                continue
            os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
            if member.issym():
                if not _stays_inside(member.linkname, len(parts) - 2):
                    raise tarfile.TarError(f"{member.name!r} is a link that leaves the folder")
                os.symlink(member.linkname, path)
                continue
            content = tar.extractfile(member)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644), "wb") as file:
                shutil.copyfileobj(content, file)  # type: ignore[arg-type] # a regular file has content


def _stays_inside(points_to: str, depth: int) -> bool:
    """Say whether a link stays in the submission: `rampd.copying.stays_inside`, which is not there to be imported."""
    parts = [part for part in points_to.split("/") if part not in ("", ".")]
    ups = 0
    while ups < len(parts) and parts[ups] == "..":
        ups += 1
    return not points_to.startswith("/") and ups <= depth and ".." not in parts[ups:]


class _Refused(Exception):  # noqa: N818 -- what the folder is
    pass


def pack(folder: str, packed: str, max_bytes: int, max_files: int) -> str:
    """Pack a training_output that nobody can write to any more; return why it is refused, or nothing.

    Links are not followed: what a participant's process made is not to be trusted with what this user may read, or
    write to. It may have made any name in the attempt's folder, that of the archive and those above training_output
    included.
    """
    _clear_the_way(packed)
    submission = os.path.dirname(folder)
    if not all(_is_folder(path) for path in (os.path.dirname(submission), submission, folder)):
        return ""
    left = [max_bytes, max_files]
    try:
        made = os.open(packed, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(made, "wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
            _pack_folder(tar, folder, "", left)
    except _Refused as refused:
        with suppress(FileNotFoundError):
            os.unlink(packed)
        return str(refused)
    return ""


def _clear_the_way(path: str) -> None:
    """Remove whatever is at a path, and nothing that it points to."""
    with suppress(FileNotFoundError):
        if _is_folder(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)


def _is_folder(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def _pack_folder(tar: tarfile.TarFile, folder: str, name: str, left: list[int]) -> None:
    if name.count("/") >= _MAX_DEPTH:
        raise _Refused("its folders are nested deeper than 40")
    with suppress(PermissionError):  # a submission may have taken its own permissions
        os.chmod(folder, 0o700)
    for entry in sorted(os.listdir(folder)):
        path, inside = f"{folder}/{entry}", f"{name}{entry}"
        info = os.lstat(path)
        left[1] -= 1
        if left[1] < 0:
            raise _Refused(f"it is too large at {entry!r}")
        if stat.S_ISDIR(info.st_mode):
            member = tarfile.TarInfo(inside)
            member.type = tarfile.DIRTYPE
            tar.addfile(member)
            _pack_folder(tar, path, f"{inside}/", left)
            continue
        if not stat.S_ISREG(info.st_mode):
            raise _Refused(f"{entry!r} is {'a link' if stat.S_ISLNK(info.st_mode) else 'no regular file'}")
        if info.st_nlink > 1:
            raise _Refused(f"{entry!r} has several hard links")
        left[0] -= info.st_size
        if left[0] < 0:
            raise _Refused(f"it is too large at {entry!r}")
        with suppress(PermissionError):
            os.chmod(path, 0o600)
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            member = tarfile.TarInfo(inside)
            member.size = info.st_size
            tar.addfile(member, file)


def open_plain(path: str) -> int | None:
    """Open a file in a folder that submissions can write to; return its descriptor, None where there is none.

    Whatever is not a regular file of one name counts as none: a link leads to what this user may read and a submission
    may not, and opening a fifo would wait for its writer.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    info = os.fstat(descriptor)
    if stat.S_ISREG(info.st_mode) and info.st_nlink == 1:
        return descriptor
    os.close(descriptor)
    return None


def size_of(path: str) -> int | None:
    """Return a file's size in bytes; None where there is none, see `open_plain`."""
    descriptor = open_plain(path)
    if descriptor is None:
        return None
    try:
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def content_of(path: str, size: int) -> bytes:
    """Return a file's first bytes; none where there is none, see `open_plain`."""
    descriptor = open_plain(path)
    if descriptor is None:
        return b""
    with open(descriptor, "rb") as file:
        return file.read(size)
