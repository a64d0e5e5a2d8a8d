"""The build's decisions (setup.py) and the in-tree backend: what is built, and the message when it
cannot be.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

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
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
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
    blocked = "import sys; sys.modules['torch'] = None; sys.argv = ['setup.py', *sys.argv[1:]]; "
    blocked += f"exec(compile(open({str(ROOT / 'setup.py')!r}).read(), {str(ROOT / 'setup.py')!r}, 'exec'), "
    blocked += f"{{'__name__': '__main__', '__file__': {str(ROOT / 'setup.py')!r}}})"
    return subprocess.run(
        [sys.executable, "-c", blocked, *arguments], cwd=ROOT, capture_output=True, text=True
    )


def test_metadata_needs_no_torch_and_building_says_so():
    pytest.importorskip("setuptools")
    name = without_torch("--name")
    assert name.returncode == 0 and name.stdout.split()[-1] == "cos_ext"
    build = without_torch("build_ext")
    assert build.returncode != 0 and "builds against an installed torch >= 2.11" in build.stderr
