"""Looking into .npz files without numpy and without unpickling: a zip of .npy files with plain dtypes.

The format: numpy/lib/format.py, "NPY format".
"""

from __future__ import annotations

import ast
import functools
import math
import os
import re
import struct
import zipfile
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO

from rampd.copying import is_of_this_machine
from rampd.errors import BadResultsError
from rampd.files import opened_regular

if TYPE_CHECKING:
    from pathlib import Path

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 10_000
"""As numpy.load's `max_header_size`."""
_MOST_HEADERS = 256
"""Characters of what numpy writes for plain arrays; what is longer is not remembered, for it may be anything."""
_MAX_MEMBERS = 1000
_MAX_DIRECTORY_BYTES = 1 << 20
_END = struct.Struct("<4s4H2LH")
"""A zip's end of central directory (APPNOTE 4.3.16), without a comment: numpy writes none."""
_END64 = struct.Struct("<4sQ2H2L4Q")
"""Its zip64 end of central directory (4.3.14), which a locator (4.3.15) of so many bytes separates from the other."""
_LOCATOR_BYTES = 20
_LITERAL = re.compile(r"""(?:'[^'\\\n]*'|"[^"\\\n]*"|True|False|\d+(?!\w)|[\s{}()\[\],:])*""")
"""What a header is made of; anything more could make Python's parser warn, thousands of times."""
_PLAIN_KINDS = frozenset("biufcmMSUV?")
_UNIT = re.compile(r"\[[0-9]{0,9}[a-zA-Z]{1,7}(?:/[0-9]{1,9})?\]")
"""What may follow the size of a datetime64 or timedelta64."""


def check_npz(path: Path) -> None:
    """Check that a file is a zip of .npy members whose headers say a plain dtype. Reads headers only.

    Raises
    ------
    BadResultsError
        It is something else: an object array (a pickle), a damaged or encrypted zip, a stray member.
    """
    # What a participant called it may be anything, bytes that are no text included.
    name = path.name if path.name.isprintable() else ascii(path.name)
    try:
        with opened_regular(path) as file:
            _check_end(file, name)
            with zipfile.ZipFile(file) as archive:
                _check_members(archive, name)
    except BadResultsError:
        raise
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, struct.error, zlib.error) as error:
        if isinstance(error, OSError) and is_of_this_machine(error):
            raise
        raise BadResultsError(f"{name} is no complete .npz file.") from error


def _check_end(file: BinaryIO, name: str) -> None:
    """Refuse a directory of millions of members before zipfile reads all of it into memory."""
    most = _END64.size + _LOCATOR_BYTES + _END.size
    file.seek(-min(file.seek(0, os.SEEK_END), most), os.SEEK_END)
    tail = file.read()
    signature, *_, directory_bytes, _, comment = _END.unpack(tail[-_END.size :])
    before = tail[: -_END.size]
    if before[-_LOCATOR_BYTES:].startswith(b"PK\6\7"):  # a file of more than 2 GiB: zipfile believes the other one
        signature64, *_, directory_bytes, _ = _END64.unpack(before[:-_LOCATOR_BYTES])
        signature = signature if signature64 == b"PK\6\6" else b""
    if signature != b"PK\5\6" or comment or directory_bytes > _MAX_DIRECTORY_BYTES:
        raise BadResultsError(f"{name} is no complete .npz file.")


def _check_members(archive: zipfile.ZipFile, name: str) -> None:
    members = archive.infolist()
    if not 0 < len(members) <= _MAX_MEMBERS:
        raise BadResultsError(f"{name} has {len(members)} arrays.")
    if len({member.filename for member in members}) != len(members):
        raise BadResultsError(f"{name} has two arrays of one name.")
    for member in members:
        _check_member(archive, member, name)


def _check_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> None:
    if not member.filename.endswith(".npy") or "/" in member.filename or member.flag_bits & 0x1:
        raise BadResultsError(f"{name} has a member that is no array.")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BadResultsError(f"{name} is compressed as numpy never does.")
    with archive.open(member) as file:
        header, header_size = _read_header(file, name)  # type: ignore[arg-type] # it reads like one
    size = _itemsize(header["descr"], name) * math.prod(header["shape"])
    if member.file_size != header_size + size:
        raise BadResultsError(f"{name} has an array of another size than it says.")


def _read_header(file: BinaryIO, name: str) -> tuple[dict[str, Any], int]:
    start = file.read(8)
    if len(start) < 8 or start[:6] != _MAGIC or start[6] not in (1, 2, 3):  # noqa: PLR2004 -- magic and two bytes of version
        raise BadResultsError(f"{name} has a member that is no array.")
    width = "<H" if start[6] == 1 else "<I"
    (length,) = struct.unpack(width, file.read(struct.calcsize(width)))
    if length > _MAX_HEADER:
        raise BadResultsError(f"{name} has an array with an oversized header.")
    text = file.read(length).decode("utf-8" if start[6] == 3 else "latin1")  # noqa: PLR2004 -- version 3 is UTF-8
    try:
        header = _parsed_before(text) if len(text) <= _MOST_HEADERS else _parsed(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise BadResultsError(f"{name} has an array with a broken header.") from error
    if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"}:
        raise BadResultsError(f"{name} has an array with a broken header.")
    shape = header["shape"]
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
        raise BadResultsError(f"{name} has an array with a broken shape.")
    return header, 8 + struct.calcsize(width) + length


def _parsed(text: str) -> Any:
    if not _LITERAL.fullmatch(text):
        raise ValueError
    return ast.literal_eval(text.strip())


_parsed_before = functools.lru_cache(maxsize=64)(_parsed)
"""An event's predictions have the same few headers, of which none is ever changed."""


def _itemsize(descr: object, name: str, depth: int = 0) -> int:
    """Return a plain dtype's size in bytes; an object dtype, which numpy would unpickle, is refused."""
    if depth > 20:  # noqa: PLR2004 -- deeper than any real record
        raise BadResultsError(f"{name} has an array of an unknown type.")
    if isinstance(descr, str):
        return _scalar_size(descr, name)
    if isinstance(descr, list):
        total = 0
        for field in descr:
            if not isinstance(field, tuple) or len(field) not in (2, 3):
                raise BadResultsError(f"{name} has an array of an unknown type.")
            shape = field[2] if len(field) == 3 else ()  # noqa: PLR2004 -- (name, type, shape)
            if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
                raise BadResultsError(f"{name} has an array of an unknown type.")
            total += _itemsize(field[1], name, depth + 1) * math.prod(shape)
        return total
    raise BadResultsError(f"{name} has an array of an unknown type.")


def _scalar_size(descr: str, name: str) -> int:
    text = descr[1:] if descr[:1] in "<>|=" else descr
    kind, (digits, bracket, unit) = text[:1], text[1:].partition("[")
    if kind == "O":
        raise BadResultsError(f"{name} holds Python objects (a pickle), which are never opened.")
    if kind not in _PLAIN_KINDS or not digits.isdecimal() or len(digits) > 9:  # noqa: PLR2004 -- 1 GB an item
        raise BadResultsError(f"{name} has an array of an unknown type.")
    if bracket and not (kind in "mM" and _UNIT.fullmatch(bracket + unit)):
        raise BadResultsError(f"{name} has an array of an unknown type.")
    return int(digits) * (4 if kind == "U" else 1)
