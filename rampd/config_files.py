"""Which configs a daemon is to serve, and what is in them: those that were named, and those in a folder of events."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rampd import clock

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

CONFIG_NAME: Final = "config.yml"
_FRESH_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """One config as it was found."""

    digest: str
    """Of its content; empty where it cannot be read."""
    is_fresh: bool = False
    """It was written a moment ago, and may not be complete."""


@dataclass(frozen=True, slots=True)
class ConfigFiles:
    """Where configs are looked for.

    Parameters
    ----------
    named
        Files that must be there.
    events_dir
        A folder whose folders each may have a `config.yml`; these come and go. None: there is no such folder.
    """

    named: Sequence[Path]
    events_dir: Path | None = None

    @property
    def is_one(self) -> bool:
        """Whether there is one event for good: what is wrong with it is wrong with the daemon."""
        return self.events_dir is None and len(self.named) == 1

    def deployment_of(self, path: Path) -> Path | None:
        """Return what relative paths in a config are relative to by its place; None where it implies that itself."""
        if self.events_dir is None or path in self.named:
            return None
        return self.events_dir.absolute().parent

    def look(self) -> Mapping[Path, ConfigFile]:
        """Return every config that there is to serve now; those that were named in any case. Blocking."""
        found = {path: _look_at(path) or ConfigFile("") for path in self.named}
        if self.events_dir is None:
            return found
        same = {os.path.realpath(path) for path in found}  # pathlib's resolve() raises at a loop of links
        try:
            folders = sorted(self.events_dir.iterdir())
        except OSError:
            folders = []
        for folder in folders:
            path = folder / CONFIG_NAME
            if folder.name.startswith(".") or os.path.realpath(path) in same:
                continue
            if (file := _look_at(path)) is not None:
                found[path] = file
        return found


def _look_at(path: Path) -> ConfigFile | None:
    """Return what is in a file, as far as one can tell changes by it; None where there is none."""
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256(file.read(16 << 20)).hexdigest()
        age_s = clock.wall() - path.stat().st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return ConfigFile("")  # there, and unreadable: reading it again tells why
    return ConfigFile(digest, is_fresh=0 <= age_s < _FRESH_S)
