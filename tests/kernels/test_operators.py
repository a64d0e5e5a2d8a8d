"""The operators against the reference loop: every dtype, layout, option and path, spikes EQUAL.

Properties of the mathematics are in test_properties.py, bad input in test_errors.py, what torch
asks of an operator in test_opcheck.py.
"""

import os
import subprocess
import sys

import pytest
import torch
from conftest import layouts

import cos_ext
from cos_ext import functional as F
from cos_ext import reference as R

ALL = {"return_v": True, "return_count": True}
ALL_COS = {**ALL, "return_v_init": True, "return_offset": True}
SIZES = [1, 2, 3, 7, 31, 33, 63, 64, 65, 127, 129, 1023, 1024, 1025, 4097]


def currents(*shape, dtype=torch.float32, device="cpu"):
    return (torch.randn(*shape, dtype=torch.float64) * 1.2 + 0.35).to(device, dtype)


def assert_same(result, expected):
    assert result._fields == expected._fields
    for name, ours, theirs in zip(result._fields, result, expected):
        if name == "statistics":  # the reference has none
            assert ours is None and theirs is None
            continue
        assert ours.dtype == theirs.dtype, name
        assert torch.equal(torch.nan_to_num(ours, 7.5), torch.nan_to_num(theirs, 7.5)), name


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("steps, rho", [(1, 1), (4, 4), (9, 3), (19, 17)])
def test_every_size_equals_the_reference(size, steps, rho, dtype, device):
    x = currents(steps, size, dtype=dtype, device=device)
    assert_same(F.if_forward(x, 0.9, **ALL), R.if_forward(x, 0.9))
    for iterations in (0, 1, 2, None):
        assert_same(
            F.cos_forward(x, 0.9, rho=rho, iterations=iterations, **ALL_COS),
            R.cos_forward(x, 0.9, rho=rho, iterations=iterations),
        )
        assert_same(
            F.calibrate_v_init(x, 0.9, rho=rho, iterations=iterations),
            R.calibrate_v_init(x, 0.9, rho=rho, iterations=iterations),
        )


@pytest.mark.parametrize("emission", ["even", "front"])
@pytest.mark.parametrize("steps, rho", [(1, 1), (3, 4), (8, 4), (11, 7), (40, 17)])
def test_planned_emission_equals_the_formula(steps, rho, emission, dtype, device):
    rho = min(rho, steps)
    wanted = {name: flag for name, flag in ALL_COS.items() if name != "return_v"}
    for size in (1, 33, 1025):
        x = currents(steps, size, dtype=dtype, device=device)
        result = F.cos_forward(x, 0.9, rho=rho, emission=emission, **wanted)
        expected = R.cos_forward(x, 0.9, rho=rho, emission=emission)
        for name, ours, theirs in zip(result._fields, result, expected):
            assert (
                ours is theirs is None if name in ("v", "statistics") else torch.equal(ours, theirs)
            ), name
        # Exact: the desired count over rho steps, whatever the order, and only the first rho inputs
        # matter.
        exact = F.cos_forward(x, 0.9, rho=rho, iterations=0, return_offset=True)
        before = F.calibrate_v_init(x, 0.9, rho=rho, iterations=0)
        assert torch.equal(
            (result.spikes[:rho] > 0).sum(0).int(), before.spike_count + exact.offset_spikes
        )
        later = x.clone()
        later[rho:] = 7.0
        assert torch.equal(
            F.cos_forward(later, 0.9, rho=rho, emission=emission).spikes, result.spikes
        )
        inplace = F.cos_forward(x.clone(), 0.9, rho=rho, emission=emission, inplace=True)
        assert torch.equal(inplace.spikes, result.spikes)
    layout = layouts(currents(9, 3, 5, 6, 7, dtype=dtype, device=device))
    theta = (torch.rand(5, 1, 1) + 0.5).to(device, dtype)
    for x in layout.values():
        assert torch.equal(
            F.cos_forward(x, theta, rho=4, emission=emission).spikes,
            R.cos_forward(x, theta, rho=4, emission=emission).spikes,
        )


def parameters(dtype, device):
    """θ and v_init of every shape, in x_seq's dtype and in the state dtype, for neurons [3, 5, 6,
    7].
    """
    state = F.state_dtype(dtype)
    theta = (torch.rand(5, 1, 1) + 0.5).to(device)
    return {
        "scalars": (0.8, 0.1),
        "0-dim": (
            torch.tensor(0.8, dtype=state, device=device),
            torch.tensor(-0.2, dtype=dtype, device=device),
        ),
        "per channel": (theta.to(dtype), None),
        "per channel, both": (theta.to(state), (theta / 3).to(state)),
        "per column": ((torch.rand(7) + 0.5).to(device, state), None),
        "per row": ((torch.rand(1, 6, 1) + 0.5).to(device, dtype), 0.25),
        "per neuron": (
            (torch.rand(3, 5, 6, 7) + 0.5).to(device, state),
            torch.randn(3, 5, 6, 7).to(device, dtype),
        ),
        "per neuron, permuted": (
            (torch.rand(7, 6, 5, 3) + 0.5).to(device, state).permute(3, 2, 1, 0),
            None,
        ),
        "negative start": (1.3, -0.7),
    }


