"""The remote part's way with archives, in both directions; its processes are tested on a cluster."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from rampd.errors import WorkerError
from rampd.remote.archive import pack_submission, unpack
from rampd.workers import dask_archive
from rampd.workers.dask_bundle import EXPRESSION, names_for
from rampd.workers.dask_remote import answer
from rampd.workers.dask_run import Run
from rampd.workers.dask_transfer import split

_BOUNDS = {"submission": "one", "max_files": 3, "max_bytes": 100}


def _archive(*members: tuple[str, bytes]) -> io.BytesIO:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    stream.seek(0)
    return stream


def test_a_submission_is_unpacked_as_regular_files(tmp_path: Path) -> None:
    """Below its own folder."""
    dask_archive.extract(_archive(("one/estimator.py", b"x"), ("one/a/b.py", b"y")), str(tmp_path), _BOUNDS)
    assert (tmp_path / "one" / "a" / "b.py").read_bytes() == b"y"
    assert (tmp_path / "one" / "estimator.py").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("name", ["two/x", "one/../x", "/one/x", "one//x", "../x", "one/" + "d/" * 50 + "x"])
def test_names_that_leave_the_folder(tmp_path: Path, name: str) -> None:
    """Are refused."""
    with pytest.raises(tarfile.TarError):
        dask_archive.extract(_archive((name, b"x")), str(tmp_path), _BOUNDS)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_what_is_no_regular_file(tmp_path: Path, kind: bytes) -> None:
    """Is refused."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        info = tarfile.TarInfo("one/x")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    stream.seek(0)
    with pytest.raises(tarfile.TarError):
        dask_archive.extract(stream, str(tmp_path), _BOUNDS)


def test_links_of_a_submission_arrive(tmp_path: Path) -> None:
    """Those that stay inside are kept on the way, as in a copy on this machine."""
    submission = tmp_path / "one"
    (submission / "a" / "b").mkdir(parents=True)
    (submission / "estimator.py").write_bytes(b"x")
    (submission / "a" / "b" / "link.py").symlink_to("../../estimator.py")
    (submission / "folder").symlink_to("a")
    bounds = {"max_bytes": 100, "max_files": 10}
    with (tmp_path / "packed").open("w+b") as packed:
        pack_submission(submission, packed, name="one", scratch=tmp_path / "scratch", **bounds)
        packed.seek(0)
        dask_archive.extract(packed, str(tmp_path / "there"), {"submission": "one", **bounds})
    assert (tmp_path / "there" / "one" / "folder" / "b" / "link.py").read_bytes() == b"x"


@pytest.mark.parametrize("points_to", ["/etc/passwd", "../x", "../../x", "a/../../x", "x/.."])
def test_links_that_leave_the_submission(tmp_path: Path, points_to: str) -> None:
    """Are refused."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        info = tarfile.TarInfo("one/x")
        info.type, info.linkname = tarfile.SYMTYPE, points_to
        tar.addfile(info)
    stream.seek(0)
    with pytest.raises(tarfile.TarError, match="leaves the folder"):
        dask_archive.extract(stream, str(tmp_path), _BOUNDS)


@pytest.mark.parametrize("members", [[("one/x", b"y" * 101)], [(f"one/{n}", b"") for n in range(5)]])
def test_too_much(tmp_path: Path, members: list[tuple[str, bytes]]) -> None:
    """Is refused, whether in bytes or in files."""
    with pytest.raises(tarfile.TarError):
        dask_archive.extract(_archive(*members), str(tmp_path), _BOUNDS)


def test_what_is_packed_there_is_unpacked_here(tmp_path: Path) -> None:
    """A training_output survives the way, whatever permissions a submission gave it."""
    source = tmp_path / "training_output"
    (source / "fold_0").mkdir(parents=True)
    (source / "fold_0" / "scores.csv").write_bytes(b"scores")
    (source / "fold_0" / "scores.csv").chmod(0)
    assert dask_archive.pack(str(source), str(tmp_path / "packed"), 100, 10) == ""
    with (tmp_path / "packed").open("rb") as archive:
        unpack(archive, tmp_path / "here", max_bytes=100, max_files=10)
    assert (tmp_path / "here" / "fold_0" / "scores.csv").read_bytes() == b"scores"


@pytest.mark.parametrize("kind", ["missing", "link", "file"])
def test_a_training_output_that_is_none(tmp_path: Path, kind: str) -> None:
    """Nothing is packed, and nothing refused: there is none."""
    source = tmp_path / "training_output"
    if kind == "link":
        source.symlink_to("/etc")
    elif kind == "file":
        source.touch()
    assert dask_archive.pack(str(source), str(tmp_path / "packed"), 100, 10) == ""
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: path.symlink_to("/etc/passwd"), "'x' is a link"),
        (os.mkfifo, "'x' is no regular file"),
        (lambda path: path.write_bytes(b"y" * 101), "it is too large at 'x'"),
    ],
)
def test_what_is_not_packed(tmp_path: Path, make: Any, sentence: str) -> None:
    """The reason is a sentence for the participant, and no archive is left."""
    source = tmp_path / "training_output"
    source.mkdir()
    make(source / "x")
    assert dask_archive.pack(str(source), str(tmp_path / "packed"), 100, 10) == sentence
    assert not (tmp_path / "packed").exists()


def _ended_run(folder: Path) -> Run:
    """Return a run whose folder is as a submission may have left it: its own to write to, `worker.run_as` or not."""
    (folder / "submissions" / "one" / "training_output").mkdir(parents=True)
    (folder / "submissions" / "one" / "training_output" / "x").write_bytes(b"y")
    request = {"owner": "o", "attempt": "a", "submission": "one", "max_bytes": 1000, "max_files": 10}
    return Run(request, str(folder))


@pytest.mark.parametrize("name", ["log", "results.tar"])
@pytest.mark.parametrize("kind", ["symlink", "link"])
def test_a_link_in_place_of_our_own_file(tmp_path: Path, name: str, kind: str) -> None:
    """Neither is what it leads to read for the participant, nor written to as the Dask worker's user."""
    run = _ended_run(tmp_path / "a")
    (tmp_path / "others").write_bytes(b"of somebody else")
    path = tmp_path / "a" / name
    path.symlink_to(tmp_path / "others") if kind == "symlink" else path.hardlink_to(tmp_path / "others")
    head, payload = run._pack({})
    assert (tmp_path / "others").read_bytes() == b"of somebody else"
    assert b"of somebody else" not in payload
    assert head["inline"] is True
    assert head["kept_log_bytes"] == 0
    assert head["results_bytes"] == len(payload)


