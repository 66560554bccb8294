"""What a submission's folder is, and how a bad name is shown."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rampd.errors import SubmissionRefusedError
from rampd.stores import folders
from rampd.stores.folders import check_name, is_ignored, look, printable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BAD_NAMES = [
    "",
    "with space",
    "..",
    "a/b",
    "-rf",
    ".hidden",
    "new\nline",
    "end\n",
    "$(reboot)",
    "`id`",
    "a" * 101,
    "x" * 300,
    "\udcff\udcfe",
    "é",
    "\N{ARABIC-INDIC DIGIT ONE}",
    "a\0b",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a plain submission."""
    path = tmp_path / "submission"
    path.mkdir()
    (path / "estimator.py").write_text("1", encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    """Return the reason for which a look refuses."""
    with pytest.raises(SubmissionRefusedError) as caught:
        look(path)
    return caught.value.reason


@pytest.mark.parametrize("name", ["a", "_", "9", "submission_000000001", "A.b-c_d", "a" * 100, "a..b"])
def test_good_names_pass(name: str) -> None:
    """Letters, digits and the three signs inside, up to a hundred."""
    check_name(name)


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_bad_names_are_refused(name: str) -> None:
    """Whatever a shell, a path or a log could trip over is no name."""
    with pytest.raises(SubmissionRefusedError) as caught:
        check_name(name)
    assert caught.value.reason == "bad_name"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain", "plain"),
        ("new\nline", "new\\nline"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\udcff", "\\xff"),
        ("right\u202eleft", "right\\u202eleft"),
        ("é", "é"),
        ("x" * 300, "x" * 120 + "…"),
    ],
    ids=ascii,
)
def test_names_are_shown_safely(name: str, shown: str) -> None:
    """Control characters, direction marks and bytes that are no text are spelled out; length is bounded."""
    assert printable(name) == shown


@given(st.binary(max_size=255))
def test_any_bytes_are_printable(raw: bytes) -> None:
    """Whatever a file system may hold can be logged on one line."""
    shown = printable(os.fsdecode(raw))
    assert shown.isprintable()
    assert len(shown) <= 121
    shown.encode()


@pytest.mark.parametrize(("name", "ignored"), [(".git", True), (".", True), ("__pycache__", True), ("_", False)])
def test_hidden_names_and_caches_are_ignored(name: str, *, ignored: bool) -> None:
    """What tools leave is passed over without a word."""
    assert is_ignored(name) is ignored


def test_a_folder_with_files_is_seen(folder: Path) -> None:
    """A look says that there is a file, and when anything last changed."""
    seen = look(folder)
    assert seen.has_file
    newest = max(path.stat().st_ctime for path in (folder, folder / "estimator.py"))
    assert seen.newest == pytest.approx(newest, abs=1e-3)


def test_files_may_lie_deeper(folder: Path) -> None:
    """A folder whose only file lies in another folder has one; empty folders have none."""
    (folder / "estimator.py").unlink()
    (folder / "inner" / "more").mkdir(parents=True)
    assert not look(folder).has_file
    (folder / "inner" / "more" / "file").touch()
    assert look(folder).has_file


@pytest.mark.parametrize("change", ["content", "new file", "mode", "removed", "deeper"])
def test_the_fingerprint_changes_with_the_folder(folder: Path, change: str) -> None:
    """Twice the same look gives the same fingerprint; any change another one."""
    inner = folder / "inner"
    inner.mkdir()
    (inner / "data").touch()
    before = look(folder).fingerprint
    assert look(folder).fingerprint == before
    match change:
        case "content":
            (folder / "estimator.py").write_text("22", encoding="utf-8")
        case "new file":
            (folder / "more.py").touch()
        case "mode":
            (folder / "estimator.py").chmod(0o755)
        case "removed":
            (folder / "estimator.py").unlink()
        case _:
            (inner / "data").write_text("x", encoding="utf-8")
    assert look(folder).fingerprint != before


def test_old_mtimes_do_not_hide_a_change(folder: Path) -> None:
    """A copy that keeps old times is as young as its ctime says."""
    created = (folder / "estimator.py").stat().st_ctime
    for path in (folder / "estimator.py", folder):
        os.utime(path, (0, 0))
    assert look(folder).newest >= created


def test_a_file_is_no_submission(tmp_path: Path) -> None:
    """A file in place of a folder is refused."""
    (tmp_path / "file").touch()
    assert refusal(tmp_path / "file") == "not_a_folder"


def test_links_are_no_submissions(tmp_path: Path, folder: Path) -> None:
    """A link to a folder is refused, and so is one to nothing, by another word."""
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    assert refusal(tmp_path / "link") == "link"
    assert refusal(tmp_path / "dangling") == "dangling_link"


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "inner/../../x", "inner/.."])
def test_a_link_that_leaves_is_refused(folder: Path, target: str) -> None:
    """A link that leads out of the folder, or may, is not followed and not taken."""
    (folder / "link").symlink_to(target)
    assert refusal(folder) == "escaping_link"


def test_a_link_that_stays_is_taken(folder: Path) -> None:
    """Links inside the submission are the participant's business, dangling ones too."""
    (folder / "inner").mkdir()
    (folder / "inner" / "up").symlink_to("../estimator.py")
    (folder / "nowhere").symlink_to("missing")
    assert look(folder).has_file


@pytest.mark.parametrize("kind", ["fifo", "socket"])
def test_special_files_are_refused(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would block a copy, or is no data, is refused, and never opened."""
    if kind == "fifo":
        os.mkfifo(folder / "special")
    else:
        monkeypatch.chdir(folder)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("special")
    assert refusal(folder) == "special_file"


def test_a_file_of_several_names_is_refused(tmp_path: Path, folder: Path) -> None:
    """A hard link may lead to anything on the file system: no attempt could copy it."""
    (tmp_path / "outside").touch()
    os.link(tmp_path / "outside", folder / "inside")
    assert refusal(folder) == "hard_link"


@pytest.mark.parametrize(("limit", "value"), [("_MAX_ENTRIES", 2), ("_MAX_BYTES", 0), ("_MAX_DEPTH", 1)])
def test_a_look_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int) -> None:
    """Too many files, too many bytes or too deep a tree end the look."""
    (folder / "one" / "two").mkdir(parents=True)
    look(folder)
    monkeypatch.setattr(folders, limit, value)
    assert refusal(folder) == "too_large"


def test_no_more_is_read_of_a_folder_than_may_be_in_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One with millions of files is refused without the names of all of them in memory."""
    for number in range(50):
        (folder / f"file-{number}").touch()
    read: list[str] = []

    def noted(entry: os.DirEntry[str]) -> os.DirEntry[str]:
        read.append(entry.name)
        return entry

    @contextmanager
    def scandir(path: str) -> Iterator[Iterator[os.DirEntry[str]]]:
        with os.scandir(path) as entries:
            yield map(noted, entries)

    monkeypatch.setattr(folders, "_MAX_ENTRIES", 5)
    monkeypatch.setattr(folders, "os", SimpleNamespace(**{**vars(os), "scandir": scandir}))
    assert refusal(folder) == "too_large"
    assert len(read) == 5


def test_a_sparse_file_counts_in_full(folder: Path) -> None:
    """What would fill a disk when it is copied is refused though it takes no room yet."""
    with (folder / "sparse").open("wb") as file:
        file.truncate(1 << 31)
    assert refusal(folder) == "too_large"


def test_what_is_gone_is_no_refusal(tmp_path: Path) -> None:
    """A name that went between two looks is the caller's to pass over."""
    with pytest.raises(FileNotFoundError):
        look(tmp_path / "gone")
