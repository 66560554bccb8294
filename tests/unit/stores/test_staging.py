"""Handing a submission in: whole or not at all."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from rampd.copying import copy_tree
from rampd.errors import StoreError, SubmissionRefusedError
from rampd.stores import staging
from rampd.stores.staging import AlreadySubmittedError, stage_submission

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a folder to hand in."""
    path = tmp_path / "source"
    (path / "inner").mkdir(parents=True)
    (path / "estimator.py").write_text("new", encoding="utf-8")
    (path / "inner" / "data").write_text("data", encoding="utf-8")
    (path / "inner" / "link").symlink_to("../estimator.py")
    return path


@pytest.fixture
def submissions(tmp_path: Path) -> Path:
    """Return where submissions go; not made yet."""
    return tmp_path / "submissions"


def names(folder: Path) -> list[str]:
    """Return what there is in a folder, hidden names too."""
    return sorted(path.name for path in folder.iterdir())


def refusal(source: Path, submissions: Path, name: str = "good") -> str:
    """Return the reason for which it is not taken; nothing may be left of it."""
    with pytest.raises(SubmissionRefusedError) as caught:
        stage_submission(source, submissions, name)
    assert not submissions.exists() or names(submissions) == []
    return caught.value.reason


def test_a_copy_stands_under_its_name(source: Path, submissions: Path) -> None:
    """Everything is there, the source is as it was, and nothing else is left."""
    stage_submission(source, submissions, "good")
    assert names(submissions) == ["good"]
    assert (submissions / "good" / "inner" / "data").read_text(encoding="utf-8") == "data"
    assert (submissions / "good" / "inner" / "link").readlink().as_posix() == "../estimator.py"
    assert names(source) == ["estimator.py", "inner"]


def test_nobody_sees_half_of_it(source: Path, submissions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until everything is copied there is only a hidden name."""
    seen: list[list[str]] = []
    sync = staging._sync

    def look_and_sync(folder: Path) -> None:
        seen.append(names(submissions))
        sync(folder)

    monkeypatch.setattr(staging, "_sync", look_and_sync)
    stage_submission(source, submissions, "good")
    ((hidden,),) = seen
    assert hidden.startswith(".submit-")


def test_an_existing_one_is_not_touched(source: Path, submissions: Path) -> None:
    """A second submission of one name is refused."""
    stage_submission(source, submissions, "good")
    (source / "estimator.py").write_text("newer", encoding="utf-8")
    with pytest.raises(AlreadySubmittedError, match="--replace"):
        stage_submission(source, submissions, "good")
    assert names(submissions) == ["good"]
    assert (submissions / "good" / "estimator.py").read_text(encoding="utf-8") == "new"


def test_the_first_of_two_at_once_stands(source: Path, submissions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that came while this one was copied is not overwritten."""

    def copy_and_lose(*arguments: Any, **options: Any) -> None:
        copy_tree(*arguments, **options)
        (submissions / "good").mkdir()
        (submissions / "good" / "estimator.py").write_text("first", encoding="utf-8")

    monkeypatch.setattr(staging, "copy_tree", copy_and_lose)
    with pytest.raises(AlreadySubmittedError):
        stage_submission(source, submissions, "good")
    assert names(submissions) == ["good"]
    assert (submissions / "good" / "estimator.py").read_text(encoding="utf-8") == "first"


def test_replace_puts_the_new_one_there(source: Path, submissions: Path) -> None:
    """What was there before is gone altogether."""
    (submissions / "good").mkdir(parents=True)
    (submissions / "good" / "old.py").touch()
    stage_submission(source, submissions, "good", replace=True)
    assert names(submissions) == ["good"]
    assert names(submissions / "good") == ["estimator.py", "inner"]


def test_replace_needs_nothing_to_replace(source: Path, submissions: Path) -> None:
    """Replacing what is not there is handing it in."""
    stage_submission(source, submissions, "good", replace=True)
    assert names(submissions) == ["good"]


def test_a_link_in_the_way_is_not_followed(source: Path, submissions: Path, tmp_path: Path) -> None:
    """A dangling link counts as something of that name; replacing it leaves what it names alone."""
    submissions.mkdir()
    (submissions / "good").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AlreadySubmittedError):
        stage_submission(source, submissions, "good")
    stage_submission(source, submissions, "good", replace=True)
    assert names(submissions) == ["good"]
    assert not (submissions / "good").is_symlink()
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("name", ["", "..", "../up", "-rf", ".hidden", "a b", "$(id)", "new\nline", "x" * 300])
def test_bad_names_are_refused(source: Path, submissions: Path, name: str) -> None:
    """A name that the daemon would reject is refused before anything is written."""
    assert refusal(source, submissions, name) == "bad_name"
    assert names(submissions.parent) == ["source"]


def test_what_is_no_submission_is_refused(source: Path, submissions: Path, tmp_path: Path) -> None:
    """Nothing, a file, an empty folder and a link to a folder are none."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(source)
    assert refusal(tmp_path / "missing", submissions) == "missing"
    assert refusal(source / "estimator.py", submissions) == "not_a_folder"
    assert refusal(tmp_path / "empty", submissions) == "empty"
    assert refusal(tmp_path / "link", submissions) == "link"


def test_links_that_leave_are_refused(source: Path, submissions: Path) -> None:
    """What a look refuses is not copied."""
    (source / "secret").symlink_to("/etc/passwd")
    assert refusal(source, submissions) == "escaping_link"


def test_what_changes_while_it_is_copied_leaves_nothing(
    source: Path, submissions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fifo that turns up between look and copy is refused, and half a copy is removed."""

    def spoil_and_copy(*arguments: Any, **options: Any) -> None:
        os.mkfifo(source / "zzz")
        copy_tree(*arguments, **options)

    monkeypatch.setattr(staging, "copy_tree", spoil_and_copy)
    assert refusal(source, submissions) == "unsafe"


def test_an_interruption_leaves_nothing(source: Path, submissions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of a copy leaves no hidden folder."""

    def interrupt(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(staging, "_sync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        stage_submission(source, submissions, "good")
    assert names(submissions) == []


def test_a_place_that_cannot_be_written_is_the_platforms_fault(source: Path, submissions: Path) -> None:
    """The error names the folder, and is no traceback of the operating system's."""
    submissions.write_text("a file", encoding="utf-8")
    with pytest.raises(StoreError, match="submissions"):
        stage_submission(source, submissions, "good")
