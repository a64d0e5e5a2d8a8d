"""Bad input: each case with its exact exception, a message that names the argument, and nothing
written.
"""

import math

import numpy as np
import pytest
import torch

import cos_ext
from cos_ext import IFNode
from cos_ext import functional as F

X = torch.zeros(4, 3, 5)
NAN, INF = math.nan, math.inf


def call_all(x, theta, v_init=None):
    """The three functions, and their in-place forms."""
    yield lambda: F.if_forward(x, theta, v_init)
    yield lambda: F.if_forward(x, theta, v_init, inplace=True)
    yield lambda: F.cos_forward(x, theta, v_init, rho=1)
    yield lambda: F.cos_forward(x, theta, v_init, rho=1, inplace=True)
    yield lambda: F.calibrate_v_init(x, theta, v_init, rho=1)


@pytest.mark.parametrize(
    "x, theta, v_init, error, message",
    [
        ([1.0], 1.0, None, TypeError, "x_seq must be a tensor, got list"),
        (X.int(), 1.0, None, TypeError, "x_seq must be .*got torch.int32"),
        (X.bool(), 1.0, None, TypeError, "x_seq must be .*got torch.bool"),
        (X.to(torch.complex64), 1.0, None, TypeError, "x_seq must be .*got torch.complex64"),
        (torch.zeros(()), 1.0, None, ValueError, "x_seq must be .T, "),
        (torch.zeros(0, 3), 1.0, None, ValueError, r"1 <= T.*got shape \(0, 3\)"),
        (
            X,
            0.0,
            None,
            ValueError,
            "v_threshold must be positive and finite in torch.float32, got 0.0",
        ),
        (
            X,
            -1.0,
            None,
            ValueError,
            "v_threshold must be positive and finite in torch.float32, got -1.0",
        ),
        (X, NAN, None, ValueError, "v_threshold must not be NaN"),
        (
            X,
            INF,
            None,
            ValueError,
            "v_threshold must be positive and finite in torch.float32, got inf",
        ),
        (
            X,
            1e39,
            None,
            ValueError,
            "v_threshold must be positive and finite in torch.float32, got 1e[+]39",
        ),
        (
            X.half(),
            65520.0,
            None,
            ValueError,
            "v_threshold must be positive and finite in torch.float16, got 65520.0",
        ),
        (
            X.half(),
            2.0**-25,
            None,
            ValueError,
            "v_threshold must be positive and finite in torch.float16",
        ),
        (
            X.half(),
            torch.tensor(7e4),
            None,
            ValueError,
            "v_threshold must be positive and finite in torch.float16",
        ),
        (
            X.bfloat16(),
            3.3975e38,
            None,
            ValueError,
            "v_threshold must be positive and finite in torch.bfloat16",
        ),
        (X, "1", None, TypeError, "v_threshold must be a float, got str"),
        (X, True, None, TypeError, "v_threshold must be a float, got bool"),
        (X, None, None, TypeError, "v_threshold must be a float, got NoneType"),
        (X, torch.zeros(5), None, ValueError, "v_threshold must be positive and finite"),
        (
            X,
            torch.tensor([1.0, 1, 1, -1, 1]),
            None,
            ValueError,
            "v_threshold must be positive and finite",
        ),
        (
            X,
            torch.tensor([1.0, 1, NAN, 1, 1]),
            None,
            ValueError,
            "v_threshold must be positive and finite",
        ),
        (
            X,
            torch.tensor([1.0, 1, INF, 1, 1]),
            None,
            ValueError,
            "v_threshold must be positive and finite",
        ),
        (
            X,
            torch.ones(4),
            None,
            ValueError,
            r"v_threshold must broadcast to the neurons \(3, 5\), got shape \(4,\)",
        ),
        (X, torch.ones(1, 1, 1), None, ValueError, "v_threshold must broadcast"),
        (
            X,
            torch.ones(5).double(),
            None,
            TypeError,
            "v_threshold must have x_seq's dtype.*got torch.float64",
        ),
        (
            X,
            torch.ones(5).int(),
            None,
            TypeError,
            "v_threshold must have x_seq's dtype.*got torch.int32",
        ),
        (
            X,
            torch.ones(5, device="meta"),
            None,
            ValueError,
            "v_threshold must be on x_seq's device cpu, got meta",
        ),
        (X, 1.0, NAN, ValueError, "v_init must not be NaN"),
        (X, 1.0, "0", TypeError, "v_init must be a float, got str"),
        (X, 1.0, torch.ones(2), ValueError, "v_init must broadcast"),
        (X, 1.0, torch.ones(5).half(), TypeError, "v_init must have x_seq's dtype"),
        (X, 1.0, torch.ones(5, device="meta"), ValueError, "v_init must be on x_seq's device"),
    ],
)
def test_arguments_of_every_function(x, theta, v_init, error, message):
    before = x.detach().clone() if isinstance(x, torch.Tensor) else None
    for call in call_all(x, theta, v_init):
        with pytest.raises(error, match=message):
            call()
    if before is not None:
        assert torch.equal(x.detach(), before)


