"""Whole networks as ONNX, run in onnxruntime: the outputs, and what is refused."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import cos_ext
from cos_ext import convert, to_onnx
from cos_ext.export import onnx_file, plain

onnx = pytest.importorskip("onnx", reason="onnx files need onnx (extra onnx)")
pytest.importorskip("onnxscript", reason="onnx files need onnxscript (extra onnx)")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime (extra onnx)")


class Exact(nn.Module):
    """Weights and inputs are multiples of 1/8, thresholds powers of two: every sum is exact in
    float32, in whatever order.
    """

    def __init__(self):
        super().__init__()
        self.first, self.inner = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.a, self.b, self.c, self.d = (nn.ReLU() for _ in range(4))
        self.most, self.mean = nn.MaxPool2d(2), nn.AvgPool2d(2)
        self.flat, self.hidden, self.head = nn.Flatten(), nn.Linear(16, 8), nn.Linear(9, 3)

    def forward(self, x, more):
        x = self.a(self.first(x))
        x = self.most(self.b(self.inner(x) + x))
        x = self.mean(self.c(self.inner(x)))
        return self.head(torch.cat([self.d(self.hidden(self.flat(x))), more], 1))


def exact(**options):
    model = Exact()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(12).round_().div_(8)
    thresholds = {"a": 0.5, "b": 1.0, "c": 0.25, "d": 0.5}
    example = (torch.rand(2, 1, 8, 8), torch.rand(2, 1))
    return convert(
        model,
        thresholds=thresholds,
        max_pool="before",
        example_input=example,
        **{"timesteps": 3, "rho": 3, **options},
    )


def inputs(batch):
    image, more = torch.randint(0, 9, (batch, 1, 8, 8)), torch.randint(0, 9, (batch, 1))
    return image / 8, more / 8


def run(path, given):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    (found,) = session.run(None, {n: x.numpy() for n, x in zip(names, given)})
    return names, torch.from_numpy(found)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"timesteps": 2, "rho": 0}], ids=str)
def test_outputs_are_equal_where_sums_are_exact(options, tmp_path):
    network, path = exact(**options), tmp_path / "network.onnx"
    to_onnx(network, path, inputs(1))
    for batch in (1, 4):
        given = inputs(batch)
        names, found = run(path, given)
        assert names == ["x", "more"]
        assert torch.equal(found, network(*given)) and found.std(0).any()
    given[0][1, 0, 3, 3] = torch.nan
    found, expected = run(path, given)[1], network(*given)
    assert found.isnan().any((0, 2)).tolist() == [False, True, False, False]
    assert torch.equal(found.isnan(), expected.isnan())


@pytest.mark.slow
def test_the_file_is_standard_onnx(tmp_path):
    path = tmp_path / "network.onnx"
    to_onnx(exact(rho=2, emission="front"), path, inputs(2))
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    calls = [node.op_type for node in model.graph.node if node.domain == "cos_ext"]
    functions = {function.name: function for function in model.functions}
    assert len(calls) == 4 and set(calls) == set(functions)
    inner = {node.domain for function in functions.values() for node in function.node}
    assert inner == {""} and {node.domain for node in model.graph.node} == {"", "cos_ext"}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_the_shipped_network(tmp_path):
    """64 images, of which none was seen to differ: a current within rounding of θ may."""
    model = cos_ext.models.resnet20(num_classes=10, in_channels=1)
    cos_ext.models.load_weights(model, cos_ext.data.ASSETS / "resnet20-fashion-mnist.safetensors")
    images, _ = next(iter(cos_ext.data.fashion_mnist().first(64).batches(64)))
    network, path = convert(model, timesteps=4, rho=4), tmp_path / "network.onnx"
    to_onnx(network, path, images[:1])
    _, found = run(path, (images,))
    differ = (found - network(images)).abs().amax((0, 2)) > 1e-3
    assert differ.sum() <= 2
    assert (found.mean(0).argmax(1) == network.rate(images).argmax(1))[~differ].all()


@pytest.mark.slow
def test_control_flow_that_torch_cannot_export_is_refused(tmp_path, monkeypatch):
    class Broken(nn.Module):
        def forward(self, x):
            return x[: int(x.sum())]

    with pytest.raises(ValueError, match="torch cannot export the network"):
        onnx_file.model_of(Broken(), (torch.rand(2, 3),), ("x",))
    path = tmp_path / "network.onnx"
    path.write_bytes(b"before")
    monkeypatch.setattr(onnx_file, "model_of", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        to_onnx(exact(), path, inputs(2))
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_what_has_no_file_is_refused(tmp_path, monkeypatch):
    network, path, given = exact(), tmp_path / "network.onnx", inputs(2)
    with pytest.raises(TypeError, match="must be a SpikingNetwork"):
        to_onnx(Exact(), path, given)
    with pytest.raises(FileNotFoundError):
        to_onnx(network, tmp_path / "none" / "network.onnx", given)
    with pytest.raises(TypeError, match="inputs are"):
        to_onnx(network, path, given[0])
    with pytest.raises(ValueError, match="at least one sample"):
        to_onnx(network, path, inputs(0))
    with pytest.raises(RuntimeError, match="fit_light"):
        to_onnx(exact(calibration="light", rho=0), path, given)
    with pytest.raises(ValueError, match="must be float32 throughout, got .* in torch.float64"):
        to_onnx(exact().double(), path, given)
    with monkeypatch.context() as patch:
        patch.setattr(plain, "Walked", type(network.module))
        with pytest.raises(ValueError, match="could be traced"):
            to_onnx(network, path, given)
    monkeypatch.setattr(onnx_file, "MOST_BYTES", 100)
    with pytest.raises(ValueError, match="fit into one ONNX file of 100 bytes"):
        to_onnx(network, path, given)
    monkeypatch.setattr(onnx_file, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(ImportError, match=r"needs no_such_package: pip install '.\[onnx\]'"):
        to_onnx(network, path, given)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_imported_before_it_is_needed():
    told = "import sys, cos_ext; print({'onnx', 'onnxscript', 'nir', 'h5py'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
