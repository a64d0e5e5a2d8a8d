"""Inputs over time: a repeated image is the image, frames are those of a stream, and calibrated
neurons see what a plain loop shows them.
"""

import threading

import pytest
import torch
import zoo
from chains import Chain, TwoInputs
from torch import nn
from untraced import untraced
from zoo_networks import converted

import cos_ext
from cos_ext import Neuron, convert, reference

pytestmark = pytest.mark.usefixtures("one_thread")


def few_bits(*shape, seed=0):
    """Numbers whose sums are the same in any order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-8, 9, shape, generator=generator) / 16


def exact(model):
    for number, parameter in enumerate(model.parameters()):
        if parameter.dim():
            parameter.data.copy_(few_bits(*parameter.shape, seed=number))
    return model


def chain(timesteps=4, **options):
    return convert(exact(Chain()), timesteps=timesteps, **options)


def sequence(steps=4, batch=3, seed=5):
    return few_bits(steps, batch, 1, 8, 8, seed=seed).abs()


def repeated(x, steps):
    return x.expand(steps, *x.shape)


SETTINGS = {
    "plain": {"rho": 0, "emission": "calibrated"},
    "watch less": {"rho": 2, "emission": "calibrated", "iterations": None},
    "watch all": {"rho": 4, "emission": "even"},
    "watch more": {"rho": 6, "emission": "front"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("name", sorted(zoo.CONVERTS))
def test_a_repeated_image_is_the_image(name, settings):
    network, inputs = converted(name, **settings)
    frames = [repeated(x, network._steps) for x in inputs]
    # A library may sum in another order for another batch.
    torch.testing.assert_close(network.run(*frames), network(*inputs), rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_spikes_are_equal_in_every_dtype(dtype, settings):
    network, x = chain(**settings).to(dtype), sequence()[0]
    with network.record() as one:
        expected = network(x)
    with network.record() as other:
        found = network.run(repeated(x, network._steps).to(dtype))
    assert torch.equal(found, expected) and found.dtype == dtype
    for site in network.nodes():
        assert torch.equal(one[site].spikes, other[site].spikes) and one[site].spikes.any()


def test_resnet_20_of_a_repeated_image():
    network = convert(cos_ext.models.resnet20(5, levels=4).eval(), timesteps=4, rho=4)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(network.run(repeated(x, 4)), network(x))


@pytest.mark.parametrize("name", sorted(zoo.CONVERTS))
def test_frames_are_those_of_a_stream(name):
    network, inputs = converted(name, rho=0)
    frames = [torch.stack([x * (1 - t / 7) for t in range(4)]) for x in inputs]
    expected = []
    for t in range(4):
        expected.append(network.step(*(x[t] for x in frames)))
    network.reset()
    found = network.run(*frames)
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-9)
    assert not torch.equal(found, network(*(x[0] for x in frames)))


def test_frames_are_those_of_a_stream_bit_for_bit():
    network, frames = chain(), sequence()
    expected = torch.stack([network.step(x) for x in frames])
    network.reset()
    assert torch.equal(network.run(frames), expected)


def by_hand(network, frames, neurons):
    """The chain, layer by layer, each step's currents apart; the neurons' function is given."""
    module = network.module
    currents = torch.stack([module.one(x) for x in frames])
    for layer, site in ((module.two, "act1"), (None, "act2")):
        spikes = neurons(site, currents)
        if layer is not None:
            currents = torch.stack([layer(x) for x in spikes])
    return torch.stack([module.out(x.flatten(1)) for x in spikes])[: network.timesteps]


@pytest.mark.parametrize("rho", [1, 3, 5, 7])
@pytest.mark.parametrize("emission", ["calibrated", "even", "front"])
def test_calibrated_neurons_against_a_plain_loop(rho, emission):
    network = chain(5, rho=rho, iterations=None, emission=emission, fuse=False).double()
    frames = sequence(max(5, rho)).double()

    def neurons(site, currents):
        theta, how = network.nodes()[site].v_threshold, {"iterations": None, "emission": emission}
        return reference.neuron_forward(currents, theta, neuron=Neuron(), rho=rho, **how).spikes

    assert torch.equal(network.run(frames), by_hand(network, frames, neurons))


@pytest.mark.parametrize(
    "neuron",
    [
        Neuron(levels=(0, 3)),
        Neuron(levels=(-1, 1), lower=0.0, count=(0, 3)),
        Neuron(step_bias=torch.tensor([0.5, 0.0, -0.25, 0.125])),
        Neuron(prediction=True, levels=(-1, 1), lower=0.5),
    ],
)
def test_general_neurons_against_a_plain_loop(neuron):
    network, frames = chain(4, neuron=neuron, fuse=False).double(), sequence(4).double()

    def neurons(site, currents):
        node = network.nodes()[site]
        return reference.neuron_forward(currents, node.v_threshold, neuron=node.neuron).spikes

    found = network.run(frames)
    assert torch.equal(found, by_hand(network, frames, neurons)) and found.any()


def quantised(x, theta, levels):
    return theta * (x * levels / theta + 0.5).floor().clamp(0, levels) / levels


def mean_output(model, frames, front):
    """The quantised ANN whose first activations are given the front's mean over the frames."""
    x = torch.stack([front(frame) for frame in frames]).mean(0)
    x = quantised(model.two(quantised(x, 1.0, len(frames))), 1.0, len(frames))
    return model.out(x.flatten(1))


