"""CUDA equals CPU, bit for bit, and what only a GPU can show: graphs, streams, launches, more than
2^31 elements.

Skipped without a GPU. Whether the CPU operators are right is the subject of the other files.
"""

import copy
import sys
from pathlib import Path

import pytest
import torch
from conftest import DTYPES, layouts
from test_golden import CASES as GOLDEN
from test_golden import case as golden_case
from test_golden import is_excused
from test_spikingjelly import CASES as SPIKINGJELLY

import cos_ext
from cos_ext import functional as F

WHY_NOT = (
    "torch sees no CUDA device: these tests compare the CUDA operators with the CPU's"
    if not torch.cuda.is_available()
    else cos_ext.build_info()["cuda_off"]
)
pytestmark = [
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
    pytest.mark.usefixtures("one_thread"),
]

GPU = "cuda"
ALL = {"return_v": True, "return_count": True}
ALL_COS = {**ALL, "return_v_init": True, "return_offset": True}
SIZES = [1, 2, 3, 7, 8, 31, 33, 127, 128, 129, 4096, 4097]
STEPS_AND_RHO = [
    (1, 1),
    (2, 1),
    (2, 2),
    (3, 3),
    (4, 4),
    (5, 2),
    (8, 4),
    (8, 8),
    (9, 7),
    (12, 12),
    (16, 16),
    (17, 16),
    (18, 17),
    (20, 20),
    (32, 8),
    (33, 1),
    (33, 20),
]
ITERATIONS = (0, 1, 2, None)
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@pytest.fixture(autouse=True)
def poisoned():
    """Fresh memory holds NaN or the largest integer, on both devices: what nobody wrote cannot look
    right.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def bare(poisoned):
    """Undoes that, for tests that count what an operator launches and allocates."""
    torch.use_deterministic_algorithms(False)


def currents(*shape, dtype=torch.float32):
    """Random currents on the CPU; every fifth is a multiple of 1/4, so that potentials meet θ = 1
    exactly.
    """
    x = torch.randn(*shape, dtype=torch.float64) * 1.2 + 0.35
    return torch.where(torch.rand(shape) < 0.2, (4 * x).round() / 4, x).to(dtype)


def whole(x):
    """All of the memory that x lies in, gaps and surroundings included."""
    return x.as_strided((x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)


def twin(x, device=GPU):
    """A copy of x in a copy of its memory, with the same strides and offset."""
    return whole(x).clone().to(device).as_strided(x.shape, x.stride(), x.storage_offset())


def with_marked_gaps(x):
    """x, with 3.25 in all of its memory that is not its own."""
    values = x.clone()
    whole(x).fill_(3.25)
    x.copy_(values)
    return x


def move(value):
    return value.to(GPU) if isinstance(value, torch.Tensor) else value


def bits(x):
    x = x.cpu().contiguous()
    if x.is_floating_point():
        x = torch.where(
            x.isnan(), torch.tensor(torch.nan, dtype=x.dtype), x
        )  # a NaN's payload is nobody's promise
        return x.view(INTEGERS[x.element_size()])
    return x


def assert_same_bits(result, expected):
    """Two results, one of each device: same fields, dtypes, shapes, memory formats and bits."""
    assert result._fields == expected._fields
    for name, ours, theirs in zip(result._fields, result, expected):
        if theirs is None:
            assert ours is None, name
            continue
        assert ours.device.type == GPU and theirs.device.type == "cpu", name
        assert (ours.dtype, ours.shape, ours.stride()) == (
            theirs.dtype,
            theirs.shape,
            theirs.stride(),
        ), name
        assert torch.equal(bits(ours), bits(theirs)), name


def compare(operator, x, theta=1.0, v_init=None, **options):
    """Runs an operator on both devices; returns the CPU's result. In place, the memory around x is
    compared too.
    """
    ours, theirs = twin(x), twin(x, "cpu")
    result = operator(ours, move(theta), move(v_init), **options)
    expected = operator(theirs, theta, v_init, **options)
    assert_same_bits(result, expected)
    if options.get("inplace"):
        assert result.spikes is ours
    assert torch.equal(bits(whole(ours)), bits(whole(theirs))), "the memory of x_seq"
    return expected


def compare_all(x, theta=1.0, v_init=None, *, rho, iterations=ITERATIONS):
    """Every operator and option; returns what the last cos_forward gave on the CPU."""
    for v_reset in (None, 0.0, -0.3):
        compare(F.if_forward, x, theta, v_init, v_reset=v_reset, **ALL)
    compare(F.if_forward, x, theta, v_init, inplace=True, **ALL)
    for rounds in iterations:
        options = {"rho": rho, "iterations": rounds}
        compare(F.calibrate_v_init, x, theta, v_init, **options)
        compare(F.cos_forward, x, theta, v_init, inplace=True, **options, **ALL_COS)
        last = compare(F.cos_forward, x, theta, v_init, **options, **ALL_COS)
    return last


def test_fresh_memory_is_poisoned():
    assert torch.empty(3, device=GPU).isnan().all() and torch.empty(3).isnan().all()


@pytest.mark.parametrize("size", SIZES)
def test_every_size(size, dtype):
    for steps, rho in STEPS_AND_RHO:
        result = compare_all(currents(steps, size, dtype=dtype), rho=rho)
        if size >= 127 and rho > 1:  # else there was nothing to calibrate
            assert (result.offset_spikes > 0).any() and (result.offset_spikes < 0).any()
            assert set(result.spikes.unique().tolist()) == {0.0, 1.0}


def test_every_number_of_steps_and_every_rho(dtype):
    for steps in range(1, 34):
        x = currents(steps, 67, dtype=dtype)
        for rho in range(1, min(steps, 20) + 1):
            for iterations in (1, None):
                compare(F.cos_forward, x, 0.9, rho=rho, iterations=iterations, **ALL_COS)


def parameters(dtype):
    """θ and v_init of every shape, in x_seq's dtype and in the state dtype, for neurons [3, 5, 6,
    7].
    """
    state = F.state_dtype(dtype)

    def positive(*shape, of=state):
        return (torch.rand(shape) + 0.5).to(of)

    return {
        "scalars": (0.8, 0.1),
        "0-dim": (torch.tensor(0.8, dtype=state), torch.tensor(-0.2, dtype=dtype)),
        "per channel": (positive(5, 1, 1), None),
        "per channel, x's dtype": (positive(5, 1, 1, of=dtype), positive(5, 1, 1, of=dtype)),
        "per channel, v_init alone": (1.1, torch.randn(5, 1, 1).to(state)),
        "per column": (positive(7), torch.randn(7).to(dtype)),
        "per row": (positive(1, 6, 1), 0.25),
        "per sample": (positive(3, 1, 1, 1), None),
        "per neuron": (positive(3, 5, 6, 7), torch.randn(3, 5, 6, 7).to(state)),
        "per neuron, x's dtype": (
            positive(3, 5, 6, 7, of=dtype),
            torch.randn(3, 5, 6, 7).to(dtype),
        ),
        "per neuron, permuted": (
            positive(7, 6, 5, 3).permute(3, 2, 1, 0),
            torch.randn(5, 3, 6, 7).to(state).transpose(0, 1),
        ),
    }


@pytest.mark.parametrize("which", list(parameters(torch.float32)))
@pytest.mark.parametrize("layout", list(layouts(torch.zeros(2, 1, 1, 2, 2))))
def test_every_layout_and_parameter_shape(layout, which, dtype):
    x = with_marked_gaps(layouts(currents(9, 3, 5, 6, 7, dtype=dtype))[layout])
    compare_all(x, *parameters(dtype)[which], rho=5, iterations=(1, None))


@pytest.mark.parametrize(
    "neurons", [(5, 1, 1), (3, 2, 2), (8, 4, 4), (1, 3, 5), (64, 1, 3), (6, 8, 8), (130, 2, 1)]
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_channels_of_every_size(neurons, channels_last, dtype):
    # Channels that are smaller than a vector, that fill vectors exactly, and that end inside one.
    theta = (torch.rand(neurons[0], 1, 1) + 0.5).to(F.state_dtype(dtype))
    for batch in (1, 2, 5):
        x = currents(6, batch, *neurons, dtype=dtype)
        if channels_last:
            x = x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (6, batch))
        compare_all(x, theta, theta / 3, rho=4, iterations=(None,))


@pytest.mark.parametrize("pitch", [1029, 1032, 1056])
def test_every_alignment(pitch, dtype):
    # The start and, through the pitch, every later step lie on all offsets from a 16-byte boundary.
    x = currents(7, pitch, dtype=dtype)
    for offset in range(17):
        compare_all(
            with_marked_gaps(twin(x, "cpu")[:, offset : offset + 1000]),
            0.8,
            rho=4,
            iterations=(None,),
        )


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_static_input(memory_format, dtype):
    image = currents(3, 5, 6, 7, dtype=dtype).to(memory_format=memory_format)
    for steps, rho in ((1, 1), (4, 4), (9, 8), (20, 17)):
        x = image.expand(steps, -1, -1, -1, -1)
        for theta in (0.8, (torch.rand(5, 1, 1) + 0.5).to(F.state_dtype(dtype))):
            compare(F.if_forward, x, theta, **ALL)
            for iterations in ITERATIONS:
                compare(F.calibrate_v_init, x, theta, rho=rho, iterations=iterations)
                static = compare(F.cos_forward, x, theta, rho=rho, iterations=iterations, **ALL_COS)
                copied = F.cos_forward(
                    x.contiguous().to(GPU), move(theta), rho=rho, iterations=iterations, **ALL_COS
                )
                assert torch.equal(bits(copied.spikes), bits(static.spikes))


@pytest.mark.parametrize("wanted", range(16))
@pytest.mark.parametrize("inplace", [False, True])
def test_every_choice_of_results(wanted, inplace, dtype):
    flags = {name: bool(wanted >> i & 1) for i, name in enumerate(ALL_COS)}
    x = currents(9, 3, 129, dtype=dtype)
    compare(F.cos_forward, x, rho=4, iterations=None, inplace=inplace, **flags)
    compare(
        F.if_forward,
        x,
        inplace=inplace,
        return_v=flags["return_v"],
        return_count=flags["return_count"],
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity(value, dtype):
    x = currents(8, 2, 5, 6, 7, dtype=dtype)
    x[torch.rand(x.shape) < 0.1] = value
    compare_all(x, 0.8, rho=5)


@pytest.mark.parametrize("shape", [(4, 0), (4, 3, 0, 2), (1, 0)])
def test_no_neurons(shape, dtype):
    compare_all(torch.empty(shape, dtype=dtype), rho=1)


def test_a_single_neuron_without_dimensions(dtype):
    compare_all(currents(6, dtype=dtype), rho=3)


FUSED = ("nothing", "scale", "bias", "residual", "all")


@pytest.mark.parametrize("fused", FUSED)
@pytest.mark.parametrize(
    "shape", [(8, 2, 3, 8, 8), (5, 1, 7, 4, 6), (9, 2, 64, 16, 16), (18, 2, 8, 32, 32)], ids=str
)
def test_fused_input_pooled_spikes_statistics_and_rates(shape, fused, dtype):
    x, other = currents(*shape, dtype=dtype), currents(*shape, dtype=dtype)
    per_neuron, per_channel = (
        torch.rand(size).add(0.2).to(dtype) for size in (shape[2:], (shape[2], 1, 1))
    )
    last = {
        name: layouts(tensor)["channels_last"] for name, tensor in (("x", x), ("residual", other))
    }
    for x, residual in (
        (x, other),
        (last["x"], last["residual"]),
        (last["x"], other),
        (x, other[:1].expand(shape)),
        (x[:1].expand(shape), other),
    ):
        given = {
            "nothing": {},
            "scale": {"scale": per_channel},
            "bias": {"bias": per_neuron},
            "residual": {"residual": residual},
            "all": {"scale": per_neuron, "bias": per_channel, "residual": residual},
        }[fused]
        there = {name: move(tensor) for name, tensor in given.items()}
        first = {
            name: tensor[0] if name == "residual" else tensor for name, tensor in given.items()
        }
        for theta, v_init in ((1.0, None), (per_channel, per_neuron)):
            calls = [
                (F.if_forward, {**ALL, "v_reset": reset}, x, given, there) for reset in (None, 0.1)
            ]
            calls += [(F.if_forward, {"pool": 2}, x, given, there)]
            for rho in {1, 4, min(8, shape[0]), shape[0]}:
                for emission in F.EMISSIONS:
                    options = {
                        "rho": rho,
                        "emission": emission,
                        "iterations": None,
                        "return_statistics": True,
                    }
                    results = {**ALL_COS, "return_v": emission == "calibrated"}
                    calls += [
                        (F.cos_forward, {**options, **results}, x, given, there),
                        (F.cos_forward, {**options, "pool": 2}, x, given, there),
                    ]
            for operator, options, x_seq, here, on_gpu in calls:
                assert_same_bits(
                    operator(twin(x_seq), move(theta), move(v_init), **options, **on_gpu),
                    operator(x_seq, theta, v_init, **options, **here),
                )
            rates = F.rate_forward(
                move(x[0]),
                move(theta),
                move(v_init),
                rho=5,
                **{n: move(t) for n, t in first.items()},
            )
            assert torch.equal(
                bits(rates), bits(F.rate_forward(x[0], theta, v_init, rho=5, **first))
            )


def test_a_network_that_fuses_is_that_of_the_cpu(shipped_model, test_set):
    images, _ = next(iter(test_set.first(32).batches(32)))
    for options in ({"rho": 4}, {"rho": 0}, {"rho": 4, "emission": "even"}):
        network = cos_ext.convert(shipped_model, timesteps=6, **options).double()
        on_gpu = cos_ext.convert(
            copy.deepcopy(shipped_model).cuda(), timesteps=6, **options
        ).double()
        assert on_gpu.options["fuse"] == "bias"
        assert torch.allclose(
            on_gpu(images.double().cuda()).cpu(), network(images.double()), atol=1e-9
        )


@pytest.mark.parametrize("index", GOLDEN)
@pytest.mark.parametrize("inplace", [False, True])
def test_golden_vectors(index, inplace):
    x, authors, rho, theta = golden_case(index)
    ours = compare(F.cos_forward, x, theta, rho=rho, inplace=inplace).spikes
    wrong = ((ours > 0) != (authors > 0)).any(0)
    assert not (wrong & ~is_excused(x, rho, theta)).any()


def test_spikingjelly_record():
    for case in SPIKINGJELLY:
        result = compare(F.if_forward, case.x, case.v_threshold, 0.0, v_reset=case.v_reset, **ALL)
        assert torch.equal(result.spikes > 0, case.spikes) and torch.equal(result.v, case.v)


def test_repeated_runs_are_equal(dtype):
    x = currents(8, 1_000_003, dtype=dtype)
    expected = compare(F.cos_forward, x, rho=4, iterations=None, **ALL_COS)
    on_gpu = x.to(GPU)
    first = F.cos_forward(on_gpu, 1.0, rho=4, iterations=None, **ALL_COS)
    assert_same_bits(first, expected)
    for _ in range(20):
        again = F.cos_forward(on_gpu, 1.0, rho=4, iterations=None, **ALL_COS)
        assert all(torch.equal(a, b) for a, b in zip(first, again))


def warmed_up(body):
    """Runs body() on a side stream first, as capture needs it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        body()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()


