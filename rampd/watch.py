"""Seeing that something happened in a folder: inotify on the loop's own descriptor, or polling where there is none.

The one module that knows asyncinotify. A watch only says "look": what there is, a look tells.
"""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

import structlog
from asyncinotify import Inotify, Mask

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncinotify import Event

log = structlog.get_logger("rampd.watch")

# inotify sees only what this kernel does: another machine's writes to a shared file system pass it by (inotify(7)).
_SHARED_FILE_SYSTEMS = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "gfs2", "gpfs", "lustre", "nfs", "nfs4", "ocfs2", "prl_fs", "smb3", "smbfs",
     "vboxsf", "virtiofs", "vmhgfs"}
)  # fmt: skip
_POLL_S = 1.0
_CONFIGS = Mask.CREATE | Mask.CLOSE_WRITE | Mask.MOVED_TO | Mask.MOVED_FROM | Mask.DELETE


@dataclass(slots=True)
class Changes:
    """What happened in a folder since one asked last."""

    moved_in: set[str] = field(default_factory=set)
    """Names that arrived by a rename: complete at once."""
    appeared: set[str] = field(default_factory=set)
    """Names that were made in place, or changed."""
    rescan: bool = False
    """Something was missed, or the watch polls: look at everything."""


class FolderWatch:
    """Watches one folder, not what lies deeper. An async context manager.

    Parameters
    ----------
    folder
        May be missing, and may come and go.
    poll
        True to poll whatever the file system is; None to decide by it.
    poll_interval_s
        How often a polling watch says "look".
    """

    def __init__(self, folder: Path, *, poll: bool | None = None, poll_interval_s: float = _POLL_S) -> None:
        self._folder = folder
        self._poll = is_shared(folder) if poll is None else poll
        self._interval_s = poll_interval_s
        self._inotify: Inotify | None = None
        self._reader: asyncio.Task[None] | None = None
        self._found = Changes()
        self._arrived = asyncio.Event()
        self._said: set[str] = set()
        self._poll_at: float | None = None
        """On the loop's clock: kept by a call that is cancelled, or a caller in a hurry would never see a poll."""

    @property
    def is_polling(self) -> bool:
        """Whether there is no inotify for this folder at the moment."""
        return self._inotify is None

    async def __aenter__(self) -> Self:
        self._begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait({self._reader})
        self._end()

    def _begin(self) -> bool:
        """Watch the folder if that is possible; say whether the watch is new."""
        if self._poll or self._inotify is not None:
            return False
        mask = Mask.CREATE | Mask.MOVED_TO | Mask.MOVED_FROM | Mask.DELETE | Mask.DELETE_SELF | Mask.MOVE_SELF
        self._inotify = _watching(self._folder, mask | Mask.ONLYDIR, self._said)
        if self._inotify is not None:
            self._reader = asyncio.create_task(self._read(self._inotify), name=f"watch {self._folder}")
        return self._inotify is not None

    def _end(self) -> None:
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None

    async def _read(self, inotify: Inotify) -> None:
        """Gather events until the folder goes: what comes while nobody asks is one batch."""
        while self._inotify is not None:
            self._note(await inotify.get())
            self._arrived.set()

    async def changes(self) -> Changes:
        """Return what happened, as soon as something has; a polling watch returns at every interval."""
        if self._begin():
            # The folder was missing until now; what came into it before the watch made no event.
            self._found.rescan = True
            self._arrived.set()
        if self._inotify is None and not self._arrived.is_set():
            now = asyncio.get_running_loop().time()
            if self._poll_at is None:
                self._poll_at = now + self._interval_s
            await asyncio.sleep(self._poll_at - now)
            self._poll_at = None
            return Changes(rescan=True)
        await self._arrived.wait()
        self._arrived.clear()
        found, self._found = self._found, Changes()
        return found

    def _note(self, event: Event) -> None:
        mask, name = event.mask, event.name
        if mask & (Mask.Q_OVERFLOW | Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.IGNORED | Mask.UNMOUNT):
            self._found.rescan = True
            if not mask & Mask.Q_OVERFLOW:
                # The folder itself is gone: poll until it is there again.
                self._end()
        elif name is not None and mask & Mask.MOVED_TO:
            self._found.moved_in.add(str(name))
        elif name is not None:
            self._found.appeared.add(str(name))


