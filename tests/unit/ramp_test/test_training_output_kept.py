"""Keeping what ramp-test left: moved whole or not at all, and nothing but regular files."""

from __future__ import annotations

import builtins
import errno
import os
import shutil
import stat
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rampd.errors import BadResultsError, ResultsError
from rampd.ramp_test import check_training_output, keep_training_output
from support.training_output import build_training_output, npy, npz

if TYPE_CHECKING:
    from collections.abc import Callable

    from rampd.models import Scores

_MAX_BYTES = 1 << 20
_MAX_FILES = 100
_PICKLE = npz(y_pred=npy([1.0], descr="|O"))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Return a complete training_output."""
    folder = tmp_path / "submissions" / "mine" / "training_output"
    build_training_output(folder)
    return folder


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    """Return where it is kept."""
    folder = tmp_path / "state" / "staging"
    folder.parent.mkdir()
    return folder


def _keep(output: Path, staging: Path, *, max_bytes: int = _MAX_BYTES, max_files: int = _MAX_FILES) -> Scores:
    return keep_training_output(output, staging, max_bytes=max_bytes, max_files=max_files)


def test_further_files_are_kept(output: Path, staging: Path) -> None:
    """A kit may save more than ramp-test does."""
    (output / "fold_0" / "model.pkl").write_bytes(b"anything")
    _keep(output, staging)
    assert (staging / "fold_0" / "model.pkl").read_bytes() == b"anything"


def test_a_complete_one_is_moved(output: Path, staging: Path) -> None:
    """It is at its new place as it was, ours, and gone from the old one."""
    names = sorted(str(path.relative_to(output)) for path in output.rglob("*"))
    (output / "fold_0").chmod(0o700)
    (output / "fold_0" / "scores.csv").chmod(0o000)
    scores = _keep(output, staging)
    assert scores == check_training_output(staging)
    assert sorted(str(path.relative_to(staging)) for path in staging.rglob("*")) == names
    assert not output.exists()
    modes = {path.stat().st_mode & 0o7777 for path in staging.rglob("*") if path.is_file()}
    assert (modes, (staging / "fold_0").stat().st_mode & 0o7777) == ({0o644}, 0o755)


def test_what_an_earlier_attempt_left_is_replaced(output: Path, staging: Path) -> None:
    """Nothing of it is mixed with the new one."""
    staging.mkdir()
    (staging / "old").write_text("old")
    _keep(output, staging)
    assert not (staging / "old").exists()
    assert (staging / "bagged_scores.csv").exists()


def _link_a_score(output: Path) -> None:
    scores = output / "fold_0" / "scores.csv"
    scores.rename(output.parent / "scores.csv")
    scores.symlink_to(output.parent / "scores.csv")


def _link_a_fold(output: Path) -> None:
    (output / "fold_0").rename(output.parent / "moved")
    (output / "fold_0").symlink_to(output.parent / "moved")


def _link_it_all(output: Path) -> None:
    output.rename(output.parent / "moved")
    output.symlink_to(output.parent / "moved")


def _link_hard(output: Path) -> None:
    (output.parent / "elsewhere").hardlink_to(output / "fold_0" / "train_time")


def _make_sparse(output: Path) -> None:
    with (output / "extra").open("wb") as file:
        file.truncate(2 << 30)


def _make_many(output: Path) -> None:
    for number in range(_MAX_FILES):
        (output / f"extra_{number}").touch()


_SPOILT: dict[str, Callable[[Path], object]] = {
    "link": lambda output: (output / "fold_0" / "extra").symlink_to("/etc/passwd"),
    "link to a score": _link_a_score,
    "link to a fold": _link_a_fold,
    "link to it all": _link_it_all,
    "fifo": lambda output: os.mkfifo(output / "fold_0" / "extra"),
    "socket": lambda output: os.mknod(output / "fold_0" / "extra", stat.S_IFSOCK | 0o600),
    "hard link": _link_hard,
    "sparse": _make_sparse,
    "many": _make_many,
    "deep": lambda output: output.joinpath(*["d"] * 60).mkdir(parents=True),
    "missing": shutil.rmtree,
    "incomplete": lambda output: (output / "fold_0" / "state.txt").write_text("training_error"),
    "pickle": lambda output: (output / "fold_0" / "extra.npz").write_bytes(_PICKLE),
}


@pytest.mark.parametrize("how", _SPOILT)
@pytest.mark.parametrize("older", [False, True])
def test_what_is_refused_leaves_nothing_at_staging(output: Path, staging: Path, how: str, *, older: bool) -> None:
    """It stays where it was, and an older one does not pass for it."""
    if older:
        build_training_output(staging)
    _SPOILT[how](output)
    with pytest.raises(BadResultsError) as caught:
        _keep(output, staging)
    assert not staging.exists()
    assert how == "missing" or (output / "fold_1" / "scores.csv").exists()
    assert str(output.parent) not in caught.value.reason


def test_bounds_are_those_that_are_given(output: Path, staging: Path) -> None:
    """As many files and bytes as allowed pass, one more of either does not."""
    files = len(list(output.rglob("*")))
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    for bounds in ((size - 1, files), (size, files - 1)):
        with pytest.raises(BadResultsError, match="too large"):
            _keep(output, staging, max_bytes=bounds[0], max_files=bounds[1])
    _keep(output, staging, max_bytes=size, max_files=files)


def test_a_place_that_cannot_be_written_is_the_platforms(output: Path, tmp_path: Path) -> None:
    """The participant is told nothing, and the output is still there for the next try."""
    with pytest.raises(ResultsError):
        _keep(output, tmp_path / "missing" / "staging")
    assert (output / "bagged_scores.csv").exists()


def test_another_file_system_is_copied_to(output: Path, staging: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a rename cannot reach, the same comes out of it."""
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path == output:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    expected = check_training_output(output)
    assert _keep(output, staging) == expected
    assert check_training_output(staging) == expected


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO])
@pytest.mark.parametrize("where", [(os, "open"), (builtins, "open"), (zipfile.ZipFile, "open")])
def test_what_this_machine_cannot_read_is_no_participants_fault(
    output: Path, staging: Path, monkeypatch: pytest.MonkeyPatch, where: tuple[Any, str], number: int
) -> None:
    """Whichever file a lack of descriptors or a failing disk meets, what ramp-test left is judged the next time."""
    work = getattr(*where)
    fails_at, calls = 0, 0

    def fail_once(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise OSError(number, os.strerror(number))
        return work(*arguments, **options)

    monkeypatch.setattr(*where, fail_once)
    while calls >= fails_at:
        fails_at, calls = fails_at + 1, 0
        if not output.exists():
            staging.rename(output)
        try:
            _keep(output, staging)
        except ResultsError as error:
            assert os.strerror(number) in str(error)  # noqa: PT017 -- the last round raises nothing
            assert not staging.exists()
        else:
            assert calls < fails_at
    assert fails_at > 2
