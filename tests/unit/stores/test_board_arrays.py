"""The bytes that ramp_database stores; tests/integration/stores reads them back with ramp_database itself."""

from __future__ import annotations

import pickletools
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rampd.stores.board_arrays import stored_array, stored_none

# numpy 1.26.4: np.array([0.5, 1.0]).dumps(), np.array(None).dumps().
OF_TWO = (
    b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x00cnumpy\nndarray\nq\x01K\x00\x85q\x02c_codecs\nencode\nq\x03X\x01"
    b"\x00\x00\x00bq\x04X\x06\x00\x00\x00latin1q\x05\x86q\x06Rq\x07\x87q\x08Rq\t(K\x01K\x02\x85q\ncnumpy\ndtype\nq\x0bX"
    b"\x02\x00\x00\x00f8q\x0c\x89\x88\x87q\rRq\x0e(K\x03X\x01\x00\x00\x00<q\x0fNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00"
    b"tq\x10b\x89h\x03X\x12\x00\x00\x00\x00\x00\x00\x00\x00\x00\xc3\xa0?\x00\x00\x00\x00\x00\x00\xc3\xb0?q\x11h\x05\x86q"
    b"\x12Rq\x13tq\x14b."
)
OF_NONE = (
    b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x00cnumpy\nndarray\nq\x01K\x00\x85q\x02c_codecs\nencode\nq\x03X\x01"
    b"\x00\x00\x00bq\x04X\x06\x00\x00\x00latin1q\x05\x86q\x06Rq\x07\x87q\x08Rq\t(K\x01)cnumpy\ndtype\nq\nX\x02\x00\x00"
    b"\x00O8q\x0b\x89\x88\x87q\x0cRq\r(K\x03X\x01\x00\x00\x00|q\x0eNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tq\x0fb\x89]q"
    b"\x10Natq\x11b."
)


def test_they_are_numpys_own_bytes() -> None:
    """To the last one: whatever reads ramp_database's arrays reads these."""
    assert stored_array([0.5, 1.0]) == zlib.compress(OF_TWO)
    assert stored_none() == zlib.compress(OF_NONE)


@given(st.lists(st.floats(), min_size=1, max_size=400))
def test_every_double_is_in_them(values: list[float]) -> None:
    """Any number of them, NaN and infinities too, in a pickle that is whole."""
    found = list(pickletools.genops(zlib.decompress(stored_array(values))))
    assert found[-1][0].name == "STOP"
    texts = [str(argument) for opcode, argument, _ in found if opcode.name == "BINUNICODE"]
    assert texts[-1].encode("latin-1") == struct.pack(f"<{len(values)}d", *values)
    numbers = [argument for opcode, argument, _ in found if opcode.name in {"BININT1", "BININT2", "BININT"}]
    assert len(values) in numbers


def test_no_array_is_empty() -> None:
    """A score without bags has None instead."""
    with pytest.raises(ValueError, match="at least one"):
        stored_array([])
