"""cos_ext._core: what it takes and refuses, and that it serves NumPy without torch. Its arithmetic:
test_properties.py.
"""

import resource
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cos_ext import _core

X = np.random.default_rng(0).normal(0.3, 1.0, (6, 3, 5)).astype(np.float32)


def test_it_needs_no_torch():
    library = Path(_core.__file__)
    script = f"""
import importlib.util, sys
sys.modules["torch"] = None
spec = importlib.util.spec_from_file_location("_core", {str(library)!r})
core = importlib.util.module_from_spec(spec)
spec.loader.exec_module(core)
import numpy as np
counts = core.cos_forward(np.ones((4, 3), np.float32), 2.0, rho=4)[2]
print(counts.tolist(), core.build_facts()["cpu_capability"])
"""
    out = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout
    assert out.split("]")[0] == "[2, 2, 2"


@pytest.mark.parametrize(
    "arguments, options, error, message",
    [
        ((X.astype(int), 1.0), {}, ValueError, "x_seq must be float16, float32 or float64"),
        ((X.astype(">f4"), 1.0), {}, ValueError, "byte order"),
        ((X[:0], 1.0), {}, ValueError, "1 <= T"),
        ((X[::-1], 1.0), {}, ValueError, "non-negative strides"),
        ((X, 0.0), {}, ValueError, "v_threshold must be positive"),
        ((X, float("nan")), {}, ValueError, "v_threshold must not be NaN"),
        (
            (X.astype(np.float16), 7e4),
            {},
            ValueError,
            "v_threshold must be positive and finite in x_seq's dtype",
        ),
        ((X, 1e-46), {}, ValueError, "v_threshold must be positive"),
        ((X, 1.0, float("nan")), {}, ValueError, "v_init must not be NaN"),
        ((X, np.array([1.0, 1, 1, 0, 1])), {}, ValueError, "v_threshold must be positive"),
        ((X, np.ones(4)), {}, ValueError, "v_threshold does not broadcast"),
        ((X, np.ones((1, 3, 5))), {}, ValueError, "v_threshold does not broadcast"),
        ((X, 1.0, np.ones(2)), {}, ValueError, "v_init does not broadcast"),
        ((X, 1.0, np.ones(5, int)), {}, TypeError, "v_init must be floating-point"),
        ((X, 1.0), {"rho": 0}, ValueError, "rho must lie in 1..T = 6, got 0"),
        ((X, 1.0), {"rho": 7}, ValueError, "rho must lie in 1..T = 6, got 7"),
        ((X, 1.0), {"iterations": -1}, ValueError, "iterations must be >= 0 or None"),
        ((X, 1.0), {"threads": 0}, ValueError, "threads must be >= 1"),
    ],
)
def test_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        _core.cos_forward(*arguments, **{"rho": 2, **options})


def test_any_strides_and_broadcast_parameters():
    theta = np.linspace(0.5, 1.5, 3)[:, None]
    expected = _core.cos_forward(X, np.broadcast_to(theta, (3, 5)).copy(), rho=4, iterations=None)
    wide = np.zeros((6, 3, 11), np.float32)
    wide[:, :, ::2][:, :, :5] = X
    for x in (
        X,
        np.asfortranarray(X),
        X.transpose(2, 0, 1).copy().transpose(1, 2, 0),
        wide[:, :, ::2][:, :, :5],
    ):
        for ours, reference in zip(_core.cos_forward(x, theta, rho=4, iterations=None), expected):
            assert np.array_equal(ours, reference)
    static = np.broadcast_to(X[0], (6, 3, 5))
    for ours, reference in zip(
        _core.cos_forward(static, 1.0, rho=4), _core.cos_forward(static.copy(), 1.0, rho=4)
    ):
        assert np.array_equal(ours, reference)
    assert _core.if_forward(np.zeros((3, 0), np.float32), 1.0)[0].shape == (3, 0)


@pytest.mark.parametrize("threads", [100_000, 2**31 - 1])
def test_any_number_of_threads(threads):
    """In a process of its own, with room for one thread: the next would have ended it."""
    script = f"""
import resource
import numpy as np
from cos_ext import _core
x = np.ones((2, 512 * 4000), np.float16)
expected = _core.if_forward(x, 1.0)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1400 << 20),) * 2)
found = _core.if_forward(x, 1.0, threads={threads})
print(all((a == b).all() for a, b in zip(found, expected)))
"""
    large = (1 << 30, resource.getrlimit(resource.RLIMIT_STACK)[1])
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(_core.__file__).parent.parent,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_STACK, large),  # of a thread, too
    )
    assert done.stdout.strip() == "True", (done.returncode, done.stderr)