def test_no_gradient_is_needed_under_no_grad():
    x = torch.randn(4, 3, requires_grad=True)
    with torch.no_grad():
        for call in call_all(x, 1.0):
            call()


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"rho": 0}, ValueError, "rho must be >= 1, got 0"),
        ({"rho": -2}, ValueError, "rho must be >= 1, got -2"),
        ({"rho": 5}, ValueError, "rho must lie in 1..T = 4, got 5"),
        ({"rho": 2.0}, TypeError, "rho must be an int, got float"),
        ({"rho": True}, TypeError, "rho must be an int, got bool"),
        ({"rho": 2, "iterations": -1}, ValueError, "iterations must be >= 0"),
        ({"rho": 2, "iterations": 1.5}, TypeError, "iterations must be an int or None"),
        ({"rho": 2, "emission": "late"}, ValueError, "emission must be one of"),
        ({"rho": 2, "emission": 1}, TypeError, "emission must be a str"),
        ({"rho": 2, "emission": "even", "return_v": True}, ValueError, "return_v must be False"),
    ],
)
def test_calibration_arguments(options, error, message):
    x = torch.randn(4, 3)
    before = x.clone()
    for function in (F.cos_forward, F.calibrate_v_init)[: 1 if "emission" in options else 2]:
        with pytest.raises(error, match=message):
            function(x, 1.0, **options)
    with pytest.raises(error, match=message):
        F.cos_forward(x, 1.0, **options, inplace=True)
    assert torch.equal(x, before)


def test_rho_is_required_and_hard_reset_is_not_offered():
    with pytest.raises(TypeError, match="rho"):
        F.cos_forward(X, 1.0)
    with pytest.raises(TypeError, match="v_reset"):
        F.cos_forward(X, 1.0, rho=2, v_reset=0.0)


@pytest.mark.parametrize(
    "v_reset, error", [("0", TypeError), (NAN, ValueError), (torch.zeros(1), TypeError)]
)
def test_v_reset(v_reset, error):
    with pytest.raises(error, match="v_reset"):
        F.if_forward(X, 1.0, v_reset=v_reset)


def test_in_place_needs_memory_of_its_own():
    shared = [
        torch.zeros(3, 5).expand(4, 3, 5),
        torch.zeros(4, 1, 5).expand(4, 3, 5),
        torch.zeros(10).as_strided((4, 5), (1, 1)),
    ]
    for x in shared:
        for call in (
            lambda x=x: F.if_forward(x, 1.0, inplace=True),
            lambda x=x: F.cos_forward(x, 1.0, rho=1, inplace=True),
        ):
            with pytest.raises(
                ValueError, match="inplace needs an x_seq whose elements do not share memory"
            ):
                call()
    x = torch.rand(4, 3, 5) + 0.1
    for arguments, name in (((x[1:], 1.0, x[1]), "v_init"), ((x[1:], x[1]), "v_threshold")):
        with pytest.raises(ValueError, match=f"{name} must not share memory with x_seq in place"):
            F.if_forward(*arguments, inplace=True)
    F.if_forward(x[1:], 1.0, x[0], inplace=True)  # beside it is fine
    assert torch.equal(F.if_forward(x, 1.0, x[0]).spikes, F.if_forward(x, 1.0, x[0].clone()).spikes)


def test_raw_operators_check_for_themselves():
    ops = torch.ops.cos_ext
    for bad in (
        (X.int(), None, 1.0, None, None, None, False, False),
        (torch.zeros(0, 3), None, 1.0, None, None, None, False, False),
        (X, None, -1.0, None, None, None, False, False),
        (X, torch.ones(4), 0.0, None, None, None, False, False),
        (X, torch.ones(5).double(), 0.0, None, None, None, False, False),
        (X, None, 1.0, torch.ones(7), None, None, False, False),
        (X, None, 1.0, torch.ones(1, 3, 5, 1), None, None, False, False),
    ):
        with pytest.raises(RuntimeError):
            ops.if_forward(*bad)
    for rho, iterations in ((0, 1), (5, 1), (2, -2)):
        with pytest.raises(RuntimeError):
            ops.calibrate_v_init(X, None, 1.0, None, None, rho, iterations)
    with pytest.raises(RuntimeError, match="share memory"):
        ops.if_forward_(torch.zeros(3).expand(4, 3), None, 1.0, None, None, None, False, False)


def test_a_device_without_kernels():
    class Elsewhere(torch.Tensor):
        @property
        def device(self):
            return torch.device("xpu")

    with pytest.raises(RuntimeError, match="kernels for cpu and cuda"):
        F.if_forward(torch.zeros(4, 3).as_subclass(Elsewhere), 1.0)


