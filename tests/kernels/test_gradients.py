"""Gradients of if_forward against backpropagation through a plain loop."""

import itertools
from functools import partial

import pytest
import torch
from torch import nn

from cos_ext import functional as F
from cos_ext._functional.gradients import loop
from cos_ext.surrogate import ATan, FastSigmoid, Rectangle, Sigmoid, Surrogate, Triangle

SURROGATES = [ATan(), Sigmoid(), Triangle(), Rectangle(), FastSigmoid(), ATan(5.0), Triangle(0.4)]


def derivative(surrogate, u):
    """The formulas once more, of autograd where there is an antiderivative."""
    a = surrogate.alpha
    if isinstance(surrogate, (Triangle, Rectangle)):
        hat = a * (1 - a * u.abs()) if isinstance(surrogate, Triangle) else torch.full_like(u, a)
        inside = u.abs() < (1 / a if isinstance(surrogate, Triangle) else 0.5 / a)
        return torch.where(inside, hat, torch.zeros_like(u))
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        smooth = {
            ATan: lambda: torch.atan(torch.pi / 2 * a * u) / torch.pi,
            Sigmoid: lambda: torch.sigmoid(a * u),
            FastSigmoid: lambda: u / (1 + a * u.abs()),
        }[type(surrogate)]()
        return torch.autograd.grad(smooth.sum(), u)[0]


class Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, surrogate):
        ctx.save_for_backward(u)
        ctx.surrogate = surrogate
        return (u >= 0).to(u)

    @staticmethod
    def backward(ctx, grad):
        return grad * derivative(ctx.surrogate, *ctx.saved_tensors), None


def plain(x, theta, v, v_reset, surrogate, detach):
    """The equations, a step a line."""
    sent = []
    for current in x:
        m = v + current
        s = Step.apply(m / theta - 1, surrogate)
        sent.append(theta * s)
        r = s.detach() if detach else s
        v = m - theta * r if v_reset is None else m * (1 - r) + v_reset * r
    return torch.stack(sent)


