"""What several test files share: devices, dtypes, layouts, the shipped model, the CUDA kernels
on the host. No tests here."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

# Threads that wait give their core away: the tests run in several processes. Read once, when torch
# starts its threads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import hypothesis
import pytest
import torch

import cos_ext
from cos_ext import _ops, data, models
from cos_ext.models import DEMO_CHECKPOINT

# A busy machine is slow, which is no failure; a failure prints how to see it again anywhere.
hypothesis.settings.register_profile("tests", deadline=None, print_blob=True)
hypothesis.settings.load_profile("tests")


def pytest_collection_modifyitems(items):
    """Several processes take files in this order: long ones first, so that all end together."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        first = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in first)


ROOT = Path(__file__).resolve().parents[1]
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() and cos_ext.build_info()["cuda"] else [])


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request):
    return request.param


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Other tests' networks would count towards the compiler's limit of recompilations."""
    torch.compiler.reset()


@pytest.fixture(scope="module")
def one_thread():
    """Toy tensors gain nothing from threads, and threads that wait for each other on a busy machine
    cost seconds.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    """The operators cos_ext_cuda_on_host::*, compiled from tests/cpp/shim_ops.cpp."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None or not (ROOT / "csrc").is_dir():
        pytest.skip("there is no C++ compiler, or no source tree")
    torch_root = Path(torch.__file__).parent
    library = tmp_path_factory.mktemp("shim") / f"shim{sysconfig.get_config_var('SHLIB_SUFFIX')}"
    command = [
        compiler,
        "-std=c++17",
        "-O1",
        "-fPIC",
        "-shared",
        "-fno-math-errno",
        "-ffp-contract=off",
        "-DTORCH_TARGET_VERSION=0x020b000000000000",
        f"-I{ROOT / 'csrc'}",
        f"-I{torch_root / 'include'}",
        f"-I{torch_root / 'include/torch/csrc/api/include'}",
        str(ROOT / "tests/cpp/shim_ops.cpp"),
        "-o",
        str(library),
        f"-L{torch_root / 'lib'}",
        "-ltorch",
        "-ltorch_cpu",
        "-lc10",
    ]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    torch.ops.load_library(str(library))
    return torch.ops.cos_ext_cuda_on_host


@pytest.fixture
def on_host(shim, monkeypatch):
    """Calls a function of cos_ext.functional with the kernels of the shim."""

    def call(function, *args, **kwargs):
        with monkeypatch.context() as patch:
            patch.setattr(_ops, "ops", shim)
            return function(*args, **kwargs)

    return call


@pytest.fixture(scope="session")
def shipped_model():
    model = models.resnet20(10, 1)
    models.load_weights(model, DEMO_CHECKPOINT)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def test_set():
    return data.fashion_mnist()


def bench_script(name):
    """A script of bench/ as a module; skips where only the package is."""
    path = ROOT / "bench" / f"{name}.py"
    if not path.exists():
        pytest.skip("bench/ is not installed")
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def layouts(x):
    """Tensors equal to x [T, B, C, H, W], by name, in every kind of memory layout."""
    padded = torch.zeros(*x.shape[:-1], 2 * x.shape[-1] + 3, dtype=x.dtype, device=x.device)
    padded[..., 1 : 1 + 2 * x.shape[-1] : 2] = x
    flat = torch.zeros(x.numel() + 1, dtype=x.dtype, device=x.device)
    flat[1:] = x.flatten()
    return {
        "contiguous": x.clone(),
        "misaligned": flat[1:].view_as(x),
        "channels_last": x.flatten(0, 1)
        .to(memory_format=torch.channels_last)
        .unflatten(0, x.shape[:2]),
        "batch_major": x.transpose(0, 1).contiguous().transpose(0, 1),
        "time_innermost": x.movedim(0, -1).contiguous().movedim(-1, 0),
        "strided": padded[..., 1 : 1 + 2 * x.shape[-1] : 2],
        "reversed_dims": x.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0),
    }
