"""The shipped network end to end: conversion without loss, prefixes, batches, static input. Rules
of conversion: test_convert.py.
"""

import copy
import json

import pytest
import torch

import cos_ext
from cos_ext import convert, evaluate
from cos_ext.models import DEMO_CHECKPOINT
from cos_ext.training import train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def exact(shipped_model):
    return convert(shipped_model, timesteps=8, rho=8, iterations=None)


@pytest.mark.slow
def test_the_shipped_checkpoint_has_the_accuracy_that_its_record_says(shipped_model, test_set):
    record = json.loads(DEMO_CHECKPOINT.with_suffix(".json").read_text())
    assert record["test_accuracy"] >= 0.925
    # Float32 sums depend on the processor in the last bits; a handful of images may sit on the
    # edge.
    assert train.accuracy(shipped_model, test_set.batches(500)) == pytest.approx(
        record["test_accuracy"], abs=5e-4
    )


@pytest.mark.slow
def test_in_float64_the_network_is_the_quantised_ann(shipped_model, test_set):
    model = copy.deepcopy(shipped_model).double()
    network = convert(model, timesteps=8, rho=8, iterations=None)
    for images, _ in test_set.first(200).batches(50):
        images = images.double()
        assert (network.rate(images) - model(images)).abs().max() <= 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("fold", [True, False])
def test_in_float32_the_network_is_the_quantised_ann_but_for_rounding(
    fold, shipped_model, test_set
):
    network = convert(shipped_model, timesteps=8, rho=8, iterations=None, fold_batchnorm=fold)
    close = same = total = 0
    for images, _ in test_set.first(500).batches(100):
        ours, theirs = network.rate(images), shipped_model(images)
        same += int((ours.argmax(1) == theirs.argmax(1)).sum())
        close += int(((ours - theirs).abs().amax(1) <= 1e-3).sum())
        total += len(images)
    assert total == 500
    assert close >= 0.95 * total and same >= 0.995 * total


def test_every_layer_has_the_counts_of_the_ann(shipped_model, test_set):
    model = copy.deepcopy(shipped_model).double()
    network = convert(model, timesteps=8, rho=8, iterations=None)
    seen = {}
    hooks = [
        model.get_submodule(site).register_forward_hook(
            lambda m, i, o, site=site: seen.__setitem__(("ann", site), o)
        )
        for site in network.nodes()
    ]
    hooks += [
        node.register_forward_hook(
            lambda m, i, o, site=site: seen.__setitem__(("snn", site), o.clone())
        )
        for site, node in network.nodes().items()
    ]
    images = next(iter(test_set.first(20).batches(20)))[0].double()
    model(images)
    with network._by_steps():  # spikes as they are, not pooled on the way out
        network(images)
    assert len(network.nodes()) == 19
    for site, node in network.nodes().items():
        theta = node.v_threshold
        counts = (seen["snn", site] / theta).unflatten(0, (8, 20)).sum(0).round()
        assert torch.equal(counts, (seen["ann", site] * 8 / theta).round()), site


def test_prefixes_are_the_same_run(shipped_model, test_set):
    images = next(iter(test_set.first(16).batches(16)))[0]
    long = convert(shipped_model, timesteps=8, rho=4)(images)
    # The hidden layers see the same first steps, so a shorter answer is the prefix of a longer one.
    for steps in (4, 5):
        assert torch.equal(convert(shipped_model, timesteps=steps, rho=4)(images), long[:steps])
    short = convert(shipped_model, timesteps=2, rho=4)(
        images
    )  # T < rho: hidden layers run rho steps
    assert short.shape == (2, 16, 10)
    assert torch.equal(short, long[:2])


def test_settings_can_be_changed_without_converting_again(shipped_model, test_set):
    images = next(iter(test_set.first(8).batches(8)))[0]
    network = convert(shipped_model, timesteps=8)
    network.rho, network.iterations, network.timesteps = 4, None, 5
    assert (network.timesteps, network.rho, network.iterations) == (5, 4, None)
    assert torch.equal(
        network(images), convert(shipped_model, timesteps=5, rho=4, iterations=None)(images)
    )
    for name, value, error in (
        ("rho", -1, ValueError),
        ("timesteps", 0, ValueError),
        ("iterations", -1, ValueError),
        ("timesteps", 2.5, TypeError),
        ("rho", "4", TypeError),
    ):
        with pytest.raises(error, match=name):
            setattr(network, name, value)
    assert (network.timesteps, network.rho, network.iterations) == (5, 4, None)
    assert all((node.timesteps, node.rho) == (5, 4) for node in network.nodes().values())


