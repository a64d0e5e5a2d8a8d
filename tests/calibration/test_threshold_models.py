"""calibrate_thresholds on whole models: call sites in order, models that cannot be traced, what is
kept in memory, arguments, files. The methods: test_thresholds.py.
"""

import copy
import json

import numpy as np
import pytest
import torch
from bare_thresholds import bare, best_rms, found, rms
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as TF

import cos_ext
from cos_ext.calibration import histograms
from cos_ext.calibration.activation_statistics import Statistics
from cos_ext.calibration.threshold_files import FORMAT
from cos_ext.calibration.thresholds import (
    METHODS,
    calibrate_thresholds,
    load_thresholds,
    save_thresholds,
)

pytestmark = pytest.mark.usefixtures("one_thread")

STATIC = ("max", "percentile", "mse")  # methods that do not depend on the order of the data


class Block(nn.Module):
    """One nn.ReLU object at two places, one in place; F.relu; a module that forward does not call;
    ReLU6.
    """

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.relu, self.unused, self.relu6 = nn.ReLU(inplace=True), nn.ReLU(), nn.ReLU6()
        self.head = nn.Linear(8, 5)

    def inputs(self, x):
        """What its activations are called with, one by one."""
        one = self.norm(self.conv1(x))
        two = self.conv2(one.relu()) + one.relu()
        three = self.head(two.relu().mean((2, 3)))
        return [one, two, three, 30 * three.relu()]

    def forward(self, x):
        x = self.relu(self.norm(self.conv1(x)))
        x = self.relu(self.conv2(x) + x)
        return self.relu6(30 * TF.relu(self.head(x.mean((2, 3)))))


SITES = ["relu", "relu_1", "relu_2", "relu6"]


@pytest.fixture
def block():
    model = Block()
    with torch.no_grad():
        model.norm.running_mean.normal_()
        model.norm.running_var.uniform_(0.5, 2)
    return model.double()


@pytest.fixture
def images():
    return torch.randn(24, 3, 6, 6, dtype=torch.float64)


def test_every_call_site_in_order(block, images):
    block.eval()
    with torch.no_grad():
        inputs = block.inputs(images)
    direct = [x.max() for x in inputs]
    thresholds = found(block, images.split(5))
    assert list(thresholds) == SITES
    assert direct[3] > 6 and thresholds.pop("relu6") == 6
    for threshold, expected in zip(thresholds.values(), direct):
        assert threshold.dtype == torch.float64 and threshold.shape == ()
        torch.testing.assert_close(threshold, expected)
    for x, threshold in zip(
        inputs, found(block, images.split(5), method="percentile", percentile=97).values()
    ):
        x = x.clamp(0, 6 if x is inputs[3] else None)
        assert abs(threshold - np.percentile(x.numpy(), 97)) <= x.max() / 2048
    for x, threshold in zip(
        inputs[:3], found(block, images.split(5), method="mse", timesteps=4).values()
    ):
        assert rms(x, threshold, 4) <= 1.01 * best_rms(x, 4, 800)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_convert_takes_them(method, per_channel):
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3)
    )
    x = torch.randn(10, 2, 5, 5)
    thresholds = found(model, [x], method=method, per_channel=per_channel)
    network = cos_ext.convert(model, timesteps=4, thresholds=thresholds, example_input=x[:2])
    assert network(x).shape == (4, 10, 3)
    for site, node in network.nodes().items():
        assert torch.equal(node.v_threshold, thresholds[site])


def test_qcfs_has_its_own():
    x = torch.randn(4, 3)
    mixed = nn.Sequential(nn.Linear(3, 3), cos_ext.QCFS(4), nn.Linear(3, 3), nn.ReLU())
    for method in METHODS:
        assert list(found(mixed, [x], method=method)) == ["3"]
        assert found(mixed[:2], [x], method=method) == {}


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.last, self.unused, self.first, self.linear = (
            nn.ReLU(),
            nn.ReLU(),
            nn.ReLU(),
            nn.Linear(4, 4),
        )

    def forward(self, x):
        if x.sum() > 1e9:
            return x
        return self.last(self.linear(self.first(self.first(x) - 1)) + 10)