class Squared(Chain):
    def forward(self, x):
        return super().forward(x * x)


def test_the_quantised_ann_of_the_mean_frame():
    model = exact(Chain()).double()
    network = convert(
        model, timesteps=8, rho=8, iterations=None, example_input=sequence()[0].double()
    )
    frames = sequence(8).double()
    found = network.run(frames).mean(0)
    assert torch.equal(found, mean_output(model, frames, model.one))
    assert torch.equal(found, mean_output(model, [frames.mean(0)] * 8, model.one))


def test_a_front_that_is_not_affine_is_averaged():
    model = exact(Squared()).double()
    network = convert(model, timesteps=8, rho=8, iterations=None)
    frames = sequence(8).double()
    found = network.run(frames).mean(0)
    assert torch.equal(found, mean_output(model, frames, lambda x: model.one(x * x)))
    of_mean = mean_output(model, [frames.mean(0)] * 8, lambda x: model.one(x * x))
    assert not torch.equal(found, of_mean)


class Untraced(Chain):
    def forward(self, x):
        untraced(x)
        return super().forward(x)


@pytest.mark.parametrize("rho", [0, 2, 6])
def test_a_model_that_was_not_traced(rho):
    frames = sequence(max(4, rho))
    network = convert(exact(Untraced()), timesteps=4, rho=rho, example_input=frames[0])
    assert not isinstance(network.module, torch.fx.GraphModule)
    assert torch.equal(network.run(frames), chain(4, rho=rho).run(frames))
    odd = frames.clone()
    odd[1, 2, 0, 3, 3] = torch.nan
    assert network.run(odd).isnan().flatten(2).all(2).tolist() == [[False, False, True]] * 4


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("rho", [0, 4])
def test_a_frame_that_is_not_finite_shows_in_its_sample(rho, value):
    network, frames = chain(rho=rho), sequence()
    expected = network.run(frames)
    frames[2, 1, 0, 4, 4] = value
    found = network.run(frames)
    assert found[:, 1].isnan().all()
    assert torch.equal(found[:, [0, 2]], expected[:, [0, 2]])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("model", [Chain, Untraced])
def test_in_a_stream_it_shows_from_its_step_on(model, value):
    frames = sequence()
    network = convert(exact(model()), timesteps=4, rho=0, example_input=frames[0])
    expected = network.run(frames)
    frames[2, 1, 0, 4, 4] = value
    found = torch.stack([network.step(x) for x in frames])
    assert found[2:, 1].isnan().all() and torch.equal(found[:2], expected[:2])
    assert torch.equal(found[:, [0, 2]], expected[:, [0, 2]])
    network.reset()
    assert network.step(frames[0]).isfinite().all()


def test_static_tensors_that_meet_spikes_are_frames_too():
    class Skip(Chain):
        def forward(self, x):
            spikes = self.act1(self.one(x))
            return self.out(self.act2(self.two(spikes + x)).flatten(1))

    model, frames = exact(Skip()), sequence()
    network = convert(model, timesteps=4, rho=0)
    assert any("time_broadcast" in name for name, _ in network.module.named_modules())
    expected = torch.stack([network.step(x) for x in frames])
    network.reset()
    assert torch.equal(network.run(frames), expected)
    frames[3, 0, 0, 0, 0] = -torch.inf
    assert network.run(frames)[:, 0].isnan().all()


def test_a_memory_limit_splits_the_batch():
    network, frames = chain(rho=6), sequence(6, batch=9)
    expected = network.run(frames)
    network.memory_limit = network.activation_bytes(frames[0]) // 3
    sizes, whole = [], type(network)._whole
    network.run(frames)  # planned before it is watched

    def noted(self, *inputs):
        sizes.append(inputs[0].shape[0])
        return whole(self, *inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(network), "_whole", noted)
        found = network.run(frames)
    assert len(sizes) > 2 and sum(sizes) == 9
    assert torch.equal(found, expected)
    assert torch.equal(network(frames[0]), network.run(repeated(frames[0], 6)))


