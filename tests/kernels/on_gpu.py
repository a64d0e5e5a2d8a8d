"""What the tests of the CUDA operators share: why they may be skipped, inputs on both devices with
the memory around them, comparison bit by bit. No tests here.
"""

import contextlib
from typing import NamedTuple

import pytest
import torch

import cos_ext
from cos_ext import functional as F

WHY_NOT = (
    "torch sees no CUDA device: these tests compare the CUDA operators with the CPU's"
    if not torch.cuda.is_available()
    else cos_ext.build_info()["cuda_off"]
)

GPU = "cuda"
ALL = {"return_v": True, "return_count": True}
ALL_COS = {**ALL, "return_v_init": True, "return_offset": True}

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def skip_unless_free(gib):
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < gib:
        pytest.skip(f"needs {gib} GiB of free device memory, there are {free:.1f}")


@contextlib.contextmanager
def poisoned_memory():
    """Fresh memory holds NaN or the largest integer, on both devices: what nobody wrote cannot look
    right.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def currents(*shape, dtype=torch.float32):
    """Random currents on the CPU; every fifth is a multiple of 1/4, so that potentials meet θ = 1
    exactly.
    """
    x = torch.randn(*shape, dtype=torch.float64) * 1.2 + 0.35
    return torch.where(torch.rand(shape) < 0.2, (4 * x).round() / 4, x).to(dtype)


def whole(x):
    """All of the memory that x lies in, gaps and surroundings included."""
    return x.as_strided((x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)


def twin(x, device=GPU):
    """A copy of x in a copy of its memory, with the same strides and offset."""
    return whole(x).clone().to(device).as_strided(x.shape, x.stride(), x.storage_offset())


def with_marked_gaps(x):
    """x, with 3.25 in all of its memory that is not its own."""
    values = x.clone()
    whole(x).fill_(3.25)
    x.copy_(values)
    return x


def move(value):
    return value.to(GPU) if isinstance(value, torch.Tensor) else value


def bits(x):
    x = x.cpu().contiguous()
    if x.is_floating_point():
        x = torch.where(
            x.isnan(), torch.tensor(torch.nan, dtype=x.dtype), x
        )  # a NaN's payload is nobody's promise
        return x.view(INTEGERS[x.element_size()])
    return x


def assert_same_bits(result, expected):
    """Two results, one of each device: same fields, dtypes, shapes, memory formats and bits."""
    assert result._fields == expected._fields
    for name, ours, theirs in zip(result._fields, result, expected):
        if theirs is None:
            assert ours is None, name
            continue
        assert ours.device.type == GPU and theirs.device.type == "cpu", name
        assert (ours.dtype, ours.shape, ours.stride()) == (
            theirs.dtype,
            theirs.shape,
            theirs.stride(),
        ), name
        assert torch.equal(bits(ours), bits(theirs)), name


def compare(operator, x, theta=1.0, v_init=None, **options):
    """Runs an operator on both devices; returns the CPU's result. In place, the memory around x is
    compared too.
    """
    ours, theirs = twin(x), twin(x, "cpu")
    result = operator(ours, move(theta), move(v_init), **options)
    expected = operator(theirs, theta, v_init, **options)
    assert_same_bits(result, expected)
    if options.get("inplace"):
        assert result.spikes is ours
    assert torch.equal(bits(whole(ours)), bits(whole(theirs))), "the memory of x_seq"
    return expected


class Gradients(NamedTuple):
    """Of what took part in a simulation."""

    x_seq: torch.Tensor
    v_threshold: torch.Tensor
    v_init: torch.Tensor
    bias: torch.Tensor | None = None
    residual: torch.Tensor | None = None


def gradients(x, theta, v_init, *, grad, fused=None, **options):
    """Where that of the spikes is `grad`. Sums over neurons are torch's: θ, v_init and a bias by
    neuron.
    """
    moved = {name: twin(tensor, x.device) for name, tensor in (fused or {}).items()}
    leaves = [t.detach().requires_grad_() for t in (x, theta, v_init, *moved.values())]
    own = dict(zip(moved, leaves[3:]))
    spikes = F.if_forward(*leaves[:3], **own, **options).spikes
    found = torch.autograd.grad(spikes, leaves, twin(grad, x.device))
    return Gradients(*found[:3], **dict(zip(moved, found[3:])))
