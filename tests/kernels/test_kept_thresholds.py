"""θ and v(0) of a node: looked at when they change and not at every call, converted once, and as
loud as ever.
"""

import copy
import io
import threading

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cos_ext import IFNode
from cos_ext import functional as F

HALVES = (torch.float16, torch.bfloat16)
VIEWS = {"aten::view", "aten::unflatten", "aten::flatten"}  # the last two in inference mode
BAD = (0.0, -1.0, float("nan"), float("inf"))


def currents(*shape, dtype=torch.float32):
    return (torch.randn(shape, dtype=torch.float64) * 0.8 + 0.4).to(dtype)


class Called(TorchDispatchMode):
    """The operators that are called, views left out."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        if name not in VIEWS:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


def called(node, *args):
    with Called() as seen, torch.no_grad():
        node(*args)
    return seen.names


def spikes_of(theta, x, **settings):
    """By a node that has never run, whose θ is this."""
    with torch.no_grad():
        return IFNode(theta, v_init=0.3, timesteps=4, **settings)(x)


@pytest.mark.parametrize("rho", [0, 4])
@pytest.mark.parametrize("theta", [0.7, torch.rand(3, 1, 1) + 0.5])
def test_a_layer_is_one_launch_in_every_dtype(theta, rho, dtype):
    node = IFNode(theta, timesteps=4, rho=rho)
    operator = "cos_ext::cos_forward" if rho else "cos_ext::if_forward"
    x = currents(8, 3, 2, 2, dtype=dtype)
    called(node, x)
    assert called(node, x) == called(node, x.clone()) == [operator]
    called(node.to(dtype), x)
    assert called(node, x) == [operator]


@pytest.mark.parametrize("dtype", HALVES)
def test_a_layer_is_one_launch_under_autocast(dtype):
    model = nn.Sequential(nn.Linear(5, 6), IFNode(0.3, timesteps=4, rho=4)).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype):
        x = model[0](currents(8, 5))
        assert x.dtype == dtype
        called(model[1], x)
        assert called(model[1], x) == ["cos_ext::cos_forward"]
    model = model.to(dtype)  # what was kept is gone
    with torch.inference_mode():
        called(model[1], x)
        assert called(model[1], x) == ["cos_ext::cos_forward"]


@pytest.mark.parametrize("rivals", ["srp", "parallel"])
def test_rivals_convert_no_threshold(rivals):
    node = IFNode(0.7, timesteps=4, rho=4, calibration=rivals)
    x = currents(8, 5, dtype=torch.float16)
    called(node, x)
    assert "aten::_to_copy" not in called(node, x)


def test_an_operator_makes_what_was_asked_for_and_nothing_else():
    x = currents(4, 6)
    for given, room in ((x, []), (x.T, ["aten::empty_like", "aten::empty_strided"])):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            F.cos_forward(given, 1.0, rho=4)
        assert [e.name for e in seen.events() if e.name.startswith("aten::")] == room
    given = (x, None, 1.0, None, None, 4, 1)
    results = torch.ops.cos_ext.cos_forward(*given, False, True, False, False)
    assert [result is None for result in results] == [False, True, False, True, True, True]
    results = torch.ops.cos_ext.cos_forward_(*given, True, False, False, False)
    assert [result is None for result in results] == [False, True, True, True, True]
    assert torch.ops.cos_ext.if_forward_(x, None, 1.0, None, None, None, False, False) == (
        None,
        None,
    )


def set_anew(node):
    node.v_threshold = torch.tensor([0.9, 1.1, 0.6])


def fill(node):
    with torch.no_grad():
        node.v_threshold.mul_(1.7)


def set_one(node):
    with torch.no_grad():
        node.v_threshold[1] = 0.25


def load(node):
    node.load_state_dict({"v_threshold": torch.tensor([0.9, 1.1, 0.6]), "v_init": torch.ones(3)})


def load_assigned(node):
    node.load_state_dict(
        {"v_threshold": torch.tensor([0.9, 1.1, 0.6]), "v_init": torch.ones(3)}, assign=True
    )


def convert(node):
    node.double()


def round_off(node):
    node.bfloat16().float()


def other_memory(node):
    node.v_threshold.data = torch.tensor([0.9, 1.1, 0.6])


def part_of_it(node):
    node.v_threshold = node.v_threshold[:1]  # the same memory


def start_elsewhere(node):
    with torch.no_grad():
        node.v_init.fill_(-0.4)


CHANGES = [
    set_anew,
    fill,
    set_one,
    load,
    load_assigned,
    convert,
    round_off,
    other_memory,
    part_of_it,
    start_elsewhere,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_followed(change, dtype):
    node = IFNode(torch.tensor([0.7, 1.3, 0.45]), timesteps=4, rho=4)
    x = currents(12, 3, dtype=dtype)
    with torch.no_grad():
        for _ in range(2):
            before = node(x)
        change(node)
        fresh = IFNode(node.v_threshold, v_init=node.v_init, timesteps=4, rho=4)
        assert torch.equal(node(x), fresh(x)) and torch.equal(node(x), fresh(x))
        if change is not convert and (change is not round_off or dtype in (torch.float32,)):
            assert change is round_off or not torch.equal(before, node(x))


@pytest.mark.parametrize("dtypes", [(torch.float16, torch.float32), (torch.float16, torch.float64)])
def test_other_currents_get_their_own(dtypes):
    node = IFNode(0.7, v_init=0.3, timesteps=4)
    for dtype in (*dtypes, *dtypes, torch.bfloat16):
        x = currents(12, 3, dtype=dtype)
        with torch.no_grad():
            assert torch.equal(node(x), spikes_of(0.7, x))


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_threshold_is_refused_where_it_is_set(bad):
    node = IFNode(torch.tensor([0.7, 1.3, 0.45]), timesteps=4)
    kept = node.v_threshold
    with pytest.raises(ValueError, match="v_threshold must be positive and finite"):
        node.v_threshold = torch.tensor([0.7, bad, 0.45])
    with pytest.raises(RuntimeError, match="v_threshold must be positive and finite"):
        node.load_state_dict(
            {"v_threshold": torch.tensor([0.7, bad, 0.45]), "v_init": torch.ones(3)}
        )
    assert node.v_threshold is kept and kept[1] == 1.3
    with pytest.raises(ValueError, match="v_init must not be NaN"):
        node.v_init = torch.tensor(float("nan"))
    with pytest.raises(TypeError, match="v_threshold must be float32"):
        node.v_threshold = torch.tensor([1, 2, 3])


@pytest.mark.parametrize("learn", [(), ("v_threshold",)])
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_threshold_that_was_written_is_refused_by_the_next_call(bad, learn, dtype):
    for theta in (torch.tensor(0.7), torch.tensor([0.7, 1.3, 0.45])):
        node = IFNode(theta, timesteps=4, learn=learn)
        x = currents(12, 3, dtype=dtype)
        with torch.no_grad():
            node(x)
            node.v_threshold.view(-1)[-1] = bad
            for _ in range(2):
                with pytest.raises(ValueError, match="v_threshold must be positive and finite"):
                    node(x)
            node.v_threshold.fill_(0.7)
            assert torch.equal(node(x), IFNode(0.7, v_init=node.v_init, timesteps=4)(x))


def test_a_threshold_that_a_dtype_cannot_hold_is_refused():
    node = IFNode(1e-9, timesteps=4)
    x = currents(12, 3)
    with torch.no_grad():
        node(x)
        with pytest.raises(ValueError, match=r"positive and finite in torch\.float16"):
            node(x.half())
        node(x)
    with pytest.raises(ValueError, match="v_threshold must be positive and finite"):
        node.half()
    with pytest.raises(ValueError, match="v_threshold must be positive and finite"):
        IFNode(1e5, timesteps=4).half()


def test_thresholds_made_in_inference_mode_are_looked_at_every_time():
    with torch.inference_mode():
        node = IFNode(torch.tensor([0.7, 1.3, 0.45]), timesteps=4)
        x = currents(12, 3)
        node(x)
        node.v_threshold[1] = -1.0  # nothing counts this
        with pytest.raises(ValueError, match="v_threshold must be positive and finite"):
            node(x)


def test_what_is_made_in_inference_mode_serves_training():
    node, x = IFNode(0.7, timesteps=4), currents(12, 3, dtype=torch.float16)
    with torch.inference_mode():
        node(x)
    x.requires_grad_()
    node(x).float().sum().backward()
    assert x.grad is not None


WAYS = [
    {"timesteps": 4, "rho": 2},
    {"timesteps": 4},
    {"timesteps": 4, "keep_state": True},
    {"timesteps": 4, "store_v_seq": True},
    {"timesteps": 4, "rho": 2, "calibration": "srp"},
    {"timesteps": 4, "rho": 2, "calibration": "parallel"},
    {"step_mode": "s"},
]


@pytest.mark.parametrize("way", WAYS)
def test_values_are_looked_at_once(way):
    node, x = IFNode(torch.rand(3) + 0.5, **way), currents(12, 3)
    assert called(node, x).count("aten::aminmax") == 1
    assert "aten::aminmax" not in called(node, x)
    with torch.no_grad():
        node.v_threshold.add_(1)
    assert called(node, x).count("aten::aminmax") == 1
    assert "aten::aminmax" not in called(node, x)


@pytest.mark.parametrize("dtype", HALVES)
def test_learned_thresholds_get_their_gradient_after_calls_without_one(dtype):
    node = IFNode(torch.tensor([0.7, 1.3, 0.45]), timesteps=4, learn=("v_threshold", "v_init"))
    x = currents(12, 3, dtype=dtype)
    optimizer = torch.optim.SGD(node.parameters(), 0.05)
    for _ in range(3):
        with torch.no_grad():
            before = node(x)
        fresh = IFNode(node.v_threshold, v_init=node.v_init, timesteps=4)
        assert torch.equal(before, fresh(x))
        spikes = node(x)
        assert torch.equal(spikes, before)
        optimizer.zero_grad()
        spikes.float().square().sum().backward()
        assert node.v_threshold.grad.abs().sum() > 0 and node.v_init.grad.abs().sum() > 0
        optimizer.step()


def test_copies_and_pickles_have_their_own():
    node, x = IFNode(0.7, timesteps=4), currents(12, 3, dtype=torch.float16)
    with torch.no_grad():
        node(x)
        file = io.BytesIO()
        torch.save(node, file)
        file.seek(0)
        for other in (copy.deepcopy(node), torch.load(file, weights_only=False)):
            assert other._kept is None
            before = node(x)
            assert torch.equal(other(x), before)
            other.v_threshold.fill_(0.2)
            assert torch.equal(node(x), before)
            assert torch.equal(other(x), IFNode(0.2, v_init=0.35, timesteps=4)(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_functional_call_gives_it_others(dtype):
    node, x = IFNode(0.7, v_init=0.3, timesteps=4), currents(12, 3, dtype=dtype)
    with torch.no_grad():
        before = node(x)
        given = {"v_threshold": torch.tensor(0.4)}
        called = torch.func.functional_call(node, given, (x,))
        assert torch.equal(called, spikes_of(0.4, x)) and torch.equal(node(x), before)
        with pytest.raises(ValueError, match="v_threshold must be positive and finite"):
            torch.func.functional_call(node, {"v_threshold": torch.tensor(-0.4)}, (x,))


def test_threads_with_currents_of_two_dtypes():
    node, wrong = IFNode(0.7, v_init=0.3, timesteps=4), []

    def run(dtype):
        x = currents(12, 3, dtype=dtype)
        expected = spikes_of(0.7, x)
        with torch.no_grad():
            wrong.extend(1 for _ in range(300) if not torch.equal(node(x), expected))

    threads = [threading.Thread(target=run, args=(dtype,)) for dtype in (*HALVES, torch.float32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_compiled_node_follows_what_is_written(dtype):
    node, x = IFNode(0.7, v_init=0.3, timesteps=4), currents(12, 3, dtype=dtype)
    with torch.no_grad():
        node(x)
        compiled = torch.compile(node, backend="eager", fullgraph=True)
        assert torch.equal(compiled(x), spikes_of(0.7, x))
        node.v_threshold.fill_(0.4)
        assert torch.equal(compiled(x), spikes_of(0.4, x))
        assert torch.equal(node(x), spikes_of(0.4, x))


def test_a_trace_converts_again():
    node, x = IFNode(0.7, v_init=0.3, timesteps=4), currents(12, 3, dtype=torch.float16)
    with torch.no_grad():
        node(x)
        traced = torch.jit.trace(node, (x,))
        assert torch.equal(traced(x), spikes_of(0.7, x))
        traced.v_threshold.fill_(0.4)
        assert torch.equal(traced(x), spikes_of(0.4, x))


def test_a_fused_optimizer_is_noticed():
    node = IFNode(1.0, timesteps=2, learn=("v_threshold", "v_init"))
    x = torch.rand(4, 8, dtype=torch.bfloat16) * 4
    with torch.no_grad():
        node(x)
    optimizer = torch.optim.SGD(node.parameters(), lr=0.5, fused=True)
    for parameter in node.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    with torch.no_grad():
        assert torch.equal(node(x), copy.deepcopy(node)(x))
    optimizer.step()
    optimizer.step()
    with pytest.raises(ValueError, match="positive and finite"), torch.no_grad():
        node(x)
