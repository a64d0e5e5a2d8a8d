"""Weights that must not enter a model: thresholds without sense, tensors without data, claims."""

import io
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import cos_ext
from cos_ext import models


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 1e-60])
@pytest.mark.parametrize("save", [save_file, torch.save], ids=["safetensors", "torch"])
def test_thresholds_must_be_positive_and_finite(save, value, tmp_path):
    net = nn.Sequential(nn.Linear(2, 2), cos_ext.QCFS(4))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = {**before, "1.threshold": torch.tensor(value, dtype=torch.float64)}
    save(state, tmp_path / "weights")
    with pytest.raises(ValueError, match=r"1\.threshold must be positive and finite"):
        models.load_weights(net, tmp_path / "weights")
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


class Call:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


def replaced(path, value, compression=zipfile.ZIP_STORED):
    """A file of torch.save, its pickle replaced."""
    whole = io.BytesIO()
    torch.save({"weight": torch.ones(2, 3)}, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w", compression) as target:
        for name in source.namelist():
            own = name.endswith("data.pkl") and value is not None
            raw = pickle.dumps({"weight": value}, protocol=2) if own else source.read(name)
            target.writestr(name, raw if value is not None else raw + bytes(100_000))


@pytest.mark.parametrize("make", [torch.Tensor, torch.FloatTensor])
def test_a_tensor_without_data_is_refused(make, tmp_path):
    net = nn.Linear(3, 2, bias=False)
    replaced(tmp_path / "weights", Call(make, 2, 3))
    with pytest.raises(ValueError, match="without data|not a checkpoint"):
        models.load_weights(net, tmp_path / "weights")


def test_claims_beyond_the_file_are_refused(tmp_path):
    net, path = nn.Linear(3, 2, bias=False), tmp_path / "weights"
    torch.save({"weight": torch.ones(1).expand(2, 3)}, path)
    with pytest.raises(ValueError, match="claims more"):
        models.load_weights(net, path)
    replaced(path, None, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="claim more bytes"):
        models.load_weights(net, path)