@pytest.mark.parametrize("which", list(parameters(torch.float32, "cpu")))
@pytest.mark.parametrize("layout", list(layouts(torch.zeros(2, 1, 1, 2, 2))))
def test_every_layout_and_parameter_shape(layout, which, dtype, device):
    x = layouts(currents(9, 3, 5, 6, 7, dtype=dtype, device=device))[layout]
    theta, v_init = parameters(dtype, device)[which]
    spikes = F.if_forward(x, theta, v_init).spikes
    assert spikes.stride() == torch.empty_like(x).stride()
    for v_reset in (None, 0.0, 0.3):
        assert_same(
            F.if_forward(x, theta, v_init, v_reset=v_reset, **ALL),
            R.if_forward(x, theta, v_init, v_reset=v_reset),
        )
    for iterations in (1, None):
        expected = R.cos_forward(x, theta, v_init, rho=5, iterations=iterations)
        assert_same(
            F.cos_forward(x, theta, v_init, rho=5, iterations=iterations, **ALL_COS), expected
        )
        target = layouts(x.contiguous())[layout]
        result = F.cos_forward(
            target, theta, v_init, rho=5, iterations=iterations, inplace=True, **ALL_COS
        )
        assert result.spikes is target
        assert_same(result, expected)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_static_input_equals_its_copies(memory_format, dtype, device):
    image = currents(3, 5, 6, 7, dtype=dtype, device=device).to(memory_format=memory_format)
    theta = (torch.rand(5, 1, 1) + 0.5).to(device, dtype)
    static, copied = image.expand(9, -1, -1, -1, -1), image.repeat(9, 1, 1, 1, 1)
    assert static.stride(0) == 0
    assert_same(F.if_forward(static, theta, **ALL), F.if_forward(copied, theta, **ALL))
    for rho, iterations in ((1, 1), (4, 2), (9, None)):
        options = {"rho": rho, "iterations": iterations, **ALL_COS}
        assert_same(
            F.cos_forward(static, theta, **options), F.cos_forward(copied, theta, **options)
        )
        assert (
            F.cos_forward(static, theta, **options)
            .spikes[0]
            .is_contiguous(memory_format=memory_format)
        )


def test_neurons_that_share_memory_are_read_correctly(dtype, device):
    x = currents(6, 3, 5, 1, 1, dtype=dtype, device=device).expand(6, 3, 5, 4, 4)
    assert_same(F.cos_forward(x, 1.0, rho=4, **ALL_COS), R.cos_forward(x, 1.0, rho=4))


@pytest.mark.parametrize("inplace", [False, True])
def test_results_that_were_not_asked_for_are_none(inplace):
    assert F.if_forward(currents(4, 5), 1.0, inplace=inplace)[1:] == (None, None)
    assert F.cos_forward(currents(4, 5), 1.0, rho=2, inplace=inplace)[1:] == (None,) * 5
    for name in ("v", "count", "v_init", "offset", "statistics"):
        result = F.cos_forward(
            currents(4, 5), 1.0, rho=2, inplace=inplace, **{f"return_{name}": True}
        )
        given = [field for field in result._fields[1:] if getattr(result, field) is not None]
        assert given == [{"count": "spike_count", "offset": "offset_spikes"}.get(name, name)]


@pytest.mark.parametrize("shape", [(4, 0), (4, 3, 0, 2), (1, 0)])
def test_no_neurons_give_empty_results(shape, dtype, device):
    x = torch.empty(shape, dtype=dtype, device=device)
    assert_same(F.cos_forward(x, 1.0, rho=1, **ALL_COS), R.cos_forward(x, 1.0, rho=1))
    assert F.if_forward(x, 1.0, inplace=True).spikes is x


def test_a_single_neuron_without_dimensions(dtype, device):
    x = currents(6, dtype=dtype, device=device)
    assert_same(F.cos_forward(x, 1.0, rho=3, **ALL_COS), R.cos_forward(x, 1.0, rho=3))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_the_same_on_every_path(value, dtype, device):
    x = currents(8, 2, 5, 6, 7, dtype=dtype, device=device)
    x[torch.rand(x.shape, device=device) < 0.1] = value
    expected = R.cos_forward(x, 0.8, rho=5, iterations=None)
    for layout in layouts(x).values():
        assert_same(F.cos_forward(layout, 0.8, rho=5, iterations=None, **ALL_COS), expected)
        assert_same(F.if_forward(layout, 0.8, **ALL), R.if_forward(x, 0.8))
    assert not torch.isnan(expected.spikes).any()


