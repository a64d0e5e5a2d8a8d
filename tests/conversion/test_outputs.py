"""Outputs as the model gives them: each tensor in them without loss, in the model's structure. The
reference is quantised.py.
"""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import zoo
from quantised import LEVELS, Quantised, thresholds_of
from structured import STRUCTURES, Auxiliary, Backbone, Classifier, Parts, Record
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import cos_ext
from cos_ext import ConversionError, convert

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = [(3, 8, 8)]
X = zoo.inputs_of(SHAPE)[0].double()


def prepared(make, dtype=torch.float64):
    """A model of this dtype and its thresholds."""
    model = zoo.prepared("structured", make if callable(make) else STRUCTURES[make]).to(dtype)
    with torch.no_grad():
        return model, thresholds_of(model, [X.to(dtype)])


def converted(make, dtype=torch.float64, **options):
    model, thresholds = prepared(make, dtype)
    settings = {"timesteps": LEVELS, "rho": LEVELS, "iterations": None, "max_pool": "before"}
    settings["thresholds"] = thresholds
    return convert(model, **{**settings, "example_input": X.to(dtype), **options})


def images(batch=7, dtype=torch.float64):
    torch.manual_seed(5)
    return torch.randn(batch, *SHAPE[0]).to(dtype)


def leaves(output):
    return pytree.tree_leaves(output)


def assert_same(ours, theirs, atol=1e-9):
    """The same structure, and in it the same."""
    mine, spec = pytree.tree_flatten(ours)
    wanted, expected = pytree.tree_flatten(theirs)
    assert spec == expected and len(mine) > 0
    for a, b in zip(mine, wanted):
        if isinstance(b, Tensor):
            torch.testing.assert_close(a, b, rtol=0, atol=atol)
        else:
            assert type(a) is type(b) and a == b


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_tensor_is_that_of_the_quantised_ann(name):
    model, thresholds = prepared(name)
    network, x = converted(name), images()
    with torch.no_grad(), Quantised(thresholds.values()):
        expected = copy.deepcopy(model)(x)
    assert_same(network.rate(x), expected)
    out, flat, kinds = network(x), network.outputs.flat, network.outputs.kinds
    for a, b, kind in zip(flat(out), flat(expected), kinds, strict=True):
        if kind != "constant":
            assert a.shape == (LEVELS, *b.shape) and a.dtype == b.dtype
    assert type(out) is type(expected)
    if name != "segmentation":  # whose shape[-2:] may have the batch, for all that is known
        assert_same(converted(name, example_input=None)(x), out, 0)


@pytest.mark.parametrize("name", STRUCTURES)
def test_by_counts_it_is_what_it_is_by_steps(name):
    network, x = converted(name, emission="even"), images()
    expected = network(x)
    network.execution = "counts"
    assert_same(network(x), expected)
    network.timesteps = 3
    three = network(x)
    network.execution = "steps"
    assert_same(network(x), three)


@pytest.mark.parametrize("name", STRUCTURES)
def test_parts_of_the_batch_and_portions_of_the_time(name):
    network, x = converted(name), images(8)
    expected, whole = network(x), network.activation_bytes(x)
    network.memory_limit = whole - 1
    assert cos_ext.network.memory.parts(network, (x,)) > 1
    assert_same(network(x), expected)
    network.memory_limit, network.rho = None, 0
    expected = network(x)
    network.memory_limit = whole - 1
    running, kinds = network.begin(x), network.outputs.kinds
    first, then = running.advance(2), running.advance(3)
    flat = network.outputs.flat
    for a, b, both, kind in zip(flat(first), flat(then), flat(expected), kinds, strict=True):
        if kind != "constant":
            torch.testing.assert_close(torch.cat([a, b]), both, rtol=0, atol=1e-9)
    frames = [network.step(x) for _ in range(LEVELS)]
    network.reset()
    for number, kind in enumerate(kinds):
        if kind != "constant":
            found = torch.stack([flat(frame)[number] for frame in frames])
            torch.testing.assert_close(found, flat(expected)[number], rtol=0, atol=1e-9)
    assert type(frames[0]) is type(expected)


