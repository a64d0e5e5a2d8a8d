"""A simulation in portions, and streams: the outputs of one call, whatever the portions."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
import zoo
from chains import Chain, TwoInputs, images
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from untraced import untraced
from zoo_networks import converted

import cos_ext
from cos_ext import convert, models

pytestmark = pytest.mark.usefixtures("one_thread")


def exact(model):
    """Weights and images of few bits: their sums are the same in any order."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if name.endswith(("weight", "bias")):
            drawn = torch.randint(-8, 9, parameter.shape, generator=generator) / 16
            parameter.data.copy_(drawn)
    return model


def chain(timesteps=6, **options):
    return convert(exact(Chain()), timesteps=timesteps, **options)


def frames(count, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 17, (count, 1, size, size), generator=generator) / 16


def in_portions(network, portions, *inputs):
    stepping = network.begin(*inputs)
    return torch.cat([stepping.advance(steps) for steps in portions])


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=5), st.integers(1, 4))
def test_portions_are_one_run(portions, batch):
    network = chain(sum(portions))
    x = frames(batch)
    assert torch.equal(in_portions(network, portions, x), network(x))


def test_portions_are_one_run_on_resnet_20():
    network = convert(models.resnet20(5, levels=4).eval(), timesteps=4)
    x = torch.rand(3, 3, 32, 32)
    assert torch.equal(in_portions(network, (1, 2, 1), x), network(x))