def test_a_graph_replays_with_changed_input(dtype):
    # In the strictest mode of capture a host synchronisation or a plain cudaMalloc is an error.
    shape = (8, 3, 5, 33)
    x, work = (torch.empty(shape, dtype=dtype, device=GPU) for _ in range(2))
    theta = torch.ones(5, 1, dtype=dtype, device=GPU)

    def body():
        work.copy_(x)
        inplace = F.cos_forward(work, theta, rho=4, iterations=None, inplace=True, **ALL_COS)
        return (
            inplace,
            F.cos_forward(x, theta, rho=3, **ALL_COS),
            F.if_forward(x, theta, 0.25, v_reset=0.0, **ALL),
            F.calibrate_v_init(x, theta, rho=8, iterations=2),
        )

    x.copy_(currents(*shape, dtype=dtype))
    warmed_up(body)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="global"):
        results = body()
    seen = []
    for _ in range(3):
        inputs, thresholds = currents(*shape, dtype=dtype), (torch.rand(5, 1) + 0.5).to(dtype)
        x.copy_(inputs)
        theta.copy_(thresholds)
        graph.replay()
        torch.cuda.synchronize()
        expected = (
            F.cos_forward(
                inputs.clone(), thresholds, rho=4, iterations=None, inplace=True, **ALL_COS
            ),
            F.cos_forward(inputs, thresholds, rho=3, **ALL_COS),
            F.if_forward(inputs, thresholds, 0.25, v_reset=0.0, **ALL),
            F.calibrate_v_init(inputs, thresholds, rho=8, iterations=2),
        )
        for ours, theirs in zip(results, expected):
            assert_same_bits(ours, theirs)
        seen.append(expected[1].spikes)
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])