class FileWatch:
    """Waits for one file to be touched: `rampctl` does so after a request. An async context manager.

    Parameters
    ----------
    path
        Made if it is missing.
    poll
        As for `FolderWatch`.
    """

    def __init__(self, path: Path, *, poll: bool | None = None, poll_interval_s: float = _POLL_S) -> None:
        self._path = path
        self._poll = is_shared(path.parent) if poll is None else poll
        self._interval_s = poll_interval_s
        self._inotify: Inotify | None = None
        self._seen = 0

    async def __aenter__(self) -> Self:
        with suppress(OSError):
            self._path.touch()
        if not self._poll:
            # The folder is watched, not the file: one that is removed and made again is the same to us. Only this
            # name counts: SQLite's files lie beside it.
            self._inotify = _watching(
                self._path.parent, Mask.ATTRIB | Mask.CLOSE_WRITE | Mask.MOVED_TO | Mask.CREATE, set()
            )
        self._seen = self._stamp()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._inotify is not None:
            self._inotify.close()

    async def touched(self) -> None:
        """Return once the file was touched after the last call."""
        if self._inotify is not None:
            # Not by the time stamp: two touches within one tick of the kernel's clock (4 ms) have the same.
            while True:
                event = await self._inotify.get()
                # What overflowed may have been a touch.
                if str(event.name) == self._path.name or event.mask & Mask.Q_OVERFLOW:
                    return
        while self._seen == (stamp := self._stamp()):  # noqa: ASYNC110 -- another machine's touch sets no event
            await asyncio.sleep(self._interval_s)
        self._seen = stamp

    def _stamp(self) -> int:
        try:
            return self._path.stat().st_ctime_ns
        except OSError:
            return 0


class ConfigsWatch:
    """Says when a file of one name in any folder of `folder` may have come, changed or gone. An async context manager.

    One inotify for all folders: a user has 128 of them by default. Missing folders and shared file systems are polled.

    Parameters
    ----------
    folder
        Its folders are watched, those that appear later too.
    name
        The file's name in each of them.
    poll, poll_interval_s
        As for `FolderWatch`.
    """

    def __init__(self, folder: Path, name: str, *, poll: bool | None = None, poll_interval_s: float = _POLL_S) -> None:
        self._folder = folder
        self._name = name
        self._poll = is_shared(folder) if poll is None else poll
        self._interval_s = poll_interval_s
        self._inotify: Inotify | None = None
        self._said: set[str] = set()

    async def __aenter__(self) -> Self:
        self._look_again()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None

    def _look_again(self) -> bool:
        """Watch every folder that there is now; say whether one is watched that was not.

        One that is watched already stays so (inotify_add_watch(2), IN_MASK_CREATE).
        """
        if self._poll:
            return False
        if self._inotify is None:
            self._inotify = _watching(
                self._folder, _CONFIGS | Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.ONLYDIR, self._said
            )
        if self._inotify is None:
            return False
        is_new = False
        with suppress(OSError):
            for folder in self._folder.iterdir():
                with suppress(OSError):  # a file, watched already, or gone meanwhile; a rescan comes back to it
                    self._inotify.add_watch(folder, _CONFIGS | Mask.ONLYDIR | Mask.MASK_CREATE)
                    is_new = True
        return is_new

    async def changed(self) -> None:
        """Return once something may have happened; a polling watch returns at every interval."""
        was_watching = self._inotify is not None
        if self._look_again() or (self._inotify is not None and not was_watching):
            return  # what came into a folder before it was watched made no event
        if self._inotify is None:
            await asyncio.sleep(self._interval_s)
            return
        while True:
            event = await self._inotify.get()
            if event.mask & (Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.UNMOUNT | Mask.Q_OVERFLOW):
                self._end()
                return
            is_of_the_root = event.watch is not None and event.watch.path == self._folder
            if is_of_the_root or (event.name is not None and str(event.name) == self._name):
                return


def _watching(folder: Path, mask: Mask, said: set[str]) -> Inotify | None:
    """Return an inotify that watches `folder`, or None where it is missing or inotify has no more to give.

    Whoever polls asks again at every interval: `said` keeps what was said already, until a watch succeeds.
    """
    try:
        inotify = Inotify(cache_size=100)
    except OSError as error:
        _say_once(said, folder, error, "fs.inotify.max_user_instances")
        return None
    try:
        inotify.add_watch(folder, mask)
    except FileNotFoundError:
        inotify.close()
        return None
    except OSError as error:
        inotify.close()
        _say_once(said, folder, error, "fs.inotify.max_user_watches")
        return None
    said.clear()
    return inotify


def _say_once(said: set[str], folder: Path, error: OSError, limit: str) -> None:
    # Any other number says what is wrong with the folder itself: no limit would help.
    is_exhausted = error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.ENOMEM)
    sentence = f"{error.strerror}: raise {limit}" if is_exhausted else str(error.strerror)
    if sentence not in said:
        said.add(sentence)
        log.warning("watch.polling", path=str(folder), error=sentence)


def is_shared(folder: Path, *, mounts: Callable[[], str] | None = None) -> bool:
    """Say whether other machines may write to a folder's file system, by the kernel's table of mounts (proc(5))."""
    read = mounts or (lambda: Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape"))
    try:
        table = read()
    except OSError:
        return False
    path = os.path.realpath(folder)
    best, kind = "", ""
    for line in table.splitlines():
        fields, _, rest = line.partition(" - ")
        mount_point = fields.split()[4].replace("\\040", " ")
        below = path == mount_point or path.startswith(mount_point.rstrip("/") + "/")
        if below and len(mount_point) >= len(best):
            best, kind = mount_point, rest.split()[0]
    return kind in _SHARED_FILE_SYSTEMS or kind.startswith("fuse.")
