"""The registers and the memory of a warp: how an instruction's operands are read and its results
written. No instructions here.
"""

from __future__ import annotations

import re

import numpy as np
from cuda_numbers import LANES, MASK, TRUE, floats, read

ADDRESS = re.compile(r"(?:desc\[UR\d+\])?\[(R\d+|RZ)(?:\.64)?(?:\+?(-?0x[0-9a-f]+))?\]")
CONSTANT = re.compile(r"c\[0x0\]\[(?:(R\d+|UR\d+)\+?)?(-?0x[0-9a-f]+)?\]")


class Unknown(Exception):
    """An instruction that this file does not know."""


class Registers:
    """The registers and the memory of a warp."""

    def __init__(self, memory: np.ndarray, constants: np.ndarray, first_thread: int):
        self.memory, self.constants = memory, constants
        self.registers = {"RZ": np.zeros(LANES, np.uint64), "URZ": np.zeros(LANES, np.uint64)}
        self.predicates = {"PT": TRUE, "UPT": TRUE}
        self.special = {
            "SR_TID.X": np.arange(LANES, dtype=np.uint64) + np.uint64(first_thread),
            "SR_CTAID.X": np.zeros(LANES, np.uint64),
            "SRZ": np.zeros(LANES, np.uint64),
        }

    # Operands.

    def predicate(self, operand: str) -> np.ndarray:
        value = self.predicates.get(operand.lstrip("!"), ~TRUE)
        return ~value if operand[0] == "!" else value

    def integer(self, operand: str, whole: bool = True) -> np.ndarray:
        """32 bits in 64. Not `whole`: the two's complement of 0 is 2^32, which carries."""
        if operand[0] == "~":
            return self.integer(operand[1:]) ^ MASK
        if re.fullmatch(r"-U?R(Z|\d+)", operand):
            value = (self.integer(operand[1:]) ^ MASK) + np.uint64(1)
            return value & MASK if whole else value
        if match := CONSTANT.fullmatch(operand):
            return self.constant(match, 4)
        if re.fullmatch(r"U?R(Z|\d+)", operand):
            return self.registers.setdefault(operand, np.zeros(LANES, np.uint64))
        if re.fullmatch(r"-?0x[0-9a-f]+", operand):
            return np.full(LANES, int(operand, 16) & 0xFFFFFFFF, np.uint64)
        raise Unknown(f"operand {operand}")

    def pair(self, operand: str) -> np.ndarray:
        """64 bits, in two registers."""
        if match := CONSTANT.fullmatch(operand):
            return self.constant(match, 8)
        kind, number = re.fullmatch(r"(U?R)(Z|\d+)(?:\.64)?", operand).groups()
        high = "Z" if number == "Z" else str(int(number) + 1)
        return self.integer(kind + number) | (self.integer(kind + high) << np.uint64(32))

    def constant(self, match: re.Match, size: int) -> np.ndarray:
        base, offset = match.groups()
        start = self.integer(base).astype(np.int64) if base else np.zeros(LANES, np.int64)
        return read(self.constants, start + int(offset or "0", 16), size)

    def real(self, operand: str) -> np.ndarray:
        """A float32, with its sign and |bars|."""
        sign = operand[0] == "-"
        text = operand.lstrip("-+")
        bars = text[0] == "|"
        text = text.strip("|")
        if re.fullmatch(r"U?R(Z|\d+)", text) or CONSTANT.fullmatch(text):
            value = floats(self.integer(text))
        elif text in ("INF", "QNAN"):
            value = np.full(LANES, np.inf if text == "INF" else np.nan, np.float32)
        elif text.startswith("0x"):
            value = floats(self.integer(text))
        else:
            value = np.full(LANES, float(text), np.float32)
        value = np.abs(value) if bars else value
        return -value if sign else value

    # Results.

    def put(self, operand: str, value: np.ndarray, taken: np.ndarray) -> None:
        if operand in ("RZ", "URZ"):
            return
        old = self.registers.get(operand, np.zeros(LANES, np.uint64))
        self.registers[operand] = np.where(taken, value.astype(np.uint64) & MASK, old)

    def put_pair(self, operand: str, value: np.ndarray, taken: np.ndarray) -> None:
        kind, number = re.fullmatch(r"(U?R)(Z|\d+)", operand).groups()
        if number != "Z":
            self.put(operand, value & MASK, taken)
            self.put(f"{kind}{int(number) + 1}", value >> np.uint64(32), taken)

    def put_predicate(self, operand: str, value: np.ndarray, taken: np.ndarray) -> None:
        if operand not in ("PT", "UPT"):
            old = self.predicates.get(operand, ~TRUE)
            self.predicates[operand] = np.where(taken, value, old)
