"""Training with noise: σ of every layer against a loop over steps, and runs with it. What the
noise does to an activation: tests/kernels/test_qcfs_noise.py.
"""

from dataclasses import replace

import pytest
import torch
import toy
from test_resuming import Killed, Killing
from torch import nn
from toy import CONFIG, assert_same, make_images, shuffled, snapshot, train, without_time

from cos_ext import QCFS, ConversionError
from cos_ext.training.noise import fit_noise, set_noise
from cos_ext.training.state import save_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


def network(noise="residual", seed=0, dropout=0.2):
    """With 8 levels: at T = 4 = L the first layer, whose input is constant, has no error."""
    model = toy.network(seed, dropout)
    model[2] = QCFS(8, 2.0, noise)
    return model


@pytest.fixture(scope="module")
def images():
    return make_images()


@pytest.fixture(scope="module")
def held_out(images):
    return images.split(24)[1].batches(10)  # 10, 10 and 4


class Two(nn.Module):
    """Two layers, of which the second is called twice."""

    def __init__(self, noise="residual"):
        super().__init__()
        self.first, self.second = nn.Linear(64, 12), nn.Linear(12, 12)
        self.a, self.b = QCFS(4, 1.0, noise), QCFS(8, 0.7, noise)
        self.out = nn.Linear(12, 4)

    def forward(self, x):
        x = self.b(self.second(self.a(self.first(x.flatten(1)))))
        return self.out(self.b(self.second(x)))


def fire(current, theta):
    """The spikes of plain neurons, step by step."""
    v, sent = torch.full_like(current[0], theta / 2), []
    for x in current:
        v = v + x
        sent.append(theta * (v >= theta))
        v = v - sent[-1]
    return torch.stack(sent)


def expected_variances(model, x, steps):
    """By call: the variance of the activation less the mean of the spikes."""
    ann, spikes = x.flatten(1), x.flatten(1).expand(steps, *x.flatten(1).shape)
    found = []
    for linear, act in ((model.first, model.a), (model.second, model.b), (model.second, model.b)):
        z, ann = linear(ann), None
        theta, levels = act.threshold.item(), act.levels
        ann = theta * ((z * levels / theta + 0.5).floor() / levels).clamp(0, 1)
        spikes = fire(linear(spikes), theta)
        found.append(((ann - spikes.mean(0)).double() ** 2).mean().item())
        found[-1] -= (ann - spikes.mean(0)).double().mean().item() ** 2
    return found


@pytest.mark.parametrize("steps", [1, 4, 7])
@torch.no_grad()
def test_sigma_is_what_a_loop_gives(held_out, steps):
    torch.manual_seed(2)
    model = Two().train()
    model.a.noise_std.fill_(9.0)  # plays no part
    fitted = fit_noise(model, held_out, steps)
    each = torch.tensor([expected_variances(model, x, steps) for x, _ in held_out])
    assert fitted["a"] == pytest.approx(each[:, 0].mean().sqrt().item(), rel=1e-4, abs=1e-6)
    assert fitted["b"] == pytest.approx(each[:, 1:].mean().sqrt().item(), rel=1e-4)
    assert fitted == {"a": model.a.noise_std.item(), "b": model.b.noise_std.item()}
    # On a constant input T = L steps reproduce the activation.
    assert model.training and (fitted["a"] < 1e-6 if steps == 4 else fitted["a"] > 0.01)


def test_it_changes_nothing_else(held_out):
    model = Two().train()
    before, state = snapshot(model), torch.get_rng_state()
    fit_noise(model, held_out)
    assert_same(model, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert "named" not in vars(model.a) and not model.a._forward_hooks


def test_more_steps_leave_less(held_out):
    model = Two()
    few, many = fit_noise(model, held_out, 1), fit_noise(model, held_out, 64)
    assert all(many[name] < 0.5 * few[name] for name in few)


def test_options_of_the_conversion(images):
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        QCFS(8, 1.0, "residual"),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 4),
    )
    batches = images.batches(20)
    with pytest.raises(ConversionError, match="max_pool"):
        fit_noise(model, batches, max_pool="error")
    assert fit_noise(model, batches)["1"] > 0
    assert fit_noise(model, batches, max_pool="before")["1"] > 0


def test_some_layers_alone(held_out):
    model = Two()
    model.b.noise = None
    assert list(fit_noise(model, held_out)) == ["a"]


def test_errors(images, held_out):
    with pytest.raises(ValueError, match="residual noise.*it has none"):
        fit_noise(Two(None), held_out)
    with pytest.raises(ValueError, match="at least one sample"):
        fit_noise(Two(), [])
    with pytest.raises(TypeError, match="batches must be an iterable"):
        fit_noise(Two(), torch.zeros(3, 1, 8, 8))
    with pytest.raises(ValueError, match="needs noise_batches, images held out"):
        train(network(), images)
    with pytest.raises(ValueError, match="noise must be None or one of .*got 'gauss'"):
        set_noise(network(), "gauss")
    model = nn.Sequential(QCFS(4, 1.0, "residual"), nn.Softmax(0), nn.Flatten(), nn.Linear(64, 4))
    before = snapshot(model)
    with pytest.raises(ConversionError, match="may be the batch"):
        train(model, images, noise_batches=[])
    assert_same(model, before)