@pytest.mark.parametrize("inplace", [False, True])
def test_the_current_stream_is_used(inplace, dtype):
    late = currents(8, 3, 1025, dtype=dtype)
    expected = F.cos_forward(late.clone(), 1.0, rho=4, inplace=inplace, **ALL_COS)
    source, x = late.to(GPU), torch.zeros_like(late, device=GPU)
    F.cos_forward(
        x.clone(), 1.0, rho=4, inplace=inplace, **ALL_COS
    )  # loads the module, which may synchronise
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(
            200_000_000
        )  # a tenth of a second: on another stream the kernel would see the zeros
        x.copy_(source)
        result = F.cos_forward(x, 1.0, rho=4, inplace=inplace, **ALL_COS)
    side.synchronize()
    assert_same_bits(result, expected)
    zeros = F.cos_forward(torch.zeros_like(late), 1.0, rho=4, **ALL_COS)
    assert not torch.equal(zeros.spikes, expected.spikes)


def test_streams_work_side_by_side():
    inputs = [currents(8, 100_003) for _ in range(4)]
    on_gpu, streams = [x.to(GPU) for x in inputs], [torch.cuda.Stream() for _ in inputs]
    torch.cuda.synchronize()
    results = []
    for x, stream in zip(on_gpu, streams):
        with torch.cuda.stream(stream):
            results.append(F.cos_forward(x, 1.0, rho=8, iterations=None, **ALL_COS))
    torch.cuda.synchronize()
    for x, result in zip(inputs, results):
        assert_same_bits(result, F.cos_forward(x, 1.0, rho=8, iterations=None, **ALL_COS))


