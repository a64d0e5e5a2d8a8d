"""A warp of 32 threads that runs machine code (SASS, as nvdisasm prints it) and counts it. What an
instruction does is cuda_opcodes.py's; what is run, and on which data, cuda_instructions.py's.

Threads that part at a branch run one after the other, the lowest address first, and meet again at
the BSYNC of their BSSY, as on a device. An instruction is counted once for the warp that executes
it, whatever its predicate says, for it takes an issue slot then, too.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

import numpy as np
from cuda_numbers import LANES, TRUE
from cuda_opcodes import Instruction, Opcodes
from cuda_registers import Unknown

PARAMETERS = 0x210  # where the arguments lie in constant memory, sm_90
# Half as many of these can start in a cycle as of all instructions: 16 lanes of a quarter's ALU.
ALU = {
    "FMNMX",
    "FSETP",
    "FSET",
    "FSEL",
    "FCHK",
    "SEL",
    "ISETP",
    "IADD3",
    "VIADD",
    "LOP3",
    "PLOP3",
    "SHF",
    "LEA",
    "PRMT",
    "VIMNMX",
    "VIMNMX3",
    "IABS",
    "MOV",
    "I2FP",
    "F2FP",
    "CS2R",
    "P2R",
    "R2P",
}
CODE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?)(U?P(?:\d|T))\s+)?([A-Z0-9_.]+)\s*([^;]*);")
LABEL = re.compile(r"^(\S+):\s*$")


class Program(NamedTuple):
    code: dict[int, Instruction]
    labels: dict[str, int]


def parse(section: str) -> Program:
    """The code of a kernel and its labels, from its section of what nvdisasm -c prints."""
    code, labels, waiting = {}, {}, []
    for line in section.splitlines():
        if match := CODE.match(line):
            at, negated, predicate, name, operands = match.groups()
            at = int(at, 16)
            labels |= dict.fromkeys(waiting, at)
            waiting = []
            text = operands.replace(".reuse", "").strip()
            parts = tuple(part.strip() for part in text.split(",")) if text else ()
            code[at] = Instruction(at, negated == "!", predicate or "PT", name, parts)
        elif match := LABEL.match(line):
            waiting.append(match.group(1))
    return Program(code, labels)


class Warp(Opcodes):
    """`memory` is all of global memory, `arguments` the bytes of the kernel's parameters. The
    threads are those of block 0 from `first_thread`.
    """

    def __init__(self, program: Program, memory: np.ndarray, arguments: bytes, first_thread: int):
        constants = np.frombuffer(bytes(PARAMETERS) + arguments + bytes(64), np.uint8)
        super().__init__(memory, constants, first_thread)
        self.program = program
        self.counts: Counter[str] = Counter()
        self.barriers: dict[str, np.ndarray] = {}

    def run(self, most: int = 100_000) -> Counter[str]:
        """How often the warp issued each instruction, by name without modifiers."""
        at = np.full(LANES, min(self.program.code), np.int64)
        alive, blocked = TRUE.copy(), ~TRUE
        for _ in range(most):
            ready = alive & ~blocked
            if not ready.any():
                if alive.any():
                    raise Unknown("threads wait for ever")
                return self.counts
            here = at[ready].min()
            active = ready & (at == here)
            one = self.program.code[int(here)]
            self.counts[one.name.split(".")[0]] += 1
            taken = active & (self.predicates.get(one.predicate, ~TRUE) ^ one.negated)
            at[active] = here + 16
            self.control(one, active, taken, at, alive, blocked)
        raise Unknown(f"more than {most} instructions")

    def control(self, one, active, taken, at, alive, blocked) -> None:
        kind = one.name.split(".")[0]
        if kind == "BRA":
            for condition in one.operands[:-1]:
                taken = taken & self.predicate(condition)
            at[taken] = self.label(one.operands[-1])
        elif kind == "CALL":
            at[taken] = self.label(one.operands[0])
        elif kind == "RET":
            at[taken] = self.integer(one.operands[0].split()[0])[taken]
        elif kind == "EXIT":
            alive &= ~taken
        elif kind == "BSSY":
            self.barriers[one.operands[0]] = active.copy()
        elif kind == "BSYNC":
            those = self.barriers[one.operands[0]] & alive
            arrived = those & ((at == one.address + 16) & (active | blocked))
            if (arrived == those).all():
                blocked &= ~those
            else:
                blocked |= active
        elif kind not in ("NOP", "WARPSYNC"):
            self.execute(one, taken)

    def label(self, operand: str) -> int:
        return self.program.labels[re.search(r"\((\S+)\)", operand).group(1)]
