"""Folders as tar archives, for the way to another machine and back. An archive from there is untrusted.

Blocking; called through `asyncio.to_thread`. Knows nothing of how the bytes travel.
"""

from __future__ import annotations

import os
import stat
import tarfile
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Self

from rampd.copying import UnsafeTreeError, copy_submission
from rampd.errors import ResultsError
from rampd.files import remove_tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_DEPTH = 40
_CHUNK = 1 << 20
_HEADERS_BYTES = 4 * 512
"""What tar adds to a file at most, in a form without extensions: header, padding, and a long name's two blocks."""
_EXTENSIONS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_MAX_EXTENSION_BYTES = 64 << 10
_END_BYTES = tarfile.RECORDSIZE * 2


def largest_archive_bytes(*, max_bytes: int, max_files: int) -> int:
    """Return how large an archive of a tree within these bounds can be: more than that need not be received."""
    return max_bytes + max_files * _HEADERS_BYTES + _END_BYTES


def pack_submission(
    submission_dir: Path, archive: IO[bytes], *, name: str, scratch: Path, max_bytes: int, max_files: int
) -> None:
    """Write a submission as an archive whose only entry at the top is the folder `name`.

    It is copied first, under the rules of `copy_submission`, so that what travels is what was looked at.

    Parameters
    ----------
    submission_dir
        What the participant sent; untrusted.
    archive
        Where it is written to.
    name
        The folder's name at the other end.
    scratch
        A folder that does not exist yet; gone afterwards.
    max_bytes, max_files
        Bounds on the whole.

    Raises
    ------
    UnsafeTreeError
        It has something that is not copied, or is too large.
    ResultsError
        The scratch folder or the archive cannot be written.
    """
    try:
        copy_submission(submission_dir, scratch, max_bytes=max_bytes, max_files=max_files)
        try:
            # GNU's format: every tar knows it, and no extension carries anything but long names.
            with tarfile.open(fileobj=archive, mode="w", format=tarfile.GNU_FORMAT) as tar:
                tar.add(scratch, arcname=name, recursive=False, filter=_anonymous)
                for path in _below(scratch):
                    tar.add(path, arcname=f"{name}/{path.relative_to(scratch)}", recursive=False, filter=_anonymous)
        except OSError as error:
            raise ResultsError(f"an archive of the submission cannot be written: {error.strerror}") from error
    finally:
        remove_tree(scratch)


def _below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _below(path)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def unpack(archive: IO[bytes], destination: Path, *, max_bytes: int, max_files: int) -> None:
    """Unpack an untrusted archive into a folder that does not exist yet: regular files and folders, and nothing else.

    Parameters
    ----------
    archive
        An uncompressed tar archive, at its beginning; it is read once, forwards.
    destination
        Made with mode 0755, its files 0644; on an error it is not there.
    max_bytes, max_files
        Bounds on what the archive says it holds (a sparse file counts in full), checked before anything is written.

    Raises
    ------
    UnsafeTreeError
        It holds something that is refused: a link, a device, a path that leaves the folder, two entries of one name,
        too much; or it is no archive. The message is a sentence about it.
    ResultsError
        The destination cannot be written.
    """
    try:
        with _ours(destination):
            destination.mkdir()
            destination.chmod(0o755)
        _Unpacking(destination, max_bytes, max_files).run(archive)
    except BaseException:
        remove_tree(destination)
        raise