def test_what_frames_need_is_not_what_an_input_of_their_shape_needs():
    model = exact(nn.Sequential(nn.Linear(6, 90), cos_ext.QCFS(4, 1.0), nn.Linear(90, 2)))
    network, frames = convert(model, timesteps=4), few_bits(4, 8, 6)
    x = frames.transpose(0, 1).contiguous()  # eight samples of four tokens
    network.memory_limit = limit = network.activation_bytes(x) // 2
    assert network(x).shape == (4, 8, 4, 2)  # in parts
    assert network.run(frames).shape == (4, 8, 2)  # which need not be split
    fewest, most = sorted(count for key, count in network._needs.items() if key[1:2] == (limit,))
    assert fewest == 1 < most


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients(checkpointing):
    def gradients(call):
        network = chain(trainable=True)
        network.checkpointing = checkpointing
        call(network).square().sum().backward()
        return [p.grad for p in network.parameters() if p.grad is not None]

    x = sequence()[0]
    expected = gradients(lambda network: network(x))
    found = gradients(lambda network: network.run(repeated(x, 4)))
    assert len(found) == len(expected) > 4
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    frames = sequence().requires_grad_()
    chain(trainable=True).run(frames).sum().backward()
    assert frames.grad.flatten(1).any(1).all()


def test_inputs_by_name():
    example = (few_bits(2, 6), few_bits(2, 3))
    network = convert(exact(TwoInputs()), timesteps=3, example_input=example)
    x, y = few_bits(3, 4, 6), few_bits(3, 4, 3, seed=1)
    expected = torch.stack([network.step(*frame) for frame in zip(x, y)])
    network.reset()
    assert torch.equal(network.run(y=y, x=x), expected)
    with pytest.raises(ValueError, match=r"one batch size, got \[4, 3\]"):
        network.run(x, y[:, :3])
    with pytest.raises(TypeError, match="tensors"):
        network.run(x, 3)


REFUSED = {
    "an image": (sequence()[0], "sequence .* of 4 frames"),
    "a single frame": (sequence(1), "sequence .* of 4 frames"),
    "too few": (sequence(3), "sequence .* of 4 frames"),
    "too many": (sequence(8), "timesteps = 4, rho = 2"),
    "folded": (sequence().flatten(0, 1), r"x.unflatten\(0, \(T, B\)\)"),
    "as many images as steps": (sequence(batch=4)[0], r"5 dimensions, \[T, B, ...\].*x\[:, None\]"),
    "one dimension too many": (sequence()[:, :, None], "5 dimensions"),
    "nothing": (torch.zeros(()), "sequence"),
}


@pytest.mark.parametrize("x, words", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_sequence_is_refused(x, words):
    with pytest.raises(ValueError, match=words):
        chain(rho=2).run(x)


def test_a_calibrated_network_says_how_many_frames_it_needs():
    with pytest.raises(ValueError, match=r"of 7 frames \(timesteps = 4, rho = 7\), got .*4, 3"):
        chain(rho=7).run(sequence())


def test_forward_takes_no_sequence():
    with pytest.raises(ValueError, match=r"4 dimensions, \[B, ...\].*\[T, B, ...\] to run\(\)"):
        chain()(sequence())


def test_counts_look_at_no_frames():
    network = chain(rho=4, emission="even", execution="counts")
    with pytest.raises(ValueError, match='execution = "steps", got "counts"'):
        network.run(sequence())
    network.execution = "steps"
    network.run(sequence())


@pytest.mark.parametrize("batch", [1, 3])
def test_frames_that_would_change_each_other_are_refused(batch):
    class Mixing(Chain):
        def forward(self, x):
            return super().forward(x - x.mean())

    class Apart(Chain):
        def forward(self, x):
            return super().forward(x - x.mean((1, 2, 3), keepdim=True))

    with pytest.raises(ValueError, match=r"run\(\) needs .* by itself.*would change each other"):
        convert(exact(Mixing()), timesteps=4).run(sequence(batch=batch))
    convert(exact(Apart()), timesteps=4).run(sequence(batch=batch))


def test_blank_frames_hide_no_mixing():
    class Mixing(Chain):
        def forward(self, x):
            return super().forward(x * x.mean())

    network, frames = convert(exact(Mixing()), timesteps=4), sequence()
    blank = torch.zeros_like(frames)
    network.run(blank)  # nothing can be seen yet
    blank[2:] = frames[2:]
    with pytest.raises(ValueError, match="would change each other"):
        network.run(blank)


def test_no_samples():
    assert chain().run(sequence(batch=0)).shape == (4, 0, 7)


def test_hooks_see_every_frame():
    network, seen = chain(), []
    network.nodes()["act1"].register_forward_hook(lambda _m, x, _y: seen.append(x[0].shape[0]))
    network.run(sequence())
    assert seen == [12]


def test_threads_do_not_meet():
    network, frames = chain(rho=4), sequence()
    expected, wrong = (network(frames[0]), network.run(frames)), []

    def work(over_time):
        for _ in range(20):
            found = network.run(frames) if over_time else network(frames[0])
            wrong.extend([1] * (not torch.equal(found, expected[over_time])))

    threads = [threading.Thread(target=work, args=(kind,)) for kind in (True, False) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and isinstance(network, nn.Module)


@pytest.mark.slow
def test_compiled():
    network, frames = chain(rho=4), sequence()
    network.memory_limit = None
    compiled = torch.compile(network.run, backend="eager")
    assert torch.equal(compiled(frames), network.run(frames))
