"""What a submission's folder is: rules on names, and looking at a folder without trusting anything in it."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from rampd.copying import stays_inside
from rampd.errors import SubmissionRefusedError

if TYPE_CHECKING:
    from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_MAX_ENTRIES = 10_000
_MAX_DEPTH = 40
_MAX_BYTES = 1 << 30
_SHOWN_LENGTH = 120


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look at a submission's folder found."""

    fingerprint: str
    """Changes when anything in the folder does."""
    newest: float
    """The latest change of anything in it, by mtime and ctime: seconds since the epoch."""
    has_file: bool


def is_ignored(name: str) -> bool:
    """Return whether a name is passed over in silence: hidden files and Python's caches."""
    return name.startswith(".") or name == "__pycache__"


def check_name(name: str) -> None:
    """Refuse a name that is no submission's.

    Raises
    ------
    SubmissionRefusedError
        reason bad_name.
    """
    if not _NAME.fullmatch(name):
        raise SubmissionRefusedError(
            "bad_name",
            "a submission's name has letters, digits, '_', '.' and '-', begins with none of the last two, "
            "and is no longer than 100",
        )


def printable(name: str) -> str:
    """Return a name as it can be shown anywhere: control characters, and bytes that are no text, escaped; shortened."""
    raw = os.fsencode(name)
    text = raw.decode("utf-8", "backslashreplace")
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
    return shown if len(shown) <= _SHOWN_LENGTH else f"{shown[:_SHOWN_LENGTH]}…"


def look(path: Path) -> Seen:
    """Look at what may be a submission: a folder of regular files, folders, and links that stay inside.

    Blocking, and bounded. Nothing is opened but folders, and no link is followed.

    Raises
    ------
    SubmissionRefusedError
        It is none; `reason` says which rule it breaks.
    FileNotFoundError
        It is gone.
    """
    info = path.lstat()
    if stat.S_ISLNK(info.st_mode):
        reason = "link" if path.exists() else "dangling_link"
        raise SubmissionRefusedError(reason, "a submission is a folder, not a link to one")
    if not stat.S_ISDIR(info.st_mode):
        raise SubmissionRefusedError("not_a_folder", "a submission is a folder with files in it")
    looking = _Looking()
    looking.take("", info)
    looking.walk(str(path), "", 0)
    return Seen(looking.digest.hexdigest(), looking.newest_ns / 1e9, looking.has_file)


class _Looking:
    def __init__(self) -> None:
        self.digest = hashlib.blake2b(digest_size=16)
        self.newest_ns = 0
        self.has_file = False
        self._entries = 0
        self._bytes = 0

    def take(self, name: str, info: os.stat_result) -> None:
        self._entries += 1
        self.newest_ns = max(self.newest_ns, info.st_mtime_ns, info.st_ctime_ns)
        self.digest.update(os.fsencode(f"{name}\0{info.st_mode}\0{info.st_size}\0{info.st_mtime_ns}\0{info.st_ino}\n"))
        if stat.S_ISREG(info.st_mode):
            self._bytes += info.st_size
        if self._entries > _MAX_ENTRIES or self._bytes > _MAX_BYTES:
            raise SubmissionRefusedError(
                "too_large", f"a submission has at most {_MAX_ENTRIES} files and {_MAX_BYTES >> 30} GiB"
            )

    def walk(self, folder: str, prefix: str, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise SubmissionRefusedError("too_large", f"a submission's folders are nested at most {_MAX_DEPTH} deep")
        with os.scandir(folder) as entries:
            # No more than are allowed: a folder of millions must not be held in memory to be refused.
            left = _MAX_ENTRIES - self._entries
            found = sorted(islice(entries, left + 1), key=lambda entry: entry.name)
        for entry in found:
            info = entry.stat(follow_symlinks=False)
            name = f"{prefix}{entry.name}"
            self.take(name, info)
            if stat.S_ISDIR(info.st_mode):
                self.walk(entry.path, f"{name}/", depth + 1)
            elif stat.S_ISREG(info.st_mode):
                if info.st_nlink > 1:
                    raise SubmissionRefusedError("hard_link", "a file in the submission has several hard links")
                self.has_file = True
            elif not stat.S_ISLNK(info.st_mode):
                raise SubmissionRefusedError("special_file", "a submission has files and folders only")
            elif not stays_inside(os.readlink(entry.path), depth):  # noqa: PTH115 -- entries are no pathlib.Path
                raise SubmissionRefusedError("escaping_link", "a link in the submission leads out of its folder")
