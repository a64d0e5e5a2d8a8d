"""What nvcc makes of every CUDA kernel, without a GPU: registers, spills, the width of its
transactions, and how many instructions it takes.

    python tests/kernels/cuda_kernels.py [--record]

Compiles tests/cpp/compile_kernels.cu for sm_80 and sm_90 with setup.py's flags, prints a table, and
fails where a kernel spills or uses local memory, needs more registers than
tests/golden/cuda_registers.json has on record for this nvcc release, keeps less than 20 KiB of
loads in flight on a multiprocessor of sm_90, moves rows of inputs or spikes otherwise than in
transactions of 16 bytes, or takes more instructions than tests/golden/cuda_instructions.json has on
record (cuda_instructions.py; --record rewrites both). The last two need nvdisasm (the package
nvidia-cuda-nvdisasm, or a toolkit) and are skipped with a reason where there is none.
Not a pytest file: it takes a minute, and make test-cuda-compile runs it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cuda_instructions

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "tests" / "golden" / "cuda_registers.json"
ARCHS = ("sm_80", "sm_90")
TYPES = {
    "f": ("float32", 4),
    "d": ("float64", 8),
    "NS_4HalfE": ("float16", 2),
    "NS_8BFloat16E": ("bfloat16", 2),
}
MODES = ("fire", "held", "reread")
EXTRAS = ("", "fused", "window")
QCFS = ("QCFS", "QCFS backwards")
SYMBOL = re.compile(
    r"_ZN7cos_ext4cuda3runI(f|d|NS_4HalfE|NS_8BFloat16E)Li(\d+)ELi(\d+)ELNS0_4ModeE(\d)ELb([01])ELNS0_5ExtraE(\d)EEEvNS0_4TaskE"
)
BACK = re.compile(
    r"_ZN7cos_ext4cuda8run_backI(f|d|NS_4HalfE|NS_8BFloat16E)Li(\d+)ELi(\d+)ELb([01])ENS_\d+([A-Za-z]+)I[fd]EELNS0_5ExtraE(\d)EEEvNS0_4TaskET3_"
)
GENERAL = re.compile(
    r"_ZN7cos_ext4cuda11run_generalI(f|d|NS_4HalfE|NS_8BFloat16E)Li(\d+)ELNS_9StaircaseE(\d)ELb([01])EEEvNS0_4TaskENS0_11GeneralTaskINS_7StateOfIT_E4typeEEE"
)
STAIRCASES = ("few", "levels", "ladder")
CHUNK = 8
# Of each dtype: plain, fused, windows, backwards, QCFS, general.
KERNELS = 4 * (15 + 9 + 3 + 5 * 2 * (3 + 2) + 2 + 2 * 5)
QCFS_SYMBOL = re.compile(
    r"_ZN7cos_ext4cuda8quantiseI(f|d|NS_4HalfE|NS_8BFloat16E)Lb([01])EEEvNS_4QcfsE"
)


class Kernel(NamedTuple):
    """A kernel's template arguments, from its symbol."""

    dtype: str
    item: int
    lanes: int
    rows: int
    mode: str
    one_theta: bool
    extra: str

    def __str__(self) -> str:
        if self.mode in QCFS:
            return f"{self.dtype} x {self.lanes}, {self.mode}"
        if self.mode in ("back", "general"):
            return f"{self.dtype} x {self.lanes}, {self.mode} {self.rows}, {self.extra}"
        theta = "" if self.lanes == 1 else ", one θ" if self.one_theta else ", θ by lane"
        extra = f", {self.extra}" if self.extra else ""
        return f"{self.dtype} x {self.lanes}, {self.mode} {self.rows}{theta}{extra}"