def test_threads_may_call_it_at_once():
    inputs = [np.roll(np.tile(X, (1, 1, 400)), n, axis=1) for n in range(8)]

    def call(x):
        return _core.cos_forward(x, 1.0, rho=4, iterations=2, threads=2)

    expected = [call(x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for ours, theirs in zip(pool.map(call, inputs), expected):
                assert all(np.array_equal(a, b) for a, b in zip(ours, theirs))


@pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has a global lock"
)
def test_importing_it_does_not_bring_the_global_lock_back():
    script = "import sys; from cos_ext import _core; print(sys._is_gil_enabled())"
    out = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout
    assert out.strip() == "False"


GENERAL = {"levels": (-2, 4), "lower": 0.5}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"levels": (0, 4), "threads": 3},
        {**GENERAL, "rho": 4, "iterations": None},
        {**GENERAL, "count": (0, 5), "rho": 3, "emission": "front"},
        {**GENERAL, "rho": 2, "emission": "block", "emitted": 0.5},
        {**GENERAL, "step_bias": True, "emitted": True, "leak": 0.9},
        {"ladder": 4, "prediction": True, "gated": True, "silent": 1},
        {"levels": (0, 2), "step_scale": [1.0, 0.5, 2.0, 1.0, 1.5, 1.0], "v_reset": 0.1},
    ],
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_general_neurons_are_torchs(options, dtype):
    import torch

    from cos_ext import Neuron
    from cos_ext import functional as F

    x = np.random.default_rng(1).normal(0.3, 1.5, (6, 3, 5, 2)).astype(dtype)
    state = np.float64 if dtype is np.float64 else np.float32
    options = dict(options)
    if options.get("step_bias"):
        options["step_bias"] = np.linspace(-0.5, 0.5, 30).astype(state).reshape(6, 5)
        options["emitted"] = np.linspace(0.5, 1.0, 5).astype(state)[:, None]
    ours = _core.neuron_forward(x, 0.75, **options)
    options.pop("threads", None)
    names = ("v_reset", "rho", "iterations", "emission")
    run = {name: options.pop(name) for name in names if name in options}
    for name in ("step_bias", "emitted"):
        if isinstance(options.get(name), np.ndarray):
            options[name] = torch.from_numpy(options[name])
    plain, planned = run.get("emission") is None, run.get("emission") != "block" and "rho" in run
    asked = {"return_v": plain, "return_v_init": planned, "return_offset": planned}
    given = {"neuron": Neuron(**options), "return_count": True, **run, **asked}
    theirs = F.neuron_forward(torch.from_numpy(x), 0.75, **given)
    for a, b in zip(ours, theirs):
        assert (a is None) == (b is None)
        assert a is None or (a.dtype == b.numpy().dtype and np.array_equal(a, b.numpy()))


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"levels": (1, 2)}, ValueError, "levels must be s_min <= 0"),
        ({"levels": (-1, 1)}, ValueError, "lower must lie in"),
        ({"count": (1, None)}, ValueError, "count must allow 0"),
        ({"upper": 0.0}, ValueError, "upper must be > 0"),
        ({"leak": float("nan")}, ValueError, "leak must be positive"),
        ({"ladder": 9}, ValueError, "rungs must lie in 0..8"),
        ({"ladder": 2, "emitted": 1.0}, ValueError, "emit what they take off"),
        ({"emitted": float("inf")}, ValueError, "emitted must be finite"),
        ({"emitted": np.ones(4)}, ValueError, "emitted does not broadcast"),
        ({"step_bias": np.ones(5)}, ValueError, r"step_bias must be \[T\] or \[T, C\]"),
        ({"step_bias": np.ones(6, int)}, TypeError, "step_bias must be floating-point"),
        ({"step_bias": np.ones((6, 4))}, ValueError, "step_bias does not broadcast"),
        ({"step_scale": [1.0]}, ValueError, "step_scale must be a positive number"),
        ({"prediction": True, "v_reset": 0.0}, ValueError, "prediction needs soft reset"),
        ({"emission": "even"}, ValueError, "emission 'even' needs rho >= 1"),
        ({"emission": "odd", "rho": 2}, ValueError, "emission must be"),
        ({"rho": 2, "leak": 0.5}, ValueError, "calibration needs soft reset"),
        ({"rho": 7}, ValueError, "rho must lie in 1..T = 6"),
    ],
)
def test_arguments_of_general_neurons(options, error, message):
    with pytest.raises(error, match=message):
        _core.neuron_forward(X, 1.0, **options)