def test_a_model_that_cannot_be_traced():
    x = torch.randn(20, 4)
    thresholds = found(Untraceable(), [x])
    assert list(thresholds) == ["first", "last"]
    assert thresholds["first"] == x.max()  # over both of its calls


def test_per_channel_needs_the_same_channels_at_every_call():
    class Two(Untraceable):
        def forward(self, x):
            return self.first(self.first(x)[:, :2]) if x.sum() < 1e9 else x

    assert found(Two(), [torch.ones(2, 4)])["first"] == 1
    with pytest.raises(
        ValueError, match=r"per_channel must be False.*'first' is called with \(2,\) after \(4,\)"
    ):
        found(Two(), [torch.ones(2, 4)], per_channel=True)


def test_several_inputs_and_what_follows_them():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x, y, scale=2.0):
            return self.relu(x - scale * y)

    x, y, labels = torch.rand(6, 3), -torch.rand(6, 3), torch.arange(6)
    expected = {"relu": (x - 2 * y).max()}
    assert found(Two(), [(x, y)]) == found(Two(), [[x, y, labels]]) == expected
    assert (
        found(nn.ReLU(), [(x, labels)])
        == found(nn.ReLU(), [(x, ["a name"])])
        == found(nn.ReLU(), iter([x]))
    )
    with pytest.raises(ValueError, match=r"batches must yield the model's 2 input\(s\), got 1"):
        found(Two(), [x])
    with pytest.raises(
        TypeError,
        match=r"batches must yield.*begin with 2 of them.*, got tuple of \['Tensor', 'list'\]",
    ):
        found(Two(), [(x, [1])])


@pytest.mark.parametrize(
    ("error", "match", "change"),
    [
        (TypeError, "model must be an nn.Module, got type", {"model": nn.ReLU}),
        (TypeError, "batches must be an iterable.*got Tensor", {"batches": torch.ones(2, 3)}),
        (TypeError, "batches must be an iterable.*got dict", {"batches": {"x": torch.ones(2, 3)}}),
        (TypeError, "batches must be an iterable.*got int", {"batches": 3}),
        (TypeError, "batches must yield tensors.*got str", {"batches": ["x"]}),
        (TypeError, "inputs of Sequential are .'input'.", {"batches": [{"x": torch.ones(2, 3)}]}),
        (TypeError, r"batches must yield.*got tuple of \['int'\]", {"batches": [(1,)]}),
        (ValueError, "batches must yield the model's 1 input.*got 0", {"batches": [()]}),
        (
            ValueError,
            "batches must yield tensors with a batch dimension",
            {"batches": [torch.tensor(1.0)]},
        ),
        (ValueError, "batches must yield at least one sample", {"batches": []}),
        (ValueError, "batches must yield at least one sample", {"batches": [torch.ones(0, 3)]}),
        (ValueError, "method must be one of .*'balance'.*got 'median'", {"method": "median"}),
        (ValueError, r"percentile must lie in \(0, 100\], got 0", {"percentile": 0}),
        (ValueError, r"percentile must lie in \(0, 100\], got 100.1", {"percentile": 100.1}),
        (ValueError, r"percentile must lie in \(0, 100\], got nan", {"percentile": float("nan")}),
        (TypeError, "percentile must be a float, got str", {"percentile": "99"}),
        (TypeError, "per_channel must be a bool, got int", {"per_channel": 1}),
        (TypeError, "timesteps must be an int, got float", {"timesteps": 4.0}),
        (ValueError, "timesteps must be >= 1, got 0", {"timesteps": 0}),
        (ValueError, "model must have an activation, Linear has none", {"model": nn.Linear(3, 3)}),
        (
            TypeError,
            "must be floating-point, got torch.int64",
            {"batches": [torch.ones(2, 3).long()]},
        ),
    ],
)
def test_bad_arguments(error, match, change):
    arguments = {"model": nn.Sequential(nn.ReLU()), "batches": [torch.ones(2, 3)], **change}
    with pytest.raises(error, match=match):
        found(**arguments)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_name_the_first_site(method, per_channel, bad):
    model = nn.Sequential(nn.ReLU(), nn.Identity(), nn.ReLU6(), nn.ReLU())
    batches = [torch.rand(4, 3, 2) for _ in range(3)]
    batches[1][2, 1, 0] = bad
    with pytest.raises(ValueError, match="input of activation '0' has NaN or infinite"):
        found(model, batches, method=method, per_channel=per_channel)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_activations_that_never_fire_are_all_named(method, per_channel):
    class Shift(nn.Module):
        def forward(self, x):
            return x - 1

    model = nn.Sequential(nn.ReLU(), Shift(), nn.ReLU(), Shift(), nn.ReLU6())
    with pytest.raises(ValueError, match=r"activations \['2', '4'\] never exceed 0"):
        found(model, [torch.rand(4, 3)], method=method, per_channel=per_channel)


