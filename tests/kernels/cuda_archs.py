"""Whether every architecture of the default list compiles, without a GPU.

    python tests/kernels/cuda_archs.py

Compiles tests/cpp/compile_some.cu, a few kernels of every family, with setup.py's flags, and fails
where one of them uses local memory or an image is missing. Not a pytest file: it takes half a
minute, and make test-cuda-compile runs it. All kernels for two architectures: cuda_kernels.py.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from cuda_kernels import ROOT, setup_module

KERNELS = 7  # in compile_some.cu


def compiled(home: Path, flags: list[str], archs: str) -> str:
    """What ptxas says about each kernel."""
    with tempfile.TemporaryDirectory() as folder:
        command = [home / "bin" / "nvcc", *flags, *setup_module().arch_flags(archs), "--threads=2"]
        command += ["-Xptxas=-v", "--expt-relaxed-constexpr", f"-I{ROOT / 'csrc'}"]
        command += ["-c", ROOT / "tests" / "cpp" / "compile_some.cu", "-o", f"{folder}/some.o"]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"cuda_archs: {archs} does not compile:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def main() -> int:
    setup = setup_module()
    home, release = setup.toolkit()
    if home is None:
        print(f"cuda_archs: skipped: {release}")
        return 0
    archs = setup.default_archs(home)
    said = compiled(home, setup.NVCC_FLAGS, archs)
    found: dict[str, list[int]] = {}
    for arch, kernel in re.findall(
        r"Compiling entry function '\S+' for '(sm_\d+)'(.*?)(?=ptxas info    : Compiling|\Z)",
        said,
        re.DOTALL,
    ):
        local = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", kernel)
        found.setdefault(arch, []).append(sum(map(int, local.groups())) if local else -1)
    wanted = [f"sm_{re.sub('[^0-9]', '', arch)}" for arch in archs.split(";")]
    faults = [arch for arch in wanted if found.get(arch) != [0] * KERNELS]
    print(f"nvcc {release}: {archs}: {KERNELS} kernels each, no local memory")
    for arch in faults:
        print(f"{arch}: expected {KERNELS} kernels without local memory, got {found.get(arch)}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