@pytest.mark.slow
@pytest.mark.parametrize("emission", ["even", "front"])
def test_other_orders_of_the_spikes_are_the_quantised_ann_too(emission, shipped_model, test_set):
    model = copy.deepcopy(shipped_model).double()
    network = convert(model, timesteps=8, rho=8, emission=emission)
    images = next(iter(test_set.first(20).batches(20)))[0].double()
    assert (network.rate(images) - model(images)).abs().max() <= 1e-9
    steps = network(images)
    network.timesteps = 3
    assert torch.equal(network(images), steps[:3])
    network.emission = "calibrated"
    network.iterations, network.timesteps = None, 8
    assert (network.rate(images) - model(images)).abs().max() <= 1e-9


def test_a_layer_can_have_settings_of_its_own(shipped_model, test_set, tmp_path):
    images = next(iter(test_set.first(6).batches(6)))[0]
    network = convert(shipped_model, timesteps=3, rho=2)
    plain = network(images)
    network.set_layer("stages.0.0.act1", rho=4, iterations=None, emission="even")
    assert {node.timesteps for node in network.nodes().values()} == {4}
    own = network.nodes()["stages.0.0.act1"]
    assert (own.rho, own.iterations, own.emission) == (4, None, "even") and network.nodes()[
        "stem.2"
    ].rho == 2
    network.iterations = 0  # the layer keeps its own
    assert own.iterations is None and network.nodes()["stem.2"].iterations == 0
    assert network(images).shape == (3, 6, 10)
    network.save(tmp_path / "network")
    assert torch.equal(
        cos_ext.load_network(tmp_path / "network", shipped_model)(images), network(images)
    )
    network.iterations = 1
    network.set_layer("stages.0.0.act1")
    assert torch.equal(network(images), plain)
    for bad, error in (
        ({"site": "nowhere"}, ValueError),
        ({"site": "stem.2", "timesteps": 2}, ValueError),
        ({"site": "stem.2", "rho": -1}, ValueError),
        ({"site": "stem.2", "emission": "late"}, ValueError),
    ):
        with pytest.raises(error, match="site must be|of its own|rho must be|emission must be"):
            network.set_layer(**bad)
    assert torch.equal(network(images), plain)


@pytest.mark.slow
def test_results_do_not_depend_on_the_batch(shipped_model, test_set):
    model = copy.deepcopy(
        shipped_model
    ).double()  # float64: convolutions may sum in another order for another batch size
    network = convert(model, timesteps=4, rho=4, iterations=2)
    images = next(iter(test_set.first(24).batches(24)))[0].double()
    whole = network(images)
    for parts in (1, 7, 24):
        assert (
            torch.cat([network(part) for part in images.split(parts)], 1) - whole
        ).abs().max() <= 1e-9


def test_the_stem_runs_once_and_the_source_is_untouched(shipped_model, test_set):
    before = {key: value.clone() for key, value in shipped_model.state_dict().items()}
    network = convert(shipped_model, timesteps=8, rho=4)
    shapes = []
    network.module.get_submodule("stem.0").register_forward_hook(
        lambda m, i, o: shapes.append(tuple(o.shape))
    )
    images = next(iter(test_set.first(6).batches(6)))[0]
    network(images)
    assert shapes == [(6, 16, 28, 28)]
    assert [site for site, node in network.nodes().items() if node.static_input] == ["stem.2"]
    after = shipped_model.state_dict()
    assert before.keys() == after.keys() and all(
        torch.equal(before[key], after[key]) for key in before
    )
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert network(images).shape == (8, 6, 10)  # grad mode is on here


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_on_the_example_is_not_taken_for_a_mixed_batch(shipped_model, test_set, dtype):
    images = next(iter(test_set.first(100).batches(100)))[0].to(dtype)
    model = copy.deepcopy(shipped_model).to(dtype)
    assert convert(model, timesteps=1, example_input=images)(images[:2]).dtype == dtype