def test_an_activation_without_elements_has_no_threshold():
    with pytest.raises(ValueError, match="never exceed 0"):
        found(nn.ReLU(), [torch.ones(2, 0)], method="mse")


def test_a_percentile_of_zero_is_refused():
    x = torch.rand(10, 10) * (torch.arange(100) > 90).reshape(10, 10)
    with pytest.raises(
        ValueError,
        match=r"percentile must be higher for activations \['0'\], whose percentile 80 is 0",
    ):
        found(nn.Sequential(nn.ReLU()), [x], method="percentile", percentile=80)


@pytest.mark.parametrize("method", METHODS)
def test_neither_the_model_nor_the_data_are_changed(method, block, images):
    model = nn.Sequential(nn.ReLU(inplace=True), block).train()
    model[1].norm.eval()
    before, data = copy.deepcopy(model.state_dict()), images.clone()
    modes, hooks = (
        [module.training for module in model.modules()],
        nn.modules.module._global_forward_pre_hooks,
    )
    found(model, [(images, None)] * 2, method=method, per_channel=True)
    assert torch.equal(images, data)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert not hooks and not any(module._forward_pre_hooks for module in model.modules())
    assert all(
        parameter.requires_grad and parameter.grad is None for parameter in model.parameters()
    )
    assert list(dict(model.named_modules())) == list(
        dict(nn.Sequential(nn.ReLU(), Block()).named_modules())
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("per_channel", [False, True])
def test_only_statistics_are_kept(method, per_channel, monkeypatch):
    held, sites = [], set()
    see = Statistics.see

    def watched(self, x, inplace):
        result = see(self, x, inplace)
        sites.add(self)
        tensors = [value for value in vars(self).values() if isinstance(value, torch.Tensor)]
        assert not any(
            tensor.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
            for tensor in tensors
        )
        held.append(sum(tensor.untyped_storage().nbytes() for tensor in tensors))
        return result

    monkeypatch.setattr(Statistics, "see", watched)
    model = nn.Sequential(nn.Conv2d(1, 5, 1), nn.ReLU(), nn.Conv2d(5, 5, 1), nn.ReLU())
    found(
        model,
        (torch.randn(2 + n, 1, 128, 128) for n in range(6)),
        method=method,
        per_channel=per_channel,
    )
    channels = 5 if per_channel else 1
    histogram = 8 * (histograms.BINS + 1) if method in ("percentile", "mse", "ddti") else 0
    assert len(held) == 12 and len(sites) == 2
    assert max(held) <= channels * (histogram + 32) + 8  # an activation has 655,360 bytes and more


@pytest.mark.parametrize("method", METHODS)
def test_dtypes(method, dtype):
    x = (torch.randn(20, 6) * 3).to(dtype)
    threshold = bare(list(x.split(4)), method=method)
    assert threshold.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    wide = bare(list(x.double().split(4)), method=method)
    torch.testing.assert_close(threshold.double(), wide, rtol=1e-5, atol=0)


def test_where_it_computes(device):
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU()).to(device), torch.randn(20, 3)
    for method in METHODS:
        for arguments in ({}, {"device": "cpu"}, {"device": torch.device(device)}):
            threshold = found(model, [x, x], method=method, per_channel=True, **arguments)["1"]
            assert threshold.device.type == device
            torch.testing.assert_close(
                threshold.cpu(), found(model.cpu(), [x, x], method=method, per_channel=True)["1"]
            )
            model.to(device)