def test_the_host_never_waits(bare):
    x, theta = currents(8, 3, 5, 33).to(GPU), torch.rand(5, 1, device=GPU) + 0.5
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):  # the mode works
            x.sum().item()
        for parameters_ in ((1.0, None), (theta, None), (theta, theta / 2), (theta, 0.1)):
            F.if_forward(x, *parameters_, **ALL)
            F.cos_forward(x, *parameters_, rho=4, iterations=None, **ALL_COS)
            F.calibrate_v_init(x, *parameters_, rho=4)
            F.cos_forward(x, *parameters_, rho=8, inplace=True, **ALL_COS)
    finally:
        torch.cuda.set_sync_debug_mode("default")


CALLS = {
    "if_forward": (F.if_forward, {}, 1),
    "if_forward in place": (F.if_forward, {"inplace": True}, 0),
    "if_forward, all results": (F.if_forward, ALL, 3),
    "cos_forward": (F.cos_forward, {"rho": 4}, 1),
    "cos_forward in place": (F.cos_forward, {"rho": 8, "iterations": None, "inplace": True}, 0),
    "cos_forward, rho > 16": (F.cos_forward, {"rho": 20, "iterations": None, "inplace": True}, 0),
    "cos_forward, all results": (F.cos_forward, {"rho": 4, "iterations": None, **ALL_COS}, 5),
    "calibrate_v_init": (F.calibrate_v_init, {"rho": 4}, 3),
}


