"""A failure says why: those of torch behind the operators, and those of the CUDA runtime."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import torch.utils.cpp_extension

from cos_ext import functional as F
from cos_ext.qcfs import QCFS

ROOT = Path(__file__).resolve().parents[2]
# What torch hands out (csrc/box.h); before, it prints the cause.
TOLD = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2]) >= (2, 13)

# Elements without memory of their own: no copy of them fits into any.
HUGE = torch.zeros(1, 1).expand(2, 2**50)


@pytest.mark.parametrize(
    "call",
    [
        lambda: F.if_forward(HUGE, 1.0),
        lambda: F.cos_forward(HUGE, 1.0, rho=2),
        lambda: F.calibrate_v_init(HUGE, 1.0, rho=2),
        lambda: QCFS(4, 1.0)(HUGE),
    ],
    ids=["if_forward", "cos_forward", "calibrate_v_init", "qcfs"],
)
def test_an_allocation_that_fails_says_why(call):
    with torch.no_grad(), pytest.raises(RuntimeError) as caught:
        call()
    if TOLD:
        assert re.search(
            r"can't allocate memory: you tried to allocate \d+ bytes", str(caught.value)
        )
        assert "API call failed" not in str(caught.value)
    else:
        assert "torch older than 2.13 does not say why" in str(caught.value)


def test_an_error_of_ours_is_not_taken_for_one_of_torch():
    with torch.no_grad(), pytest.raises(RuntimeError):
        F.if_forward(HUGE, 1.0)  # its cause must not come back
    with pytest.raises(RuntimeError, match="x_mean must be .1, .neurons.$"):
        torch.ops.cos_ext.rate_forward(torch.zeros(2, 3), None, 1.0, None, None, 2)


PROGRAM = """
#include <cstdio>
#include "cuda/errors.h"
int main() {
  using cos_ext::cuda::failure;
  int size = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&size, cudaDevAttrL2CacheSize, 0);
  std::printf("%s\\n", failure("ask for the size of the L2 cache", error).c_str());
  std::printf("%s\\n", failure("launch a kernel", cudaErrorInsufficientDriver).c_str());
  std::printf("%s\\n", failure("launch a kernel", cudaErrorNoKernelImageForDevice).c_str());
  std::printf("%s\\n", failure("launch a kernel", cudaErrorInvalidConfiguration).c_str());
}
"""


@pytest.fixture(scope="module")
def messages(tmp_path_factory):
    """What csrc/cuda/errors.h says, without a GPU."""
    nvcc = shutil.which("nvcc")
    home = torch.utils.cpp_extension.CUDA_HOME or "/usr/local/cuda"
    library = Path(home, "lib64", "libcudart_static.a")
    if nvcc is None or not library.is_file() or shutil.which("g++") is None:
        pytest.skip("needs nvcc, the static CUDA runtime and g++")
    folder = tmp_path_factory.mktemp("errors")
    (folder / "errors.cpp").write_text(PROGRAM)
    command = ["g++", "-std=c++17", f"-I{ROOT / 'csrc'}", f"-I{Path(home, 'include')}"]
    command += [str(folder / "errors.cpp"), str(library), "-ldl", "-lrt", "-lpthread"]
    subprocess.run([*command, "-o", str(folder / "errors")], check=True)
    done = subprocess.run([folder / "errors"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the driver is fine")
def test_the_first_call_of_the_runtime_reports_its_own_error(messages):
    assert messages[0].startswith("cos_ext could not ask for the size of the L2 cache: ")
    assert re.search(r"\(cudaError\w+\)", messages[0])
    assert "cudaSuccess" not in messages[0]


def test_what_to_do_about_an_error_of_the_runtime(messages):
    _, driver, image, other = messages
    assert "driver version is insufficient" in driver and "; update the NVIDIA driver" in driver
    assert "no kernel image" in image and "TORCH_CUDA_ARCH_LIST" in image
    assert other.endswith("(cudaErrorInvalidConfiguration)")