def test_progress(capsys):
    calibrate_thresholds(nn.ReLU(), [torch.rand(2, 3)] * 3)
    assert "calibrate" in capsys.readouterr().err
    found(nn.ReLU(), [torch.rand(2, 3)] * 3)
    assert capsys.readouterr().err == ""


def test_thresholds_are_saved_in_order(tmp_path, block, images):
    path = tmp_path / "thresholds.safetensors"
    for per_channel in (False, True):
        thresholds = found(block, [images], per_channel=per_channel)
        thresholds["half"] = torch.tensor(0.5, dtype=torch.float16)
        thresholds["a view"] = torch.rand(4, 6).t()[1:]
        save_thresholds(thresholds, path)
        loaded = load_thresholds(str(path))
        assert list(loaded) == list(thresholds) == [*SITES, "half", "a view"]
        for site, threshold in thresholds.items():
            assert loaded[site].dtype == threshold.dtype and torch.equal(loaded[site], threshold)
    save_thresholds({}, path)
    assert load_thresholds(path) == {} and [file.name for file in tmp_path.iterdir()] == [path.name]


def test_only_thresholds_are_saved_and_loaded(tmp_path):
    path = tmp_path / "thresholds.safetensors"
    one = torch.tensor(1.0)
    for error, match, thresholds in (
        (TypeError, "thresholds must be a mapping.*got list", [one]),
        (TypeError, "thresholds must have strings.*got int", {1: one}),
        (TypeError, r"thresholds\['a'\] must be a tensor, got float", {"a": 1.0}),
        (TypeError, r"thresholds\['a'\] must be float32.*got torch.int64", {"a": torch.tensor(1)}),
        (
            ValueError,
            r"thresholds\['a'\] must be positive and finite.*got values in \[-1.0, 1.0\]",
            {"a": torch.tensor([1.0, -1.0])},
        ),
        (
            ValueError,
            r"thresholds\['a'\] must be positive and finite",
            {"a": torch.tensor([1.0, float("nan")])},
        ),
    ):
        with pytest.raises(error, match=match):
            save_thresholds(thresholds, path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError):
        load_thresholds(path)

    def header(sites):
        return {"cos_ext": json.dumps({"format": FORMAT, "sites": sites})}

    for match, tensors, metadata in (
        ("must be a file of save_thresholds", {"a": one}, None),
        ("must be a file of save_thresholds", {"a": one}, {"cos_ext": "[]"}),
        ("is damaged: its sites", {"a": one}, header(["b"])),
        ("is damaged: its sites", {"a": one}, header(["a", "a"])),
        ("is damaged: its sites", {"a": one}, header({"a": 1})),
        ("must be positive and finite", {"a": -one}, header(["a"])),
        ("must be float32", {"a": torch.tensor(1)}, header(["a"])),
        ("is damaged or is no safetensors file", {"a": one}, {"cos_ext": "{"}),
    ):
        save_file(tensors, path, metadata=metadata)
        with pytest.raises(ValueError, match=match):
            load_thresholds(path)
    for damaged in (b"", path.read_bytes()[:-1], b"PK" + bytes(100)):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged or is no safetensors file"):
            load_thresholds(path)
