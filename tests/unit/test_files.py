"""Files that somebody else made: what is copied and refused, moved, swapped in and removed."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rampd import copying, files
from rampd.copying import UnsafeTreeError, copy_tree, move_tree, secure_tree, stays_inside
from rampd.errors import ResultsError
from rampd.files import remove_tree, swap_into_place
from support.requirements import needs_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_NOBODY = 65534


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a folder with two files and a folder in it."""
    path = tmp_path / "tree"
    (path / "inner").mkdir(parents=True)
    (path / "a.py").write_bytes(b"a" * 10)
    (path / "inner" / "b.sh").write_bytes(b"b" * 20)
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Go to a folder and be nobody, to whom modes mean something; what it holds is nobody's too."""
    monkeypatch.chdir(tmp_path)
    euid = os.geteuid()
    if euid == 0:
        os.chown(tmp_path, _NOBODY, _NOBODY)
        os.seteuid(_NOBODY)
    yield Path()
    os.seteuid(euid)


def content(path: Path) -> dict[str, bytes | str | None]:
    """Return everything below a folder: a file's bytes, a link's target, None for a folder."""

    def of(inner: Path) -> bytes | str | None:
        return str(inner.readlink()) if inner.is_symlink() else inner.read_bytes() if inner.is_file() else None

    return {str(inner.relative_to(path)): of(inner) for inner in path.rglob("*")}


def _modes(path: Path) -> set[str]:
    return {f"{inner.name} {stat.S_IMODE(inner.lstat().st_mode):04o}" for inner in (path, *path.rglob("*"))}


def copied(source: Path, *, max_bytes: int = 1 << 20, max_files: int = 100, **options: Any) -> Path:
    """Copy a tree beside itself."""
    destination = source.parent / "copy"
    copy_tree(source, destination, max_bytes=max_bytes, max_files=max_files, **options)
    return destination


def _make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def _make_deep(path: Path, levels: int) -> None:
    path.mkdir()
    folder = os.open(path, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=folder)
        inner = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)


def _make_sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 2 << 30)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "link to a file": (lambda path: path.symlink_to("a.py"), "'bad' is a link"),
    "link to a folder outside": (lambda path: path.symlink_to("/etc"), "'bad' is a link"),
    "fifo": (os.mkfifo, "'bad' is a fifo"),
    "socket": (_make_socket, "'bad' is a socket"),
    "hard link": (lambda path: path.hardlink_to(path.parent / "a.py"), "has several hard links"),
    "sparse file": (_make_sparse, "it is too large at 'bad'; allowed: 1048576 bytes"),
    "deep": (lambda path: _make_deep(path, 45), "its folders are nested deeper than 40"),
}


secured = partial(secure_tree, max_bytes=1 << 20, max_files=100)


