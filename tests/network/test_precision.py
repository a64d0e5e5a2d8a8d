"""Low precision and layout: spikes and thresholds in half types, autocast, inputs of other dtypes,
channels_last without copies.
"""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import cos_ext
from cos_ext import convert, evaluate, models
from cos_ext import reference as R

pytestmark = pytest.mark.usefixtures("one_thread")
HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def shipped(shipped_model):
    return convert(shipped_model, timesteps=8, rho=4)


def images(test_set, count):
    return next(iter(test_set.first(count).batches(count)))[0]


def currents_and_spikes(network, x):
    """By call site: what its neurons got and gave."""
    seen = {}
    hooks = []
    for site, node in network.nodes().items():
        hooks.append(
            node.register_forward_pre_hook(
                lambda m, i, site=site: seen.__setitem__(site, [m._currents(*i)[0].clone()])
            )
        )
        hooks.append(
            node.register_forward_hook(lambda m, i, o, site=site: seen[site].append(o.clone()))
        )
    with network._by_steps():  # nothing fused
        out = network(x)
    for hook in hooks:
        hook.remove()
    assert torch.equal(out, network(x))
    return seen, out


@pytest.mark.parametrize("how", ["to", "autocast"])
@pytest.mark.parametrize("dtype", HALVES, ids=["bfloat16", "float16"])
def test_spikes_are_those_of_a_float32_simulation_of_the_same_currents(
    dtype, how, shipped, test_set
):
    network, x = copy.deepcopy(shipped), images(test_set, 2)
    if how == "to":
        network.to(dtype)
        seen, out = currents_and_spikes(network, x.to(dtype))
    else:
        with torch.autocast("cpu", dtype=dtype):
            seen, out = currents_and_spikes(network, x)
    assert out.dtype == dtype and len(seen) == 19
    for site, (current, spikes) in seen.items():
        node = network.nodes()[site]
        # The oracle: a plain loop in float32, with the threshold that the spikes carry.
        theta = node.v_threshold.to(dtype).float()
        steps = (
            current.float().expand(8, *current.shape)
            if node.static_input
            else current.float().unflatten(0, (8, 2))
        )
        expected = R.cos_forward(
            steps, theta, node.v_init.float(), rho=4, iterations=1
        ).spikes.flatten(0, 1)
        assert current.dtype == spikes.dtype == dtype, site
        assert torch.equal(spikes.float(), expected), site
        assert set(spikes.unique().tolist()) <= {0.0, theta.item()}


@pytest.mark.parametrize("dtype", HALVES, ids=["bfloat16", "float16"])
def test_a_reset_takes_off_what_was_sent(dtype):
    """Else the residuals differ from what the next layer got, by half a unit in the last place of θ
    at every spike.
    """
    theta, current = 1.0 + 2.0**-9 + 2.0**-12, 0.75  # the threshold is not a number in either type
    for step_mode in ("m", "s"):
        node = cos_ext.IFNode(theta, step_mode=step_mode)
        steps = torch.full((512, 1), current, dtype=dtype)
        spikes = node(steps) if step_mode == "m" else torch.stack([node(step) for step in steps])
        sent = spikes.double().sum().item()
        # All that came is sent or left over: less than θ, beside v(0).
        assert -theta / 2 - 1e-6 <= 512 * current - sent <= theta / 2 + 1e-6
    assert cos_ext.IFNode(theta).v_threshold.dtype == torch.float32


def test_thresholds_keep_their_precision_where_there_is_more():
    node = cos_ext.IFNode(torch.tensor(1.001953125 + 2.0**-20, dtype=torch.float64))
    assert torch.equal(
        node(torch.full((3, 1), 0.6, dtype=torch.float64)).unique()[-1], node.v_threshold
    )
    assert node(torch.full((3, 1), 0.6)).max() == node.v_threshold.float()
    with pytest.raises(
        ValueError, match="v_threshold must be positive and finite in torch.float16"
    ):
        cos_ext.IFNode(1e5)(torch.ones(2, 1, dtype=torch.float16))


