"""Arrays in ramp_database's stored form, without numpy: a pickled ndarray, deflated.

`ramp_database/model/datatype.py` writes `zlib.compress(np.array(value).dumps())`. These are the very bytes that numpy 1
makes of a list of doubles, and of None (numpy/core/_methods.py, `_dumps`: pickle protocol 2); every numpy reads them.
Nothing is ever unpickled here.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_HEAD = (
    b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x00cnumpy\nndarray\nq\x01K\x00\x85q\x02c_codecs\nencode\nq\x03"
    b"X\x01\x00\x00\x00bq\x04X\x06\x00\x00\x00latin1q\x05\x86q\x06Rq\x07\x87q\x08Rq\t(K\x01"
)
_DOUBLES = (
    b"\x85q\ncnumpy\ndtype\nq\x0bX\x02\x00\x00\x00f8q\x0c\x89\x88\x87q\rRq\x0e(K\x03X\x01\x00\x00\x00<q\x0f"
    b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x10b\x89h\x03"
)
_DOUBLES_END = b"q\x11h\x05\x86q\x12Rq\x13tq\x14b."
_NONE = (
    b")cnumpy\ndtype\nq\nX\x02\x00\x00\x00O8q\x0b\x89\x88\x87q\x0cRq\r(K\x03X\x01\x00\x00\x00|q\x0e"
    b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tq\x0fb\x89]q\x10Natq\x11b."
)


def stored_none() -> bytes:
    """Return what ramp_database stores for None."""
    return zlib.compress(_HEAD + _NONE)


def stored_array(values: Sequence[float]) -> bytes:
    """Return what ramp_database stores for a list of floats that is not empty.

    Raises
    ------
    ValueError
        The list is empty.
    """
    if not values:
        raise ValueError("an array of bags has at least one")
    # Bytes travel as the text that latin-1 makes of them, in UTF-8: pickle's protocol 2 has no bytes.
    text = struct.pack(f"<{len(values)}d", *values).decode("latin-1").encode()
    body = b"X" + struct.pack("<I", len(text)) + text
    return zlib.compress(_HEAD + _whole(len(values)) + _DOUBLES + body + _DOUBLES_END)


def _whole(number: int) -> bytes:
    """Return a pickled integer, as short as pickle makes it."""
    if number < 1 << 8:
        return b"K" + struct.pack("<B", number)
    if number < 1 << 16:
        return b"M" + struct.pack("<H", number)
    return b"J" + struct.pack("<i", number)