@pytest.mark.parametrize("name", list(CALLS))
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_one_launch_and_no_allocation_but_the_results(
    name, layout, per_channel, dtype, bare, monkeypatch
):
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[2] / "bench"), *sys.path])
    from gpu_layer import graph_nodes

    operator, options, allocations = CALLS[name]
    x = twin(layouts(currents(20, 2, 5, 6, 7, dtype=dtype))[layout])
    theta = torch.ones(5, 1, 1, dtype=F.state_dtype(dtype), device=GPU) if per_channel else 1.0
    assert graph_nodes(lambda: operator(x, theta, **options)) == [0]  # one node, a kernel

    def allocated():
        return torch.cuda.memory_stats()["allocation.all.allocated"]

    before = allocated()
    kept = operator(x, theta, **options)
    assert allocated() - before == allocations
    del kept


@pytest.mark.parametrize("execution", ["steps", "counts"])
def test_a_captured_network_is_the_network(execution, bare):
    # In float64, where no convolution decides a spike by its rounding.
    network = cos_ext.convert(
        cos_ext.models.resnet20(10, 1, threshold=1.0).double(), timesteps=4, rho=4, emission="even"
    ).to(GPU)
    network.execution = execution
    captured = network.capture(torch.zeros(6, 1, 28, 28, dtype=torch.float64, device=GPU))
    results = []
    for _ in range(3):
        x = torch.rand(6, 1, 28, 28, dtype=torch.float64, device=GPU)
        results.append((captured(x), network(x)))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        x = torch.rand(6, 1, 28, 28, dtype=torch.float64, device=GPU)
        results.append((captured(x), network(x)))
    torch.cuda.synchronize()
    for ours, expected in results:
        assert (
            ours.shape == (4, 6, 10)
            and (ours - expected).abs().max() <= 1e-9
            and expected.abs().max() > 1e-3
        )
    assert captured(x, clone=False).data_ptr() == captured(x, clone=False).data_ptr()
    with pytest.raises(ValueError, match="as captured, got torch.float64"):
        captured(x[:3])
    with pytest.raises(ValueError, match="on cpu; capture"):
        captured(x.cpu())
    network.timesteps = 3
    with pytest.raises(RuntimeError, match="changed since it was captured"):
        captured(x)
    assert network.capture(x)(x).shape == (3, 6, 10)


