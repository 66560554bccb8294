"""Seeing that something happened in a folder or to a file: by inotify, and by polling."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from asyncinotify import Inotify, Mask

from rampd import watch
from rampd.watch import Changes, FileWatch, FolderWatch, is_shared

if TYPE_CHECKING:
    from collections.abc import Callable

    Record = dict[str, Any]

PATIENCE_S = 10.0


async def seen(folder: FolderWatch, *, until: Callable[[Changes], object]) -> Changes:
    """Ask until what was seen together is enough."""
    found = Changes()
    async with asyncio.timeout(PATIENCE_S):
        while not until(found):
            more = await folder.changes()
            found = Changes(found.moved_in | more.moved_in, found.appeared | more.appeared, found.rescan or more.rescan)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder that is watched."""
    path = tmp_path / "watched"
    path.mkdir()
    return path


async def test_a_rename_is_seen_as_complete(folder: Path) -> None:
    """What arrives by a rename is named apart."""
    staging = folder.parent / "staging"
    staging.mkdir()
    async with FolderWatch(folder) as watching:
        assert not watching.is_polling
        staging.rename(folder / "one")
        assert await seen(watching, until=lambda found: found.moved_in) == Changes(moved_in={"one"})


async def test_what_is_made_in_place_is_seen(folder: Path) -> None:
    """A folder and a file that are made where they stay."""
    async with FolderWatch(folder) as watching:
        (folder / "one").mkdir()
        (folder / "two").touch()
        assert await seen(watching, until=lambda found: len(found.appeared) == 2) == Changes(appeared={"one", "two"})


@pytest.mark.parametrize("go", [lambda path: path.rmdir(), lambda path: path.rename(path.parent.parent / "elsewhere")])
async def test_what_goes_is_seen(folder: Path, go: Callable[[Path], object]) -> None:
    """Removed, or moved away: somebody should look."""
    (folder / "one").mkdir()
    async with FolderWatch(folder) as watching:
        go(folder / "one")
        assert await seen(watching, until=lambda found: found.appeared) == Changes(appeared={"one"})


async def test_what_lies_deeper_is_not_seen(folder: Path) -> None:
    """Only the folder itself is watched, and what it holds when the watch begins is no news."""
    (folder / "one").mkdir()
    async with FolderWatch(folder) as watching:
        (folder / "one" / "deep").touch()
        (folder / "two").mkdir()
        assert await seen(watching, until=lambda found: found.appeared) == Changes(appeared={"two"})


async def test_what_comes_while_nobody_asks_is_one_batch(folder: Path) -> None:
    """Events are gathered meanwhile, and told once."""
    names = {f"name-{number}" for number in range(50)}
    async with FolderWatch(folder) as watching:
        for name in names:
            (folder / name).mkdir()
        async with asyncio.timeout(PATIENCE_S):
            while watching._found.appeared != names:  # noqa: ASYNC110 -- asking would empty it
                await asyncio.sleep(0.001)
        assert await watching.changes() == Changes(appeared=names)
        (folder / "more").mkdir()
        assert await seen(watching, until=lambda found: found.appeared) == Changes(appeared={"more"})


async def test_a_cancelled_question_loses_nothing(folder: Path) -> None:
    """What comes after a caller gave up is told to the next one."""
    async with FolderWatch(folder) as watching:
        asking = asyncio.ensure_future(watching.changes())
        await asyncio.sleep(0)
        (folder / "one").mkdir()
        asking.cancel()
        await asyncio.wait({asking})
        assert await seen(watching, until=lambda found: found.appeared) == Changes(appeared={"one"})


async def test_a_folder_may_come_later(tmp_path: Path) -> None:
    """What lies in it when it is found made no event, so everything has to be looked at; then it is watched."""
    folder = tmp_path / "later"
    async with FolderWatch(folder, poll_interval_s=3600) as watching:
        polled = [watching.is_polling]
        (folder / "one").mkdir(parents=True)
        assert await seen(watching, until=lambda found: found.rescan) == Changes(rescan=True)
        assert [*polled, watching.is_polling] == [True, False]
        (folder / "two").mkdir()
        assert await seen(watching, until=lambda found: found.appeared) == Changes(appeared={"two"})


@pytest.mark.parametrize("go", [shutil.rmtree, lambda path: path.rename(path.parent / "elsewhere")])
async def test_a_folder_may_go_and_come_again(folder: Path, go: Callable[[Path], object]) -> None:
    """Its end asks for a look at everything; so does its return, after which it is watched as before."""
    async with FolderWatch(folder, poll_interval_s=3600) as watching:
        go(folder)
        assert (await seen(watching, until=lambda found: found.rescan)).rescan
        assert watching.is_polling
        (folder.parent / folder.name).mkdir()
        assert (await seen(watching, until=lambda found: found.rescan)).rescan
        (folder / "one").mkdir()
        assert (await seen(watching, until=lambda found: found.appeared)).appeared == {"one"}


