"""Which GPUs a build serves: its architectures against a device, and what users are told."""

import subprocess
import sys

import pytest
import torch

import cos_ext
from cos_ext import _build, _images, _ops
from cos_ext import functional as F

NEW = "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"


@pytest.mark.parametrize(
    "archs, capability, expected",
    [
        ("8.0;9.0+PTX", (7, 5), None),  # a T4
        ("8.0;9.0+PTX", (8, 0), "machine code for 8.0"),
        ("8.0;9.0+PTX", (8, 9), "machine code for 8.0"),
        ("8.0;9.0+PTX", (9, 0), "machine code for 9.0"),
        ("8.0;9.0+PTX", (12, 0), "PTX of 9.0"),
        ("8.6", (8, 0), None),
        ("8.0;9.0", (10, 0), None),
        ("9.0a", (9, 0), "machine code for 9.0a"),
        ("9.0a+PTX", (10, 0), None),
        ("10.0f", (10, 3), "machine code for 10.0f"),
        ("10.0f+PTX", (12, 0), None),
        ("8.0+PTX 8.6", (8, 9), "machine code for 8.6"),
        (NEW, (7, 5), "machine code for 7.5"),
        (NEW, (8, 7), "machine code for 8.6"),
        (NEW, (10, 3), "machine code for 10.0"),
        (NEW, (12, 1), "machine code for 12.0"),
        (NEW, (13, 0), "PTX of 12.0"),
        (NEW, (7, 0), None),
    ],
)
def test_the_image_of_a_device(archs, capability, expected):
    found = _images.serving(archs, capability)
    assert found is None if expected is None else found.startswith(expected)
    said = _images.refusal(archs, "a device", capability)
    assert (said is None) == (expected is not None)


def test_a_refusal_names_the_capability_the_build_and_the_remedy():
    assert _images.refusal("8.0;9.0+PTX", "cuda:0 (NVIDIA T4)", (7, 5)) == (
        "cuda:0 (NVIDIA T4) has compute capability 7.5; the CUDA kernels were built for "
        "8.0;9.0+PTX, which does not run there. Install cos_ext again with "
        "TORCH_CUDA_ARCH_LIST=7.5"
    )
    assert _images.refusal("", "a device", (7, 5)) is None


@pytest.fixture
def devices(monkeypatch):
    """Two devices that do not exist, of these capabilities."""
    capabilities = [(7, 5), (9, 0)]
    facts = {**_ops.core_facts(), "cuda_archs": "8.0;9.0+PTX"}
    monkeypatch.setattr(_ops, "_cuda_error", None)
    monkeypatch.setattr(_ops, "core_facts", lambda: dict(facts))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"device {index}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
    _build._refusal.cache_clear()
    yield capabilities
    _build._refusal.cache_clear()


def test_build_info_says_how_each_device_is_served(devices):
    info = cos_ext.build_info()
    assert info["cuda"] and info["cuda_off"] is None
    assert "compute capability 7.5" in info["cuda_devices"]["cuda:0"]
    assert info["cuda_devices"]["cuda:1"] == "machine code for 9.0"
    devices.pop()
    info = cos_ext.build_info()
    assert not info["cuda"] and info["cuda_off"] == info["cuda_devices"]["cuda:0"]


@pytest.mark.parametrize("function", [F.if_forward, F.calibrate_v_init])
def test_a_tensor_on_a_device_without_an_image_is_refused(devices, function):
    class Cuda(torch.Tensor):
        @property
        def device(self):
            return torch.device("cuda", 0)

    options = {} if function is F.if_forward else {"rho": 2}
    with pytest.raises(RuntimeError, match="has no CUDA kernels for it: cuda:0 .device 0. has com"):
        function(torch.zeros(4, 3).as_subclass(Cuda), 1.0, **options)


def test_importing_asks_no_device():
    code = """
import torch
def refused(*_, **__):
    raise AssertionError("CUDA was asked at import")
torch.cuda._lazy_init = torch.cuda.get_device_capability = torch.cuda.get_device_name = refused
import cos_ext
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_version_is_one(capsys):
    assert cos_ext.__version__ == cos_ext.build_info()["cos_ext"]
    assert cos_ext.__version__[0].isdigit()