@pytest.mark.slow
def test_the_shipped_network_in_bfloat16_has_its_accuracy(shipped, test_set):
    batches = test_set.first(300).batches(100)
    plain = evaluate(shipped, batches, progress=False).accuracy
    low = evaluate(copy.deepcopy(shipped).bfloat16(), batches, progress=False).accuracy
    with torch.autocast("cpu", dtype=torch.bfloat16):
        auto = evaluate(shipped, batches, progress=False, prefetch=0).accuracy
    for name, accuracy in (("float32", plain), ("bfloat16", low), ("autocast", auto)):
        print(f"\n{name}: " + "  ".join(f"{value:.2%}" for value in accuracy), end="")
    assert abs(low[-1] - plain[-1]) <= 0.01 and abs(auto[-1] - plain[-1]) <= 0.01


def test_floating_inputs_are_converted_at_the_entrance(shipped, test_set):
    x = images(test_set, 2)
    for dtype in (torch.bfloat16, torch.float64):
        network = copy.deepcopy(shipped).to(dtype)
        out = network(x)
        assert out.dtype == dtype and torch.equal(out, network(x.to(dtype)))
    assert torch.equal(shipped(x.double()), shipped(x))

    class Mixed(nn.Module):
        """A first layer in float64, which its input must keep."""

        def __init__(self):
            super().__init__()
            self.one, self.act, self.two = (
                nn.Linear(3, 4).double(),
                cos_ext.QCFS(4, 1.0),
                nn.Linear(4, 2),
            )

        def forward(self, x):
            return self.two(self.act(self.one(x).float()))

    network = convert(Mixed(), timesteps=2)
    assert network(torch.rand(2, 3, dtype=torch.float64)).dtype == torch.float32
    with pytest.raises(RuntimeError, match="dtype"):
        network(torch.rand(2, 3))

    class Embedded(nn.Module):
        """Whole numbers stay whole numbers."""

        def __init__(self):
            super().__init__()
            self.table, self.act, self.two = (
                nn.Embedding(5, 4),
                cos_ext.QCFS(4, 1.0),
                nn.Linear(4, 2),
            )

        def forward(self, x):
            return self.two(self.act(self.table(x)))

    network = convert(Embedded(), timesteps=2).bfloat16()
    assert network(torch.tensor([1, 4])).dtype == torch.bfloat16


class Copies(TorchDispatchMode):
    """Notices copies of activations, and 4-d results that are not channels_last."""

    NAMES = ("clone", "contiguous", "copy_", "_to_copy", "_reshape_copy", "cat")

    def __init__(self, size):
        super().__init__()
        self.size, self.copies, self.others, self.seen = size, [], [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if isinstance(out, torch.Tensor) and out.numel() >= self.size:
            if name in self.NAMES:
                self.copies.append((name, tuple(out.shape)))
            if out.dim() == 4 and name != "permute":  # a view of weights
                self.seen += 1
                last = out.is_contiguous(memory_format=torch.channels_last)
                if not last and out.dtype != torch.int64:  # bits of spikes
                    self.others.append((name, tuple(out.shape), out.stride()))
        return out


def is_channels_last(tensor):
    return tensor.dim() != 4 or tensor.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"rho": 4},
        {"rho": 0},
        {"rho": 4, "calibration": "srp"},
        {"rho": 2, "emission": "even"},
        {"rho": 2, "emission": "even", "execution": "counts"},
    ],
    ids=str,
)
@pytest.mark.parametrize("architecture", ["resnet20", "vgg16"])
def test_channels_last_is_kept_without_copies(architecture, settings):
    network = convert(models.build(architecture, 10, 3, threshold=1.0), timesteps=4, **settings)
    x = torch.rand(3, 3, 32, 32)
    expected = network(x)
    network.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    wrong = []

    def look(module, args, out):
        wrong.extend(
            type(module).__name__
            for t in (*args, out)
            if isinstance(t, torch.Tensor) and not is_channels_last(t)
        )

    network(x)  # packs weights
    with Copies(size=3 * 16 * 7 * 7) as copies:
        out = network(x)
    assert copies.seen > 12 and copies.others == []
    assert copies.copies == []
    for module in network.module.modules():
        module.register_forward_hook(look)
    again = network(x)
    assert wrong == [] and torch.equal(again, out)
    # Sums in another order may decide a spike at its threshold otherwise; a wrong layout decides
    # most.
    assert (out - expected).abs().mean() <= 0.05 * expected.abs().mean()


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.act1 = nn.Conv2d(3, 8, 3, padding=1), cos_ext.QCFS(4, 1.0)
        self.two, self.act2 = nn.Conv2d(8, 8, 3, padding=1), cos_ext.QCFS(4, 1.0)
        self.beside, self.pool, self.out = nn.Conv2d(3, 8, 1), nn.MaxPool2d(2), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        y = self.two(self.act1(self.one(x))) + self.beside(x)  # a static tensor joins a spiking one
        return self.out(self.pool(self.act2(y)))