def test_a_folder_in_place_of_the_packed_results(tmp_path: Path) -> None:
    """It gives way: that is no failure of the platform's."""
    run = _ended_run(tmp_path / "a")
    (tmp_path / "a" / "results.tar" / "full").mkdir(parents=True)
    head, payload = run._pack({})
    assert head["results_bytes"] == len(payload) > 0


@pytest.mark.parametrize("name", ["submissions", "submissions/one"])
def test_a_link_above_training_output(tmp_path: Path, name: str) -> None:
    """A training_output elsewhere is not this submission's."""
    elsewhere = _ended_run(tmp_path / "elsewhere").folder
    run = _ended_run(tmp_path / "a")
    shutil.rmtree(tmp_path / "a" / name)
    (tmp_path / "a" / name).symlink_to(f"{elsewhere}/{name}")
    head, payload = run._pack({})
    assert (head["results_bytes"], head["refused"], payload) == (None, "", b"")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/etc/passwd"), Path.mkdir])
def test_a_log_that_is_no_file_is_not_read(tmp_path: Path, make: Any) -> None:
    """A fifo would keep the Dask worker's event loop waiting for its writer."""
    folder = tmp_path / "rampd-o" / "attempts" / "a"
    folder.mkdir(parents=True)
    make(folder / "log")
    request = {"do": "read", "file": "log", "offset": 0, "size": 10, "owner": "o", "attempt": "a"}
    assert split(answer({**request, "temporary": str(tmp_path)})) == ({"is_there": False}, b"")


@pytest.mark.parametrize("attempt", ["../../etc", "a/b", "", "x" * 101])
def test_requests_cannot_leave_the_folder(tmp_path: Path, attempt: str) -> None:
    """An attempt's name is a name."""
    request = {"do": "read", "file": "log", "offset": 0, "size": 10, "owner": "o", "attempt": attempt}
    head, _ = split(answer({**request, "temporary": str(tmp_path)}))
    assert head == {"error": "ValueError: no attempt's name"}


def test_the_fence_lets_nobody_in_twice(tmp_path: Path) -> None:
    """What was withdrawn is never run, and what has a fence is not withdrawn."""
    request = {"owner": "o", "attempt": "a", "temporary": str(tmp_path)}
    assert split(answer({"do": "withdraw", **request}))[0] == {"withdrawn": True}
    assert split(answer({"do": "withdraw", **request}))[0] == {"withdrawn": False}
    assert split(answer({"do": "run", **request}))[0] == {"fenced": True}
    assert split(answer({"do": "list", **request}))[0] == {"attempts": ["a"], "active": []}
    assert split(answer({"do": "remove", **request}))[0] == {"gone": True}
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_somebody_elses_is_not_used(tmp_path: Path) -> None:
    """A link where our folder should be, in a temporary folder that everybody can write to, is refused."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "rampd-o").symlink_to(tmp_path / "elsewhere")
    head, _ = split(answer({"do": "withdraw", "owner": "o", "attempt": "a", "temporary": str(tmp_path)}))
    assert "belongs to somebody else" in head["error"]
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_the_bundle_needs_nothing_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Evaluated as a Dask worker does, it answers, and its modules are its own."""
    import sys  # noqa: PLC0415 -- here only

    request = {"do": "list", "owner": "o", "attempt": "a", "temporary": str(tmp_path)}
    names = names_for(request)
    before = set(sys.modules)
    answered = eval(EXPRESSION, names)  # noqa: S307 -- as it is evaluated there
    loaded = {name for name in sys.modules if name not in before}
    assert split(answered)[0] == {"attempts": [], "active": []}
    assert {name.partition(".")[0] for name in loaded} == {names["package"]}
    for name in loaded:
        del sys.modules[name]


@pytest.mark.parametrize("answered", [b"", b"not json\n", b"[1]\n", b"\xff\n"])
def test_an_answer_that_is_not_ours(answered: bytes) -> None:
    """Is an error of the platform's, not a crash."""
    with pytest.raises(WorkerError, match="not ours"):
        split(answered)