def test_evaluate_counts_right(shipped_model, test_set):
    network = convert(shipped_model, timesteps=3, rho=2)
    subset = test_set.first(90)
    result = evaluate(network, subset.batches(40), progress=False)
    outputs = torch.cat([network(images) for images, _ in subset.batches(90)], 1).cumsum(0)
    labels = subset.labels
    assert result.accuracy == [
        (outputs[t].argmax(1) == labels).double().mean().item() for t in range(3)
    ]
    assert result.top5 == [
        (outputs[t].topk(5).indices == labels[:, None]).any(1).double().mean().item()
        for t in range(3)
    ]
    assert (result.samples, result.latency) == (90, [3, 4, 5])
    spikes = steps = 0
    for node in network.nodes().values():
        node.register_forward_hook(lambda m, i, o: totals.append((int((o > 0).sum()), o.numel())))
    totals = []
    with network._by_steps():
        network(next(iter(subset.batches(90)))[0])
    spikes, steps = (sum(column) for column in zip(*totals))
    assert result.spike_rate == pytest.approx(spikes / steps, rel=1e-3)
    printed = str(result)
    assert (
        "latency" in printed and f"{result.accuracy[2]:.2%}" in printed and "90 samples" in printed
    )


def test_evaluate_errors(shipped_model):
    with pytest.raises(TypeError, match="network must be a SpikingNetwork, got ResNet"):
        evaluate(shipped_model, [])
    network = convert(shipped_model, timesteps=2)
    for labels in (torch.zeros(4, 1).long(), torch.zeros(1).long()):
        with pytest.raises(ValueError, match=r"labels must be \[B\] = \(4,\)"):
            evaluate(network, [(torch.rand(4, 1, 28, 28), labels)], progress=False)
    with pytest.raises(ValueError, match="at least one sample"):
        evaluate(network, [], progress=False)


@pytest.mark.slow
def test_calibration_helps_and_more_of_it_does_not_hurt(shipped_model, test_set):
    network = convert(shipped_model, timesteps=4)
    batches = test_set.first(500).batches(100)
    none = evaluate(network, batches, progress=False).accuracy
    network.rho = 4
    once = evaluate(network, batches, progress=False).accuracy
    # Uncalibrated accuracy at t = 1 is far below; the margin is several times the sampling error of
    # 500 images.
    assert once[0] > none[0] + 0.2
    assert once[3] > none[3] + 0.02


@pytest.mark.slow
def test_low_precision_networks_run(shipped_model, test_set):
    images = next(iter(test_set.first(20).batches(20)))[0]
    wanted = shipped_model(images).argmax(1)
    for dtype in (torch.bfloat16, torch.float16):
        network = convert(
            copy.deepcopy(shipped_model).to(dtype), timesteps=8, rho=8, iterations=None
        )
        outputs = network.rate(images.to(dtype))
        assert outputs.dtype == dtype
        assert (outputs.argmax(1) == wanted).float().mean() > 0.8


@pytest.mark.slow
def test_a_network_compiles_and_exports_whole(exact, test_set):
    images = next(iter(test_set.first(4).batches(4)))[0]
    expected = exact(images)
    assert torch.equal(torch.compile(exact, fullgraph=True, backend="aot_eager")(images), expected)
    assert torch.equal(torch.export.export(exact, (images,)).module()(images), expected)


def test_copies_and_state_dicts(exact, shipped_model, test_set, tmp_path):
    images = next(iter(test_set.first(4).batches(4)))[0]
    expected = exact(images)
    assert torch.equal(copy.deepcopy(exact)(images), expected)
    torch.save(exact, tmp_path / "network.pt")
    loaded = torch.load(tmp_path / "network.pt", weights_only=False)
    assert torch.equal(loaded(images), expected)
    assert (loaded.timesteps, loaded.rho, loaded.iterations) == (8, 8, None) and str(
        loaded.report
    ) == str(exact.report)
    fresh = convert(cos_ext.models.resnet20(10, 1), timesteps=8, rho=8, iterations=None)
    fresh.load_state_dict(exact.state_dict())
    assert torch.equal(fresh(images), expected)
    assert {"module.stem.2.v_threshold", "module.stem.2.v_init"} <= exact.state_dict().keys()