def test_sigma_is_renewed_after_every_epoch(images, held_out):
    model, clean = network(dropout=0.0), network(None, dropout=0.0)
    config = replace(CONFIG, epochs=3)
    history = train(model, images, config, noise_batches=held_out)
    deviations = [record["noise_std"] for record in history]
    assert len(set(deviations)) == 3 and deviations[-1] == model[2].noise_std.item()
    assert deviations[-1] == fit_noise(model, held_out)["2"]
    # The first epoch has no noise yet.
    losses = [record["loss"] for record in train(clean, images, config)]
    assert losses[0] == history[0]["loss"] and losses[1] != history[1]["loss"]
    assert "noise_std" not in train(network(None), images)[0]


@pytest.mark.parametrize("noise", ["residual", "adaptor"])
def test_it_learns(images, held_out, noise):
    model, config = network(noise, dropout=0.0), replace(CONFIG, epochs=12)
    history = train(model, images, config, batches=images.batches(16), noise_batches=held_out)
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["test_accuracy"] >= 0.95 and model[2].noise == noise


def test_set_noise(held_out):
    model = Two(None)
    set_noise(model, "residual")
    assert model.a.noise == model.b.noise == "residual" and fit_noise(model, held_out)["b"] > 0
    set_noise(model, None)
    assert model.a.noise is None and list(model.buffers()) == []


@pytest.mark.parametrize("noise", ["residual", "adaptor"])
def test_resuming_equals_never_stopping(images, held_out, tmp_path, noise):
    config, options = replace(CONFIG, epochs=3), {"noise_batches": held_out}
    whole = network(noise)
    expected = train(whole, images, config, **options)
    path = tmp_path / "run.state"
    with pytest.raises(Killed):
        train(
            network(noise),
            images,
            config,
            batches=Killing(shuffled(images), epoch=2, index=2),
            state_path=path,
            **options,
        )
    resumed = network(noise, seed=123)
    torch.rand(5)
    history = train(resumed, images, config, state_path=path, resume=True, **options)
    assert_same(resumed, snapshot(whole))
    assert without_time(history) == without_time(expected)
    if noise == "residual":
        assert resumed[2].noise_std == whole[2].noise_std > 0


def test_a_state_is_of_one_noise(images, held_out, tmp_path):
    path = tmp_path / "run.state"
    train(network(), images, state_path=path, noise_batches=held_out)
    given = {"state_path": path, "resume": True, "noise_batches": held_out}
    with pytest.raises(ValueError, match=r"noise \(residual there, adaptor now\)"):
        train(network("adaptor"), images, **given)
    with pytest.raises(ValueError, match=r"noise \(residual there, none now\)"):
        train(network(None), images, **given)
    with pytest.raises(ValueError, match="noise images"):
        other = images.split(10)[1].batches(10)
        train(network(), images, **{**given, "noise_batches": other})


def test_images_that_cannot_be_compared(images, held_out, tmp_path):
    path = tmp_path / "run.state"
    train(network(), images, replace(CONFIG, epochs=1), state_path=path, noise_batches=held_out)

    class Stream:
        def __iter__(self):
            return iter(held_out)

    with pytest.warns(UserWarning, match="its noise images could not be compared"):
        config = replace(CONFIG, epochs=1)
        given = {"state_path": path, "resume": True, "noise_batches": Stream()}
        train(network(), images, config, **given)


def test_a_state_from_before_there_was_noise(images, held_out, tmp_path):
    path = tmp_path / "run.state"
    train(network(None), images, replace(CONFIG, epochs=1), state_path=path)
    state = torch.load(path, weights_only=True)
    del state["noise_std"], state["run"]["noise"], state["run"]["noise images"]
    state["run"]["epochs"], state["run"]["batches in all"] = 2, 8
    torch.save(state, path)
    options = {"state_path": path, "resume": True}
    assert len(train(network(None), images, CONFIG, **options)) == 2
    torch.save(state, path)
    # What QCFS has beside its threshold is a part of the architecture.
    with pytest.raises(ValueError, match="noise_std"):
        train(network(), images, noise_batches=held_out, **options)


def test_a_checkpoint_is_that_of_any_other_run(images, held_out, tmp_path):
    from cos_ext.models import load_weights

    model = network()
    train(model, images, noise_batches=held_out)
    save_checkpoint(model, tmp_path / "net.safetensors", {})
    other = network(None, seed=9)
    load_weights(other, tmp_path / "net.safetensors")
    assert_same(other, snapshot(model))