def test_capture_under_autocast_needs_it_without_its_cache(bare):
    network = cos_ext.convert(cos_ext.models.resnet20(10, 1, threshold=1.0), timesteps=2, rho=2).to(
        GPU
    )
    x = torch.rand(4, 1, 28, 28, device=GPU)
    with (
        torch.autocast("cuda", dtype=torch.bfloat16),
        pytest.raises(RuntimeError, match="cache_enabled=False"),
    ):
        network.capture(x)
    with torch.autocast("cuda", dtype=torch.bfloat16, cache_enabled=False):
        assert network.capture(x)(x).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="capture needs CUDA"):
        network.capture(x.cpu())


def test_a_memory_limit_is_kept(bare):
    network = cos_ext.convert(
        cos_ext.models.resnet20(10, 1, threshold=1.0).double(), timesteps=8, rho=4
    ).to(GPU)
    x = torch.rand(256, 1, 28, 28, dtype=torch.float64, device=GPU)
    whole, peaks, outputs = network.activation_bytes(x), [], []
    for limit in (None, whole // 8):
        network.memory_limit = limit
        network(x)  # plans, and lets libraries take what they keep
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        outputs.append(network(x))
        torch.cuda.synchronize()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    print(f"\nallocated at most: {peaks}, estimated: {whole}, limit: {whole // 8}")
    assert peaks[0] >= 0.99 * whole and peaks[1] < 0.5 * peaks[0]
    assert (outputs[0] - outputs[1]).abs().max() <= 1e-9


@pytest.mark.skipif(
    WHY_NOT is None and torch.cuda.device_count() < 2, reason="there is one GPU only"
)
def test_another_device_than_the_current_one():
    x = currents(8, 3, 129)
    expected = F.cos_forward(x, 1.0, rho=4, **ALL_COS)
    with torch.cuda.device(0):
        result = F.cos_forward(x.to("cuda:1"), 1.0, rho=4, **ALL_COS)
        assert torch.cuda.current_device() == 0
    assert all(part.device == torch.device("cuda:1") for part in result)
    assert_same_bits(result, expected)


BIG = {
    # 2^31 is passed by the offset of a step, by the index of a neuron, and by the index inside a
    # channel.
    "time": ((2, 2**30 + 3), None),
    "neurons": ((1, 2**31 + 5), None),
    "channels": ((1, 2, 2**30 + 3), (2, 1)),
}


@pytest.mark.parametrize("name", list(BIG))
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_more_than_2_31_elements(name, half, bare):
    free = torch.cuda.mem_get_info()[0]
    if free < 24 * 2**30:
        pytest.skip(f"needs 24 GiB of free device memory, there are {free / 2**30:.1f}")
    shape, theta_shape = BIG[name]
    x = torch.empty(shape, dtype=half, device=GPU)
    assert x.numel() > 2**31
    for part in x.view(-1).split(2**28):
        part.normal_(0.35, 1.2)
    theta = 1.0 if theta_shape is None else torch.tensor([0.75, 1.25], device=GPU).view(theta_shape)
    options = {"rho": shape[0], "iterations": None}
    result = F.cos_forward(x, theta, return_count=True, **options)
    last, edge = shape[-1], 2**31 if shape[-1] > 2**31 else 2**30
    for start in range(0, last, 2**27):
        stretch = slice(start, min(start + 2**27, last))
        part = F.cos_forward(x[..., stretch].contiguous(), theta, return_count=True, **options)
        assert torch.equal(result.spikes[..., stretch], part.spikes)
        assert torch.equal(result.spike_count[..., stretch], part.spike_count)
        del part
    for start in (0, 2**29 - 500, edge - 1000, last - 1000):
        stretch = slice(start, start + 1000)
        small = F.cos_forward(
            x[..., stretch].cpu(),
            theta if theta_shape is None else theta.cpu(),
            return_count=True,
            **options,
        )
        assert torch.equal(bits(result.spikes[..., stretch]), bits(small.spikes))
        assert torch.equal(result.spike_count[..., stretch].cpu(), small.spike_count)
        assert small.spike_count.unique().numel() == shape[0] + 1
    spikes = result.spikes
    del result
    F.cos_forward(x, theta, inplace=True, **options)
    assert all(
        torch.equal(a, b) for a, b in zip(x.view(-1).split(2**28), spikes.view(-1).split(2**28))
    )
    del x, spikes
    torch.cuda.empty_cache()


@pytest.mark.parametrize("kind", DTYPES, ids=lambda kind: str(kind).removeprefix("torch."))
def test_short_run_for_compute_sanitizer(kind, bare):
    # bench/gpu_run.sh runs this under memcheck and racecheck: few launches, and nearly none but
    # ours.
    for size in (1, 33, 129, 4097):
        compare(F.if_forward, currents(5, size, dtype=kind), **ALL)
        for rho in (3, 18):
            compare(
                F.cos_forward,
                currents(19, size, dtype=kind),
                rho=rho,
                iterations=None,
                inplace=True,
                **ALL_COS,
            )
    theta = (torch.rand(5, 1, 1) + 0.5).to(F.state_dtype(kind))
    for x in layouts(currents(6, 3, 5, 6, 7, dtype=kind)).values():
        compare(F.cos_forward, x, theta, theta / 2, rho=4, iterations=None, **ALL_COS)
    compare(
        F.cos_forward,
        currents(3, 5, 6, 7, dtype=kind).expand(6, -1, -1, -1, -1),
        theta,
        rho=4,
        **ALL_COS,
    )
