"""Looking into .npz files without unpickling anything."""

from __future__ import annotations

import io
import os
import pickle
import struct
import time
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rampd.errors import BadResultsError
from rampd.ramp_test.npz import check_npz
from support.training_output import npy, npz

if TYPE_CHECKING:
    from collections.abc import Callable

_HEADER = "{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }"


def _array(header: str | bytes, data: bytes = b"\0" * 8, *, version: int = 1, length: int | None = None) -> bytes:
    """Return an .npy file with this very header."""
    raw = header.encode() if isinstance(header, str) else header
    width = "<H" if version == 1 else "<I"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack(width, len(raw) if length is None else length) + raw + data


def _descr(descr: object, size: int) -> bytes:
    """Return an array of one item of a dtype."""
    return _array(repr({"descr": descr, "fortran_order": False, "shape": (1,)}), b"\0" * size)


def _file(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "y_pred_train.npz"
    path.write_bytes(content)
    return path


def _named(*names: str) -> bytes:
    """Return a zip of arrays with these names."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore", UserWarning)  # about names that occur twice
        for name in names:
            archive.writestr(name, npy([1.0]))
    return buffer.getvalue()


def _refused(tmp_path: Path, content: bytes) -> str:
    """Return the reason that a participant sees."""
    with pytest.raises(BadResultsError) as caught:
        check_npz(_file(tmp_path, content))
    assert caught.value.reason.startswith("y_pred_train.npz ")
    return caught.value.reason


@pytest.mark.parametrize(
    ("descr", "size"),
    [
        ("<f8", 8),
        (">f4", 4),
        ("<f2", 2),
        ("<c16", 16),
        ("|b1", 1),
        ("|u1", 1),
        ("<i8", 8),
        ("=i4", 4),
        ("|S7", 7),
        ("|S0", 0),
        ("<U5", 20),
        ("|V3", 3),
        ("<M8[ns]", 8),
        ("<m8[25us]", 8),
        ("<M8", 8),
        ([("label", "<i8"), ("x y", "<f4", (2, 3))], 32),
        ([("inner", [("a", "<f8"), ("", "|V4")])], 12),
        ([(("title", "name"), "<f8")], 8),
    ],
)
def test_plain_dtypes_pass(tmp_path: Path, descr: object, size: int) -> None:
    """Whatever numpy writes without pickling is accepted."""
    check_npz(_file(tmp_path, npz(y_pred=_descr(descr, size))))


@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_version_of_the_format_passes(tmp_path: Path, version: int) -> None:
    """Versions 2 and 3 have wider headers, 3 has field names beyond latin1."""
    name = "é" if version == 3 else "e"
    header = f"{{'descr': [('{name}', '<f8')], 'fortran_order': True, 'shape': (1,), }}    \n"
    check_npz(_file(tmp_path, npz(y_pred=_array(header, version=version))))


@pytest.mark.parametrize(("shape", "n"), [("()", 1), ("(0,)", 0), ("(2, 3)", 6), ("(4, 0, 9)", 0)])
def test_every_shape_passes(tmp_path: Path, shape: str, n: int) -> None:
    """A scalar and an empty array are arrays too."""
    check_npz(_file(tmp_path, npz(y_pred=_array(_HEADER.replace("(1,)", shape), b"\0" * 8 * n))))


def test_several_arrays_pass(tmp_path: Path) -> None:
    """An .npz may hold more than one array, stored or deflated."""
    check_npz(_file(tmp_path, npz(y_pred=npy([1.0]), extra=npy([1.0, 2.0]))))
    check_npz(_file(tmp_path, _named("a.npy", "b.npy")))


class _Bomb:
    """Goes off when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("exploded"),)  # type: ignore[return-value]


@pytest.mark.parametrize("descr", ["|O", "O", "|O8", "<O", [("a", "<f8"), ("b", "|O")], [("a", [("b", "O")], (1,))]])
def test_an_object_array_is_refused_and_never_opened(tmp_path: Path, descr: object) -> None:
    """Objects are pickles, and a pickle is a program."""
    content = _array(repr({"descr": descr, "fortran_order": False, "shape": ()}), pickle.dumps("harmless"))
    assert "pickle" in _refused(tmp_path, npz(y_pred=content))


@pytest.mark.parametrize(
    "descr",
    [
        "",
        "f",
        "<",
        "x8",
        "f-8",
        "<f8,O",
        "<M8[ns],O",
        "<f8[ns]",
        "<M8[ns]O",
        "f9999999999",
        "object",
        "2O",
        8,
        True,
        (),
        ("<f8", (2,)),
        [["a", "<f8"]],
        [("a",)],
        [("a", "<f8", (2,), 0)],
        [("a", "<f8", 2)],
        [("a", "<f8", (True,))],
    ],
)
def test_an_unknown_dtype_is_refused(tmp_path: Path, descr: object) -> None:
    """What numpy would not have written may mean anything to whoever loads it."""
    assert "unknown type" in _refused(tmp_path, npz(y_pred=_descr(descr, 8)))


