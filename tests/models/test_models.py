"""cos_ext.models: architectures, and weights from good, foreign and damaged files. No training and
no conversion.
"""

import os
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cos_ext import QCFS, models

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"resnet18": 17, "resnet20": 19, "resnet34": 33, "vgg16": 15}  # activations


def activations(model):
    return [module for module in model.modules() if isinstance(module, QCFS)]


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_small_images(name):
    for channels, side, classes in [(1, 28, 10), (3, 32, 100)]:
        model = models.build(name, classes, channels, stem="cifar", levels=4, threshold=2.0)
        with (
            torch.no_grad()
        ):  # in training mode, so that BatchNorm keeps the untrained signal alive
            out = model(torch.rand(2, channels, side, side))
        assert out.shape == (2, classes) and out.isfinite().all()
        assert not torch.equal(out[0], out[1])
        found = activations(model)
        assert all(module.levels == 4 and module.threshold.item() == 2.0 for module in found)
        assert len({id(module) for module in found}) == len(found) == SMALL[name]
        assert len({id(module.threshold) for module in found}) == len(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet34", "vgg16"])
def test_imagenet_images(name):
    with torch.no_grad():
        model = models.build(name, 1000, stem="imagenet").eval()
        assert model(torch.rand(1, 3, 224, 224)).shape == (1, 1000)


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_imagenet_shapes_of_every_architecture(name):
    with torch.device("meta"), torch.no_grad():
        model = models.build(name, 1000, stem="imagenet").eval()
        assert model(torch.rand(2, 3, 224, 224)).shape == (2, 1000)


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_activations_are_called_once_and_pooling_is_average(name, stem):
    with torch.device("meta"):
        model = models.build(name, 10, stem=stem)
        calls = []
        for module in activations(model):
            module.register_forward_hook(lambda module, *_: calls.append(id(module)))
        side = 32 if stem == "cifar" else 224
        model(torch.rand(2, 3, side, side))
    assert len(calls) == len(set(calls)) == SMALL[name]
    kinds = {type(module).__name__ for module in model.modules()}
    assert not any("Max" in kind or "ReLU" in kind for kind in kinds), kinds
    assert any("AvgPool" in kind for kind in kinds)


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_activation_of_ones_own(name):
    made = []

    def activation():
        made.append(nn.ReLU())
        return made[-1]

    with torch.device("meta"):
        model = models.build(name, 10, activation=activation)
    assert [
        module for module in model.modules() if isinstance(module, nn.ReLU)
    ] and not activations(model)
    assert len(made) == len({id(module) for module in made}) == SMALL[name]


def count(model, kinds=(nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
    return sum(
        p.numel()
        for module in model.modules()
        if isinstance(module, kinds)
        for p in module.parameters()
    )


def test_resnet20_has_270_thousand_parameters():
    model = models.resnet20(10)
    # 3x3 convolutions, BatchNorm's two values a channel, the two 1x1 shortcuts, the classifier.
    convolutions = 9 * (3 * 16 + 6 * 16 * 16 + (16 * 32 + 5 * 32 * 32) + (32 * 64 + 5 * 64 * 64))
    shortcuts = 16 * 32 + 32 * 64 + 2 * (32 + 64)
    norms = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    assert count(model) == convolutions + shortcuts + norms + 64 * 10 + 10 == 272_474
    assert sum(p.numel() for p in model.parameters()) == 272_474 + 19
    assert (
        sum(
            isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
            for module in model.modules()
        )
        == 19
    )


@pytest.mark.parametrize(
    "name, parameters", [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("vgg16", 138_365_992)]
)
def test_imagenet_parameters_are_the_published_count(name, parameters):
    with torch.device("meta"):
        model = models.build(name, 1000, stem="imagenet")
    # The published VGG-16 with BatchNorm has a bias in each of its 13 convolutions, which BatchNorm
    # makes redundant.
    biases = sum(module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d))
    assert count(model) == parameters - (biases if name == "vgg16" else 0)


def test_resnet_is_residual():
    block = models.BasicBlock(4, 4, 1, nn.ReLU).eval()
    x = torch.rand(1, 4, 6, 6)
    for bn in (block.bn1, block.bn2):
        nn.init.zeros_(bn.weight)
    assert torch.equal(block(x), x)
    assert isinstance(models.BasicBlock(4, 8, 1, nn.ReLU).shortcut, nn.Sequential)
    assert models.BasicBlock(4, 4, 2, nn.ReLU)(torch.rand(2, 4, 6, 6)).shape == (2, 4, 3, 3)


def test_vgg_dropout():
    with torch.device("meta"):
        model = models.vgg16(10, dropout=0.25)
    assert [module.p for module in model.modules() if isinstance(module, nn.Dropout)] == [
        0.25,
        0.25,
    ]


@pytest.mark.parametrize("name", ["resnet50", "ResNet20", ""])
def test_bad_architecture(name):
    with pytest.raises(ValueError, match=r"\['resnet18', 'resnet20', 'resnet34', 'vgg16'\], got"):
        models.build(name, 10)


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_bad_stem(name):
    with pytest.raises(ValueError, match="stem must be one of .*cifar.*imagenet.*, got 'mnist'"):
        models.build(name, 10, stem="mnist")


def test_bad_activation_settings():
    with pytest.raises(ValueError, match="levels"):
        models.resnet20(10, levels=0)
    with pytest.raises(ValueError, match="threshold"):
        models.resnet20(10, threshold=-1)


# ---------------------------------------------------------------- load_weights


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.act = nn.Linear(3, 4), nn.Linear(4, 2), QCFS(4, 2.0)

    def forward(self, x):
        return self.b(self.act(self.a(x)))


@pytest.fixture
def net():
    return Net()


@pytest.fixture
def other():
    torch.manual_seed(99)
    model = Net()
    model.act.threshold.data.fill_(3.0)
    return model


def assert_refused(model, path):
    """load_weights raises a ValueError that names the path, and leaves the model as it was."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        models.load_weights(model, path)
    assert str(path) in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    return str(caught.value)


def assert_equal(model, other):
    for key, value in other.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)


@pytest.mark.parametrize("as_text", [False, True])
def test_load_safetensors(tmp_path, net, other, as_text):
    path = tmp_path / "weights.safetensors"
    save_file(other.state_dict(), path, metadata={"levels": "4"})
    assert models.load_weights(net, str(path) if as_text else path) == {"levels": "4"}
    assert_equal(net, other)
    save_file(other.state_dict(), path)
    assert models.load_weights(net, path) == {}


def test_load_torch_state_dict(tmp_path, net, other):
    path = tmp_path / "weights.pt"
    torch.save(other.state_dict(), path)
    assert models.load_weights(net, path) == {}
    assert_equal(net, other)


def test_shipped_checkpoint_loads(shipped_model):
    assert all(module.threshold.item() > 0 for module in activations(shipped_model))


@pytest.mark.parametrize("save", [save_file, torch.save], ids=["safetensors", "torch"])
def test_everything_that_does_not_fit_is_listed(tmp_path, net, other, save):
    state = other.state_dict()
    del state["a.weight"], state["act.threshold"]
    state["b.bias"] = torch.zeros(5)
    state["b.weight"] = torch.zeros(2, 7)
    state["c.weight"] = torch.zeros(1)
    state["extra"] = torch.zeros(2)
    save(state, tmp_path / "weights")
    said = assert_refused(net, tmp_path / "weights")
    assert "missing ['a.weight', 'act.threshold']" in said
    assert "unexpected ['c.weight', 'extra']" in said
    assert "b.bias (5,) instead of (2,)" in said and "b.weight (2, 7) instead of (2, 4)" in said
    assert "a.bias" not in said


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("a.bias"),
        lambda state: state.update(extra=torch.zeros(1)),
        lambda state: state.update({"a.bias": torch.zeros(1)}),  # would broadcast
        lambda state: state.update({"act.threshold": torch.ones(1)}),
    ],
    ids=["missing", "unexpected", "shape", "0-dim"],
)
def test_one_misfit_is_enough(tmp_path, net, other, change):
    state = other.state_dict()
    change(state)
    save_file(state, tmp_path / "weights")
    assert "does not fit the model" in assert_refused(net, tmp_path / "weights")


@pytest.mark.parametrize("save", [save_file, torch.save], ids=["safetensors", "torch"])
def test_truncated_anywhere(tmp_path, net, other, save):
    path = tmp_path / "weights"
    save(other.state_dict(), path)
    raw = path.read_bytes()
    for length in [*range(20), *range(20, len(raw), 53), len(raw) - 1]:
        path.write_bytes(raw[:length])
        assert_refused(net, path)


@pytest.mark.filterwarnings("ignore")  # torch's, about what the damaged pickle asks for
def test_corrupt_torch_file_raises_nothing_but_value_error(tmp_path, net, other):
    path = tmp_path / "weights.pt"
    torch.save(other.state_dict(), path)
    raw = path.read_bytes()
    failed = 0
    for position in range(0, len(raw), 5):
        damaged = bytearray(raw)
        damaged[position] ^= 0x15
        path.write_bytes(bytes(damaged))
        try:
            models.load_weights(net, path)
        except ValueError as error:
            assert str(path) in str(error)
            failed += 1
    assert failed > 20


class Attack:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pickle_that_runs_code_is_refused(tmp_path, net, other, zipped):
    path, witness = tmp_path / "weights.pt", tmp_path / "executed"
    torch.save(
        {**other.state_dict(), "b.bias": Attack(str(witness))},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    assert zipfile.is_zipfile(path) == zipped
    assert_refused(net, path)
    assert not witness.exists()
    torch.load(
        path, weights_only=False
    )  # the file does act where nothing refuses it, so this test can fail
    assert witness.exists()


def test_plain_pickle_is_refused(tmp_path, net):
    path, witness = tmp_path / "weights.pkl", tmp_path / "executed"
    path.write_bytes(pickle.dumps(Attack(str(witness))))
    assert_refused(net, path)
    assert not witness.exists()


def test_files_that_are_no_state_dict(tmp_path, net, other):
    path = tmp_path / "weights"
    wrapped, mixed = (
        {"model": other.state_dict(), "epoch": 3},
        {1: torch.zeros(1), "a": torch.zeros(1)},
    )
    for content in ([1, 2], wrapped, mixed, torch.zeros(3), None):
        torch.save(content, path)
        assert_refused(net, path)
    torch.save(other, path)  # a pickled module
    assert_refused(net, path)
    for raw in (
        b"",
        b"P",
        b"PK",
        b"PK\3\4" + bytes(100),
        b"<html>404</html>",
        b'{"epoch": 3}',
        b"\xff" * 64,
    ):
        path.write_bytes(raw)
        assert_refused(net, path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no weights")
    assert_refused(net, path)


def test_missing_file(tmp_path, net):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        models.load_weights(net, tmp_path / "nowhere")
