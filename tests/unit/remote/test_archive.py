from __future__ import annotations

import io
import os
import stat
import tarfile
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rampd.copying import UnsafeTreeError
from rampd.errors import ResultsError
from rampd.remote.archive import MAX_DEPTH, largest_archive_bytes, pack_submission, unpack

if TYPE_CHECKING:
    from pathlib import Path

ROOM = {"max_bytes": 1 << 20, "max_files": 100}


def archive_of(*members: tuple[tarfile.TarInfo, bytes], format_: int = tarfile.GNU_FORMAT) -> io.BytesIO:
    """Return an archive of these members, whatever they are."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format_) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content) if content else None)
    file.seek(0)
    return file


def member(
    name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, **more: object
) -> tuple[tarfile.TarInfo, bytes]:
    """Return one member."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = len(content)
    for key, value in more.items():
        setattr(info, key, value)
    return info, content


def packed(folder: Path, root: Path, **room: int) -> io.BytesIO:
    """Return a submission's archive, at its beginning."""
    file = io.BytesIO()
    pack_submission(folder, file, name="one", scratch=root / "scratch", **{**ROOM, **room})
    file.seek(0)
    return file


def test_a_submission_arrives_as_it_was(tmp_path: Path) -> None:
    """Files, folders and contents make the way there; a training_output that was sent along does not."""
    source = tmp_path / "source"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "estimator.py").write_text("print('ä')\n", encoding="utf-8")
    (source / "deep" / "er" / "data.bin").write_bytes(bytes(range(256)))
    (source / "training_output").mkdir()
    (source / "training_output" / "faked").touch()
    unpack(packed(source, tmp_path), tmp_path / "there", **ROOM)
    found = {str(path.relative_to(tmp_path / "there")) for path in (tmp_path / "there").rglob("*")}
    assert found == {"one", "one/estimator.py", "one/deep", "one/deep/er", "one/deep/er/data.bin"}
    assert (tmp_path / "there" / "one" / "deep" / "er" / "data.bin").read_bytes() == bytes(range(256))
    assert not (tmp_path / "scratch").exists()


def test_an_archive_names_nobody(tmp_path: Path) -> None:
    """The daemon's user and group do not travel."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "estimator.py").touch()
    with tarfile.open(fileobj=packed(source, tmp_path)) as tar:
        assert {(one.uid, one.gid, one.uname, one.gname) for one in tar} == {(0, 0, "", "")}


def test_what_is_too_large_is_not_packed(tmp_path: Path) -> None:
    """A sparse file counts in full and is never read."""
    source = tmp_path / "source"
    source.mkdir()
    with (source / "huge").open("wb") as file:
        file.truncate(2 << 30)
    with pytest.raises(UnsafeTreeError, match="too large at 'huge'"):
        packed(source, tmp_path)
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (member("link", kind=tarfile.SYMTYPE, linkname="/etc/passwd"), "'link' is a link"),
        (member("hard", kind=tarfile.LNKTYPE, linkname="good"), "'hard' is a hard link"),
        (member("fifo", kind=tarfile.FIFOTYPE), "'fifo' is a fifo"),
        (member("null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3), "'null' is a device"),
        (member("disk", kind=tarfile.BLKTYPE, devmajor=8), "'disk' is a device"),
        (member("odd", kind=tarfile.CONTTYPE), "'odd' is no regular file"),
        (member("/etc/cron.d/evil", b"x"), "leaves the folder"),
        (member("a/../../evil", b"x"), "leaves the folder"),
        (member("../evil", b"x"), "leaves the folder"),
        (member("good", b"again"), "'good' is in it twice"),
        (member("good/below", b"x"), "'good/below' is below a file"),
        (member("/".join("d" * (MAX_DEPTH + 1)), b"x"), "nested deeper than"),
        (member("large", b"x" * (1 << 20)), "too large at 'large'"),
    ],
)
def test_what_is_refused(tmp_path: Path, bad: tuple[tarfile.TarInfo, bytes], why: str) -> None:
    """Anything but regular files and folders inside the folder is refused whole, and leaves nothing."""
    (tmp_path / "beside").mkdir()
    with pytest.raises(UnsafeTreeError, match=why):
        unpack(archive_of(member("good", b"fine"), bad), tmp_path / "beside" / "there", **ROOM)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["beside"]


def test_more_files_than_allowed(tmp_path: Path) -> None:
    """Empty files and folders count too."""
    many = [member(f"file{number}") for number in range(60)] + [
        member(f"folder{number}", kind=tarfile.DIRTYPE) for number in range(60)
    ]
    with pytest.raises(UnsafeTreeError, match="too large at 'folder40'"):
        unpack(archive_of(*many), tmp_path / "there", **ROOM)


def test_a_sparse_member_is_refused(tmp_path: Path) -> None:
    """GNU's sparse files say one size and are another: no regular file to us."""
    with pytest.raises(UnsafeTreeError, match="is no regular file"):
        unpack(archive_of(member("sparse", kind=tarfile.GNUTYPE_SPARSE)), tmp_path / "there", **ROOM)