async def test_an_overflow_asks_for_a_look_at_everything(folder: Path) -> None:
    """Events were lost; the watch itself goes on."""
    async with FolderWatch(folder) as watching:
        watching._note(cast("Any", SimpleNamespace(mask=Mask.Q_OVERFLOW, name=None)))
        watching._arrived.set()
        assert await watching.changes() == Changes(rescan=True)
        assert not watching.is_polling
        (folder / "one").mkdir()
        assert (await seen(watching, until=lambda found: found.appeared)).appeared == {"one"}


@pytest.mark.looptime
async def test_polling_says_look_at_every_interval(folder: Path) -> None:
    """Without inotify a look is due again and again, whether something happened or not."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with FolderWatch(folder, poll=True, poll_interval_s=5) as watching:
        assert watching.is_polling
        times = []
        for _ in range(3):
            assert await watching.changes() == Changes(rescan=True)
            times.append(round(loop.time() - began, 3))
    assert times == [5, 10, 15]


@pytest.mark.looptime
async def test_a_caller_in_a_hurry_still_sees_a_poll(folder: Path) -> None:
    """A call that is cancelled before the interval is over does not begin it anew."""
    began = asyncio.get_running_loop().time()
    async with FolderWatch(folder, poll=True, poll_interval_s=5) as watching:
        found = None
        while found is None:
            try:
                found = await asyncio.wait_for(watching.changes(), 2)
            except TimeoutError:
                assert asyncio.get_running_loop().time() - began < 5
    assert found.rescan


def _refused(*_: object, **__: object) -> None:
    raise OSError(errno.EMFILE, "Too many open files")


@pytest.mark.looptime
@pytest.mark.parametrize("limit", ["max_user_instances", "max_user_watches"])
async def test_without_inotify_it_polls_and_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, log_records: list[Record], limit: str
) -> None:
    """The kernel has no more to give: the log names the limit to raise."""
    if limit == "max_user_instances":
        monkeypatch.setattr(watch, "Inotify", _refused)
    else:
        monkeypatch.setattr(Inotify, "add_watch", _refused)
    async with FolderWatch(folder) as watching:
        assert watching.is_polling
    (record,) = log_records
    assert (record["event"], record["level"], record["path"]) == ("watch.polling", "warning", str(folder))
    assert record["error"] == f"Too many open files: raise fs.inotify.{limit}"


@pytest.mark.looptime
async def test_what_keeps_it_from_watching_is_said_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, log_records: list[Record]
) -> None:
    """It is tried again at every poll; the log hears of it again after it has worked in between."""
    with monkeypatch.context() as refusing:
        refusing.setattr(watch, "Inotify", _refused)
        async with FolderWatch(folder) as watching:
            for _ in range(5):
                await watching.changes()
            assert len(log_records) == 1
            refusing.undo()
            await watching.changes()
            assert not watching.is_polling
            refusing.setattr(watch, "Inotify", _refused)
            shutil.rmtree(folder)
            await seen(watching, until=lambda _: watching.is_polling)
            await watching.changes()
    assert [record["event"] for record in log_records] == ["watch.polling"] * 2


async def test_a_file_in_the_folders_place_is_no_matter_of_limits(tmp_path: Path, log_records: list[Record]) -> None:
    """The log says what is wrong."""
    path = tmp_path / "file"
    path.touch()
    async with FolderWatch(path) as watching:
        assert watching.is_polling
    (record,) = log_records
    assert record["error"] == "Not a directory"


async def _is_quiet(watching: FileWatch, path: Path) -> bool:
    """Say whether a watch has nothing to tell: a touch that follows is then the first thing that it does."""
    asking = asyncio.ensure_future(watching.touched())
    for _ in range(20):
        await asyncio.sleep(0)
    quiet = not asking.done()
    os.utime(path)
    await asyncio.wait_for(asking, PATIENCE_S)
    return quiet


async def test_a_touch_is_seen(tmp_path: Path) -> None:
    """The file is made where it is missing, which is no touch; the touches that follow are, each once."""
    path = tmp_path / "wake"
    async with FileWatch(path) as watching:
        assert path.exists()
        assert await _is_quiet(watching, path)
        assert await _is_quiet(watching, path)


async def test_a_touch_while_nobody_waits_is_seen(tmp_path: Path) -> None:
    """It waits for the next call."""
    async with FileWatch(tmp_path / "wake") as watching:
        (tmp_path / "wake").touch()
        await asyncio.wait_for(watching.touched(), PATIENCE_S)


async def test_two_touches_in_one_tick_are_both_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's clock may stand still between them."""
    monkeypatch.setattr(FileWatch, "_stamp", lambda _: 1)
    async with FileWatch(tmp_path / "wake") as watching:
        for _ in range(2):
            (tmp_path / "wake").touch()
            await asyncio.wait_for(watching.touched(), PATIENCE_S)


