"""Statistics that the kernels sum while they simulate, against full tensors; and their collection
over a network.
"""

from __future__ import annotations

import json

import pytest
import torch
from conftest import layouts

import cos_ext
from cos_ext import functional as F
from cos_ext._neuron.runs import Run, active, running
from cos_ext.analysis.statistics import read_statistics

pytestmark = pytest.mark.usefixtures("one_thread")


def by_hand(x, theta, v_init, rho, emitted):
    """The statistics from full tensors, in float64."""
    x, theta = x.double(), torch.as_tensor(theta).double()
    start = theta / 2 if v_init is None else torch.as_tensor(v_init).double()
    v, count = start.expand(x.shape[1:]).clone(), torch.zeros(x.shape[1:], dtype=torch.float64)
    for t in range(rho):
        v = v + x[t]
        fired = v >= theta
        v, count = v - theta * fired, count + fired
    u = x[:rho].sum(0) / theta
    desired = ((u * theta + start) / theta).floor().clamp(0, rho)
    psi = (desired - count).long()
    total = (emitted != 0).sum(0)
    return {
        "neurons": psi.numel(),
        "offset_histogram": tuple(
            torch.bincount((psi + rho).flatten(), minlength=2 * rho + 1).tolist()
        ),
        "spikes": int(total.sum()),
        "silent_share": (total == 0).double().mean().item(),
        "saturated_share": (total == len(x)).double().mean().item(),
        "clipping": (u - rho).clamp(min=0).mean().item() / rho,
        "quantisation": (u.clamp(0, rho) - desired).abs().mean().item() / rho,
        "unevenness": psi.abs().double().mean().item() / rho,
    }


def close(found, expected):
    for name, value in expected.items():
        assert getattr(found, name) == (
            pytest.approx(value, abs=2e-6) if isinstance(value, float) else value
        ), name


@pytest.mark.parametrize("emission", F.EMISSIONS)
@pytest.mark.parametrize("rho", [1, 4, 7])
def test_sums_are_those_of_full_tensors(device, dtype, rho, emission):
    # On a grid, so that float64 has the same sums exactly.
    x = (torch.randint(-40, 90, (7, 2, 5, 9, 4), device=device) / 32).to(dtype)
    theta, v_init = (
        torch.tensor([0.5, 1, 1.5, 2, 1.25], dtype=dtype, device=device)[:, None, None],
        0.25,
    )
    for laid in (*layouts(x).values(), x[:1].expand_as(x)):
        result = F.cos_forward(
            laid, theta, v_init, rho=rho, emission=emission, return_statistics=True
        )
        found = read_statistics(result.statistics, rho=rho, timesteps=7)
        close(found, by_hand(laid, theta, v_init, rho, result.spikes))
        assert found.spike_rate == pytest.approx(found.spikes / x.numel())


def test_the_split_adds_up_neuron_by_neuron():
    """Clipping, quantisation and unevenness make up what separates the neuron's rate from a
    rectifier's.
    """
    x = torch.randn(6, 1, dtype=torch.float64) * torch.rand(300, 1, 1, dtype=torch.float64) * 3
    for one in x:
        split = read_statistics(
            F.cos_forward(one, 1.0, rho=6, iterations=0, return_statistics=True).statistics,
            rho=6,
            timesteps=6,
        )
        u, count = one.sum().item(), F.if_forward(one, 1.0, return_count=True).spike_count.item()
        psi = next(i for i, n in enumerate(split.offset_histogram) if n) - 6
        error = max(u, 0.0) - count
        rounded = min(max(u, 0.0), 6.0) - (count + psi)
        assert error == pytest.approx(6 * split.clipping + rounded + psi, abs=1e-6)
        assert abs(rounded) == pytest.approx(6 * split.quantisation, abs=1e-6) and abs(
            psi
        ) == pytest.approx(6 * split.unevenness)


def test_infinite_and_missing_currents_do_not_spoil_the_sums(device, dtype):
    x = torch.ones(3, 6, dtype=dtype, device=device)
    x[:, 0], x[:, 1], x[:, 2] = float("nan"), float("inf"), -float("inf")
    x[:, 3] = 3.0  # u = 9, six spikes too many
    found = read_statistics(
        F.cos_forward(x, 1.0, rho=3, return_statistics=True).statistics, rho=3, timesteps=3
    )
    assert (found.neurons, found.unbounded) == (6, 2)
    assert found.clipping == pytest.approx(6 / (3 * 4)) and found.quantisation == 0
    assert found.saturated_share == 4 / 6 and found.silent_share == 2 / 6