@pytest.mark.parametrize("keep", [0, 100, 512, 700, 1536, 1600, 2048, 3072])
def test_a_cut_archive_is_refused(tmp_path: Path, keep: int) -> None:
    """What ends too early leaves nothing, whether within a header or within a file."""
    whole = archive_of(member("good", b"x" * 900), member("other", b"y" * 900)).getvalue()
    with pytest.raises(UnsafeTreeError):
        unpack(io.BytesIO(whole[:keep]), tmp_path / "there", **ROOM)
    assert not (tmp_path / "there").exists()


def test_a_damaged_header_is_not_the_end(tmp_path: Path) -> None:
    """Members behind a header that nobody can read are not left out in silence."""
    whole = bytearray(archive_of(member("good", b"x"), member("other", b"y")).getvalue())
    whole[1024 + 148] ^= 0xFF  # the second header's checksum
    with pytest.raises(UnsafeTreeError, match="damaged"):
        unpack(io.BytesIO(bytes(whole)), tmp_path / "there", **ROOM)
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize(
    "kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, b"X"]
)
def test_a_huge_extension_is_not_read(tmp_path: Path, kind: bytes) -> None:
    """A name of a gigabyte would be held in memory: its header alone is refused."""
    info, _ = member("long", kind=kind)
    info.size = 1 << 30
    header = io.BytesIO(info.tobuf(tarfile.GNU_FORMAT) + b"n" * 1024)
    with pytest.raises(UnsafeTreeError, match="too long"):
        unpack(header, tmp_path / "there", max_bytes=1 << 31, max_files=10)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_endless_extensions_are_refused(tmp_path: Path, kind: bytes) -> None:
    """A thousand in a row are the sender's doing, and no failure of ours."""
    content = b"abc\0" if kind == tarfile.GNUTYPE_LONGNAME else b"10 path=a\n"
    info, _ = member("one", kind=kind)
    info.size = len(content)
    one = info.tobuf(tarfile.GNU_FORMAT) + content.ljust(512, b"\0")
    with pytest.raises(UnsafeTreeError, match="damaged"):
        unpack(io.BytesIO(one * 1000), tmp_path / "there", **ROOM)


def _pax(**records: str) -> bytes:
    text = b""
    for key, value in records.items():
        body = f" {key.replace('_', '.')}={value}\n"
        text += f"{len(body) + 2}{body}".encode()
    assert len(text) < 512
    return text


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_SPARSE, tarfile.XHDTYPE])
def test_a_map_of_a_sparse_file_is_not_read(tmp_path: Path, kind: bytes) -> None:
    """It takes many times the memory that it takes in the archive, whichever way it is written."""
    info, _ = member("sparse", kind=kind)
    if kind == tarfile.GNUTYPE_SPARSE:
        header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        header[482] = 1  # more of the map follows
        header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:512]) + 8 * ord(" "))
        blocks = b"00000000001\0" * 42 + b"\1".ljust(8, b"\0")
    else:
        extension = _pax(GNU_sparse_major="1", GNU_sparse_minor="0", GNU_sparse_realsize="0")
        info.size = len(extension)
        file, _ = member("sparse")
        file.size = 1 << 20
        header = bytearray(
            info.tobuf(tarfile.GNU_FORMAT) + extension.ljust(512, b"\0") + file.tobuf(tarfile.GNU_FORMAT)
        )
        blocks = b"99999\n" + b"1\n" * 253
    archive = io.BytesIO(bytes(header) + blocks * 2000)
    with pytest.raises(UnsafeTreeError, match="'sparse' is no regular file"):
        unpack(archive, tmp_path / "there", max_bytes=1 << 31, max_files=10)
    assert archive.tell() <= 10240  # tarfile's first record


