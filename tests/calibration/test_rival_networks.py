"""calibration= through networks, files and reports: SRP and parallel conversion against plain
simulations of the shipped network.
"""

import json

import pytest
import torch
from loops import run
from rival_networks import RIVALS, THRESHOLDS, images_of, in_double, plain_network, small
from safetensors import safe_open

import cos_ext
from cos_ext import convert, evaluate, fit_light
from cos_ext._files import write_tensors

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_shipped_network_under_srp_is_a_plain_simulation(shipped_model, test_set):
    network = convert(in_double(shipped_model), timesteps=4, rho=3, calibration="srp", fuse=False)
    x, muted = images_of(test_set, 4).double(), []

    def srp(site, theta, v, x_seq):
        fired, _ = run(x_seq, theta, v)
        silent = run(x_seq[:3], theta, v)[1] <= 0
        muted.append((fired.any(0) & silent).any().item())
        return torch.where(fired & ~silent, theta, 0.0)

    expected = plain_network(network, x, srp)
    assert len(muted) == 19 and all(muted[1:])  # a static input leaves no offset
    assert torch.equal(network(x), expected)
    network.calibration = "none"
    assert not torch.equal(network(x), expected)


def test_the_shipped_network_under_parallel_conversion_is_plain_counts(shipped_model, test_set):
    network = convert(
        in_double(shipped_model), timesteps=8, rho=8, calibration="parallel", fuse=False
    )
    x = images_of(test_set, 3).double()

    def sorted_train(site, theta, v, x_seq):
        count = ((x_seq.sum(0) + v) / theta).floor().clamp(0, 8)
        return torch.stack([torch.where(t <= count, theta, 0.0) for t in range(1, 9)])

    assert (network(x) - plain_network(network, x, sorted_train)).abs().max() <= 1e-9
    assert (
        network.rate(x) - in_double(shipped_model)(x)
    ).abs().max() <= 1e-9  # rho = T = L: without loss
    steps = network(x)
    network.calibration, network.emission = "cos", "front"
    assert torch.equal(network(x), steps)


def test_none_is_the_converted_network_and_rho_plays_no_part(shipped_model, test_set):
    x = images_of(test_set, 5)
    expected = convert(shipped_model, timesteps=3)(x)
    network = convert(shipped_model, timesteps=3, rho=6, calibration="none")
    assert torch.equal(network(x), expected) and network.watch_steps == 0
    assert {node.timesteps for node in network.nodes().values()} == {3}
    network.calibration = "cos"
    assert {node.timesteps for node in network.nodes().values()} == {6} and network.watch_steps == 6
    network.iterations = 0
    assert torch.equal(network(x), expected)


@pytest.mark.parametrize("calibration", ["cos", *RIVALS])
def test_settings_make_a_round_trip_through_a_file(calibration, tmp_path):
    ann, x = small(), torch.randn(4, 1, 8, 8)
    network = convert(ann, timesteps=3, rho=2, thresholds=THRESHOLDS)
    fit_light(network, ann, [x], progress=False)  # biases are kept whatever is used
    network.calibration = calibration
    network.set_layer("3", calibration="srp", rho=4)
    assert network.watch_steps == 4 and network._steps == 4
    expected = network(x)
    network.save(tmp_path / "network")
    again = cos_ext.load_network(tmp_path / "network", small(seed=9))
    assert torch.equal(again(x), expected)
    assert (again.calibration, again.nodes()["3"].calibration, again.rho) == (calibration, "srp", 2)
    assert all(
        torch.equal(node.bias, network.nodes()[site].bias) for site, node in again.nodes().items()
    )
    again.set_layer("3")
    assert again.nodes()["3"].calibration == calibration
    with pytest.raises(ValueError, match="of its own"):
        again.set_layer("3", bias=1.0)


