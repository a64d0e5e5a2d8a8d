"""What torch asks of an operator: opcheck, fakes, torch.compile and torch.export, autograd's
versions.
"""

import pytest
import torch
from conftest import layouts

from cos_ext import functional as F

ALL = {"return_v": True, "return_count": True}
ALL_COS = {**ALL, "return_v_init": True, "return_offset": True}


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


SAMPLES = {
    "if_forward": lambda x: (x, None, 1.0, None, None, None, True, True),
    "if_forward_": lambda x: (
        x,
        x.new_tensor([[0.7], [1.2]]),
        0.0,
        x.new_zeros(3),
        None,
        0.0,
        False,
        True,
    ),
    "cos_forward": lambda x: (x, None, 1.0, None, 0.4, 3, 1, True, True, True, True),
    "cos_forward_": lambda x: (
        x,
        x.new_tensor([[0.7], [1.2]]),
        0.0,
        None,
        None,
        4,
        -1,
        True,
        False,
        True,
        False,
    ),
    "cos_forward_even": lambda x: (x, None, 1.0, None, 0.4, 3, 1, False, True, True, True, 1),
    "calibrate_v_init": lambda x: (x, None, 1.0, None, None, 2, 2),
}


@pytest.mark.parametrize("name", list(SAMPLES))
@pytest.mark.parametrize("contiguous", [True, False])
def test_opcheck(name, contiguous, dtype, device):
    x = currents(4, 2, 3, dtype=dtype, device=device)
    if not contiguous:
        x = x.transpose(0, 2).contiguous().transpose(0, 2)
    operator = getattr(
        torch.ops.cos_ext, name.removesuffix("even").rstrip("_") if name.endswith("even") else name
    ).default
    torch.library.opcheck(operator, SAMPLES[name](x))


def test_fakes_have_the_layout_of_the_results(device):
    for x in layouts(currents(4, 2, 3, 4, 5, device=device)).values():
        real = F.cos_forward(x, 1.0, rho=2, **ALL_COS)[:5]
        meta = torch.empty_strided(x.shape, x.stride(), device="meta")
        fake = F.cos_forward(meta, 1.0, rho=2, **ALL_COS)[:5]
        assert [(r.shape, r.stride(), r.dtype) for r in real] == [
            (f.shape, f.stride(), f.dtype) for f in fake
        ]
        real, fake = (
            F.cos_forward(x[..., :4, :4], 1.0, rho=2, pool=2, return_statistics=True)
            for x in (x, meta)
        )
        assert (
            real.spikes.shape == fake.spikes.shape and real.spikes.stride() == fake.spikes.stride()
        )
        assert (
            real.statistics.shape == fake.statistics.shape
            and real.statistics.dtype == fake.statistics.dtype
        )


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(dynamic, device):
    def out_of_place(x, theta):
        a = F.if_forward(x * 2, theta, return_count=True)
        b = F.cos_forward(x + 1, theta, rho=3, iterations=None, **ALL_COS)
        c = F.calibrate_v_init(x, theta, rho=2)
        return a.spikes + b.spikes, a.spike_count, b.v_init, b.offset_spikes, c.v_init

    def in_place(x, theta):
        y = x * 2
        F.if_forward(y, theta, inplace=True)
        z = x + 1
        count = F.cos_forward(z, theta, rho=3, inplace=True, return_count=True).spike_count
        return y + z, count

    for function in (out_of_place, in_place):
        compiled = torch.compile(function, fullgraph=True, dynamic=dynamic)
        for batch in (2, 5):
            x, theta = currents(6, batch, 7, device=device), torch.rand(7, device=device) + 0.5
            for ours, expected in zip(compiled(x, theta), function(x, theta)):
                assert torch.equal(ours, expected)


def test_compiles_for_other_float_arguments(device):
    compiled = torch.compile(
        lambda x, theta, start, reset: F.if_forward(x, theta, start, v_reset=reset).spikes,
        backend="eager",
        fullgraph=True,
    )
    x = currents(6, 5, device=device)
    for theta, start, reset in ((1.0, 0.5, 0.0), (0.5, 0.25, 0.125), (0.75, 0.0, 0.25)):
        assert torch.equal(
            compiled(x, theta, start, reset), F.if_forward(x, theta, start, v_reset=reset).spikes
        )


def test_exports(device):
    class Layer(torch.nn.Module):
        def forward(self, x):
            result = F.cos_forward(x, 0.9, rho=3, return_count=True)
            return result.spikes, result.spike_count

    x = currents(6, 4, 7, device=device)
    exported = torch.export.export(Layer(), (x,)).module()
    for ours, expected in zip(exported(x), Layer()(x)):
        assert torch.equal(ours, expected)


def test_in_place_is_noticed_by_autograd():
    weight = torch.randn(4, 5, requires_grad=True)
    y = weight * 2
    z = (y * y).sum()  # saves y
    with torch.no_grad():
        F.if_forward(y, 1.0, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.backward()
    with torch.inference_mode():
        F.if_forward(torch.randn(4, 5), 1.0, inplace=True)