@pytest.mark.parametrize("name", STRUCTURES)
def test_it_is_saved_pickled_copied_compiled_and_exported(name, tmp_path):
    network, x = converted(name, torch.float32), images(3, torch.float32)
    expected = network(x)
    network.save(tmp_path / "n")
    other = zoo.prepared("other weights", STRUCTURES[name])
    loaded = cos_ext.load_network(tmp_path / "n", other, example_input=X.float())
    assert_same(loaded(x), expected, 0)
    assert_same(copy.deepcopy(network)(x), expected, 0)
    assert_same(pickle.loads(pickle.dumps(network))(x), expected, 0)
    wide = copy.deepcopy(network).to(torch.bfloat16)
    floats = [each for each in leaves(wide(x.bfloat16())) if isinstance(each, Tensor)]
    assert {each.dtype for each in floats if each.is_floating_point()} == {torch.bfloat16}
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    assert_same(compiled(x), expected, 1e-5)
    network.memory_limit = None
    exported = torch.export.export(network, (x,))
    assert_same(exported.module()(x), expected, 1e-5)


def test_a_pickle_is_read_where_its_classes_are_new_to_torch():
    network, x = converted("dataclass"), images()
    expected, data = network(x), pickle.dumps(network)
    node = pytree.SUPPORTED_NODES.pop(Parts)
    try:
        again = pickle.load(io.BytesIO(data))(x)
    finally:
        pytree.SUPPORTED_NODES[Parts] = node
    assert isinstance(again, Parts) and torch.equal(again.scores, expected.scores)


def gives(function):
    """A classifier whose output is function(model, x, features, first logits, second logits)."""
    return lambda: Classifier(function)


def test_one_tensor_twice_is_one():
    network = converted(gives(lambda m, x, h, a, b: [a, {"again": a, "size": x.shape[2:]}]))
    x = images()
    first, second = network(x)
    assert torch.equal(first, second["again"]) and second["size"] == (8, 8)
    assert network.rate(x)[1]["size"] == (8, 8)
    shown = [m for m in network.modules() if type(m).__name__ == "Shown"]
    assert len(shown) == 1


def test_what_is_static_is_there_at_every_step_and_may_be_whole_numbers():
    network = converted(
        gives(lambda m, x, h, a, b: {"scores": a, "brightest": x.flatten(1).argmax(1), "x": x})
    )
    x = images()
    out, rate = network(x), network.rate(x)
    assert network.outputs.kinds == ("steps", "static", "static")
    assert out["brightest"].shape == (LEVELS, 7) and out["brightest"].dtype == torch.int64
    assert (out["brightest"] == x.flatten(1).argmax(1)).all() and (out["x"] == x).all()
    assert torch.equal(rate["brightest"], x.flatten(1).argmax(1)) and torch.equal(rate["x"], x)
    network.memory_limit = network.activation_bytes(x) - 1
    assert_same(network(x), out, 1e-9)


def test_a_sample_that_is_not_finite_shows_in_what_comes_of_neurons():
    """Minus infinity in what is static is the model's own."""
    network = converted(
        gives(lambda m, x, h, a, b: (a, b, x.sum((1, 2, 3)).sign().add(-1).div(0).abs().neg()))
    )
    x = images()
    assert network(x)[2].isinf().any() and network(x)[0].isfinite().all()
    x[2, 0, 0, 0] = torch.nan
    first, second, _ = network(x)
    others = [0, 1, 3, 4, 5, 6]
    for out in (first, second):
        assert out[:, 2].isnan().all() and out[:, others].isfinite().all()