@pytest.mark.parametrize("execution", ["steps", "counts"])
@pytest.mark.parametrize("rho", [3, 4])
def test_pooling_and_static_tensors_keep_channels_last(rho, execution):
    network = convert(
        Pooled().double(),
        timesteps=4,
        rho=rho,
        max_pool="before",
        emission="even",
        execution=execution,
    )
    assert "time_broadcast_0" in dict(network.module.named_modules())
    x = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    expected = network(x)
    network.to(memory_format=torch.channels_last)
    x, wrong = x.to(memory_format=torch.channels_last), []
    hooks = [
        module.register_forward_hook(
            lambda m, i, o: wrong.extend(
                type(m).__name__
                for t in (*i, o)
                if isinstance(t, torch.Tensor) and not is_channels_last(t)
            )
        )
        for module in network.module.modules()
    ]
    network(x)  # by steps, since hooks look at it
    assert wrong == []
    for hook in hooks:
        hook.remove()
    with Copies(size=5 * 4 * 4 * 4) as copies:
        out = network(x)
    # The static tensor, over time; by counts it is there once.
    assert [name for name, _ in copies.copies] == (["cat"] if execution == "steps" else [])
    assert (out - expected).abs().max() <= 1e-12 and out.abs().max() > 0.1


@pytest.mark.parametrize("shape", [(4, 6, 3, 5, 7), (2, 3, 8, 4, 4), (3, 1, 2, 6, 6)])
def test_max_pooling_before_the_neurons_in_both_layouts(shape):
    for pool in (nn.MaxPool2d(2), nn.MaxPool2d(3, 1, 1), nn.AdaptiveMaxPool2d((2, 3))):
        before = cos_ext.network.pooling.MaxPoolBefore(pool)
        before.timesteps, before.rho = shape[0], 2
        x = torch.randn(shape).flatten(0, 1)
        given = x.to(memory_format=torch.channels_last)
        out = before(given)
        assert is_channels_last(out) and torch.equal(out, before(x))
        # By hand: at each window the position whose first two currents have the largest sum.
        sums = x.unflatten(0, shape[:2])[:2].sum(0)
        _, where = (
            torch.nn.functional.max_pool2d(
                sums, pool.kernel_size, pool.stride, pool.padding, return_indices=True
            )
            if isinstance(pool, nn.MaxPool2d)
            else torch.nn.functional.adaptive_max_pool2d(
                sums, pool.output_size, return_indices=True
            )
        )
        for step, currents in enumerate(x.unflatten(0, shape[:2])):
            flat = currents.flatten(2).gather(2, where.flatten(2)).view(where.shape)
            assert torch.equal(out.unflatten(0, shape[:2])[step], flat)
