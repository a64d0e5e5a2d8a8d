"""The noise of QCFS in training mode. What sets its σ: tests/training/test_noise.py."""

import copy
import pickle

import pytest
import torch
from torch import nn

import cos_ext
from cos_ext import QCFS

pytestmark = pytest.mark.usefixtures("one_thread")
NOISES = ("residual", "adaptor")


def noisy(noise, levels=4, threshold=2.0, sigma=0.3):
    act = QCFS(levels, threshold, noise)
    if noise == "residual":
        act.noise_std.fill_(sigma)
    return act


@pytest.mark.parametrize("noise", NOISES)
def test_eval_is_exact(noise, dtype):
    z = torch.randn(500).to(dtype)
    assert torch.equal(noisy(noise).eval()(z), QCFS(4, 2.0)(z))
    act = noisy(noise)
    act.noise = None
    assert torch.equal(act(z), QCFS(4, 2.0)(z))


@pytest.mark.parametrize("noise", NOISES)
def test_it_follows_the_seed(noise, dtype):
    act, z, found = noisy(noise), torch.randn(500).to(dtype), []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append(act(z))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert found[0].dtype == dtype


def test_residual_noise_is_normal_and_changes_no_gradient(dtype):
    act, z = noisy("residual"), torch.randn(40_000).to(dtype).requires_grad_()
    torch.manual_seed(1)
    a = act(z)
    clean = QCFS(4, 2.0)
    exact = clean(z.detach().requires_grad_())
    torch.manual_seed(1)
    assert torch.equal(a, exact - torch.tensor(0.3).to(dtype) * torch.randn_like(exact))
    error = (a - exact).double()
    assert abs(error.mean()) < 0.01 and error.std().item() == pytest.approx(0.3, rel=0.02)
    a.sum().backward()
    inside = (z >= 0) & (z <= 2)
    assert torch.equal(z.grad, inside.to(dtype))
    clean(z.detach()).sum().backward()
    assert torch.equal(act.threshold.grad, clean.threshold.grad)


def test_residual_noise_is_none_at_first():
    act, z = QCFS(4, 2.0, noise="residual"), torch.randn(500)
    assert act.noise_std == 0 and torch.equal(act(z), QCFS(4, 2.0)(z))


def test_adaptor_rounds_at_random():
    act, z = QCFS(4, 2.0, "adaptor"), torch.full((40_000,), 0.6, requires_grad=True)
    a = act(z)
    # 1.2 steps of 1/2: one step or two, and 1.2 in the mean.
    assert set(a.tolist()) == {0.5, 1.0} and a.mean().item() == pytest.approx(0.6, abs=0.005)
    torch.manual_seed(5)
    a = act(z)
    torch.manual_seed(5)
    eps = torch.empty_like(z).uniform_(-0.5, 0.5)
    assert torch.equal(a, torch.ops.cos_ext.qcfs(z, act.threshold, 4, eps))
    a.sum().backward()
    of_z, of_theta = torch.ops.cos_ext.qcfs_backward(
        torch.ones_like(z), z.detach(), act.threshold.detach(), 4, eps
    )
    assert torch.equal(z.grad, of_z) and torch.equal(act.threshold.grad, of_theta)


@pytest.mark.parametrize("noise", NOISES)
def test_torch_func_and_compile(noise):
    act, z = noisy(noise), torch.randn(5, 3)
    grads = torch.func.vmap(
        torch.func.grad(lambda t: act(t).square().sum()), randomness="different"
    )(z)
    assert grads.shape == z.shape and grads.isfinite().all()
    compiled = torch.compile(act, backend="aot_eager", fullgraph=True)
    compiled(z.requires_grad_()).sum().backward()
    assert z.grad.isfinite().all() and act.threshold.grad.isfinite()


@pytest.mark.parametrize("noise", NOISES)
def test_checkpoints_know_nothing_of_it(noise, tmp_path):
    act = noisy(noise)
    assert list(act.state_dict()) == ["threshold"]
    QCFS(4, 1.0).load_state_dict(act.state_dict())
    act.load_state_dict(QCFS(4, 1.0).state_dict())
    for twin in (copy.deepcopy(act), pickle.loads(pickle.dumps(act))):
        assert twin.noise == noise
        assert noise == "adaptor" or twin.noise_std == act.noise_std


def test_a_module_of_an_older_version():
    act = QCFS(4, 2.0)
    del act.__dict__["_noise"]  # as it was pickled then
    assert act.noise is None and act(torch.ones(3)).shape == (3,)


def test_setting_it():
    act = QCFS(4, 2.0)
    assert act.noise is None and list(act.buffers()) == []
    act.noise = "residual"
    act.noise_std.fill_(0.5)
    act.noise = "residual"
    assert act.noise_std == 0.5 and repr(act) == "QCFS(levels=4, threshold=2, noise='residual')"
    act.noise = "adaptor"
    assert list(act.buffers()) == []
    for wrong in ("gauss", True, 0):
        with pytest.raises(ValueError, match="noise must be None or one of .*got"):
            act.noise = wrong
        with pytest.raises(ValueError, match="noise must be None or one of"):
            QCFS(4, 2.0, noise=wrong)
    assert act.noise == "adaptor"


@pytest.mark.parametrize("noise", NOISES)
def test_conversion_does_not_see_it(noise):
    plain = nn.Sequential(nn.Linear(6, 8), QCFS(4, 2.0), nn.Linear(8, 3))
    twin = copy.deepcopy(plain)
    twin[1] = noisy(noise)
    x = torch.randn(5, 6)
    results = [
        cos_ext.convert(model, timesteps=4, rho=4, example_input=x)(x) for model in (plain, twin)
    ]
    assert torch.equal(*results) and twin.training and twin[1].noise == noise
