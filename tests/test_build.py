"""The build's decisions (setup.py) and the in-tree backend: what is built, and the message when it
cannot be.
"""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def build(monkeypatch):
    for name in ("FORCE_CUDA", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    pytest.importorskip("setuptools")
    spec = importlib.util.spec_from_file_location("cos_ext_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def toolkit(tmp_path, monkeypatch):
    """A folder that looks like CUDA toolkit 13.0."""
    (tmp_path / "include").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "include" / "cuda_runtime.h").touch()
    nvcc = tmp_path / "bin" / "nvcc"
    offers = " ".join(f"compute_{arch}" for arch in (75, 80, 86, 87, 89, 90, 100, 103, 120, 121))
    nvcc.write_text(
        f'#!/bin/sh\n[ "$1" = --list-gpu-arch ] && printf "%s\\n" {offers} && exit\n'
        "echo 'Cuda compilation tools, release 13.0, V13.0.88'\n"
    )
    nvcc.chmod(0o755)
    return tmp_path


def test_cuda_is_built_for_a_cuda_torch_and_its_toolkit(build, toolkit, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    assert build.cuda_decision("2.13.0+cu130", "13.0") == (toolkit, "CUDA 13.0")
    assert build.cuda_decision("2.15.0+cu132", "13.2") == (toolkit, "CUDA 13.0")
    assert build.cuda_decision("2.13.0+cpu", None) == (None, "torch 2.13.0+cpu is a CPU build")
    home, reason = build.cuda_decision("2.11.0+cu128", "12.8")
    assert home is None and "built with CUDA 12.8" in reason and "is 13.0" in reason


def test_force_cuda(build, toolkit, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    monkeypatch.setenv("FORCE_CUDA", "0")
    assert build.cuda_decision("2.13.0+cu130", "13.0") == (None, "FORCE_CUDA=0")
    monkeypatch.setenv("FORCE_CUDA", "1")
    assert build.cuda_decision("2.13.0+cpu", None) == (toolkit, "CUDA 13.0")
    with pytest.raises(
        SystemExit, match="FORCE_CUDA=1, but CUDA cannot be built: torch.*CUDA 12.8"
    ):
        build.cuda_decision("2.11.0+cu128", "12.8")
    monkeypatch.setenv("CUDA_HOME", str(toolkit / "nowhere"))
    with pytest.raises(SystemExit, match="no CUDA toolkit"):
        build.cuda_decision("2.13.0+cu130", "13.0")
    monkeypatch.setenv("FORCE_CUDA", "yes")
    with pytest.raises(SystemExit, match="FORCE_CUDA must be 0 or 1, got 'yes'"):
        build.cuda_decision("2.13.0+cu130", "13.0")


def test_half_of_the_modules(build, monkeypatch):
    modules = [SimpleNamespace(name=f"cos_ext.{name}") for name in ("_core", "_C", "_C_cuda")]
    found = {}
    for only in ("", "cpu", "cuda"):
        monkeypatch.setenv("COS_EXT_ONLY", only)
        found[only] = [module.name for module in build.chosen(modules)]
    assert found["cpu"] == ["cos_ext._core", "cos_ext._C"] and found["cuda"] == ["cos_ext._C_cuda"]
    assert found[""] == found["cpu"] + found["cuda"]
    monkeypatch.setenv("COS_EXT_ONLY", "gpu")
    with pytest.raises(SystemExit, match="COS_EXT_ONLY must be cpu or cuda, got 'gpu'"):
        build.chosen(modules)


def test_a_wrapper_on_the_path_is_asked_for_its_toolkit(
    build, toolkit, tmp_path_factory, monkeypatch
):
    folder = tmp_path_factory.mktemp("wrapper")
    wrapper = folder / "nvcc"
    wrapper.write_text(f"#!/bin/sh\necho '#$ TOP={toolkit}/bin/..' >&2\n")
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    assert build.toolkit() == (toolkit, "13.0")


def test_arch_list(build):
    assert build.arch_flags("8.0;9.0+PTX") == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    assert build.arch_flags("9.0a 10.0") == [
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_100,code=sm_100",
    ]
    with pytest.raises(SystemExit, match="'Hopper' is not like 9.0"):
        build.arch_flags("8.0;Hopper")


def test_the_default_architectures_are_what_nvcc_offers(build, toolkit, monkeypatch):
    assert build.default_archs(toolkit) == "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"
    nvcc = toolkit / "bin" / "nvcc"
    nvcc.write_text("#!/bin/sh\nprintf '%s\\n' compute_50 compute_75 compute_80 compute_90a\n")
    assert build.default_archs(toolkit) == "7.5;8.0+PTX"
    nvcc.write_text("#!/bin/sh\necho compute_52\n")
    with pytest.raises(SystemExit, match="knows none of 7.5.*it offers:\ncompute_52"):
        build.default_archs(toolkit)


def test_nvcc_compiles_architectures_at_once_where_cores_would_idle(build, monkeypatch):
    files = len(build.UNITS) + 1
    assert files == 13
    for jobs, archs, expected in (
        (2, "8.0;9.0", 1),
        (2 * files, "8.0;9.0", 2),
        (64 * files, "8.0;9.0+PTX", 3),
    ):
        monkeypatch.setenv("MAX_JOBS", str(jobs))
        assert build.compile_threads(archs) == expected


def test_every_dtype_and_family_of_kernels_is_a_file_of_its_own(build):
    dtypes = ("bfloat16", "float16", "float32", "float64")
    names = [
        f"{family}_{dtype}.cu" for family in ("backward", "forward", "general") for dtype in dtypes
    ]
    assert [Path(unit).name for unit in build.UNITS] == names
    for unit in build.UNITS:
        assert (ROOT / unit).read_text().count("_UNIT(, ") == 1
    launched = (ROOT / "csrc" / "cuda" / "ops_cuda.cu").read_text()
    assert launched.count("_UNIT(extern, ") == len(names)


def test_a_wheel_says_what_it_was_built_with(build):
    for command in ("bdist_wheel", "editable_wheel", "dist_info"):
        assert build.version_for(["setup.py", command], "CUDA 13.0") == f"{build.VERSION}+cu130"
        assert build.version_for(["setup.py", command], None) == f"{build.VERSION}+cpu"
    assert build.version_for(["setup.py", "sdist"], "CUDA 13.0") == build.VERSION


def test_no_source_is_compiled_for_two_extensions(build, toolkit, monkeypatch):
    cpp_extension = pytest.importorskip("torch.utils.cpp_extension")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    monkeypatch.setitem(sys.modules, "pybind11", SimpleNamespace(get_include=lambda: "include"))
    for home in (None, toolkit):
        made = build.extensions(home, "a note", "9.0")
        assert [extension.name for extension in made][:2] == ["cos_ext._core", "cos_ext._C"]
        assert len(made) == 2 + (home is not None)
        sources = Counter(source for extension in made for source in extension.sources)
        assert set(sources.values()) == {1}
        assert set(build.KERNELS) < set(made[0].sources)


# Stands in for the compiler and the linker: notes how it was called and makes empty files.
NOTING_COMPILER = """#!/bin/sh
echo "$*" >> "$NOTES"
if [ -n "$REFUSED" ]; then case "$*" in *"$REFUSED"*) exit 1 ;; esac; fi
while [ $# -gt 0 ]; do
  case "$1" in
    *.cpp) source=$1 ;;
    -o) : > "$2"; made=$2 ;;
    -MF) dependencies=$2 ;;
  esac
  shift
done
if [ -n "$dependencies" ]; then echo "$made: $source" > "$dependencies"; fi
"""


class Project:
    """A copy of setup.py and the sources, built with the compiler that only takes notes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tools, self.notes = folder, folder / "tools", folder / "notes"
        shutil.copytree(ROOT / "csrc", folder / "csrc")
        shutil.copy(ROOT / "setup.py", folder)
        self.tools.mkdir()
        for name in ("cc", "gcc", "c++", "g++"):
            (self.tools / name).write_text(NOTING_COMPILER)
            (self.tools / name).chmod(0o755)
        (self.tools / "pybind11.py").write_text("def get_include(): return 'include'\n")

    def build(self, refused: str = "") -> tuple[int, Counter[str], dict[str, set[str]]]:
        """The exit status, how often each source was compiled, and the objects linked into each
        module.
        """
        self.notes.write_text("")
        environment = {
            **{name: value for name, value in os.environ.items() if name not in ("CC", "CXX")},
            "PATH": f"{self.tools}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.tools),
            "TORCH_DONT_CHECK_COMPILER_ABI": "1",
            "FORCE_CUDA": "0",
            "NOTES": str(self.notes),
            "REFUSED": refused,
        }
        command = [sys.executable, "setup.py", "build_ext", "--build-lib", "lib"]
        done = subprocess.run(
            [*command, "--build-temp", "temp"],
            cwd=self.folder,
            env=environment,
            capture_output=True,
        )
        compiled: Counter[str] = Counter()
        linked: dict[str, set[str]] = {}
        for words in map(str.split, self.notes.read_text().splitlines()):
            if sources := [word for word in words if word.endswith(".cpp")]:
                compiled[str((self.folder / sources[0]).relative_to(self.folder))] += 1
            elif "-shared" in words:
                module = Path(words[words.index("-o") + 1]).name.split(".")[0]
                objects = (self.folder / word for word in words if word.endswith(".o"))
                linked[module] = {str(o.relative_to(self.folder / "temp")) for o in objects}
        return done.returncode, compiled, linked


@pytest.fixture
def project(tmp_path):
    pytest.importorskip("setuptools")
    pytest.importorskip("torch.utils.cpp_extension")
    return Project(tmp_path)


def test_the_kernels_are_compiled_once_and_linked_into_both_modules(build, project):
    kernels = {str(Path(source).with_suffix(".o")) for source in build.KERNELS}
    own = {"_core": {"csrc/python/core_module.o"}, "_C": {"csrc/ops.o", "csrc/cpu/ops_cpu.o"}}
    expected = {module: kernels | objects for module, objects in own.items()}
    status, compiled, linked = project.build()
    assert status == 0 and linked == expected
    assert set(compiled) >= set(build.KERNELS) and set(compiled.values()) == {1}
    with open(project.folder / build.KERNELS[-1], "a") as source:
        source.write("\n")
    status, again, linked = project.build()
    assert status == 0 and linked == expected
    assert again == ({build.KERNELS[-1]: 1} if shutil.which("ninja") else compiled)


def test_a_kernel_that_does_not_compile_fails_the_build(build, project):
    status, compiled, linked = project.build(refused="kernels_avx2.cpp")
    assert status != 0 and compiled["csrc/cpu/kernels_avx2.cpp"] == 1 and not linked


# What gcc predefines for a feature, where it is not __FEATURE__; None: no instruction of its own.
FEATURES = {
    "GCC_HAVE_SYNC_COMPARE_AND_SWAP_16": "cmpxchg16b",
    "LAHF_SAHF": "lahf_lm",
    "SSE4_1": "sse4.1",
    "SSE4_2": "sse4.2",
    "CRC32": None,  # part of sse4.2
    "BIGGEST_ALIGNMENT": None,
    "EVEX256": None,  # gcc 14 and later, with avx512
    "EVEX512": None,
}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64 alone is dispatched")
@pytest.mark.parametrize("level", ["v3", "v4"])
def test_dispatch_asks_for_every_feature_that_the_compiler_may_use(level):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++ to ask")

    def macros(*flags: str) -> set[str]:
        command = [compiler, *flags, "-dM", "-E", "-x", "c++", os.devnull]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return set(re.findall(r"^#define __(\w+?)(?:__)? ", said, re.MULTILINE))

    more = macros(f"-march=x86-64-{level}") - macros()
    names = {FEATURES.get(name, name.lower()) for name in more if not name.startswith("FP_FAST")}
    source = (ROOT / "csrc" / "cpu" / "dispatch.cpp").read_text()
    asked = set(re.findall(r'__builtin_cpu_supports\("([^"]+)"\)', source))
    assert {"avx2", "f16c", "lzcnt", "movbe"} <= names  # the compiler has answered
    assert names - {None} <= asked


@pytest.fixture
def backend():
    pytest.importorskip("setuptools")
    spec = importlib.util.spec_from_file_location("cos_ext_backend", ROOT / "build_backend.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_backend_asks_for_torch_only_where_there_is_none(backend, monkeypatch):
    assert {
        "build_wheel",
        "build_sdist",
        "build_editable",
        "prepare_metadata_for_build_wheel",
    } <= set(dir(backend))
    assert backend.get_requires_for_build_wheel() == backend.get_requires_for_build_editable() == []
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(backend, "_hosting_folders", lambda: ["nowhere"])
    assert (
        backend.get_requires_for_build_wheel()
        == backend.get_requires_for_build_editable()
        == ["torch>=2.11"]
    )
    assert backend.get_requires_for_build_sdist() == []


def test_the_isolated_environment_is_shown_the_installed_torch(backend, monkeypatch, tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "version.py").touch()
    real = importlib.util.find_spec
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(
        backend.importlib.util,
        "find_spec",
        lambda name: real("json") if str(tmp_path) in sys.path else None,
    )
    monkeypatch.setattr(
        backend.sysconfig,
        "get_paths",
        lambda **_: {"purelib": str(tmp_path), "platlib": str(tmp_path)},
    )
    assert backend._installed_torch()
    assert sys.path == [str(tmp_path)]


def without_torch(*arguments):
    blocked = "import runpy, sys; sys.modules['torch'] = None; "
    blocked += f"sys.argv[0] = 'setup.py'; runpy.run_path({str(ROOT / 'setup.py')!r}, "
    blocked += "run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", blocked, *arguments], cwd=ROOT, capture_output=True, text=True
    )


def test_metadata_needs_no_torch_and_building_says_so():
    pytest.importorskip("setuptools")
    name = without_torch("--name", "--version")
    assert name.returncode == 0 and name.stdout.split()[-2] == "cos_ext"
    assert f'VERSION = "{name.stdout.split()[-1]}"' in (ROOT / "setup.py").read_text()
    build = without_torch("build_ext")
    assert build.returncode != 0 and "builds against an installed torch >= 2.11" in build.stderr
