"""Builds the extension modules. Everything else about the package is in pyproject.toml.

    cos_ext/_core    pybind11 over NumPy, without torch
    cos_ext/_C       schemas and CPU operators, on torch's stable ABI (runs on torch 2.11 and later)
    cos_ext/_C_cuda  CUDA operators; built when torch is a CUDA build and a toolkit of the same
                     major is found

_core and _C contain the same CPU kernels, which take most of the time. They are compiled once, as
sources of _core, in parallel with it; _C is built after it and links the same objects.

The version is here, too: a wheel's says what it was built with (0.2.0+cu130, 0.2.0+cpu), a source
distribution's does not.

Environment: FORCE_CUDA=1 builds _C_cuda or fails, FORCE_CUDA=0 never builds it; CUDA_HOME,
TORCH_CUDA_ARCH_LIST, MAX_JOBS as in torch; DEBUG=1 builds with -O0 -g. COS_EXT_ONLY=cpu or cuda
builds one half of the modules, so that two processes can share the work (bench/gpu_run.sh).
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
DEBUG = os.environ.get("DEBUG", "0") == "1"
VERSION = "0.2.0.dev0"
# Machine code for these, as far as nvcc knows them, and PTX of the newest, which devices that are
# newer still compile for themselves.
ARCHS = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
TARGET_VERSION = "0x020b000000000000"  # only functions that torch 2.11 has
KERNELS = [
    "csrc/cpu/dispatch.cpp",
    "csrc/cpu/kernels_baseline.cpp",
    "csrc/cpu/kernels_avx2.cpp",
    "csrc/cpu/kernels_avx512.cpp",
]
# Spikes are exact: no contraction to fused multiply-add, no fast-math. -fno-trapping-math only
# allows vectorised selects.
UNITS = sorted(f"csrc/cuda/units/{path.name}" for path in ROOT.glob("csrc/cuda/units/*.cu"))
CXX_FLAGS = [
    "-std=c++17",
    "-fvisibility=hidden",
    "-fno-trapping-math",
    "-fno-math-errno",
    "-ffp-contract=off",
    "-Wall",
    *(["-O0", "-g"] if DEBUG else ["-O3", "-g0"]),
]
NVCC_FLAGS = [
    "-std=c++17",
    "-fmad=false",
    "-DUSE_CUDA",
    "-Xcompiler",
    "-fvisibility=hidden",
    *(["-O0", "-g", "-lineinfo"] if DEBUG else ["-O3"]),
]


def toolkit() -> tuple[Path | None, str]:
    """(CUDA toolkit folder, its version) or (None, why not). An nvcc on PATH may be a wrapper, so
    nvcc itself is asked.
    """
    candidates = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    if not candidates:
        nvcc = shutil.which("nvcc")
        if nvcc:
            dry = subprocess.run(
                [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull],
                capture_output=True,
                text=True,
                check=False,
            )
            top = re.search(r"^#\$ TOP=(.+)$", dry.stderr, re.MULTILINE)
            candidates += [os.path.normpath(top.group(1).strip())] if top else []
        candidates.append("/usr/local/cuda")
    for candidate in map(Path, candidates):
        if (candidate / "include" / "cuda_runtime.h").is_file() and (
            candidate / "bin" / "nvcc"
        ).is_file():
            said = subprocess.run(
                [candidate / "bin" / "nvcc", "--version"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            return candidate, re.search(r"release (\d+\.\d+)", said).group(1)
    return None, f"no CUDA toolkit (bin/nvcc and include/cuda_runtime.h) in {', '.join(candidates)}"


def cuda_decision(torch_version: str, torch_cuda: str | None) -> tuple[Path | None, str]:
    """(toolkit folder, what is built) or (None, why CUDA is off). Never asks for a GPU."""
    force = os.environ.get("FORCE_CUDA")
    if force not in (None, "", "0", "1"):
        sys.exit(f"cos_ext: FORCE_CUDA must be 0 or 1, got {force!r}")
    if force == "0":
        return None, "FORCE_CUDA=0"
    if torch_cuda is None and force != "1":
        return None, f"torch {torch_version} is a CPU build"
    home, version = toolkit()
    reason = ""
    if home is None:
        reason = version
    elif torch_cuda is not None and version.split(".")[0] != torch_cuda.split(".")[0]:
        reason = (
            f"torch {torch_version} is built with CUDA {torch_cuda}, "
            f"the toolkit in {home} is {version}"
        )
    if reason and force == "1":
        sys.exit(f"cos_ext: FORCE_CUDA=1, but CUDA cannot be built: {reason}")
    return (None, reason) if reason else (home, f"CUDA {version}")


def default_archs(home: Path) -> str:
    """The list for a toolkit, such as "8.0;9.0+PTX"."""
    said = subprocess.run(
        [home / "bin" / "nvcc", "--list-gpu-arch"], capture_output=True, text=True, check=True
    ).stdout
    known = {f"{major}.{minor}" for major, minor in re.findall(r"compute_(\d+)(\d)\b", said)}
    offered = [arch for arch in ARCHS if arch in known]
    if not offered:
        sys.exit(f"cos_ext: nvcc in {home} knows none of {', '.join(ARCHS)}; it offers:\n{said}")
    return ";".join(offered) + "+PTX"


def compile_threads(archs: str) -> int:
    """How many architectures nvcc compiles at once, where ninja compiles all files side by side."""
    cores = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    return max(1, min(cores // (len(UNITS) + 1), len(arch_flags(archs))))


def version_for(command: list[str], toolkit: str | None) -> str:
    """The version for the arguments of setup.py. `toolkit`: such as "CUDA 13.0", or None."""
    if "sdist" in command:
        return VERSION
    return f"{VERSION}+" + ("cu" + re.sub(r"\D", "", toolkit) if toolkit else "cpu")


def arch_flags(archs: str) -> list[str]:
    """nvcc -gencode flags for a TORCH_CUDA_ARCH_LIST such as "8.0;9.0+PTX"."""
    flags = []
    for arch in re.split(r"[;,\s]+", archs.strip()):
        match = re.fullmatch(r"(\d+)\.(\d+[af]?)(\+PTX)?", arch)
        if not match:
            sys.exit(
                f"cos_ext: TORCH_CUDA_ARCH_LIST: {arch!r} is not like 9.0 or 9.0+PTX (in {archs!r})"
            )
        number = match.group(1) + match.group(2)
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if match.group(3):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def extensions(home: Path | None, note: str, archs: str) -> list:
    """The extension modules, in the order in which they must be built. `home` is the CUDA toolkit;
    without one, `note` says why.
    """
    import pybind11
    import torch
    from torch.utils import cpp_extension

    facts = {
        "TORCH": torch.__version__,
        "CUDA": note if home else "",
        "CUDA_ARCHS": archs if home else "",
        "CUDA_OFF": "" if home else note,
    }
    core = cpp_extension.CppExtension(
        "cos_ext._core",
        ["csrc/python/core_module.cpp", *KERNELS],
        define_macros=[(f"COS_EXT_BUILD_{key}", f'"{value}"') for key, value in facts.items()],
        extra_compile_args={"cxx": CXX_FLAGS},
    )
    core.include_dirs, core.libraries, core.library_dirs = [pybind11.get_include()], [], []
    macros = [("TORCH_TARGET_VERSION", TARGET_VERSION)]
    operators = cpp_extension.CppExtension(
        "cos_ext._C",
        ["csrc/ops.cpp", "csrc/cpu/ops_cpu.cpp"],
        define_macros=macros,
        extra_compile_args={"cxx": CXX_FLAGS},
        py_limited_api=True,
    )
    if not home:
        return [core, operators]
    # torch crashes when it is to guess architectures without a GPU; the flags are given in full
    # instead.
    os.environ["TORCH_CUDA_ARCH_LIST"] = archs
    cpp_extension.CUDA_HOME = str(home)
    nvcc_flags = [*NVCC_FLAGS, *arch_flags(archs), f"--threads={compile_threads(archs)}"]
    nvcc_flags.append("-Xfatbin=-compress-all")  # nvcc leaves images of small files as they are
    cuda = cpp_extension.CppExtension(
        "cos_ext._C_cuda",
        ["csrc/cuda/ops_cuda.cu", *UNITS],
        define_macros=macros,
        include_dirs=[str(home / "include")],
        library_dirs=[str(home / "lib64")],
        libraries=["cudart_static", "dl", "rt"],
        extra_compile_args={"cxx": CXX_FLAGS, "nvcc": nvcc_flags},
        extra_link_args=["-Wl,--no-as-needed", "-ltorch"],
        py_limited_api=True,
    )
    return [core, operators, cuda]


def chosen(modules: list) -> list:
    """The half that COS_EXT_ONLY names; all of them without it."""
    only = os.environ.get("COS_EXT_ONLY") or None
    if only not in (None, "cpu", "cuda"):
        sys.exit(f"cos_ext: COS_EXT_ONLY must be cpu or cuda, got {only!r}")
    return [m for m in modules if only is None or (m.name == "cos_ext._C_cuda") == (only == "cuda")]


def sharing_kernels(build_ext: type) -> type:
    """torch's build_ext, in which _C links the kernels' objects that _core has just compiled."""

    class SharingKernels(build_ext):
        def finalize_options(self) -> None:
            super().finalize_options()
            self.force = True  # ninja alone knows which object is older than a header
            self.parallel = None  # _core before _C; ninja runs the compilers side by side

        def build_extension(self, ext) -> None:
            if ext.name == "cos_ext._C":
                ext.extra_objects = self.compiler.object_filenames(
                    KERNELS, output_dir=self.build_temp
                )
            super().build_extension(ext)

    return SharingKernels


def main() -> None:
    try:
        import torch
        from torch.utils.cpp_extension import BuildExtension
    except ImportError as error:
        # A source distribution and a package's metadata need no torch; only building does.
        if {"build", "build_ext", "bdist_wheel", "editable_wheel", "develop", "install"} & set(
            sys.argv
        ):
            sys.exit(
                "cos_ext builds against an installed torch >= 2.11, and `import torch` failed: "
                f"{error}"
            )
        setup(version=VERSION)
        return

    if tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2]) < (2, 11):
        sys.exit(f"cos_ext needs torch >= 2.11 (stable ABI), found {torch.__version__}")
    home, note = cuda_decision(torch.__version__, torch.version.cuda)
    archs = os.environ.get("TORCH_CUDA_ARCH_LIST") or (default_archs(home) if home else "")
    said = f"building CUDA kernels: {note} for {archs}" if home else f"no CUDA kernels: {note}"
    print(f"cos_ext: {said}", flush=True)
    setup(
        version=version_for(sys.argv, note if home else None),
        ext_modules=chosen(extensions(home, note, archs)),
        cmdclass={"build_ext": sharing_kernels(BuildExtension)},
    )


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