def test_files_from_before_the_rivals_still_load(tmp_path):
    ann, x = small(), torch.randn(4, 1, 8, 8)
    network = convert(ann, timesteps=3, rho=2, thresholds=THRESHOLDS)
    network.save(tmp_path / "new")
    with safe_open(tmp_path / "new", "pt") as file:
        header = json.loads(file.metadata()["cos_ext"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a file of safetensors is no dict)
    assert "module.1.bias" not in tensors and "module.1.v_init" in tensors
    assert (header.pop("calibration"), header.pop("biases")) == ("cos", {})
    write_tensors(tmp_path / "old", tensors, header)
    again = cos_ext.load_network(tmp_path / "old", ann)
    assert again.calibration == "cos" and torch.equal(again(x), network(x))
    write_tensors(tmp_path / "bad", tensors, {**header, "biases": {"nowhere": [3]}})
    with pytest.raises(ValueError, match="has a bias for 'nowhere'"):
        cos_ext.load_network(tmp_path / "bad", ann)


def test_calibration_of_a_network_can_be_changed_and_is_checked():
    ann = small()
    network = convert(ann, timesteps=2, rho=5, thresholds=THRESHOLDS, calibration="none")
    for bad, error in (("late", ValueError), (3, TypeError)):
        with pytest.raises(error, match="calibration must be"):
            network.calibration = bad
        with pytest.raises(error, match="calibration must be"):
            convert(ann, timesteps=2, thresholds=THRESHOLDS, calibration=bad)
        with pytest.raises(error, match="calibration must be"):
            network.set_layer("1", calibration=bad)
    assert network.calibration == "none" and network(torch.randn(1, 1, 8, 8)).shape == (2, 1, 4)
    network.calibration = "srp"
    assert network.watch_steps == 5 and network(torch.randn(1, 1, 8, 8)).shape == (2, 1, 4)
    network.set_layer("1", calibration="none")
    network.set_layer("3", rho=3)
    assert network.watch_steps == 3


@pytest.mark.parametrize("calibration", RIVALS)
def test_latency_and_independence_of_the_batch(calibration, shipped_model, test_set):
    model = in_double(
        shipped_model
    )  # float64: convolutions may sum in another order for another batch size
    network = convert(model, timesteps=2, rho=3, calibration=calibration)
    x = images_of(test_set, 6).double()
    if calibration == "light":
        fit_light(network, model, [images_of(test_set, 2, start=50).double()], progress=False)
    whole = network(x)
    for parts in (1, 4):
        assert (
            torch.cat([network(part) for part in x.split(parts)], 1) - whole
        ).abs().max() <= 1e-9
    result = evaluate(network, [(x, test_set.labels[:6])], progress=False)
    assert result.latency == ([1, 2] if calibration in ("none", "light") else [4, 5])


@pytest.mark.parametrize("calibration", RIVALS)
def test_the_offset_report_takes_every_calibration(calibration):
    ann, x = small(), torch.randn(4, 1, 8, 8)
    network = convert(ann, timesteps=2, rho=3, thresholds=THRESHOLDS)
    fit_light(network, ann, [x], progress=False)
    network.calibration = calibration
    report = cos_ext.offset_spike_report(ann, network, [x], progress=False)
    assert report.rho == (3 if calibration in ("srp", "parallel") else 2)
    assert report.to_dict()["network_calibration"] == calibration
    if calibration != "none":
        assert f'calibration "{calibration}"' in str(report)
    if (
        calibration == "light"
    ):  # ψ is taken on the corrected currents: with them, exact calibration leaves nothing
        assert all(layer.histograms["exact"][4] == layer.neurons for layer in report.layers)
        node, seen = network.nodes()["3"], []
        node.register_forward_pre_hook(
            lambda m, a: seen.append((a[0] + node.bias).unflatten(0, (2, 4)))
        )
        network(x)
        theta = node.v_threshold
        wanted = ((seen[0].sum(0) + theta / 2) / theta).floor().clamp(0, 2)
        psi = (wanted - run(seen[0], theta, theta / 2)[0].sum(0)).flatten()
        assert report.layers[1].shares("before")[0] == pytest.approx(
            (psi == 0).double().mean().item()
        )
        assert report.layers[1].shares("before")[1] > 0


@pytest.mark.parametrize("calibration", ["srp", "parallel", "light"])
def test_rival_networks_compile_whole(calibration):
    ann, x = small(), torch.randn(4, 1, 8, 8)
    network = convert(ann, timesteps=3, rho=2, thresholds=THRESHOLDS)
    fit_light(network, ann, [x], progress=False)
    network.calibration = calibration
    assert torch.equal(torch.compile(network, fullgraph=True, backend="aot_eager")(x), network(x))