@pytest.mark.parametrize("handle", [copied, secured])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused(
    tree: Path, kind: str, handle: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but a bounded number of plain files and folders; the sentence names what it was."""
    make, told = REFUSED[kind]
    monkeypatch.chdir(tree)  # a socket's path has room for 107 characters
    make(tree / "bad" if kind != "socket" else Path("bad"))
    with pytest.raises(UnsafeTreeError, match=told):
        handle(tree)


@pytest.mark.parametrize("handle", [copied, secured])
def test_a_refusal_at_the_top(tree: Path, handle: Callable[[Path], object]) -> None:
    """The folder itself is no link, no file, and there."""
    (tree.parent / "link").symlink_to(tree)
    for path in (tree / "a.py", tree.parent / "link", tree / "missing"):
        with pytest.raises(UnsafeTreeError, match=f"'{path.name}' is no folder that can be read"):
            handle(path)


def test_a_copy_is_whole(tree: Path) -> None:
    """Bytes, names that are no text, empty folders and times."""
    (tree / os.fsdecode(b"\xff\xfe")).write_bytes(os.urandom(3 << 10))
    (tree / "empty").mkdir()
    os.utime(tree / "a.py", ns=(1, 123_456_789))
    copy = copied(tree)
    assert content(copy) == content(tree)
    assert (copy / "a.py").stat().st_mtime_ns == 123_456_789


def test_a_copy_has_plain_modes(tree: Path) -> None:
    """The owner's right to execute is all that is taken over, and the umask takes nothing away."""
    (tree / "inner").chmod(0o2777)
    (tree / "inner" / "b.sh").chmod(0o4711)
    (tree / "a.py").chmod(0o666)
    umask = os.umask(0o077)
    try:
        copy = copied(tree)
    finally:
        os.umask(umask)
    assert _modes(copy) == {"copy 0755", "inner 0755", "b.sh 0755", "a.py 0644"}


def test_a_copy_may_be_somebody_elses(tree: Path) -> None:
    """Every folder and file of it."""
    needs_root()
    copy = copied(tree, owner=(_NOBODY, 1234))
    assert {(path.stat().st_uid, path.stat().st_gid) for path in (copy, *copy.rglob("*"))} == {(_NOBODY, 1234)}


@pytest.mark.parametrize("handle", [copied, secure_tree])
@pytest.mark.parametrize(("max_bytes", "max_files"), [(29, 3), (30, 2)])
def test_the_bounds_are_exact(tree: Path, handle: Callable[..., object], max_bytes: int, max_files: int) -> None:
    """Bytes of files, and files and folders together: 30 and 3 fit, and no less."""
    with pytest.raises(UnsafeTreeError, match=f"allowed: {max_bytes} bytes in {max_files} files"):
        handle(tree, max_bytes=max_bytes, max_files=max_files)
    remove_tree(tree.parent / "copy")
    handle(tree, max_bytes=30, max_files=3)


def test_a_flood_of_names_is_not_read_to_its_end(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of millions costs no more than one that is just too large."""
    read: list[str] = []

    class Endless:
        def __enter__(self) -> Iterator[Any]:
            return self._entries()

        def __exit__(self, *_: object) -> None:
            return None

        def _entries(self) -> Iterator[Any]:
            while True:
                read.append("x")
                yield type("Entry", (), {"name": f"f{len(read)}"})

    monkeypatch.setattr(os, "scandir", lambda _: Endless())
    with pytest.raises(UnsafeTreeError, match="too large"):
        secure_tree(tree, max_bytes=100, max_files=10)
    assert len(read) == 11


def test_links_inside_are_kept_where_they_may_be(tree: Path) -> None:
    """They are made again, not followed."""
    (tree / "inner" / "up").symlink_to("../a.py")
    (tree / "nowhere").symlink_to("inner/none")
    copy = content(copied(tree, keep_links=True))
    assert (copy["inner/up"], copy["nowhere"]) == ("../a.py", "inner/none")


@pytest.mark.parametrize("target", ["/etc/passwd", "../tree2", "inner/../../x", "inner/../a.py"])
def test_links_that_leave_are_refused(tree: Path, target: str) -> None:
    """Also those that only may: a folder on the way can be a link itself."""
    (tree / "bad").symlink_to(target)
    with pytest.raises(UnsafeTreeError, match="'bad' is a link that leaves the folder"):
        copied(tree, keep_links=True)


def test_a_submissions_copy_has_no_results_of_its_own(tree: Path) -> None:
    """A training_output at its top is not looked at, whatever it is; links inside are the participant's business."""
    for name in ("training_output", "__pycache__"):
        os.mkfifo(tree / name)
        (tree / "inner" / name).mkdir()
    (tree / "link").symlink_to("a.py")
    copying.copy_submission(tree, tree.parent / "copy", max_bytes=100, max_files=10)
    assert content(tree.parent / "copy").keys() == content(tree).keys() - {"training_output", "__pycache__"}


def meanwhile(monkeypatch: pytest.MonkeyPatch, path: Path, act: Callable[[Path], object]) -> None:
    """Do something to a file after it was looked at and before it is opened."""
    opening = copying._open

    def open_after(name: str, folder: int, flags: int = 0) -> int:
        if name == path.name:
            act(path)
        return opening(name, folder, flags)

    monkeypatch.setattr(copying, "_open", open_after)


@pytest.mark.parametrize("make", [os.mkfifo, Path.touch, Path.mkdir, lambda path: path.symlink_to("/etc/passwd")])
def test_a_file_that_is_exchanged_is_refused(tree: Path, monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    """What is opened must be what was looked at: no link is followed, and no fifo keeps anybody waiting."""

    def exchange(path: Path) -> None:
        path.rename(tree.parent / "elsewhere")
        make(path)

    meanwhile(monkeypatch, tree / "a.py", exchange)
    with pytest.raises(UnsafeTreeError, match=r"'a\.py' (cannot be read|changed while it was copied)"):
        copied(tree)


def test_a_file_that_grows_is_cut_where_it_was_counted(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound holds for what is written, too."""
    meanwhile(monkeypatch, tree / "a.py", lambda path: path.write_bytes(b"a" * 5000))
    assert (copied(tree) / "a.py").read_bytes() == b"a" * 10


@pytest.mark.parametrize("where", ["inner", "missing/x", "a.py/x"])
def test_what_cannot_be_written_is_our_fault(tree: Path, where: str) -> None:
    """A destination that is there, or whose folder is none, is told by its path."""
    with pytest.raises(ResultsError, match=f"{where}: cannot be written: "):
        copy_tree(tree, tree / where, max_bytes=100, max_files=10)


PLACES = st.lists(st.sampled_from("abc"), min_size=1, max_size=3)
TARGETS = st.lists(st.sampled_from(["..", "..", ".", "", "a", "b", "c"]), min_size=1, max_size=5).map("/".join)


@settings(max_examples=100, deadline=None)
@example([(["a"], None), (["b"], "a/../..")])
@given(st.lists(st.tuples(PLACES, TARGETS | st.none()), max_size=8))
def test_links_that_stay_inside_lead_nowhere_else(entries: list[tuple[list[str], str | None]]) -> None:
    """Whatever else lies in a tree: where each of its links stays inside, the kernel follows none of them out."""
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder).resolve() / "a" / "b" / "c"
        for outside in ("a/a", "a/c", "a/b/a", "a/b/b", "b", "c"):
            Path(folder, outside).mkdir(parents=True)
        top.mkdir()
        for parts, target in entries:
            path = top.joinpath(*parts)
            with suppress(OSError):  # something lies there or on the way already
                if target is None:
                    path.mkdir(parents=True)
                elif os.path.realpath(path.parent) == str(path.parent) and stays_inside(target, len(parts) - 1):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.symlink_to(target)
        for path in top.rglob("*"):
            with suppress(OSError):  # it leads nowhere, or round and round
                led = os.open(path, os.O_PATH)
                there = Path(f"/proc/self/fd/{led}").readlink()
                os.close(led)
                assert there.is_relative_to(top)


INSIDE = [("a", 0), ("a/b", 0), ("", 0), (".", 0), ("..", 1), ("./.././x", 1), ("..//../x", 2), ("...", 0), ("..a", 0)]
OUTSIDE = [("..", 0), ("../..", 1), ("../a/..", 2), ("a/..", 5), ("/", 5), ("/a", 0), ("./../../x", 1)]


@pytest.mark.parametrize(("target", "depth"), [*INSIDE, *OUTSIDE])
def test_where_a_link_stays(target: str, depth: int) -> None:
    """It may go up at its beginning, as far as the tree's top."""
    assert stays_inside(target, depth) is ((target, depth) in INSIDE)


def test_a_tree_is_secured_where_it_is(tree: Path) -> None:
    """Folders 0755 and files 0644, whatever bits were set; nothing is lost."""
    before = content(tree)
    (tree / "inner").chmod(0o7700)
    (tree / "inner" / "b.sh").chmod(0o6777)
    (tree / "a.py").chmod(0)
    tree.chmod(0o700)
    secured(tree)
    assert _modes(tree) == {"tree 0755", "inner 0755", "b.sh 0644", "a.py 0644"}
    assert content(tree) == before


def test_a_tree_of_somebody_elses_becomes_ours(tree: Path) -> None:
    """Every folder and file of it."""
    needs_root()
    for path in (tree, *tree.rglob("*")):
        os.chown(path, _NOBODY, _NOBODY)
    secured(tree)
    assert {path.stat().st_uid for path in (tree, *tree.rglob("*"))} == {os.geteuid()}


move = partial(move_tree, max_bytes=100, max_files=10)


def _other_file_system(*_: object) -> None:
    raise OSError(errno.EXDEV, "Invalid cross-device link")


def test_a_move_is_a_rename(tree: Path, tmp_path: Path) -> None:
    """The folder itself is what arrives."""
    inode = tree.stat().st_ino
    move(tree, tmp_path / "moved")
    assert (tmp_path / "moved").stat().st_ino == inode


def test_a_move_to_another_file_system_is_a_copy(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What arrives is as whole as by a rename; a copy that is refused leaves nothing."""
    monkeypatch.setattr(Path, "rename", _other_file_system)
    move(tree, tmp_path / "moved")
    assert content(tmp_path / "moved") == content(tree)
    with pytest.raises(UnsafeTreeError):
        move(tree, tmp_path / "refused", max_files=2)
    assert not (tmp_path / "refused").exists()


def test_a_move_onto_something_is_refused(tree: Path) -> None:
    """What was there stays."""
    with pytest.raises(ResultsError, match="inner: cannot be written: "):
        move(tree, tree / "inner")
    assert len(content(tree)) == 3


def _refuse_exchange(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(files, "_renameat2", lambda: lambda *_: ctypes.set_errno(number) or -1)


@pytest.mark.parametrize("system", ["exchange", "no such function", "no such call", "not on this file system"])
@pytest.mark.parametrize("before", ["folder", "dangling link", "nothing"])
def test_a_swap_puts_in_place(tree: Path, monkeypatch: pytest.MonkeyPatch, before: str, system: str) -> None:
    """The new folder is there, and what was there is where the new one was."""
    if system == "no such function":
        monkeypatch.setattr(files, "_renameat2", lambda: None)
    elif system != "exchange":
        _refuse_exchange(monkeypatch, errno.ENOSYS if system == "no such call" else errno.EINVAL)
    final = tree.parent / "final"
    if before == "folder":
        (final / "old").mkdir(parents=True)
    elif before == "dangling link":
        final.symlink_to("nowhere")
    swap_into_place(tree, final)
    assert content(final).keys() == {"a.py", "inner", "inner/b.sh"}
    left = {"folder": {"final", "tree", "tree/old"}, "dangling link": {"final", "tree"}, "nothing": {"final"}}[before]
    assert {name for name in content(tree.parent) if not name.startswith("final/")} == left


def test_a_swap_that_fails_changes_nothing(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any other refusal of the kernel's is an error about the place, and no way around is tried."""
    _refuse_exchange(monkeypatch, errno.EACCES)
    with pytest.raises(PermissionError, match="inner"):
        swap_into_place(tree / "a.py", tree / "inner")
    assert set(content(tree)) == {"a.py", "inner", "inner/b.sh"}


@pytest.mark.parametrize("make", [Path.touch, _make_sparse, lambda path: path.symlink_to("tree"), Path.mkdir])
def test_whatever_it_is_it_is_removed(tree: Path, make: Callable[[Path], object]) -> None:
    """A link without what it points to; and what is gone already is no error."""
    make(tree.parent / "it")
    remove_tree(tree.parent / "it")
    remove_tree(tree.parent / "it")
    assert list(tree.parent.iterdir()) == [tree]
    assert len(content(tree)) == 3


def test_a_removal_follows_nothing(tree: Path) -> None:
    """Links inside are removed, and what they point to stays."""
    (tree / "inner" / "out").symlink_to(tree.parent)
    remove_tree(tree)
    assert list(tree.parent.iterdir()) == []


@pytest.mark.parametrize("mode", [0, 0o500, 0o400, 0o100])
def test_unwritable_folders_are_removed(here: Path, mode: int) -> None:
    """Whoever made them so at whatever level, and the folder around them keeps its mode."""
    here.chmod(0o755)
    (here / "tree" / "a" / "b").mkdir(parents=True)
    (here / "tree" / "a" / "b" / "file").touch()
    for path in (here / "tree" / "a" / "b", here / "tree" / "a", here / "tree"):
        path.chmod(mode)
    remove_tree(here / "tree")
    assert list(here.iterdir()) == []
    assert stat.S_IMODE(here.stat().st_mode) == 0o755


def test_a_read_only_place_keeps_what_it_holds(here: Path) -> None:
    """The place's mode is its owner's word: what cannot be removed is an error, and the mode stays."""
    (here / "place" / "tree").mkdir(parents=True)
    (here / "place").chmod(0o555)
    with pytest.raises(PermissionError):
        remove_tree(here / "place" / "tree")
    assert stat.S_IMODE((here / "place").stat().st_mode) == 0o555


def test_folders_of_any_depth_are_removed(tmp_path: Path) -> None:
    """More levels than Python has frames and this process descriptors."""
    _make_deep(tmp_path / "deep", 1200)
    remove_tree(tmp_path / "deep")
    assert list(tmp_path.iterdir()) == []