@given(noise=st.binary(max_size=2000))
def test_noise_never_becomes_a_surprise(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    """Whatever comes in place of an archive is refused, or is an archive."""
    folder = tmp_path_factory.mktemp("noise")
    try:
        unpack(io.BytesIO(noise), folder / "there", **ROOM)
    except UnsafeTreeError:
        assert not (folder / "there").exists()


@given(position=st.integers(0, 2047), value=st.integers(0, 255))
def test_a_flipped_byte_never_escapes(tmp_path_factory: pytest.TempPathFactory, position: int, value: int) -> None:
    """One byte changed anywhere: refused, or unpacked below the folder."""
    folder = tmp_path_factory.mktemp("flipped")
    whole = bytearray(archive_of(member("a/b", b"x" * 100), member("c", b"y")).getvalue())
    whole[position] = value
    with suppress(UnsafeTreeError):
        unpack(io.BytesIO(bytes(whole)), folder / "there", **ROOM)
    assert {path.name for path in folder.iterdir()} <= {"there"}


def test_modes_are_ours(tmp_path: Path) -> None:
    """No set-uid bit, no unreadable folder comes out of an archive."""
    unpack(
        archive_of(member("folder", kind=tarfile.DIRTYPE, mode=0), member("folder/file", b"x", mode=0o4777)),
        tmp_path / "there",
        **ROOM,
    )
    assert stat.S_IMODE((tmp_path / "there" / "folder").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "there" / "folder" / "file").stat().st_mode) == 0o644


def test_folders_may_come_late_and_twice(tmp_path: Path) -> None:
    """`tar -C folder .` begins with the folder itself; other tars have other orders."""
    unpack(
        archive_of(
            member(".", kind=tarfile.DIRTYPE),
            member("./a/b", b"x"),
            member("a", kind=tarfile.DIRTYPE),
            member("a", kind=tarfile.DIRTYPE),
        ),
        tmp_path / "there",
        **ROOM,
    )
    assert (tmp_path / "there" / "a" / "b").read_bytes() == b"x"


def test_long_names_arrive(tmp_path: Path) -> None:
    """Names over 100 bytes need an extension of the format, in every format that has one."""
    name = "/".join(["n" * 90] * 3)
    for number, format_ in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        unpack(archive_of(member(name, b"x"), format_=format_), tmp_path / f"there{number}", **ROOM)
        assert (tmp_path / f"there{number}" / name).read_bytes() == b"x"


def test_the_largest_archive_is_large_enough(tmp_path: Path) -> None:
    """A tree at its bounds fits into what may be received."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(50):
        (source / f"{'n' * 200}{number}").write_bytes(b"x" * 1000)
    size = len(packed(source, tmp_path, max_bytes=50_000, max_files=51).getvalue())
    assert size <= largest_archive_bytes(max_bytes=50_000, max_files=51)


def test_a_destination_that_cannot_be_written_is_our_fault(tmp_path: Path) -> None:
    """A folder that is there already, or a disk that is full, is no fault of the archive's."""
    (tmp_path / "there").mkdir()
    with pytest.raises(ResultsError, match="cannot be written: File exists"):
        unpack(archive_of(member("a", b"x")), tmp_path / "there", **ROOM)
    if os.path.exists("/dev/full"):  # noqa: PTH110
        source = tmp_path / "source"
        source.mkdir()
        (source / "estimator.py").write_bytes(b"x" * 100_000)
        with (
            open("/dev/full", "wb", buffering=0) as full,  # noqa: PTH123
            pytest.raises(ResultsError, match="cannot be written: No space left"),
        ):
            pack_submission(source, full, name="one", scratch=tmp_path / "scratch", **ROOM)
