"""Numbers as the registers of a warp hold them: 32 at a time, their bits in 64-bit integers. No
instructions here.
"""

from __future__ import annotations

import numpy as np

LANES = 32
MASK = np.uint64(0xFFFFFFFF)
TRUE = np.ones(LANES, bool)


def floats(bits: np.ndarray) -> np.ndarray:
    return bits.astype(np.uint32).view(np.float32)


def bits_of(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)


def signed(bits: np.ndarray) -> np.ndarray:
    return bits.astype(np.uint32).view(np.int32).astype(np.int64)


def read(memory: np.ndarray, start: np.ndarray, size: int) -> np.ndarray:
    """Little-endian numbers of `size` bytes."""
    value = np.zeros(LANES, np.uint64)
    for byte in range(size):
        value |= memory[start + byte].astype(np.uint64) << np.uint64(8 * byte)
    return value


def lookup(values: list[np.ndarray], table: int, ones: np.uint64) -> np.ndarray:
    """The bitwise function of three values whose truth table is given."""
    found = np.zeros(LANES, np.uint64)
    for row in range(8):
        if table >> row & 1:
            terms = (v if row >> (2 - i) & 1 else v ^ ones for i, v in enumerate(values))
            found |= np.bitwise_and.reduce(list(terms))
    return found & ones


def rounded(x: np.ndarray, modifiers: list[str]) -> np.ndarray:
    if "FLOOR" in modifiers:
        return np.floor(x)
    return np.trunc(x) if "TRUNC" in modifiers else np.rint(x)


def sixteen(x: np.ndarray, brain: bool) -> np.ndarray:
    """The bits of a float16 or bfloat16."""
    if not brain:
        return x.astype(np.float16).view(np.uint16).astype(np.uint64)
    bits = x.view(np.uint32).astype(np.uint64)
    nearest = bits + np.uint64(0x7FFF) + (bits >> np.uint64(16) & np.uint64(1))
    return (np.where(np.isnan(x), np.uint64(0x7FFFFFFF), nearest) >> np.uint64(16)) & np.uint64(
        0xFFFF
    )