class _StrictHeader(tarfile.TarInfo):
    """Refuses what tarfile takes for the archive's end or reads whole into memory, however large it says it is."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined] # in no stub; a block of zeros is the proper end
            raise
        except tarfile.HeaderError as error:
            raise UnsafeTreeError(f"the archive is damaged, or cut short ({error})") from error
        if header.type in _EXTENSIONS and not 0 <= header.size <= _MAX_EXTENSION_BYTES:
            raise UnsafeTreeError("the archive has a name or an extension that is too long")
        if header.type == tarfile.GNUTYPE_SPARSE:
            raise _sparse(header.name)
        return header

    def _proc_gnusparse_10(self, next: tarfile.TarInfo, *_: object) -> None:  # noqa: A002 -- as tarfile names it
        raise _sparse(next.name)


def _sparse(name: str) -> UnsafeTreeError:
    """Return the refusal of a sparse file before its map, which may be as large as the archive, is read."""
    return UnsafeTreeError(f"{name!r} is no regular file")


class _Unpacking:
    def __init__(self, destination: Path, max_bytes: int, max_files: int) -> None:
        self._destination = destination
        self._limits = f"{max_bytes} bytes in {max_files} files"
        self._bytes_left = max_bytes
        self._files_left = max_files

    def run(self, archive: IO[bytes]) -> None:
        try:
            with tarfile.open(fileobj=archive, mode="r|", errorlevel=2, tarinfo=_StrictHeader) as tar:
                for member in tar:
                    self._take(tar, member)
        except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
            # Of extensions that follow one another, tarfile reads each within the one before.
            raise UnsafeTreeError(f"the archive is damaged ({error})") from error

    def _take(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        parts = _parts(member.name)
        if not parts and member.isdir():
            return  # `tar -C folder .` begins with the folder itself
        name = "/".join(parts)
        if not (member.isdir() or member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)):
            raise UnsafeTreeError(f"{name!r} is {_kind(member)}")
        self._files_left -= 1
        self._bytes_left -= member.size
        if self._files_left < 0 or self._bytes_left < 0 or member.size < 0:
            raise UnsafeTreeError(f"it is too large at {name!r}; allowed: {self._limits}")
        target = self._destination.joinpath(*parts)
        with _ours(target):
            if member.isdir():
                # Folders that come in no order, or twice, are nobody's fault: nothing is overwritten by that.
                for depth in range(1, len(parts) + 1):
                    self._make_folder(self._destination.joinpath(*parts[:depth]), name)
                return
            for depth in range(1, len(parts)):
                self._make_folder(self._destination.joinpath(*parts[:depth]), name)
            content = tar.extractfile(member)
            if content is None:
                raise UnsafeTreeError(f"{name!r} has no content")
            self._write(content, target, name, member.size)

    def _make_folder(self, path: Path, name: str) -> None:
        try:
            path.mkdir()
        except FileExistsError:
            # Nothing but files and folders of our own making is here: no link to follow.
            if not stat.S_ISDIR(path.lstat().st_mode):
                raise UnsafeTreeError(f"{name!r} is below a file") from None
        else:
            path.chmod(0o755)

    def _write(self, content: IO[bytes], target: Path, name: str, size: int) -> None:
        try:
            file = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            raise UnsafeTreeError(f"{name!r} is in it twice") from None
        with os.fdopen(file, "wb") as written:
            os.fchmod(file, 0o644)
            left = size
            while left > 0:
                chunk = content.read(min(left, _CHUNK))
                if not chunk:
                    raise UnsafeTreeError(f"it ends within {name!r}")
                left -= len(chunk)
                written.write(chunk)


def _parts(name: str) -> tuple[str, ...]:
    """Return a member's path below the destination.

    Raises
    ------
    UnsafeTreeError
        It would leave the destination, or is no path.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise UnsafeTreeError(f"{name[:200]!r} leaves the folder")
    if len(path.parts) > MAX_DEPTH:
        raise UnsafeTreeError(f"its folders are nested deeper than {MAX_DEPTH}")
    return path.parts


def _kind(member: tarfile.TarInfo) -> str:
    if member.issym():
        return "a link"
    if member.islnk():
        return "a hard link"
    if member.isfifo():
        return "a fifo"
    if member.isdev():
        return "a device"
    return "no regular file"


class _ours:  # noqa: N801 -- used as a statement
    """Turns what goes wrong on our side of an unpacking into ResultsError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and not isinstance(error, tarfile.TarError):
            raise ResultsError(f"{self._path}: cannot be written: {error.strerror}") from error
