"""What only a GPU can show: graphs, streams, launches, allocations, more than 2^31 elements.
Skipped without one. That results equal the CPU's: test_gpu.py; learning: test_gpu_learning.py.
"""

import sys
from pathlib import Path

import pytest
import torch
from conftest import DTYPES, layouts
from on_gpu import (
    ALL,
    ALL_COS,
    GPU,
    WHY_NOT,
    assert_same_bits,
    bits,
    compare,
    currents,
    poisoned_memory,
    skip_unless_free,
    twin,
)

import cos_ext
from cos_ext import functional as F

pytestmark = [
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(autouse=True)
def poisoned():
    with poisoned_memory():
        yield


@pytest.fixture
def bare(poisoned):
    """Undoes that, for tests that count what an operator launches and allocates."""
    torch.use_deterministic_algorithms(False)


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
            F.srp_forward(x, 1.0, 0.25, tau=3, return_count=True),
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
            F.srp_forward(inputs, 1.0, 0.25, tau=3, return_count=True),
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
            backward(x, parameters_[0])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def backward(x, theta, v_init=0.25):
    """The operator alone, with x for the gradient of the spikes, too."""
    theta, value = (None, theta) if isinstance(theta, float) else (theta, 0.0)
    settings = (None, 0, 2.0, False, False, False)
    return torch.ops.cos_ext.if_backward(x, x, theta, value, None, v_init, *settings)


CALLS = {
    "if_forward": (F.if_forward, {}, 1),
    "if_forward in place": (F.if_forward, {"inplace": True}, 0),
    "if_forward, all results": (F.if_forward, ALL, 3),
    "cos_forward": (F.cos_forward, {"rho": 4}, 1),
    "cos_forward in place": (F.cos_forward, {"rho": 8, "iterations": None, "inplace": True}, 0),
    "cos_forward, rho > 16": (F.cos_forward, {"rho": 20, "iterations": None, "inplace": True}, 0),
    "cos_forward, all results": (F.cos_forward, {"rho": 4, "iterations": None, **ALL_COS}, 5),
    "calibrate_v_init": (F.calibrate_v_init, {"rho": 4}, 3),
    "if_backward": (backward, {}, 2),  # and room for potentials, where there are over 8 steps
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


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_thresholds_are_converted_once_on_each_stream(half, bare):
    node, x = cos_ext.IFNode(0.7, timesteps=4, rho=4), currents(8, 1025, dtype=half)
    with torch.no_grad():
        expected = node(x)
        on_gpu, ours = node.to(GPU), x.to(GPU)
        late, side, results = torch.cuda.Stream(), torch.cuda.Stream(), []
        torch.cuda.synchronize()
        for stream in (late, side, late, side):
            with torch.cuda.stream(stream):
                if not results:
                    torch.cuda._sleep(200_000_000)  # the conversion waits for a tenth of a second
                results.append(on_gpu(ours))
        torch.cuda.synchronize()
        assert all(torch.equal(result.cpu(), expected) for result in results)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
            with torch.cuda.stream(side):
                on_gpu(ours)
            torch.cuda.synchronize()
        kernels = [e for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        assert len(kernels) == 1, [e.name for e in kernels]


def test_a_graph_of_a_half_precision_node_follows_its_threshold():
    node, x = cos_ext.IFNode(0.7, timesteps=4, rho=4).to(GPU), currents(8, 1025).half().to(GPU)
    with torch.no_grad():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            node(x)  # what is kept from here must not be the graph's
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            captured = node(x)
        for theta in (0.7, 0.4, 1.1):
            node.v_threshold.fill_(theta)
            graph.replay()
            torch.cuda.synchronize()
            twin_ = cos_ext.IFNode(theta, v_init=0.35, timesteps=4, rho=4)
            assert torch.equal(captured.cpu(), twin_(x.cpu()))
            assert torch.equal(node(x).cpu(), twin_(x.cpu()))


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
    skip_unless_free(24)
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
