"""Statistics of general neurons, against sums that are counted neuron by neuron in Python; and what
is said where ψ is not defined.
"""

import json
import math

import pytest
import torch

import cos_ext
from cos_ext import IFNode, Neuron
from cos_ext._neuron.runs import Run, running
from cos_ext.analysis.statistics import read_statistics

pytestmark = pytest.mark.usefixtures("one_thread")

T, BATCH, CHANNELS, PLACES = 6, 2, 3, 5
BIAS = torch.tensor([[0.25, -0.125, 0.0]] * 2 + [[0.0, 0.5, -0.25]] * 4)
NEURONS = {
    "levels": Neuron(levels=(0, 4)),
    "signed": Neuron(levels=(-2, 3), lower=1.0),
    "never below 0": Neuron(levels=(-1, 1), lower=0.0, count=(0, None)),
    "at most 3": Neuron(levels=(0, 2), count=(None, 3)),
    "emitted": Neuron(levels=(0, 3), emitted=0.75),
    "a bias by step": Neuron(levels=(0, 2), step_bias=BIAS),
    "one level": None,
}


def levels_of(neuron, m, theta):
    """Q(m), by trying."""
    q, (low, high) = 0, neuron.levels
    while q < high and m >= neuron.upper * theta + q * theta:
        q += 1
    while q <= 0 and q > low and m < -neuron.lower * theta + q * theta:
        q -= 1
    return q


def alone(neuron, currents, theta, v):
    """N of one neuron that is not calibrated, and Σ x + b."""
    n, total = 0, 0.0
    fewest, most = neuron.count
    for x in currents:
        v, total = v + x, total + x
        q = levels_of(neuron, v, theta)
        q = q if fewest is None else max(q, fewest - n)
        q = q if most is None else min(q, most - n)
        v, n = v - theta * q, n + q
    return n, total


def by_hand(neuron, x, theta, rho, sent):
    """x ``[T, B, C, places]``; sent, levels likewise."""
    low, high = neuron.levels
    fewest = max(rho * low, -math.inf if neuron.count[0] is None else neuron.count[0])
    most = min(rho * high, math.inf if neuron.count[1] is None else neuron.count[1])
    reach = rho * (high - low)
    histogram, errors = [0] * (2 * reach + 1), torch.zeros(3, dtype=torch.float64)
    for b in range(BATCH):
        for c in range(CHANNELS):
            for p in range(PLACES):
                bias = [0.0] * T if neuron.step_bias is None else neuron.step_bias[:, c].tolist()
                currents = [x[t, b, c, p].item() + bias[t] for t in range(rho)]
                n, total = alone(neuron, currents, theta[c], theta[c] / 2)
                desired = math.floor((total + theta[c] / 2) / theta[c])
                desired = min(max(desired, fewest), most)
                histogram[desired - n + reach] += 1
                u = total / theta[c]
                inside = min(max(u, fewest), most)
                errors += torch.tensor([max(u - most, 0), abs(inside - desired), abs(desired - n)])
    places, top = BATCH * CHANNELS * PLACES, max(high, -low)
    count = sent.abs().sum(0)
    return {
        "neurons": places,
        "rho": rho,
        "timesteps": T,
        "offset_histogram": tuple(histogram),
        "spikes": int(count.sum()),
        "silent_share": (count == 0).double().mean().item(),
        "saturated_share": (count == T * top).double().mean().item(),
        "clipping": errors[0].item() / (rho * places),
        "quantisation": errors[1].item() / (rho * places),
        "unevenness": errors[2].item() / (rho * places),
        "unbounded": 0,
    }


def currents(dtype=torch.float32):
    x = torch.randint(-24, 56, (T, BATCH, CHANNELS, PLACES)) / 16  # float64 has the same sums
    x[:, 0, :, 0], x[:, 0, :, 1] = -3.0, 9.0  # silent, or the most negative; and saturated
    return x.to(dtype)