def kernel_of(symbol: str) -> Kernel:
    if match := QCFS_SYMBOL.fullmatch(symbol):
        dtype, item = TYPES[match.group(1)]
        return Kernel(dtype, item, 16 // item, 1, QCFS[int(match.group(2))], True, "")
    if match := BACK.fullmatch(symbol):
        dtype, lanes, rows, hard, surrogate, fused = match.groups()
        words = (surrogate, "hard" if hard == "1" else "soft", EXTRAS[int(fused)])
        extra = ", ".join(filter(None, words))
        return Kernel(*TYPES[dtype], int(lanes), int(rows), "back", False, extra)
    if match := GENERAL.fullmatch(symbol):
        dtype, lanes, staircase, predicts = match.groups()
        extra = STAIRCASES[int(staircase)] + (", prediction" if predicts == "1" else "")
        return Kernel(*TYPES[dtype], int(lanes), CHUNK, "general", False, extra)
    match = SYMBOL.fullmatch(symbol)
    if not match:
        sys.exit(f"cuda_kernels: {symbol} is not a kernel that this script knows")
    dtype, lanes, rows, mode, one, extra = match.groups()
    return Kernel(
        *TYPES[dtype], int(lanes), int(rows), MODES[int(mode)], one == "1", EXTRAS[int(extra)]
    )


def setup_module():
    spec = importlib.util.spec_from_file_location("cos_ext_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compile_for(
    arch: str, nvcc: Path, flags: list[str], folder: Path
) -> tuple[Path, dict[Kernel, tuple[int, int]]]:
    """The cubin, and (registers, bytes of stack and spills) by kernel."""
    cubin = folder / f"{arch}.cubin"
    command = [
        nvcc,
        *flags,
        "-Xptxas=-v",
        "--expt-relaxed-constexpr",
        f"-arch={arch}",
        f"-I{ROOT / 'csrc'}",
        "-cubin",
        ROOT / "tests" / "cpp" / "compile_kernels.cu",
        "-o",
        cubin,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    resources, kernel, local = {}, None, 0
    for line in done.stderr.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)'", line):
            kernel = kernel_of(match.group(1))
        elif match := re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
        ):
            local = sum(map(int, match.groups()))
        elif match := re.search(r"Used (\d+) registers", line):
            resources[kernel] = (int(match.group(1)), local)
    return cubin, resources


def find_nvdisasm(home: Path) -> Path | None:
    places = [
        *sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin/nvdisasm")),
        home / "bin" / "nvdisasm",
    ]
    on_path = shutil.which("nvdisasm")
    return next(
        (place for place in [*places, *([Path(on_path)] if on_path else [])] if place.is_file()),
        None,
    )


def disassemble(cubin: Path, nvdisasm: Path) -> dict[str, str]:
    """The machine code of every kernel, by symbol."""
    text = subprocess.run(
        [nvdisasm, "-c", cubin], capture_output=True, text=True, check=True
    ).stdout
    sections = re.split(r"^\.text\.", text, flags=re.MULTILINE)[1:]
    return {section.split(":", 1)[0].strip(): section for section in sections}


def transactions(sections: dict[str, str]) -> dict[Kernel, Counter[str]]:
    """How often each kind of load and store of global or local memory stands in a kernel."""
    return {
        kernel_of(symbol): Counter(re.findall(r"\b(?:LDG|STG|LDL|STL)\.?[A-Z0-9.]*", section))
        for symbol, section in sections.items()
    }


def little_in_flight(kernel: Kernel, registers: int) -> str:
    """What is wrong with the bytes that a kernel keeps in flight, or nothing."""
    if kernel.mode in (*QCFS, "general"):  # general neurons are bound by their arithmetic
        return ""
    operands = 2 if kernel.mode == "back" else 1
    got = cuda_instructions.in_flight(registers, kernel.rows, kernel.lanes * kernel.item, operands)
    least = cuda_instructions.LEAST_IN_FLIGHT
    return f"keeps {got} bytes in flight, wanted are {least}" if got < least else ""


