"""What each instruction of a warp's machine code does to the registers of its 32 threads. Which of
them run, and when, is cuda_warp.py's.

Only what the kernels of float and 16-bit types need is here; an instruction that is not raises
Unknown. Rounding modes other than to nearest are not told apart (the slow path of a division has
them), and a fused multiply-add is rounded from an extended double.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from cuda_numbers import LANES, MASK, TRUE, bits_of, lookup, read, rounded, signed, sixteen
from cuda_registers import ADDRESS, CONSTANT, Registers, Unknown

ORDERED = {
    "GE": np.greater_equal,
    "GT": np.greater,
    "LE": np.less_equal,
    "LT": np.less,
    "EQ": np.equal,
    "NE": np.not_equal,
}


class Instruction(NamedTuple):
    address: int
    negated: bool
    predicate: str
    name: str  # with modifiers: IMAD.WIDE.U32
    operands: tuple[str, ...]


class Opcodes(Registers):
    """A method for each instruction: its modifiers, its operands, the threads that do it."""

    def execute(self, one: Instruction, taken: np.ndarray) -> None:
        name, *modifiers = one.name.split(".")
        if name[0] == "U" and hasattr(self, f"do_{name[1:].lower()}"):
            name = name[1:]
        method = getattr(self, f"do_{name.lower()}", None)
        if method is None:
            raise Unknown(f"{one.name} {', '.join(one.operands)}")
        with np.errstate(all="ignore"):
            method(modifiers, list(one.operands), taken)

    def do_mov(self, modifiers, o, taken):
        self.put(o[0], self.integer(o[1]), taken)

    do_r2ur = do_mov

    def do_s2r(self, modifiers, o, taken):
        self.put(o[0], self.special[o[1]], taken)

    do_s2ur = do_s2r

    def do_cs2r(self, modifiers, o, taken):
        (self.put if "32" in modifiers else self.put_pair)(o[0], self.special[o[1]], taken)

    def do_ldc(self, modifiers, o, taken):
        size = 8 if "64" in modifiers else 1 if "U8" in modifiers else 4
        value = self.constant(CONSTANT.fullmatch(o[1]), size)
        (self.put_pair if size == 8 else self.put)(o[0], value, taken)

    def reach(self, operand: str) -> np.ndarray:
        base, offset = ADDRESS.fullmatch(operand).groups()
        return self.pair(base).astype(np.int64) + int(offset or "0", 16)

    def do_ldg(self, modifiers, o, taken):
        start = np.where(taken, self.reach(o[1]), 0)
        sizes = {"128": 16, "64": 8, "U16": 2, "U8": 1}
        size = next((n for word, n in sizes.items() if word in modifiers), 4)
        number = int(o[0][1:])
        for word in range(max(1, size // 4)):
            value = read(self.memory, start + 4 * word, min(size, 4))
            self.put(f"R{number + word}", value, taken)

    def do_stg(self, modifiers, o, taken):
        start = self.reach(o[0])
        size = 16 if "128" in modifiers else 8 if "64" in modifiers else 4
        number = int(o[1][1:]) if o[1] != "RZ" else None
        for word in range(size // 4):
            value = self.integer("RZ" if number is None else f"R{number + word}")
            for lane in np.flatnonzero(taken):
                put = np.frombuffer(np.uint32(value[lane]).tobytes(), np.uint8)
                self.memory[start[lane] + 4 * word :][:4] = put

    def do_imad(self, modifiers, o, taken):
        carry_in = self.predicate(o.pop()) if "X" in modifiers else ~TRUE
        if "WIDE" in modifiers:
            carries = o.pop(1) if re.fullmatch(r"U?P(\d|T)", o[1]) else "PT"
            a, b = self.integer(o[1]), self.integer(o[2])
            if "U32" not in modifiers:
                a, b = signed(a).astype(np.uint64), signed(b).astype(np.uint64)
            product, c = a * b, self.pair(o[3])
            total = product + c
            wraps = total < product
            total = total + carry_in
            self.put_predicate(carries, wraps | (carry_in & (total == 0)), taken)
            return self.put_pair(o[0], total, taken)
        if "HI" in modifiers:
            raise Unknown("IMAD.HI")
        total = self.integer(o[1]) * self.integer(o[2]) + self.integer(o[3]) + carry_in
        return self.put(o[0], total & MASK, taken)

    def do_iadd3(self, modifiers, o, taken):
        carry_in = np.zeros(LANES, np.uint64)
        if "X" in modifiers:
            while re.fullmatch(r"!?U?P(\d|T)", o[-1]):
                carry_in = carry_in + self.predicate(o.pop())
        carries = []
        while re.fullmatch(r"U?P(\d|T)", o[1]):
            carries.append(o.pop(1))
        total = sum((self.integer(operand, whole=False) for operand in o[1:]), carry_in)
        for operand in carries:
            self.put_predicate(operand, total > MASK, taken)
        self.put(o[0], total & MASK, taken)

    do_viadd = do_iadd3

    def do_lea(self, modifiers, o, taken):
        carry_in = self.predicate(o.pop()) if "X" in modifiers else ~TRUE
        carries = o.pop(1) if re.fullmatch(r"U?P(\d|T)", o[1]) else "PT"
        a, b, shift = self.integer(o[1]), self.integer(o[2]), self.integer(o[-1])
        if "HI" in modifiers:
            high = self.integer(o[3]) if len(o) == 5 else signed(a).astype(np.uint64) >> 32
            a = ((a | (high << np.uint64(32))) << shift) >> np.uint64(32)
        else:
            a = (a << shift) & MASK
        total = a + b + carry_in
        self.put_predicate(carries, total > MASK, taken)
        self.put(o[0], total & MASK, taken)

    def do_shf(self, modifiers, o, taken):
        low, shift, high = (self.integer(operand) for operand in o[1:])
        both = low | (high << np.uint64(32))
        if "L" in modifiers:
            value = (both << shift) >> np.uint64(32) if "HI" in modifiers else low << shift
        elif "HI" in modifiers:
            top = signed(high) if "S32" in modifiers else high.astype(np.int64)
            value = (top >> shift.astype(np.int64)).astype(np.uint64)
        else:
            value = both >> shift
        self.put(o[0], value & MASK, taken)

    def do_lop3(self, modifiers, o, taken):
        o.pop()
        wants = o.pop(0) if re.fullmatch(r"U?P(\d|T)", o[0]) else "PT"
        values = [self.integer(operand) for operand in o[1:4]]
        value = lookup(values, int(o[4], 16), MASK)
        self.put_predicate(wants, value != 0, taken)
        self.put(o[0], value, taken)

    def do_plop3(self, modifiers, o, taken):
        values = [self.predicate(operand).astype(np.uint64) for operand in o[2:5]]
        for target, table in zip(o[:2], o[5:7]):
            self.put_predicate(target, lookup(values, int(table, 16), np.uint64(1)) != 0, taken)

    def do_p2r(self, modifiers, o, taken):
        mask = self.integer(o[3])
        bits = sum(self.predicate(f"P{i}").astype(np.uint64) << np.uint64(i) for i in range(7))
        self.put(o[0], (self.integer(o[2]) & ~mask) | (bits & mask), taken)

    def do_r2p(self, modifiers, o, taken):
        for i in range(7):
            if int(o[2], 16) >> i & 1:
                self.put_predicate(f"P{i}", self.integer(o[1]) >> np.uint64(i) & 1 != 0, taken)

    def do_prmt(self, modifiers, o, taken):
        a, selector, b = (self.integer(operand) for operand in o[1:4])
        both, value = a | (b << np.uint64(32)), np.zeros(LANES, np.uint64)
        for byte in range(4):
            pick = (selector >> np.uint64(4 * byte)) & np.uint64(15)
            one = (both >> ((pick & np.uint64(7)) * np.uint64(8))) & np.uint64(255)
            sign = np.where(one >> np.uint64(7), np.uint64(255), np.uint64(0))
            value |= np.where(pick & np.uint64(8), sign, one) << np.uint64(8 * byte)
        self.put(o[0], value, taken)

    def do_sel(self, modifiers, o, taken):
        value = np.where(self.predicate(o[3]), self.integer(o[1]), self.integer(o[2]))
        self.put(o[0], value, taken)

    def do_fsel(self, modifiers, o, taken):
        value = np.where(self.predicate(o[3]), bits_of(self.real(o[1])), bits_of(self.real(o[2])))
        self.put(o[0], value, taken)

    def compare(self, o, value, modifiers, taken):
        other, before = ~value, self.predicate(o[4])
        joined = (lambda p: p | before) if "OR" in modifiers else (lambda p: p & before)
        self.put_predicate(o[0], joined(value), taken)
        self.put_predicate(o[1], joined(other), taken)

    def do_isetp(self, modifiers, o, taken):
        a, b = self.integer(o[2]), self.integer(o[3])
        if "U32" not in modifiers:
            a, b = signed(a), signed(b)
        value = ORDERED[modifiers[0]](a, b)
        if "EX" in modifiers:  # the high words, after the low ones
            low = self.predicate(o[5])
            value = (value & (a != b)) | ((a == b) & low)
        self.compare(o, value, modifiers, taken)

    def do_fsetp(self, modifiers, o, taken):
        self.compare(o, self.ordered(modifiers[0], o[2], o[3]), modifiers, taken)

    def do_fset(self, modifiers, o, taken):
        if modifiers[0] != "BF":
            raise Unknown("FSET." + ".".join(modifiers))
        value = self.ordered(modifiers[1], o[1], o[2]) & self.predicate(o[3])
        self.put(o[0], bits_of(value.astype(np.float32)), taken)

    def ordered(self, kind: str, one: str, other: str) -> np.ndarray:
        """A comparison of floats. With a U behind, true where they have no order."""
        a, b = self.real(one), self.real(other)
        unordered = np.isnan(a) | np.isnan(b)
        if kind in ("NAN", "NUM"):
            return unordered if kind == "NAN" else ~unordered
        if kind in ORDERED:
            return ORDERED[kind](a, b) & ~unordered
        return ORDERED[kind[:-1]](a, b) | unordered

    def do_vimnmx(self, modifiers, o, taken):
        values = [self.integer(operand) for operand in o[1:-1]]
        if "U32" not in modifiers:
            values = [signed(value) for value in values]
        least, most = np.minimum.reduce(values), np.maximum.reduce(values)
        self.put(o[0], np.where(self.predicate(o[-1]), least, most).astype(np.uint64), taken)

    do_vimnmx3 = do_vimnmx

    def do_flo(self, modifiers, o, taken):
        if modifiers != ["U32"]:
            raise Unknown("FLO." + ".".join(modifiers))
        _, exponents = np.frexp(self.integer(o[1]).astype(np.float64))
        self.put(o[0], (exponents.astype(np.int64) - 1).astype(np.uint64), taken)

    def do_iabs(self, modifiers, o, taken):
        self.put(o[0], np.abs(signed(self.integer(o[1]))).astype(np.uint64), taken)

    def do_fadd(self, modifiers, o, taken):
        self.put(o[0], bits_of(self.real(o[1]) + self.real(o[2])), taken)

    def do_fmul(self, modifiers, o, taken):
        self.put(o[0], bits_of(self.real(o[1]) * self.real(o[2])), taken)

    def do_ffma(self, modifiers, o, taken):
        a, b, c = (self.real(operand).astype(np.longdouble) for operand in o[1:4])
        self.put(o[0], bits_of((a * b + c).astype(np.float32)), taken)

    def do_fmnmx(self, modifiers, o, taken):
        a, b = self.real(o[1]), self.real(o[2])
        value = np.where(self.predicate(o[3]), np.fmin(a, b), np.fmax(a, b))
        self.put(o[0], bits_of(value), taken)

    def do_fchk(self, modifiers, o, taken):
        """Whether a division needs its slow path."""
        (_, a), (_, b) = np.frexp(self.real(o[1])), np.frexp(self.real(o[2]))
        usual = np.isfinite(self.real(o[1])) & np.isfinite(self.real(o[2])) & (self.real(o[2]) != 0)
        small = (np.abs(a - b) < 120) & (a > -100) & (np.abs(b) < 124)
        self.put_predicate(o[0], ~(usual & small), taken)

    def do_mufu(self, modifiers, o, taken):
        x = self.real(o[1])
        one = np.float32(1)
        self.put(o[0], bits_of(one / x if "RCP" in modifiers else one / np.sqrt(x)), taken)

    def do_frnd(self, modifiers, o, taken):
        self.put(o[0], bits_of(rounded(self.real(o[1]), modifiers)), taken)

    def do_f2i(self, modifiers, o, taken):
        value = np.nan_to_num(rounded(self.real(o[1]), modifiers).astype(np.float64), nan=0)
        self.put(
            o[0], np.clip(value, -(2.0**31), 2.0**31 - 1).astype(np.int64).astype(np.uint64), taken
        )

    def do_i2fp(self, modifiers, o, taken):
        value = self.integer(o[1])
        value = signed(value) if "S32" in modifiers else value
        self.put(o[0], bits_of(value.astype(np.float32)), taken)

    def do_f2f(self, modifiers, o, taken):
        if modifiers[:2] != ["F32", "F64"]:
            raise Unknown("F2F." + ".".join(modifiers))
        self.put(o[0], bits_of(self.pair(o[1]).view(np.float64).astype(np.float32)), taken)

    def do_f2fp(self, modifiers, o, taken):
        high, low = (sixteen(self.real(operand), "BF16" in modifiers) for operand in o[1:3])
        self.put(o[0], low | (high << np.uint64(16)), taken)

    def do_hadd2(self, modifiers, o, taken):
        register, half = re.fullmatch(r"(U?R\d+|RZ)\.H([01])_H[01]", o[2]).groups()
        if modifiers[:1] != ["F32"] or o[1] != "-RZ":
            raise Unknown(f"HADD2 {o}")
        word = (self.integer(register) >> np.uint64(16 * int(half))).astype(np.uint16)
        self.put(o[0], bits_of(word.view(np.float16).astype(np.float32)), taken)

    def do_hfma2(self, modifiers, o, taken):
        if o[1:3] != ["-RZ", "RZ"]:
            raise Unknown(f"HFMA2 {o}")
        high, low = (sixteen(self.real(operand), "BF16_V2" in modifiers) for operand in o[3:5])
        self.put(o[0], low | (high << np.uint64(16)), taken)
