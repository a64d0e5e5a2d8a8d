"""What stands around a model, or computes its weights: baked into the copy, or refused in words."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import cos_ext
from cos_ext import QCFS, ConversionError, calibrate_thresholds, convert

X = torch.randn(6, 4)


def mlp(activation=lambda: QCFS(4, 1.0)):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), activation(), nn.Linear(16, 3)).eval()


def parametrised(function, *arguments, **options):
    def change(model):
        function(model[2], *arguments, **options)
        return model.eval()

    return change


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


BAKED = {
    "pruned": parametrised(prune.l1_unstructured, "weight", 0.5),
    "pruned twice": lambda m: parametrised(prune.random_unstructured, "weight", 0.3)(
        parametrised(prune.l1_unstructured, "weight", 0.5)(m)
    ),
    "pruned bias": parametrised(prune.l1_unstructured, "bias", 1),
    "weight norm": parametrised(parametrizations.weight_norm),
    "spectral norm": parametrised(parametrizations.spectral_norm),
    "orthogonal": parametrised(parametrizations.orthogonal),
    "own": parametrised(nn.utils.parametrize.register_parametrization, "weight", Doubled()),
    "old weight norm": parametrised(nn.utils.weight_norm),
    "old spectral norm": parametrised(nn.utils.spectral_norm),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`")
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("change", BAKED.values(), ids=BAKED)
def test_weights_that_are_computed_are_baked_in(change, trained):
    model = change(mlp())
    if trained:
        model.train()
        model(X).sum().backward()
        model.eval()
    expected = model(X).detach()
    state = copy.deepcopy(model.state_dict())
    network = convert(model, timesteps=4, rho=4, example_input=X)
    assert torch.allclose(network.rate(X), expected, atol=1e-5) and expected.std() > 0.01
    plain = convert(model, timesteps=4, rho=4)
    assert torch.allclose(plain.rate(X), expected, atol=1e-5)
    # The model is what it was.
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(model(X), expected)
    model[1] = nn.ReLU()
    assert list(calibrate_thresholds(model, [X], progress=False)) == ["1"]


class Keeps(nn.Module):
    """Leaves what it computes on itself."""

    def __init__(self):
        super().__init__()
        self.net, self.kept = mlp(), None
        self.history, self.named = [], {}

    def forward(self, x):
        self.kept = self.net[0](x)
        self.history.append(self.kept)
        self.named["last"] = (self.kept,)
        return self.net[2](self.net[1](self.kept))


def test_activations_that_a_model_keeps():
    model = Keeps().eval()
    expected = model(X)
    kept = model.kept
    assert kept.grad_fn is not None
    for example in (None, X):
        network = convert(model, timesteps=4, rho=4, example_input=example)
        assert torch.allclose(network.rate(X), expected, atol=1e-5)
    assert model.kept is kept and model.history[0] is kept and model.named["last"][0] is kept


def test_sync_batch_norm_is_batch_norm():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), QCFS(4, 1.0), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2)
    )
    model(torch.randn(16, 1, 8, 8))
    model.eval()
    sync = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)).eval()
    images = torch.randn(3, 1, 8, 8)
    for fold in (True, False):
        for example in (None, images):
            options = {"timesteps": 4, "rho": 4, "example_input": example, "fold_batchnorm": fold}
            ours, theirs = convert(sync, **options), convert(model, **options)
            assert torch.allclose(ours(images), theirs(images), atol=1e-5)
    assert isinstance(sync[1], nn.SyncBatchNorm)
    flat = nn.SyncBatchNorm.convert_sync_batchnorm(
        nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), QCFS(4, 1.0), nn.Linear(8, 2))
    ).eval()
    assert torch.allclose(convert(flat, timesteps=4, rho=4).rate(X), flat(X), atol=1e-5)


@pytest.fixture
def alone():
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize(
    "wrap, words",
    [
        (nn.parallel.DistributedDataParallel, "pass model.module"),
        (nn.DataParallel, "pass model.module"),
        (torch.jit.script, "pass the eager model"),
        (lambda model: torch.jit.trace(model, X), "pass the eager model"),
        (torch.compile, "pass model._orig_mod"),
        (torch.optim.swa_utils.AveragedModel, "pass model.module"),
    ],
    ids=["DDP", "DataParallel", "script", "trace", "compile", "averaged"],
)
def test_wrappers_say_what_to_pass(wrap, words, alone):
    model = wrap(mlp(nn.ReLU))
    inside = (
        nn.Sequential(model, nn.ReLU()) if not isinstance(model, torch.jit.ScriptModule) else model
    )
    for each in (model, inside):
        for example in (None, X):
            with pytest.raises(ConversionError, match=words):
                convert(each, timesteps=4, thresholds={"1": 1.0}, example_input=example)
        with pytest.raises(ConversionError, match=words):
            calibrate_thresholds(each, [X], progress=False)


def test_a_model_that_was_compiled_in_place_converts():
    model, expected = mlp(), mlp()(X)
    model.compile(backend="eager")
    assert torch.allclose(convert(model, timesteps=4, rho=4).rate(X), expected, atol=1e-5)


class Binary(nn.Conv2d):
    """As BinaryNet keeps the weights of training."""

    def forward(self, x):
        if not hasattr(self.weight, "org"):
            self.weight.org = self.weight.data.clone()
        self.weight.data = self.weight.org.sign()
        return nn.functional.conv2d(x, self.weight, self.bias)


def test_a_model_that_asks_what_its_weights_have():
    model, images = nn.Sequential(Binary(1, 2, 3), nn.ReLU()).eval(), torch.randn(2, 1, 6, 6)
    with torch.no_grad():
        expected = copy.deepcopy(model)(images).max()
    assert calibrate_thresholds(model, [images], progress=False) == {"1": expected}
    with pytest.raises(ConversionError, match="forward of Binary asks hasattr"):
        convert(model, timesteps=4, thresholds={"1": 1.0})
    with pytest.raises(ConversionError, match="cannot be traced: forward sets the attribute data"):
        convert(model, timesteps=4, thresholds={"1": 1.0}, example_input=images)
    assert not hasattr(model[0].weight, "org")


def skeleton(make):
    with torch.device("meta"):
        return make()


def test_a_meta_skeleton_takes_a_file(tmp_path):
    model = mlp()
    network = convert(model, timesteps=4, rho=4)
    network.save(tmp_path / "n")
    bare = skeleton(mlp)
    loaded = cos_ext.load_network(tmp_path / "n", bare)
    assert torch.equal(loaded(X), network(X)) and bare[0].weight.is_meta
    spoilt = mlp()
    nn.init.constant_(spoilt[0].weight, float("nan"))
    assert torch.equal(cos_ext.load_network(tmp_path / "n", spoilt)(X), network(X))


def test_a_meta_skeleton_of_a_network_with_norms(tmp_path):
    def make():
        torch.manual_seed(0)
        return cos_ext.models.resnet20(num_classes=10, in_channels=1).eval()

    network = convert(make(), timesteps=2, rho=2)
    network.save(tmp_path / "n")
    images = torch.randn(2, 1, 28, 28)
    loaded = cos_ext.load_network(tmp_path / "n", skeleton(make))
    assert torch.equal(loaded(images), network(images))


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()
        self.register_buffer("at", torch.arange(4.0), persistent=False)

    def forward(self, x):
        return self.net(x + self.at)


def test_a_meta_skeleton_that_computes_buffers_is_refused(tmp_path):
    convert(Positions(), timesteps=4, rho=4).save(tmp_path / "n")
    with pytest.raises(ValueError, match=r"no numbers for the buffers \['at'\]"):
        cos_ext.load_network(tmp_path / "n", skeleton(Positions))
    assert cos_ext.load_network(tmp_path / "n", Positions())(X).isfinite().all()