@pytest.mark.skipif(cos_ext.build_info()["cuda"], reason="CUDA kernels are there")
def test_a_cuda_tensor_without_kernels_is_told_why():
    class Cuda(torch.Tensor):
        @property
        def device(self):
            return torch.device("cuda", 0)

    reason = cos_ext.build_info()["cuda_off"]
    with pytest.raises(RuntimeError) as caught:
        F.if_forward(torch.zeros(4, 3).as_subclass(Cuda), 1.0)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"v_threshold": 0.0}, ValueError, "v_threshold must be positive"),
        ({"v_threshold": NAN}, ValueError, "v_threshold must be positive"),
        ({"v_threshold": torch.tensor([1.0, -1.0])}, ValueError, "v_threshold must be positive"),
        ({"v_threshold": torch.tensor([1])}, TypeError, "v_threshold must be floating-point"),
        ({"v_threshold": "1"}, TypeError, "v_threshold must be a float or a tensor"),
        ({"v_init": "0"}, TypeError, "v_init must be a float or a tensor"),
        ({"v_reset": "0"}, TypeError, "v_reset must be a float"),
        ({"timesteps": 0}, ValueError, "timesteps must be >= 1 or None, got 0"),
        ({"timesteps": 2.0}, TypeError, "timesteps must be an int or None"),
        ({"rho": -1}, ValueError, "rho must be >= 0"),
        ({"rho": 5, "timesteps": 4}, ValueError, "rho must be at most timesteps = 4, got 5"),
        ({"rho": 2, "v_reset": 0.0}, ValueError, "rho must be 0 with hard reset"),
        ({"rho": 2, "step_mode": "s"}, ValueError, "rho must be 0 with step_mode 's'"),
        ({"iterations": -1}, ValueError, "iterations must be >= 0"),
        ({"step_mode": "x"}, ValueError, "step_mode must be one of"),
        ({"static_input": True}, ValueError, "static_input needs timesteps"),
        ({"v_init": NAN}, ValueError, "v_init must not be NaN"),
        ({"v_init": torch.tensor([0.0, NAN])}, ValueError, "v_init must not be NaN"),
        ({"v_reset": NAN}, ValueError, "v_reset must not be NaN"),
        ({"v_threshold": torch.ones(2).to(torch.float8_e5m2)}, TypeError, "got torch.float8_e5m2"),
    ],
)
def test_node_arguments(options, error, message):
    with pytest.raises(error, match=message):
        IFNode(**options)


def test_node_attributes_are_checked_when_set():
    node = IFNode(timesteps=4, rho=2)
    for name, value in (
        ("rho", 5),
        ("timesteps", 1),
        ("iterations", -3),
        ("v_reset", 0.0),
        ("step_mode", "s"),
        ("step_mode", "multi"),
    ):
        with pytest.raises(ValueError, match=name):
            setattr(node, name, value)
    assert (node.timesteps, node.rho, node.iterations, node.v_reset, node.step_mode) == (
        4,
        2,
        1,
        None,
        "m",
    )
    node.rho = 0
    node.v_reset = 0.5
    assert torch.equal(
        node(torch.ones(4, 3)),
        F.if_forward(torch.ones(4, 1, 3), 1.0, v_reset=0.5).spikes.flatten(0, 1),
    )


def test_node_inputs():
    node = IFNode(timesteps=4)
    with pytest.raises(ValueError, match=r"divisible by timesteps = 4.*got shape \(6, 3\)"):
        node(torch.zeros(6, 3))
    with pytest.raises(TypeError, match="got torch.int64"):
        node(torch.zeros(4, 3, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="calibration has no gradient"):
        IFNode(timesteps=4, rho=2)(torch.zeros(4, 3, requires_grad=True))
    with pytest.raises(TypeError, match="x must be a tensor, got list"):
        node([1.0])
    with pytest.raises(ValueError, match="batch dimension"):
        node(torch.tensor(1.0))
    with pytest.raises(ValueError, match="rho must lie in 1..T = 2, got 3"):
        IFNode(rho=3)(torch.zeros(2, 3))
    single = IFNode(step_mode="s")
    single(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"kept potential torch.float32 \(2, 3\).*call reset"):
        single(torch.zeros(4, 3))


def test_a_bad_threshold_is_not_loaded():
    node = IFNode(0.5)
    with pytest.raises(RuntimeError, match="v_threshold must be positive"):
        node.load_state_dict({"v_threshold": torch.tensor(-1.0), "v_init": torch.tensor(0.0)})
    with pytest.raises(RuntimeError, match="v_init must not be NaN"):
        node.load_state_dict({"v_threshold": torch.tensor(1.0), "v_init": torch.tensor(NAN)})
    with pytest.raises(RuntimeError, match="v_threshold must be positive"):
        node.load_state_dict(
            {"v_threshold": torch.tensor(1e-60).double(), "v_init": torch.tensor(0.0)}
        )
    assert node.v_threshold.item() == 0.5


def test_a_threshold_must_survive_a_change_of_dtype():
    node = IFNode(1e5)
    with pytest.raises(
        ValueError, match="v_threshold must be positive and finite in torch.float16"
    ):
        node.half()
    assert node.v_threshold.dtype == torch.float32 and node.v_threshold.item() == 1e5
    assert node.to(torch.bfloat16).v_threshold.dtype == torch.bfloat16


def test_numpy_numbers_are_numbers():
    assert torch.equal(
        F.if_forward(torch.ones(4, 3), np.float32(0.5)).spikes,
        F.if_forward(torch.ones(4, 3), 0.5).spikes,
    )
    assert IFNode(np.float64(0.5)).v_threshold.item() == 0.5