def test_a_dtype_of_endless_depth_is_refused(tmp_path: Path) -> None:
    """Nested deeper than any record is."""
    descr: object = "<f8"
    for _ in range(30):
        descr = [("a", descr)]
    assert "unknown type" in _refused(tmp_path, npz(y_pred=_descr(descr, 8)))


@pytest.mark.parametrize(
    "header",
    [
        "",
        "{",
        "[]",
        "{[]: 1}",
        "{{}}",
        "__import__('os')",
        "{'descr': '<f8', 'shape': (1,)}",
        _HEADER.replace("}", "'more': 1}"),
        "1if " * 2000,
        "'\\d'" * 1000,
        "-" * 9000 + "1",
        "(" * 9000,
        "[" * 150 + "]" * 150,
        "9" * 5000,
        "'" + "\0" * 10 + "'",
        b"\xff\xfe{}",
    ],
)
def test_a_broken_header_is_refused(tmp_path: Path, header: str | bytes) -> None:
    """It is read as a literal, without running, warning or recursing into anything."""
    assert "broken header" in _refused(tmp_path, npz(y_pred=_array(header)))


@pytest.mark.parametrize("header", ["1if " * 2000, "'\\d'" * 1000])
def test_no_header_makes_the_parser_warn(tmp_path: Path, header: str) -> None:
    """Each warning would be a line of the daemon's log, by the thousand."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _refused(tmp_path, npz(y_pred=_array(header)))
    assert not caught


def test_a_header_in_broken_utf8_is_refused(tmp_path: Path) -> None:
    """Version 3 says UTF-8."""
    _refused(tmp_path, npz(y_pred=_array(b"\xff\xfe", version=3)))


@pytest.mark.parametrize("shape", ["1", "[1]", "(1.0,)", "(True,)", "(-1,)", "('1',)", "((1,),)"])
def test_a_broken_shape_is_refused(tmp_path: Path, shape: str) -> None:
    """A shape is a tuple of whole numbers from 0."""
    assert "broken" in _refused(tmp_path, npz(y_pred=_array(_HEADER.replace("(1,)", shape))))


@pytest.mark.parametrize("shape", ["(2,)", "(0,)", "()", f"(1,{'9' * 4000})", f"({'9999999, ' * 1000})"])
def test_a_shape_that_lies_is_refused(tmp_path: Path, shape: str) -> None:
    """The bytes must be as many as the header says, so that nobody allocates what is not there."""
    array = _array(_HEADER.replace("(1,)", shape), b"\0" * 4)
    assert "another size" in _refused(tmp_path, npz(y_pred=array))


@pytest.mark.parametrize(("version", "length"), [(2, 10_001), (2, 2**32 - 1), (3, 1 << 20), (1, 65535)])
def test_an_oversized_header_is_refused(tmp_path: Path, version: int, length: int) -> None:
    """No header is read that numpy.load would refuse for its length."""
    assert "oversized" in _refused(tmp_path, npz(y_pred=_array(_HEADER, version=version, length=length)))


def test_a_truncated_array_is_refused(tmp_path: Path) -> None:
    """Wherever an array ends too early, in its magic, its header or its data."""
    for size in range(len(npy([1.0]))):
        _refused(tmp_path, npz(y_pred=npy([1.0])[:size]))


@pytest.mark.parametrize("start", [b"", b"\x93NUMPX\x01\0", b"\x93NUMPY\x04\0", b"\x93NUMPY\0\0", b"\x80\x04K\x01."])
def test_a_member_that_is_no_array_is_refused(tmp_path: Path, start: bytes) -> None:
    """A name that ends with .npy makes no array."""
    assert "no array" in _refused(tmp_path, npz(y_pred=start + npy([1.0])[8:] if start else b""))


@pytest.mark.parametrize("name", ["readme.txt", "y_pred", "sub/y_pred.npy", "../y_pred.npy", "/y_pred.npy", "a.npy/"])
def test_a_stray_or_nested_member_is_refused(tmp_path: Path, name: str) -> None:
    """What numpy writes is arrays side by side, and nothing else."""
    assert "no array" in _refused(tmp_path, _named("y_pred.npy", name))


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    """Which of them counts would be the reader's guess."""
    assert "two arrays" in _refused(tmp_path, _named("y_pred.npy", "y_pred.npy"))


@pytest.mark.parametrize("n", [0, 1001])
def test_no_member_or_far_too_many_are_refused(tmp_path: Path, n: int) -> None:
    """An empty zip is no prediction."""
    assert f"{n} arrays" in _refused(tmp_path, _named(*(f"{i}.npy" for i in range(n))))


def _with_flag(content: bytes, bit: int) -> bytes:
    """Set a flag in the local and the central header of the only member."""
    raw = bytearray(content)
    central = raw.index(b"PK\x01\x02")
    raw[6] |= bit
    raw[central + 8] |= bit
    return bytes(raw)


