"""What users give: numbers of NumPy, numbers that are too large, inputs that are none, settings of
neurons that no network has.
"""

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

import cos_ext
from cos_ext import QCFS, IFNode, convert
from cos_ext import functional as F

HUGE = 10**400


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), QCFS(4, 1.0), nn.Flatten(), nn.Linear(144, 2))


def network(**options):
    return convert(model(), **{"timesteps": 4, "rho": 4, **options})


def test_numbers_of_numpy_are_ints(tmp_path):
    made = network(timesteps=np.int64(4), rho=np.int32(3), iterations=np.uint8(2))
    made.set_layer("1", rho=np.int64(2))
    values = (made.timesteps, made.rho, made.iterations, made.nodes()["1"].rho)
    assert values == (4, 3, 2, 2) and all(type(value) is int for value in values)
    made.save(tmp_path / "n.safetensors")
    with safe_open(tmp_path / "n.safetensors", "pt") as file:
        header = json.loads(file.metadata()["cos_ext"])
    assert (header["timesteps"], header["layers"]) == (4, {"1": {"rho": 2}})
    made.memory_limit = np.int64(2**30)
    made.timesteps = np.int16(5)
    assert made(torch.rand(2, 1, 8, 8)).shape == (5, 2, 2)
    assert QCFS(np.int64(4), np.float32(2)).levels == 4
    x = torch.rand(4, 3)
    given = F.cos_forward(x, np.float64(0.5), rho=np.int64(2), iterations=np.int64(1))
    assert torch.equal(given.spikes, F.cos_forward(x, 0.5, rho=2, iterations=1).spikes)
    fitted = network()
    images = [torch.rand(2, 1, 8, 8)]
    cos_ext.fit_v_init(fitted, images, rho=np.int64(4), progress=False)
    fitted.save(tmp_path / "n.safetensors")


@pytest.mark.parametrize("wrong", [np.float64(4), np.bool_(True), True, "4", torch.tensor(4), 4.0])
@pytest.mark.parametrize("name", ["timesteps", "rho", "iterations", "memory_limit"])
def test_others_are_no_ints(name, wrong):
    made = network()
    with pytest.raises(TypeError, match=f"{name} must be an int"):
        setattr(made, name, wrong)


@pytest.mark.parametrize(
    "make",
    [
        lambda: IFNode(HUGE),
        lambda: IFNode(1.0, v_init=-HUGE),
        lambda: IFNode(1.0, v_reset=HUGE),
        lambda: IFNode(1.0, rho=HUGE),
        lambda: IFNode(1.0, timesteps=2**24 + 1),
        lambda: QCFS(4, HUGE),
        lambda: F.if_forward(torch.rand(3, 2), HUGE),
        lambda: F.cos_forward(torch.rand(3, 2), 1.0, rho=HUGE),
        lambda: network(timesteps=HUGE),
        lambda: network(rho=HUGE),
        lambda: network().set_layer("1", rho=HUGE),
    ],
)
def test_numbers_that_are_too_large(make):
    with pytest.raises(ValueError, match=r"must be (finite|<= 16777216), got") as caught:
        make()
    assert len(str(caught.value)) < 100


@pytest.mark.parametrize("wrong", [None, [1, 2], np.zeros((2, 1, 8, 8)), "images", 3])
def test_what_is_no_tensor(wrong):
    made = network()
    for call in (made, made.rate, made.capture, made.activation_bytes):
        with pytest.raises(TypeError, match=f"tensors?.*, got {type(wrong).__name__}"):
            call(wrong)


def test_unbatched_inputs():
    made, image = network(), torch.rand(1, 8, 8)
    with pytest.raises(ValueError, match=r"4 dimensions, \[B, ...\], got shape \(1, 8, 8\)"):
        made(image)
    assert made(image[None]).shape == (4, 1, 2)
    with pytest.raises(ValueError, match="without dimensions"):
        made(torch.tensor(1.0))
    # A convolution would take a single image for three channels.
    whole = convert(
        nn.Sequential(nn.Conv2d(1, 1, 3), QCFS(4, 1.0), nn.Conv2d(1, 1, 3)), timesteps=1, rho=1
    )
    with pytest.raises(ValueError, match="give a single sample as"):
        whole(image)


def test_an_empty_batch_has_empty_outputs():
    made = network()
    assert made(torch.rand(0, 1, 8, 8)).shape == (4, 0, 2)


def negative(*shape):
    x = torch.randn(*shape, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    return x


def test_negative_bit_views():
    x = negative(6, 3)
    plain = x.resolve_neg().clone()
    assert torch.equal(F.if_forward(x, 1.0).spikes, F.if_forward(plain, 1.0).spikes)
    assert torch.equal(F.cos_forward(x, 1.0, rho=2).spikes, F.cos_forward(plain, 1.0, rho=2).spikes)
    for call in (lambda: F.if_forward(x, 1.0, inplace=True), lambda: IFNode(inplace=True)(x)):
        with pytest.raises(ValueError, match="resolve_neg"):
            call()
    made, image = network(), negative(2, 1, 8, 8)
    assert torch.equal(made(image), made(image.resolve_neg()))


def test_a_setting_of_another_name():
    with pytest.raises(TypeError, match=r"got \['timestep'\]"):
        network().nodes()["1"].configure(timestep=3)


NEVER = {"keep_state": True, "store_v_seq": True, "time": "first", "step_mode": "s"}


@pytest.mark.parametrize("made", [network, lambda: network(rho=0, trainable=True)])
@pytest.mark.parametrize("name", NEVER)
def test_neurons_of_a_network_do_not_go_on(made, name, tmp_path):
    one = made()
    one.save(tmp_path / "n.safetensors")
    loaded = cos_ext.load_network(tmp_path / "n.safetensors", model())
    x = torch.rand(2, 1, 8, 8)
    for each in (one, copy.deepcopy(one), pickle.loads(pickle.dumps(one)), loaded):
        node, before = each.nodes()["1"], each(x)
        wanted = "must be .* in a converted network, whose neurons start anew at every call"
        with pytest.raises(ValueError, match=f"{name} {wanted}.*record"):
            setattr(node, name, NEVER[name])
        assert torch.equal(each(x), before) and node.v is None
        each.timesteps, each.rho = 5, 0
        node.configure(v_reset=0.0, keep_state=False)  # what networks do, they go on doing
        assert each(x).shape == (5, 2, 2)
    setattr(IFNode(timesteps=2), name, NEVER[name])  # by themselves they do