def test_memory_limit_is_refused_where_an_output_mixes_samples():
    def mixed():
        model = Classifier(lambda m, x, h, a, b: (a, m.norm(x[:, :, None])))
        model.norm = nn.BatchNorm3d(3, track_running_stats=False)
        return model

    with pytest.raises(ConversionError, match="depends on the other samples"):
        converted(mixed)
    network, x = converted(mixed, example_input=None), images(8)
    network.memory_limit = network.activation_bytes(x) - 1
    with pytest.raises(ValueError, match="computes something over the whole batch"):
        network(x)


class Untraceable(nn.Module):
    """Its control flow depends on types that torch.fx does not know."""

    def __init__(self, give):
        super().__init__()
        self.first, self.relu = nn.Linear(6, 8), nn.ReLU()
        self.second, self.act, self.head = nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
        self.register_buffer("names", torch.arange(3))
        self.give = give

    def forward(self, x):
        h = self.relu(self.first(x))
        for _ in range(len(x.tolist()[0]) // 6):
            h = self.act(self.second(h))
        return self.give(self, h, self.head(h))


def walk(give, **options):
    torch.manual_seed(0)
    model = Untraceable(give).double().eval()
    settings = {"timesteps": 4, "rho": 4, "iterations": None, **options}
    thresholds = {"relu": 0.875, "act": 0.625}
    network = convert(
        model, thresholds=thresholds, example_input=torch.randn(3, 6).double(), **settings
    )
    x = torch.randn(5, 6).double()
    with torch.no_grad():
        model.relu, model.act = cos_ext.QCFS(4, 0.875), cos_ext.QCFS(4, 0.625)
        return network, x, model.double()(x)


@pytest.mark.parametrize(
    "give",
    [
        lambda m, h, y: {"scores": y, "features": h, "none": None, "n": 3},
        lambda m, h, y: Record(logits=y, hidden_states=(h, y)),
        lambda m, h, y: [y],
    ],
    ids=["dict", "record", "list"],
)
def test_a_model_that_cannot_be_traced(give):
    network, x, expected = walk(give)
    assert type(network.module).__name__ == "Walked"
    assert_same(network.rate(x), expected)


def test_a_model_that_cannot_be_traced_keeps_to_its_structure():
    def give(m, h, y):
        return (y, h) if h.shape[0] < 30 else [y, h]

    network, x, _ = walk(give)
    network(x)
    with pytest.raises(ValueError, match="must always have one structure"):
        network(torch.randn(8, 6).double())


REFUSED = {
    "a class": (lambda m, x, h, a, b: {a, b}, None, "a set in it"),
    "a list": (lambda m, x, h, a, b: {"both": a.chunk(2, 1)}, None, "list whose length"),
    "batch size": (lambda m, x, h, a, b: (a, h.shape[0]), None, "size of the batch"),
    "static, turned": (lambda m, x, h, a, b: (a, x.transpose(0, 1)), None, "pass example_input"),
    "static, turned, seen": (lambda m, x, h, a, b: (a, x.transpose(0, 1)), X, "depends on the"),
    "nothing": (lambda m, x, h, a, b: None, None, "there is no activation"),
    "static": (lambda m, x, h, a, b: {"x": x}, X, "there is no activation"),
    "a list for each sample": (
        lambda m, x, h, a, b: [{"scores": each} for each in a.unbind(0)],
        X,
        "unbind|another structure|torch.fx",
    ),
    "integers of spikes": (lambda m, x, h, a, b: (a, a.argmax(1)), X, "argmax"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    give, example, message = REFUSED[name]
    with pytest.raises(ConversionError, match=message):
        converted(gives(give), example_input=example)


def test_integers_of_a_model_that_cannot_be_traced_are_refused():
    with pytest.raises(ConversionError, match=r"torch.int64.*cannot be traced"):
        walk(lambda m, h, y: (y, y.argmax(1)))


@pytest.mark.parametrize("example", [X, None], ids=["example", "none"])
def test_readouts_leaf_by_leaf(example, tmp_path):
    def give(m, x, h, a, b):
        return {
            "logits": a,
            "chances": a.softmax(1),
            "on": torch.sigmoid(b).unsqueeze(1),
            "features": h,
        }

    with pytest.raises(ConversionError, match='readout="drop".*readout="mean"'):
        converted(gives(give), example_input=example, nonlinear="error")
    dropped, x = converted(gives(give), readout="drop", example_input=example), images()
    plain = converted(
        gives(lambda m, x, h, a, b: {"a": a, "again": a, "b": b.unsqueeze(1), "h": h}),
        example_input=example,
    )
    for ours, theirs in zip(dropped(x).values(), plain(x).values(), strict=True):
        assert torch.equal(ours, theirs)
    mean = converted(gives(give), readout="mean", example_input=example)
    rate, logits = mean.rate(x), plain.rate(x)
    assert torch.equal(rate["logits"], logits["a"]) and torch.equal(rate["features"], logits["h"])
    assert torch.equal(rate["chances"], logits["a"].softmax(1))
    assert torch.equal(rate["on"], torch.sigmoid(logits["b"]))
    assert torch.equal(mean(x)["chances"], plain(x)["a"])
    mean.save(tmp_path / "n")
    loaded = cos_ext.load_network(tmp_path / "n", prepared(gives(give))[0], example_input=example)
    assert_same(loaded.rate(x), rate, 0)
    twice = converted(
        gives(lambda m, x, h, a, b: (lambda p: (p, [p]))(a.softmax(1))), readout="mean"
    )
    first, second = leaves(twice.rate(x))
    assert torch.equal(first, second) and torch.equal(first, logits["a"].softmax(1))


def test_gradients_reach_every_output():
    network = converted("record", torch.float32, rho=0, trainable=True, iterations=1)
    x = images(4, torch.float32)
    out = network(x)
    weights = network.module.get_submodule("backbone.one.0").weight
    for tensor in (out.logits, *out.hidden_states):
        network.zero_grad()
        tensor.sum().backward(retain_graph=True)
        assert weights.grad.abs().sum() > 0
    network.checkpointing = True
    again = network(x)
    assert_same(again, out, 0)
    again.logits.sum().backward()


def test_what_needs_no_scores_takes_any_structure():
    model, thresholds = prepared("detection")
    batches = [images(3), images(4)]
    found = cos_ext.calibrate_thresholds(model, batches, timesteps=4, progress=False)
    assert found.keys() == thresholds.keys()
    network = convert(model, timesteps=4, rho=4, thresholds=found, example_input=X)
    assert network.statistics(batches, progress=False).samples == 7
    assert network.energy_report(batches, progress=False).latency == [5, 6, 7, 8]
    with network.record() as recording:
        network(batches[0])
    assert len(recording["backbone.relu"].spikes) == 4
    network.rho = 0
    assert cos_ext.settling_step(network, batches) > 0
    cos_ext.fit_v_init(network, batches, rho=4, progress=False)
    assert_same(network(batches[0]), network(batches[0]), 0)


def test_a_captured_forward_copies_every_tensor():
    """All but the graph itself, which a run into the same output stands for."""
    from cos_ext.network.capture import CapturedForward

    network, own = converted("dataclass"), images(3)
    out = pytree.tree_map(torch.clone, network(own))

    def replay():
        for tensor, new in zip(leaves(out), leaves(network(own))):
            tensor.copy_(new)

    captured, x = CapturedForward(network, (own,), out, replay), images(3) + 1
    expected = network(x)
    first = captured(x)
    assert isinstance(first, Parts) and captured(x, clone=False) is out
    captured(x - 1)
    assert_same(first, expected, 0)


def test_the_same_object_for_auxiliary_outputs_that_training_has():
    model, _ = prepared("inception")
    assert isinstance(copy.deepcopy(model).train()(images()), Auxiliary)
    assert isinstance(converted("inception")(images()), Tensor)
    assert isinstance(Backbone()(images(2, torch.float32)), dict)