@pytest.mark.parametrize("bit", [0x1, 0x20, 0x40 | 0x1])
def test_an_encrypted_or_patched_member_is_refused(tmp_path: Path, bit: int) -> None:
    """Nobody could read it."""
    _refused(tmp_path, _with_flag(npz(y_pred=npy([1.0])), bit))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compression_that_numpy_never_uses_is_refused(tmp_path: Path, method: int) -> None:
    """LZMA asks for as much memory as the file says."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("y_pred.npy", npy([1.0]))
    assert "compressed" in _refused(tmp_path, buffer.getvalue())


def test_a_file_that_is_no_zip_is_refused(tmp_path: Path) -> None:
    """Neither an empty file, nor text, nor an array, nor a bare pickle."""
    for content in (b"", b"hello" * 100, npy([1.0]), pickle.dumps([1]), b"PK\x05\x06"):
        assert "no complete .npz" in _refused(tmp_path, content)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """A file that went away is an error of the results, as any other."""
    with pytest.raises(BadResultsError):
        check_npz(tmp_path / "y_pred_train.npz")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    """A zip's directory is at its end."""
    content = npz(y_pred=npy([1.0] * 10))
    for size in range(len(content)):
        _refused(tmp_path, content[:size])


@pytest.mark.parametrize("zip64", [False, True])
def test_a_directory_of_millions_of_members_is_not_read(tmp_path: Path, *, zip64: bool) -> None:
    """Python's zipfile would hold each of them in memory, before anybody could count them."""
    entry = b"PK\x01\x02" + b"\0" * 24 + struct.pack("<H", 1) + b"\0" * 16 + b"a"
    size = len(entry) * 300_000
    content = entry * 300_000
    if zip64:
        content += b"PK\x06\x06" + struct.pack("<Q2H2L4Q", 44, 45, 45, 0, 0, 300_000, 300_000, size, 0)
        content += b"PK\x06\x07" + struct.pack("<LQL", 0, size, 1)
    content += b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 1, 1, 51 if zip64 else size, 0, 0)
    path = _file(tmp_path, content)
    before = time.process_time()
    with pytest.raises(BadResultsError, match="no complete"):
        check_npz(path)
    assert time.process_time() - before < 0.1


def test_an_archive_of_more_than_2_gib_is_none_the_less_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end is written in the format's larger words: what is 2 GiB to zipfile is made a few bytes here."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    content = _named("y_pred.npy", "other.npy")
    assert content[-42:-38] == b"PK\x06\x07"
    check_npz(_file(tmp_path, content))
    for size in range(1, 99):
        _refused(tmp_path, content[:-size])
    broken = bytearray(content)
    broken[-98] = 0
    _refused(tmp_path, bytes(broken))


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """A fifo's writer may never come."""
    path = tmp_path / "y_pred_train.npz"
    make(path)
    with pytest.raises(BadResultsError, match="no complete"):
        check_npz(path)


def test_a_commented_zip_is_refused(tmp_path: Path) -> None:
    """What numpy writes has no comment; one could hide a second end."""
    content = npz(y_pred=npy([1.0]))
    assert "no complete" in _refused(tmp_path, content[:-2] + b"\x05\0hello")


_WHOLE = npz(y_pred=npy([1.0, 2.0]), other=_array(_HEADER))
_FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _mutated() -> st.SearchStrategy[bytes]:
    """Give files that begin as good ones."""
    places = st.integers(0, len(_WHOLE) - 1)

    def apply(changes: list[tuple[int, int]]) -> bytes:
        raw = bytearray(_WHOLE)
        for place, value in changes:
            raw[place] = value
        return bytes(raw)

    return st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=6).map(apply)


@_FUZZ
@given(st.one_of(_mutated(), st.binary(max_size=200)))
@example(_WHOLE)
def test_damaged_files_raise_nothing_else(tmp_path: Path, content: bytes) -> None:
    """Whatever happened to the file's bytes."""
    with suppress(BadResultsError):
        check_npz(_file(tmp_path, content))


@_FUZZ
@given(st.one_of(st.binary(max_size=100), st.text(max_size=60).map(_array)))
@example(b"\x93NUMPY\x01\x00\x05")
def test_damaged_arrays_raise_nothing_else(tmp_path: Path, content: bytes) -> None:
    """Whatever is in a member of a whole zip."""
    with suppress(BadResultsError):
        check_npz(_file(tmp_path, npz(y_pred=content)))


_VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.binary(max_size=3),
        st.text(max_size=5),
        st.sampled_from(["<f8", "|O", "M8[ns]", "U", "descr"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.tuples(inner, inner), st.tuples(inner, inner, inner)),
    max_leaves=8,
)


@_FUZZ
@given(descr=_VALUES, order=_VALUES, shape=_VALUES)
def test_strange_headers_raise_nothing_else(tmp_path: Path, descr: object, order: object, shape: object) -> None:
    """Whatever literal a header is."""
    header = repr({"descr": descr, "fortran_order": order, "shape": shape})
    with suppress(BadResultsError):
        check_npz(_file(tmp_path, npz(y_pred=_array(header.encode("utf-8", "replace")))))