def wide_rows(kernel: Kernel, counts: Counter[str]) -> str:
    """What is wrong with a kernel's transactions, or nothing. Rows of inputs and streaming stores
    carry the hint EF.
    """
    if any(name.startswith(("LDL", "STL")) for name in counts):
        return "uses local memory"
    if kernel.lanes == 1 or kernel.extra == "window":  # a window's neurons are no neighbours
        return ""
    wide = {
        hint: sum(
            n for name, n in counts.items() if name.startswith(hint) and name.endswith(".128")
        )
        for hint in ("LDG.E.EF", "LDG.E", "STG.E.EF", "STG.E")
    }
    again = kernel.mode in ("reread", "general")
    loads = wide["LDG.E"] if again else wide["LDG.E.EF"]
    if kernel.mode == "back":  # two operands, and x once more where it is cut into chunks
        again = wide["LDG.E"] - wide["LDG.E.EF"]
        loads = min(loads // 2, again if kernel.rows == CHUNK else kernel.rows)
    narrow = [name for name in counts if ".EF" in name and not name.endswith(".128")]
    if narrow:
        return f"moves rows in {', '.join(narrow)}"
    if kernel.mode == "general":  # a row is stored at one place
        few = loads < kernel.rows or wide["STG.E.EF"] < 1 or wide["STG.E"] <= wide["STG.E.EF"]
        return f"has too few transactions of 128 bits: {dict(counts)}" if few else ""
    if kernel.mode in QCFS:
        few = loads < (3 if kernel.mode == QCFS[1] else 2) or wide["STG.E"] < 1
        return f"has too few transactions of 128 bits: {dict(counts)}" if few else ""
    if (
        loads < kernel.rows
        or wide["STG.E.EF"] < kernel.rows
        or wide["STG.E"] - wide["STG.E.EF"] < kernel.rows
    ):
        return f"has too few transactions of 128 bits: {dict(counts)}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--record", action="store_true", help="write the registers and instructions that are found"
    )
    record = parser.parse_args().record
    setup = setup_module()
    home, release = setup.toolkit()
    if home is None:
        print(f"cuda_kernels: skipped: {release}")
        return 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(ARCHS)) as pool:
        compiled = dict(
            zip(
                ARCHS,
                pool.map(
                    lambda arch: compile_for(
                        arch, home / "bin" / "nvcc", setup.NVCC_FLAGS, Path(folder)
                    ),
                    ARCHS,
                ),
            )
        )
        nvdisasm = find_nvdisasm(home)
        code, instructions = {}, ([], [])
        if nvdisasm:
            sections = {arch: disassemble(cubin, nvdisasm) for arch, (cubin, _) in compiled.items()}
            code = {arch: transactions(sections[arch]) for arch in ARCHS}
            instructions = cuda_instructions.report(
                sections["sm_90"], Path(folder), release, record
            )
    found = {
        arch: {str(kernel): registers for kernel, (registers, _) in sorted(resources.items())}
        for arch, (_, resources) in compiled.items()
    }
    if record:
        RECORD.write_text(
            json.dumps({"nvcc": release, **found}, indent=1, ensure_ascii=False) + "\n"
        )
    bounds = json.loads(RECORD.read_text())
    same = bounds["nvcc"] == release
    print(
        f"nvcc {release}; registers"
        + (" (bound)" if same else f"; bounds are on record for {bounds['nvcc']} and do not count")
        + (
            ""
            if nvdisasm
            else "; transactions and instructions not checked: no nvdisasm "
            "(pip install nvidia-cuda-nvdisasm)"
        )
    )
    lines, faults = instructions
    print(f"{'kernel':44}" + "".join(f"{arch:>14}" for arch in ARCHS))
    for kernel in sorted(compiled[ARCHS[0]][1]):
        cells = ""
        for arch in ARCHS:
            registers, local = compiled[arch][1][kernel]
            bound = bounds.get(arch, {}).get(str(kernel))
            cells += f"{f'{registers} ({bound})' if same else registers:>14}"
            if local:
                faults.append(f"{arch}, {kernel}: {local} bytes of stack and spills")
            if same and (bound is None or registers > bound):
                faults.append(f"{arch}, {kernel}: {registers} registers, on record are {bound}")
            if arch in code and (wrong := wide_rows(kernel, code[arch][kernel])):
                faults.append(f"{arch}, {kernel}: {wrong}")
        registers = compiled["sm_90"][1][kernel][0]
        if wrong := little_in_flight(kernel, registers):
            faults.append(f"sm_90, {kernel}: {wrong}")
        print(f"{kernel!s:44}{cells}")
    print("\n".join(lines))
    count = sum(len(resources) for _, resources in compiled.values())
    if len(compiled[ARCHS[0]][1]) < KERNELS:
        faults.append(f"only {len(compiled[ARCHS[0]][1])} kernels were found")
    if len({frozenset(resources) for _, resources in compiled.values()}) != 1:
        faults.append("the architectures have different kernels")
    print(
        "\n".join(faults)
        or f"{count} kernels: no spills, no local memory, no growth"
        + (", rows in 16-byte transactions" if nvdisasm else "")
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