@pytest.mark.parametrize("name", sorted(zoo.CONVERTS))
def test_the_zoo_runs_in_portions(name):
    network, inputs = converted(name, rho=0)
    expected = network(*inputs)
    found = in_portions(network, (1, 3), *inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("execution", [{"calibration": "none", "rho": 4}, {"rho": 0}])
def test_a_model_that_was_not_traced(execution):
    class Untraced(Chain):
        def forward(self, x):
            untraced(x)
            return super().forward(x)

    model = exact(Untraced())
    x = frames(3)
    network = convert(model, timesteps=4, example_input=x[:1], **execution)
    assert not isinstance(network.module, torch.fx.GraphModule)
    assert torch.equal(in_portions(network, (1, 2, 1), x), network(x))


def test_the_last_portion_may_go_beyond_timesteps():
    network, x = chain(3), frames(2)
    found = in_portions(network, (2, 3), x)
    network.timesteps = 5
    assert torch.equal(found, network(x))


def test_samples_leave():
    network, x = chain(6), frames(7)
    expected = network(x)
    stepping = network.begin(x)
    first = stepping.advance(2)
    stepping.keep(torch.tensor([5, 0, 3]))
    second = stepping.advance()
    stepping.keep(torch.tensor([1]))
    third = stepping.advance(3)
    assert stepping.t == 6 and stepping.samples == 1
    assert torch.equal(first, expected[:2])
    assert torch.equal(second, expected[2:3, [5, 0, 3]]) and torch.equal(third, expected[3:, [0]])
    stepping.keep(torch.tensor([], dtype=torch.long))
    assert stepping.advance(2).shape == (2, 0, 7)


def test_a_memory_limit_splits_portions():
    network, x = chain(6), frames(8)
    expected = network(x)
    network.memory_limit = network.activation_bytes(x) // 8
    sizes, whole = [], type(network)._whole

    def noted(self, *inputs):
        sizes.append(inputs[0].shape[0])
        return whole(self, *inputs)

    stepping = network.begin(x)
    with pytest.MonkeyPatch.context() as patch:
        stepping.advance(3)  # planned before it is watched
        stepping = network.begin(x)
        patch.setattr(type(network), "_whole", noted)
        found = [stepping.advance(3)]
        stepping.keep(torch.arange(1, 8, 2))
        found.append(stepping.advance(3))
    assert len(sizes) > 2 and max(sizes) < 8
    assert torch.equal(found[0], expected[:3]) and torch.equal(found[1], expected[3:, 1::2])


def test_nothing_is_kept_on_modules_and_threads_do_not_meet():
    network, wrong = chain(4), []
    own = [frames(3, seed=seed) for seed in range(4)]
    expected = [network(x) for x in own]
    before = pickle.dumps(network)

    def work(x, right):
        for _ in range(5):
            whole = network(x)  # beside streams and portions of the others
            portions = in_portions(network, (1, 3), x)
            steps = torch.stack([network.step(x) for _ in range(4)])
            network.reset()
            wrong.extend(1 for found in (whole, portions, steps) if not torch.equal(found, right))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(own, expected)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and pickle.dumps(network) == before


def test_a_stream_of_frames_is_neurons_step_by_step():
    model = exact(Chain())
    network, sequence = convert(model, timesteps=1), frames(10).view(5, 2, 1, 8, 8)
    nodes = [cos_ext.IFNode(1.0, step_mode="s") for _ in range(2)]
    with torch.no_grad():
        for frame in sequence:
            x = nodes[1](model.two(nodes[0](model.one(frame))))
            assert torch.equal(network.step(frame), model.out(x.flatten(1)))
    network.reset()
    for node in nodes:
        node.reset()
    assert torch.equal(network.step(sequence[0]), network(sequence[0])[0])


def test_a_stream_ends_with_its_network():
    network, x = chain(), frames(2)
    network.step(x)
    copied = copy.deepcopy(network)
    assert torch.equal(copied.step(x), network(x)[0])  # a copy has a stream of its own
    known = weakref.ref(network)
    del network
    gc.collect()
    assert known() is None


def test_streams_take_inputs_by_name():
    network = convert(exact(TwoInputs()), timesteps=3, example_input=(images(2, 6), images(2, 3)))
    x, y = images(4, 6), images(4, 3)
    expected = network(x, y)
    for t in range(3):
        assert torch.equal(network.step(y=y, x=x), expected[t])


def test_gradients_are_off():
    network = convert(exact(Chain()), timesteps=2, trainable=True)
    x = frames(2).requires_grad_()
    assert not network.begin(x).advance().requires_grad and not network.step(x).requires_grad


def test_what_watches_does_not_run_in_portions():
    network, x = chain(rho=2), frames(2)
    for call in (network.begin, network.step):
        with pytest.raises(ValueError, match=r"rho = 0 in every layer.*act1.*rho = 2"):
            call(x)
    network.rho = 0
    network.set_layer("act2", rho=2)
    with pytest.raises(ValueError, match="act2"):
        network.begin(x)


def test_settings_must_stay():
    network, x = chain(), frames(2)
    stepping = network.begin(x)
    stepping.advance()
    network.step(x)
    network.timesteps = 9
    with pytest.raises(RuntimeError, match="begin anew"):
        stepping.advance()
    with pytest.raises(RuntimeError, match=r"reset\(\)"):
        network.step(x)
    network.reset()
    network.step(x)


@pytest.mark.parametrize(
    "frame, words",
    [
        (frames(3), "2 samples of the frames before, got 3"),
        (frames(2, size=9), "kept potential|shape|mat1"),
        (frames(2)[:, 0, 0, 0], "dimensions"),
    ],
)
def test_frames_that_do_not_follow(frame, words):
    network = chain()
    first = network.step(frames(2))
    with pytest.raises((ValueError, RuntimeError), match=words):
        network.step(frame)
    assert network.step(frames(2)).shape == first.shape  # the stream is as it was


def test_a_frame_that_fails_leaves_the_stream():
    network, x = chain(), frames(2)
    expected = network(x)
    network.step(x)
    with pytest.raises(TypeError):
        network.step(x, x)
    assert torch.equal(network.step(x), expected[1])


@pytest.mark.parametrize("steps, error", [(0, ValueError), (1.5, TypeError), (-1, ValueError)])
def test_steps_that_are_none(steps, error):
    with pytest.raises(error, match="steps must be"):
        chain().begin(frames(1)).advance(steps)


def test_records_need_whole_simulations():
    network, x = chain(), frames(2)
    with network.record("act1"), pytest.raises(ValueError, match="whole simulations"):
        network.step(x)


def test_a_model_that_mixes_samples_keeps_them():
    class Mixing(Chain):
        def forward(self, x):
            return super().forward(x - x.mean())

    network = convert(exact(Mixing()), timesteps=2)
    stepping = network.begin(frames(4))
    stepping.advance()
    with pytest.raises(ValueError, match="cannot leave the batch"):
        stepping.keep(torch.tensor([0]))
    assert stepping.advance().shape == (1, 4, 7)


def test_hooks_see_portions():
    network, seen = chain(4), []
    network.nodes()["act2"].register_forward_hook(lambda _m, _x, out: seen.append(out.shape[0]))
    network.begin(frames(3)).advance(2)
    assert seen == [6]


def test_bits_do_not_depend_on_spikes_being_counted():
    network, x = chain(4), frames(3)
    with cos_ext._neuron.runs.running(cos_ext._neuron.runs.Run(counts=True)) as run:
        in_portions(network, (1, 3), x)
    portions = {node: (int(n), steps) for node, (n, steps) in run.emitted.items()}
    with cos_ext._neuron.runs.running(cos_ext._neuron.runs.Run(counts=True)) as run:
        network(x)
    assert portions == {node: (int(n), steps) for node, (n, steps) in run.emitted.items()}
    assert any(n for n, _ in portions.values()) and isinstance(network, nn.Module)