def test_every_float16_and_bfloat16_value_is_read_exactly(device):
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        x = bits.view(dtype).to(device)
        v = F.if_forward(x[None], 3e38, 0.0, return_v=True).v if dtype == torch.bfloat16 else None
        if v is None:
            v = F.if_forward(x[None], 60000.0, 0.0, return_v=True).v
        expected = R.if_forward(x[None], 3e38 if dtype == torch.bfloat16 else 60000.0, 0.0).v
        assert torch.equal(torch.nan_to_num(v, 7.5), torch.nan_to_num(expected, 7.5))


@pytest.mark.parametrize(
    "theta", [1e-7, 3e-6, 6.1e-5, 0.1, 0.3333, 1.0, 2.0005, 511.7, 65504.0, 65519.0]
)
def test_thresholds_are_rounded_to_the_storage_dtype_as_torch_does(theta, device):
    for dtype in (torch.float16, torch.bfloat16):
        spikes = F.if_forward(
            torch.full((1, 3), 1e5, dtype=torch.bfloat16).to(dtype).to(device), theta
        ).spikes
        assert torch.equal(
            spikes.cpu(), torch.full((1, 3), torch.tensor(theta).to(dtype).item(), dtype=dtype)
        )


def test_thread_count_and_batch_size_change_nothing():
    x, theta = currents(8, 7, 5, 33, 31), torch.rand(5, 1, 1) + 0.5
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            results.append(F.cos_forward(x, theta, rho=4, iterations=None, **ALL_COS))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert_same(result, results[0])
    for sample in range(7):
        one = F.cos_forward(x[:, sample : sample + 1], theta, rho=4, iterations=None, **ALL_COS)
        assert torch.equal(one.spikes[:, 0], results[0].spikes[:, sample])
        assert torch.equal(one.v_init[0], results[0].v_init[sample])


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_gives_the_same_bits(capability, tmp_path):
    # The choice is made once per process, so each runs in its own.
    script = """
import sys, torch
from cos_ext import functional as F, build_info
torch.manual_seed(1)
x = torch.randn(9, 3, 5, 21, 7) * 1.2 + 0.3
out = []
for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
    theta = torch.tensor([.5, .7, .9, 1.1, 1.3])[:, None, None].to(dtype)
    out += F.cos_forward(
        x.to(dtype), theta, rho=6, iterations=None, return_v=True, return_count=True,
        return_v_init=True, return_offset=True, return_statistics=True,
    )
    out += F.if_forward(x.to(dtype), 0.8, v_reset=0.1, return_v=True, return_count=True)
    z, bias = x[..., :20, :6].to(dtype), torch.rand(5, 1, 1).to(dtype)
    out += [F.if_forward(z, 0.8, scale=bias, bias=bias, residual=z.flip(0), pool=2).spikes]
    out += [F.rate_forward(z[0], 0.8, rho=4)]
torch.save({"capability": build_info()["cpu_capability"], "out": out}, sys.argv[1])
"""
    results = []
    for wanted in (capability, None):
        environment = {
            key: value for key, value in os.environ.items() if key != "COS_EXT_CPU_CAPABILITY"
        }
        if wanted:
            environment["COS_EXT_CPU_CAPABILITY"] = wanted
        path = tmp_path / f"{wanted}.pt"
        subprocess.run([sys.executable, "-c", script, str(path)], check=True, env=environment)
        results.append(torch.load(path))
    if results[0]["capability"] != capability:
        pytest.skip(f"this processor has no {capability}")
    assert all(torch.equal(a, b) for a, b in zip(results[0]["out"], results[1]["out"]))


def test_large_offsets_use_64_bit_indices():
    # 2^31 elements apart in memory, though only a few are read: the storage is virtual until it is
    # touched.
    x = torch.empty(2 * (2**31 + 64), dtype=torch.float16).as_strided((2, 64), (2**31 + 64, 1))
    x.copy_(currents(2, 64))
    assert torch.equal(
        F.cos_forward(x, 1.0, rho=2).spikes, R.cos_forward(x.contiguous(), 1.0, rho=2).spikes
    )
    expected = R.cos_forward(x.contiguous(), 1.0, rho=1).spikes
    assert torch.equal(F.cos_forward(x, 1.0, rho=1, inplace=True).spikes, expected)


def test_build_info_says_why_cuda_is_off():
    info = cos_ext.build_info()
    assert info["cpu_capability"] in ("avx512", "avx2", "baseline")
    assert info["cuda"] == (info["cuda_off"] is None)
    assert info["torch"] == torch.__version__