@pytest.mark.parametrize("current", [float("inf"), 1e30, 3e4, 1400.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_of_many_huge_currents_do_not_overflow(device, dtype, current):
    x = torch.full((3, 100_000), current, dtype=dtype, device=device)
    found = read_statistics(
        F.cos_forward(x, 1.0, rho=3, return_statistics=True).statistics, rho=3, timesteps=3
    )
    over = 3 * current - 3
    assert found.unbounded == (100_000 if over > 4096 else 0)
    assert found.clipping == pytest.approx(0 if over > 4096 else over / 3)
    assert found.saturated_share == 1 and found.offset_share == 0


def test_a_network_with_infinite_currents_says_so():
    model = torch.nn.Sequential(cos_ext.QCFS(4, 1.0), torch.nn.Linear(768, 2))
    network = cos_ext.convert(model, timesteps=4, rho=4)
    x = torch.full((2, 768), float("inf"))
    x[1] = 0.5
    statistics = network.statistics([x, x], progress=False)
    layer = statistics.layers["0"]
    assert (layer.neurons, layer.unbounded, layer.clipping) == (4 * 768, 2 * 768, 0)
    assert "left out of errors: {'0': 1536}" in str(statistics)
    assert "left out" not in str(network.statistics([x[1:]], progress=False))


def test_what_is_added_up_over_batches_stays_at_the_largest_number():
    node, run = cos_ext.IFNode(), Run()
    for _ in range(3):
        run.add_sums(node, torch.tensor([2**62, 5]))
    assert run.sums[node].tolist() == [2**63 - 1, 15]


def test_sums_do_not_depend_on_the_split():
    x = torch.randn(5, 24, 3, 8, 8)
    whole = F.cos_forward(x, 1.0, rho=4, return_statistics=True).statistics
    parts = [
        F.cos_forward(part, 1.0, rho=4, return_statistics=True).statistics
        for part in x.split([1, 3, 13, 7], 1)
    ]
    assert torch.equal(whole, sum(parts))


def test_a_network_collects_what_its_layers_do(shipped_model, test_set):
    network = cos_ext.convert(shipped_model, timesteps=6, rho=4)
    images = test_set.first(24)
    collected = network.statistics(images.batches(7), progress=False)
    assert collected.samples == 24 and list(collected.layers) == list(network.nodes())
    assert network.statistics(images.batches(24), progress=False) == collected
    report = cos_ext.offset_spike_report(
        shipped_model, network, images.batches(24), iterations=0, progress=False
    )
    for layer in report.layers:
        found = collected.layers[layer.site]
        assert found.neurons == layer.neurons
        assert found.offset_histogram[4] == layer.histograms["before"][4] and found.rho == 4
    evaluation = cos_ext.evaluate(network, images.batches(24), progress=False)
    spikes, steps = (
        sum(f(s) for s in collected.layers.values())
        for f in (lambda s: s.spikes, lambda s: s.neurons * s.timesteps)
    )
    assert evaluation.spike_rate == pytest.approx(spikes / steps)


def test_a_network_without_calibration_is_watched_over_all_steps(shipped_model, test_set):
    network = cos_ext.convert(shipped_model, timesteps=3, rho=0)
    images, _ = next(iter(test_set.first(6).batches(6)))
    outputs = network(images)
    collected = network.statistics([images], progress=False)
    assert torch.equal(network(images), outputs)
    assert all(layer.rho == layer.timesteps == 3 for layer in collected.layers.values())
    assert any(layer.offset_share > 0 for layer in collected.layers.values())


def test_output_and_errors(shipped_model, test_set, tmp_path):
    network = cos_ext.convert(shipped_model, timesteps=2, rho=2)
    collected = network.statistics(test_set.first(3).batches(3), progress=False)
    assert "unevenness" in str(collected) and all(
        site in str(collected) for site in network.nodes()
    )
    collected.to_json(tmp_path / "s.json")
    read = json.loads((tmp_path / "s.json").read_text())
    assert read["samples"] == 3 and set(read["layers"]) == set(network.nodes())
    with pytest.raises(ValueError, match="at least one sample"):
        network.statistics([], progress=False)
    with pytest.raises(TypeError, match="batches must"):
        network.statistics([3], progress=False)
    assert not active()
    with pytest.raises(ValueError, match="sums must have 15 elements"):
        read_statistics(torch.zeros(5, dtype=torch.int64), rho=4, timesteps=4)
    hard = cos_ext.IFNode(v_reset=0.0, timesteps=2)
    with pytest.raises(ValueError, match="soft reset"), running(Run(statistics=True)):
        hard(torch.zeros(2, 3))