def measured(node, x):
    """What a node says, and the levels that it sent."""
    levels = (node.neuron or Neuron()).levels
    with running(Run(statistics=True)) as run:
        sent = node(x.flatten(0, 1)).unflatten(0, (T, BATCH))
    value = torch.as_tensor(node.neuron.emitted) if node.neuron and node.neuron.emitted else None
    value = node.v_threshold.detach() if value is None else value
    rho = node.watch_steps or T
    sums = run.sums[node]
    return read_statistics(sums, rho=rho, timesteps=T, levels=levels[1] - levels[0]), sent / value


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("rho", "emission"), [(0, "calibrated"), (4, "even"), (4, "block")])
@pytest.mark.parametrize("name", NEURONS)
def test_sums_are_those_of_neurons_one_by_one(name, rho, emission, dtype):
    neuron = NEURONS[name]
    if emission == "block" and neuron is not None and neuron.count != (None, None):
        pytest.skip("emission 'block' needs no bounds")
    if neuron is None and emission != "block":
        pytest.skip("neurons of one level: test_statistics.py")
    theta = torch.tensor([0.5, 1.0, 1.25])
    node = IFNode(
        theta[:, None], timesteps=T, rho=rho, emission=emission, neuron=neuron, inplace=True
    )
    x = currents(dtype)
    found, sent = measured(node, x.clone())
    expected = by_hand(neuron or Neuron(), x.double(), theta.tolist(), rho or T, sent.round())
    for key, value in expected.items():
        near = pytest.approx(value, abs=2e-6) if isinstance(value, float) else value
        assert getattr(found, key) == near, key
    assert expected["unevenness"] > 0 and expected["clipping"] > 0
    assert found.spike_rate == pytest.approx(sent.abs().mean().item(), rel=1e-3)


def test_infinite_and_missing_currents_do_not_spoil_the_sums():
    node = IFNode(1.0, timesteps=3, neuron=Neuron(levels=(0, 2)))
    x = torch.ones(3, 5)
    x[:, 0], x[:, 1], x[:, 2], x[:, 3] = float("nan"), float("inf"), -float("inf"), 4.0
    with running(Run(statistics=True)) as run:
        node(x.flatten(0, 1)[:, None])
    found = read_statistics(run.sums[node], rho=3, timesteps=3, levels=2)
    assert (found.neurons, found.unbounded) == (5, 2)
    assert found.clipping == pytest.approx((12 - 6) / (3 * 3)) and found.quantisation == 0
    assert found.silent_share == 2 / 5 and found.saturated_share == 2 / 5


@pytest.mark.parametrize(
    "neuron", [Neuron(ladder=3), Neuron(leak=0.5), Neuron(levels=(0, 2), prediction=True)]
)
def test_where_no_offset_is_defined_levels_are_counted(neuron, tmp_path):
    model = torch.nn.Sequential(cos_ext.QCFS(4, 1.0), torch.nn.Linear(8, 2))
    network = cos_ext.convert(model, timesteps=4, neuron=neuron)
    x = torch.rand(3, 8) * 2 - 0.5
    sent = []
    hook = network.module.get_submodule("0").register_forward_hook(lambda m, i, o: sent.append(o))
    network(x)
    hook.remove()
    collected = network.statistics([x[:1], x[1:]], progress=False)
    layer = collected.layers["0"]
    loader = [(x, torch.zeros(3, dtype=torch.long))]
    evaluated = cos_ext.evaluate(network, loader, progress=False)
    assert layer.neurons == 24 and layer.spike_rate == evaluated.spike_rate > 0
    if not neuron.prediction:  # which sends what it predicts, too
        fires = sent[0].unflatten(0, (4, 3)) != 0
        assert layer.spikes == fires.sum() and layer.silent_share == (~fires.any(0)).double().mean()
        assert layer.saturated_share == fires.all(0).double().mean()
    assert layer.offset_histogram == () and layer.offset_share is None
    assert layer.clipping is layer.quantisation is layer.unevenness is None
    assert str(collected).splitlines()[1].split()[-4:] == ["-"] * 4
    collected.to_json(tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text())["layers"]["0"]["unevenness"] is None


def test_a_layer_of_its_own_is_read_as_what_it_is():
    model = torch.nn.Sequential(
        cos_ext.QCFS(4, 1.0), torch.nn.Linear(8, 6), cos_ext.QCFS(4, 1.0), torch.nn.Linear(6, 2)
    )
    network = cos_ext.convert(model, timesteps=4, rho=2)
    network.set_layer("2", neuron=Neuron(levels=(0, 3)))
    layers = network.statistics([torch.rand(5, 8)], progress=False).layers
    assert [len(layer.offset_histogram) for layer in layers.values()] == [5, 13]


def test_too_many_offsets_are_refused():
    node = IFNode(1.0, timesteps=2, neuron=Neuron(levels=(0, 2**15)))
    with pytest.raises(ValueError, match="at most 65536 values"), running(Run(statistics=True)):
        node(torch.zeros(2, 3))
