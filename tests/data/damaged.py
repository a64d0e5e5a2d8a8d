"""Files for the tests of data sets, and how they are damaged. No tests here."""

import struct

import pytest

IDX_CODES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def idx_bytes(array, code=0x08):
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(IDX_CODES[code]).tobytes()


def corrupted(raw, position):
    damaged = bytearray(raw)
    damaged[position] ^= 0x5A
    return bytes(damaged)


def assert_names(path, call):
    with pytest.raises(ValueError) as caught:
        call()
    assert str(path) in str(caught.value)
    return str(caught.value)