async def test_an_overflow_may_have_been_a_touch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's queue was full: whatever was lost is asked for."""
    async with FileWatch(tmp_path / "wake") as watching:
        overflow = SimpleNamespace(mask=Mask.Q_OVERFLOW, name=None)

        async def get(_: Inotify) -> object:
            return overflow

        monkeypatch.setattr(Inotify, "get", get)
        await asyncio.wait_for(watching.touched(), PATIENCE_S)


async def test_other_files_beside_it_do_not_count(tmp_path: Path) -> None:
    """A database writes there all the time."""
    async with FileWatch(tmp_path / "wake") as watching:
        for name in ("journal.sqlite3", "journal.sqlite3-wal", "wake2"):
            (tmp_path / name).write_text("x", encoding="utf-8")
        assert await _is_quiet(watching, tmp_path / "wake")


@pytest.mark.parametrize("replaced", [True, False])
async def test_a_file_that_is_made_again_is_the_same(tmp_path: Path, *, replaced: bool) -> None:
    """Removed and made, or replaced by a rename: both are touches, and touches are seen afterwards."""
    path = tmp_path / "wake"
    async with FileWatch(path) as watching:
        if replaced:
            (tmp_path / "new").touch()
            (tmp_path / "new").replace(path)
        else:
            path.unlink()
            path.touch()
        await asyncio.wait_for(watching.touched(), PATIENCE_S)
        path.touch()
        await asyncio.wait_for(watching.touched(), PATIENCE_S)


@pytest.mark.looptime
async def test_a_polling_file_watch_sees_a_touch(tmp_path: Path) -> None:
    """At the next look, and not before there was one."""
    path, loop = tmp_path / "wake", asyncio.get_running_loop()
    began = loop.time()
    async with FileWatch(path, poll=True, poll_interval_s=5) as watching:
        loop.call_later(12, lambda: os.utime(path, (1, 1)))
        await watching.touched()
        assert round(loop.time() - began) == 15


@pytest.mark.looptime
async def test_a_file_watch_outlives_its_folder(tmp_path: Path) -> None:
    """Without a folder there is nothing to see until there is one."""
    path, loop = tmp_path / "missing" / "wake", asyncio.get_running_loop()
    async with FileWatch(path, poll_interval_s=5) as watching:
        loop.call_later(7, path.parent.mkdir)
        loop.call_later(12, path.touch)
        await watching.touched()


MOUNTS = r"""
22 1 253:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:20 / /proc rw - proc proc rw
40 22 0:50 / /srv/nfs rw,relatime shared:2 master:3 - nfs4 server:/export rw
41 40 0:51 / /srv/nfs/local rw - tmpfs tmpfs rw
42 22 0:52 / /mnt/a\040b rw - fuse.sshfs host: rw
43 22 253:1 / /over rw - ext4 /dev/vdb rw
44 43 0:53 / /over rw - 9p share rw
""".strip()


@pytest.mark.parametrize(
    ("path", "shared"),
    [
        ("/", False),
        ("/home/somebody", False),
        ("/srv/nfs", True),
        ("/srv/nfs/events/iris", True),
        ("/srv/nfs/local/x", False),
        ("/srv/nfs2", False),
        ("/mnt/a b/c", True),
        ("/mnt/a", False),
        ("/over/x", True),
    ],
)
def test_the_file_system_decides(tmp_path: Path, path: str, *, shared: bool) -> None:
    """The longest mount point above a folder counts, and of two at the same place the later one."""
    assert is_shared(tmp_path.joinpath(path), mounts=lambda: MOUNTS) is shared


def test_a_link_to_a_shared_folder_is_shared(tmp_path: Path) -> None:
    """Where the files are decides, not what leads to them."""
    (tmp_path / "link").symlink_to(tmp_path / "nfs")
    table = f"{MOUNTS}\n50 22 0:60 / {tmp_path.resolve() / 'nfs'} rw - nfs server:/ rw"
    assert is_shared(tmp_path / "link" / "deeper", mounts=lambda: table)
    assert not is_shared(tmp_path, mounts=lambda: table)


def test_without_a_table_nothing_is_shared(tmp_path: Path) -> None:
    """Somewhere without /proc inotify is tried."""

    def mounts() -> str:
        raise OSError(errno.ENOENT, "no /proc")

    assert not is_shared(tmp_path, mounts=mounts)


def test_the_kernels_own_table_is_read() -> None:
    """What only this machine can write to is not shared."""
    assert not is_shared(Path("/proc/self"))
