"""An aws attempt's files on this machine: its folder, its log, and the memory profile beside that. Blocking."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final

from rampd.errors import ResultsError
from rampd.files import remove_tree

if TYPE_CHECKING:
    from pathlib import Path

    from rampd.models import Job

_PROFILE: Final = "mprof.dat"


def make(job: Job, *, is_new: bool = True) -> None:
    """Make the attempt's folder and its log's; for a new run both log and profile are begun anew."""
    try:
        job.attempt_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        job.log_path.parent.mkdir(parents=True, exist_ok=True)
        if is_new:
            job.log_path.write_bytes(b"")
            (job.log_path.parent / _PROFILE).unlink(missing_ok=True)
    except OSError as error:
        raise ResultsError(f"{error.filename}: cannot be written: {error.strerror}") from error


def keep_profile(folder: Path, job: Job) -> None:
    """Keep what mprof recorded beside the log; it is as large as a submission made it."""
    found, kept = folder / _PROFILE, job.log_path.parent / _PROFILE
    try:
        if found.is_file():
            new = kept.with_suffix(".new")
            shutil.copyfile(found, new)
            new.rename(kept)
    except OSError as error:
        raise ResultsError(f"{error.filename}: cannot be written: {error.strerror}") from error


def found_in(path: Path) -> list[Path]:
    """Return what is in a folder; nothing where there is none."""
    return sorted(path.iterdir()) if path.is_dir() else []


def remove(path: Path) -> None:
    """Remove an attempt's folder; silent if it is gone already."""
    try:
        remove_tree(path)
    except OSError as error:
        raise ResultsError(f"{error.filename}: cannot be removed: {error.strerror}") from error