def gradients(run, *tensors, weights):
    """Of a weighted sum of what `run` gives."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    out = run(*leaves)
    return out.detach(), torch.autograd.grad((out * weights).sum(), leaves)


SHAPES = [(1, 3), (8, 2, 5, 7), (4, 700), (40, 300), (3, 2, 64, 5, 5)]
THETAS = ["number", "channel", "neuron"]


def made(shape, theta, dtype=torch.float64):
    x = torch.randn(shape, dtype=dtype) * 0.8 + 0.3
    neurons = shape[1:]
    size = {"number": (), "channel": neurons[1:2] + (1,) * len(neurons[2:]), "neuron": neurons}[
        theta
    ]
    return x, torch.rand(size, dtype=dtype) + 0.5, torch.rand(size, dtype=dtype) * 0.5


@pytest.mark.parametrize("surrogate", SURROGATES, ids=repr)
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("v_reset", [None, 0.0, -0.3])
def test_gradients_are_those_of_the_loop(surrogate, detach, v_reset):
    for shape, theta in itertools.product(SHAPES, THETAS):
        tensors, weights = made(shape, theta), torch.randn(shape, dtype=torch.float64)
        ours, grads = gradients(
            lambda x, th, v: (
                F.if_forward(
                    x, th, v, v_reset=v_reset, surrogate=surrogate, detach_reset=detach
                ).spikes
            ),
            *tensors,
            weights=weights,
        )
        theirs, expected = gradients(
            lambda x, th, v: plain(x, th, v, v_reset, surrogate, detach), *tensors, weights=weights
        )
        assert torch.equal(ours, theirs) and (ours.any() or shape == (1, 3))
        for grad, wanted in zip(grads, expected):
            assert grad.shape == wanted.shape
            assert torch.allclose(grad, wanted, rtol=1e-11, atol=1e-12 * (1 + wanted.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("surrogate", SURROGATES, ids=repr)
def test_other_dtypes(dtype, surrogate):
    """The state is float32; what is stored is rounded once."""
    x, theta, v = made((6, 3, 40, 4), "channel", torch.float32)
    x, weights = x.to(dtype), torch.randn(6, 3, 40, 4).to(dtype)
    run = lambda x, th, v: F.if_forward(x, th, v, surrogate=surrogate).spikes  # noqa: E731
    ours, grads = gradients(run, x, theta, v, weights=weights)
    assert [g.dtype for g in grads] == [dtype, torch.float32, torch.float32]
    wide, expected = gradients(
        lambda x, th, v: plain(x, th, v, None, surrogate, False),
        x.double(),
        theta.double(),
        v.double(),
        weights=weights.double(),
    )
    assert torch.equal(ours != 0, wide != 0)
    for grad, wanted, eps in zip(grads, expected, (torch.finfo(dtype).eps, 1e-5, 1e-5)):
        scale = wanted.abs().max()
        assert (grad.double() - wanted).abs().max() <= max(eps, 1e-5) * scale


LAYOUTS = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.movedim(-3, -1).contiguous().movedim(-1, -3),
    "time last": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    "spread": lambda t: t.repeat_interleave(2, -1)[..., ::2],
}


@pytest.mark.parametrize("of_x", LAYOUTS)
@pytest.mark.parametrize("of_grad", [*LAYOUTS, "one for all"])
def test_layouts(of_x, of_grad):
    x, theta, v = made((5, 2, 6, 4, 9), "channel")
    weights = torch.randn(5, 2, 6, 4, 9, dtype=torch.float64)
    weights = (
        weights[:1, :1, :1].expand(5, 2, 6, 4, 9)
        if of_grad == "one for all"
        else LAYOUTS[of_grad](weights)
    )
    x = LAYOUTS[of_x](x).requires_grad_()
    spikes = F.if_forward(x, theta, v).spikes
    (grad,) = torch.autograd.grad(spikes, x, weights)
    wanted = gradients(lambda x: plain(x, theta, v, None, ATan(), False), x, weights=weights)[1][0]
    assert torch.allclose(grad, wanted, rtol=1e-11, atol=1e-12)
    # Elements of x that lie apart have a gradient without gaps.
    assert of_x == "spread" or grad.stride() == x.stride()


def test_the_same_input_at_every_step():
    x, theta, v = made((1, 2, 6, 4, 9), "channel")
    weights = torch.randn(7, 2, 6, 4, 9, dtype=torch.float64)
    run = lambda x, th, v: F.if_forward(x.expand(7, -1, -1, -1, -1), th, v).spikes  # noqa: E731
    _, grads = gradients(run, x, theta, v, weights=weights)
    _, expected = gradients(
        lambda x, th, v: plain(x.expand(7, -1, -1, -1, -1), th, v, None, ATan(), False),
        x,
        theta,
        v,
        weights=weights,
    )
    for grad, wanted in zip(grads, expected):
        assert torch.allclose(grad, wanted, rtol=1e-11, atol=1e-11)


def test_what_is_fused_and_what_is_returned():
    x, theta, v = made((4, 2, 6, 4, 8), "number")
    scale, bias = torch.rand(6, 1, 1, dtype=x.dtype) + 0.5, torch.rand(4, 8, dtype=x.dtype)
    residual = torch.randn_like(x)
    weights = torch.randn(4, 2, 6, 2, 2, dtype=torch.float64)

    def ours(x, scale, bias, residual):
        operands = {"scale": scale, "bias": bias, "residual": residual}
        return F.if_forward(x, theta, v, **operands, pool=(2, 4)).spikes

    def theirs(x, scale, bias, residual):
        spikes = plain(x * scale + bias + residual, theta, v, None, ATan(), False)
        return nn.functional.avg_pool2d(spikes.flatten(0, 1), (2, 4)).unflatten(0, (4, 2))

    tensors = (x, scale, bias, residual)
    one, grads = gradients(ours, *tensors, weights=weights)
    two, expected = gradients(theirs, *tensors, weights=weights)
    assert torch.equal(one, two)
    for grad, wanted in zip(grads, expected):
        assert torch.allclose(grad, wanted, rtol=1e-11, atol=1e-11)

    last = torch.randn(4, 2, 4, 8, 6).movedim(-1, 2)
    for own in (torch.randn(4, 4, 8), torch.randn(4, 6, 4, 8), last):
        alone = F.if_forward(own, 1.0, pool=2).spikes
        found = F.if_forward(own.requires_grad_(), 1.0, pool=2).spikes
        assert torch.equal(found, alone) and found.stride() == alone.stride()
    result = F.if_forward(x.requires_grad_(), theta, v, return_v=True, return_count=True)
    alone = F.if_forward(x.detach(), theta, v, return_v=True, return_count=True)
    assert torch.equal(result.spikes, alone.spikes) and torch.equal(result.v, alone.v)
    assert torch.equal(result.spike_count, alone.spike_count)
    (through_v,) = torch.autograd.grad(result.v.sum(), x)
    assert through_v[0].any() and not result.spike_count.requires_grad


@pytest.mark.parametrize("v_init", [None, 0.3])
def test_numbers_and_the_default_potential(v_init):
    x, theta, _ = made((4, 2, 6), "number")
    start = (
        (lambda th: th / 2) if v_init is None else (lambda th: torch.tensor(v_init, dtype=th.dtype))
    )
    weights = torch.randn_like(x)
    _, expected = gradients(
        lambda x, th: plain(x, th, start(th), None, ATan(), False), x, theta, weights=weights
    )
    _, grads = gradients(
        lambda x, th: F.if_forward(x, th, v_init).spikes, x, theta, weights=weights
    )
    number = theta.item()
    _, (alone,) = gradients(lambda x: F.if_forward(x, number, v_init).spikes, x, weights=weights)
    for grad, wanted in zip((*grads, alone), (*expected, expected[0])):
        assert torch.allclose(grad, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("surrogate", SURROGATES, ids=repr)
def test_any_callable_gives_the_same(surrogate):
    x, theta, v = made((6, 3, 40), "channel")
    weights = torch.randn_like(x)
    for detach, v_reset in ((False, None), (True, None), (False, 0.1)):
        found = []
        for step in (surrogate, lambda u: surrogate(u), lambda u: Step.apply(u, surrogate)):
            options = {"surrogate": step, "detach_reset": detach, "v_reset": v_reset}
            run = partial(
                lambda x, th, v, given: F.if_forward(x, th, v, **given).spikes, given=options
            )
            found.append(gradients(run, x, theta, v, weights=weights))
        for spikes, grads in found[1:]:
            assert torch.equal(spikes, found[0][0])
            for grad, wanted in zip(grads, found[0][1]):
                assert torch.allclose(grad, wanted, rtol=1e-10, atol=1e-11)


def test_a_smooth_spike_by_finite_differences():
    """The loop itself: with a step that is no step the gradient is a derivative."""

    x, theta, v = made((4, 5), "neuron")
    soft = lambda u: torch.sigmoid(4 * u)  # noqa: E731
    smooth = lambda x, th, v: loop(x, th, v, None, soft, False, exact=False)[0]  # noqa: E731
    assert torch.autograd.gradcheck(smooth, [t.requires_grad_() for t in (x, theta, v)])


INF = float("inf")


@pytest.mark.parametrize("start", [INF, 3e38, 1.0])
def test_a_gradient_changes_no_spike(start):
    """Not in the loop either, where potentials are infinite."""
    x = torch.tensor([[start], [start], [2.0], [0.1]])
    for v_reset in (None, 0.0):
        expected = F.if_forward(x, 1.0, start, v_reset=v_reset, return_v=True)
        for surrogate in (ATan(), lambda u: ATan()(u)):
            leaf = x.clone().requires_grad_()
            options = {"v_reset": v_reset, "surrogate": surrogate, "return_v": True}
            found = F.if_forward(leaf, 1.0, start, **options)
            assert torch.equal(found.spikes, expected.spikes)
            assert torch.equal(found.v.nan_to_num(7), expected.v.nan_to_num(7))
    with pytest.raises(ValueError, match="v_reset must be finite, got -inf"):
        F.if_forward(x.requires_grad_(), 1.0, v_reset=-INF)


@pytest.mark.parametrize("surrogate", [s for s in SURROGATES if not isinstance(s, Rectangle)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_is_not_hidden(surrogate, dtype):
    x = torch.tensor([[0.5], [float("nan")], [1.0]], dtype=dtype, requires_grad=True)
    (grad,) = torch.autograd.grad(F.if_forward(x, 1.0, surrogate=surrogate).spikes.sum(), x)
    assert grad.isnan().all()


def test_torch_func():
    x, theta, v = made((4, 3, 5), "number")
    weights = torch.randn_like(x)

    def loss(x, th):
        return (F.if_forward(x, th, v, v_reset=0.1).spikes * weights).sum()

    ours = torch.func.grad(loss, argnums=(0, 1))(x, theta)
    expected = gradients(
        lambda x, th: plain(x, th, v, 0.1, ATan(), False), x, theta, weights=weights
    )[1]
    for grad, wanted in zip(ours, expected):
        assert torch.allclose(grad, wanted, atol=1e-12)


def test_no_second_derivative():
    x = torch.rand(3, 5, requires_grad=True)
    (grad,) = torch.autograd.grad(F.if_forward(x, 1.0).spikes.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="neurons have a first derivative alone"):
        grad.sum().backward()


def test_what_is_refused():
    x = torch.rand(3, 5, requires_grad=True)
    with pytest.raises(RuntimeError, match="inplace must be False"):
        F.if_forward(x * 1, 1.0, inplace=True)
    with pytest.raises(ValueError, match="v_threshold must broadcast"):
        F.if_forward(x, torch.ones(4))
    with pytest.raises(ValueError, match="must be positive"):
        F.if_forward(x, torch.zeros(()))
    with pytest.raises(RuntimeError, match="no gradient"):
        F.cos_forward(x, 1.0, rho=2)
    for alpha in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="alpha must"):
            ATan(alpha)
    with pytest.raises(TypeError, match="alpha must be"):
        ATan("2")
    with pytest.raises(TypeError, match="abstract method '?derivative"):
        Surrogate(1.0)


@pytest.mark.parametrize(
    "x, theta",
    [
        (torch.zeros(4, 3, requires_grad=True), 1.0),
        (torch.zeros(4, 5), torch.ones(5, requires_grad=True)),
    ],
)
def test_calibration_has_no_gradient(x, theta):
    assert F.if_forward(x, theta).spikes.requires_grad
    for name in ("cos_forward", "calibrate_v_init"):
        with pytest.raises(RuntimeError, match="calibration has no gradient"):
            getattr(F, name)(x, theta, rho=1)


def test_forward_mode_gradients_are_refused():
    x = torch.randn(4, 3)
    with pytest.raises(RuntimeError, match="no gradient in forward mode"):
        torch.func.jvp(lambda a: F.if_forward(a, 1.0).spikes, (x,), (torch.ones_like(x),))


def test_threads_change_no_bit():
    x, theta, v = made((8, 3, 50, 20), "channel", torch.float32)
    weights, found = torch.randn_like(x), []
    threads = torch.get_num_threads()
    for n in (1, 2, 5):
        torch.set_num_threads(n)
        found.append(
            gradients(lambda x: F.if_forward(x, theta, v).spikes, x, weights=weights)[1][0]
        )
    torch.set_num_threads(threads)
    assert all(torch.equal(grad, found[0]) for grad in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    x, theta, v = made((4, 2, 6), "channel", torch.float32)
    x = x.to(dtype).requires_grad_()
    check, ops = torch.library.opcheck, torch.ops.cos_ext
    tail = (None, 0, 2.0, False)
    alone = (None, None)
    check(ops.if_surrogate, (x, 4, theta.requires_grad_(), v.requires_grad_(), *tail, *alone))
    once = x[:1].detach().requires_grad_()
    check(ops.if_surrogate, (once, 4, theta, v, 0.1, 2, 1.0, True, *alone))
    grad = torch.randn(4, 2, 6).to(dtype)
    given = (grad, x.detach(), theta.detach(), 0.0, v.detach(), None)
    check(ops.if_backward, (*given, *tail, True, True))
    check(ops.if_backward, (*given, *tail, False, True))


def test_compiled():
    x, theta, v = made((4, 2, 6), "channel", torch.float32)
    weights = torch.randn_like(x)
    run = lambda x, th, v: F.if_forward(x, th, v, surrogate=Sigmoid()).spikes  # noqa: E731
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    one, grads = gradients(run, x, theta, v, weights=weights)
    two, others = gradients(compiled, x, theta, v, weights=weights)
    assert torch.equal(one, two)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(grads, others))


def test_what_is_kept_is_x_alone():
    x = torch.rand(8, 1000, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        F.if_forward(x, 1.0)
    large = [t for t in kept if t.numel() > 1]
    assert len(large) == 1 and large[0].data_ptr() == x.data_ptr()


def test_a_network_learns():
    """Which of two halves of the inputs is larger, at T = 4, to the last sample."""
    torch.manual_seed(1)
    x = torch.rand(256, 8)
    y = (x[:, :4].sum(1) > x[:, 4:].sum(1)).long()
    first, last = nn.Linear(8, 64), nn.Linear(64, 2)
    theta = nn.Parameter(torch.tensor(1.0))
    optimizer = torch.optim.Adam([*first.parameters(), *last.parameters(), theta], 0.02)
    for _ in range(300):
        spikes = F.if_forward(first(x).expand(4, -1, -1), theta, surrogate=Triangle()).spikes
        logits = last(spikes).mean(0)
        loss = nn.functional.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (logits.argmax(1) == y).float().mean() >= 0.99 and theta.item() != 1.0
