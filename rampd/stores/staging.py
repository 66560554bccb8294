"""Handing a submission in: copied to a hidden place first, then renamed, so that nobody ever sees half of one."""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

from rampd.copying import UnsafeTreeError, copy_tree
from rampd.errors import RampdError, StoreError, SubmissionRefusedError
from rampd.files import remove_tree, swap_into_place
from rampd.stores.folders import check_name, look

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_MAX_BYTES = 1 << 30
_MAX_FILES = 10_000


class AlreadySubmittedError(RampdError):
    """There is a submission of that name already."""


def stage_submission(
    source: Path,
    submissions_dir: Path,
    name: str,
    *,
    replace: bool = False,
    is_given_up: Callable[[], bool] | None = None,
) -> None:
    """Put a copy of `source` at `submissions_dir/name`, by one rename. Blocking.

    Parameters
    ----------
    source, submissions_dir, name
        What is copied, and where to.
    replace
        Take the place of one that is there.
    is_given_up
        Asked before the rename: whoever no longer waits for it (Ctrl-C) does not want it there either.

    Raises
    ------
    AlreadySubmittedError
        There is one of that name, and `replace` was not asked for.
    SubmissionRefusedError
        The folder, or the name, is no submission's.
    StoreError
        submissions_dir cannot be written.
    """
    check_name(name)
    try:
        seen = look(source)
    except (FileNotFoundError, NotADirectoryError):
        raise SubmissionRefusedError("missing", f"there is no folder {source}") from None
    except OSError as error:
        raise SubmissionRefusedError("unreadable", f"{error.filename} cannot be read: {error.strerror}") from error
    if not seen.has_file:
        raise SubmissionRefusedError("empty", f"{source} has no file in it")
    final = submissions_dir / name
    already = f"there is a submission named {name!r} already; --replace replaces it"
    if os.path.lexists(final) and not replace:
        raise AlreadySubmittedError(already)
    staging = submissions_dir / f".submit-{secrets.token_hex(6)}"
    try:
        submissions_dir.mkdir(parents=True, exist_ok=True)
        copy_tree(source, staging, max_bytes=_MAX_BYTES, max_files=_MAX_FILES, keep_links=True)
        _sync(staging)
        if is_given_up is not None and is_given_up():
            return
        if replace:
            swap_into_place(staging, final)
        else:
            _rename_onto_nothing(staging, final, already)
    except AlreadySubmittedError:
        raise
    except UnsafeTreeError as error:
        raise SubmissionRefusedError("unsafe", str(error)) from error
    except (OSError, RampdError) as error:
        raise StoreError(f"{submissions_dir}: {error}") from error
    finally:
        with suppress(OSError):  # what could not be written can hardly be removed
            remove_tree(staging)


def _rename_onto_nothing(staging: Path, final: Path, already: str) -> None:
    """Rename, unless somebody else was quicker: rename(2) never replaces a folder that has something in it."""
    try:
        staging.rename(final)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise AlreadySubmittedError(already) from error
        raise


def _sync(folder: Path) -> None:
    """Have the files on disk before their name appears: a crash leaves the whole submission, or none."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
