"""The event-driven convolution and linear layer: conv2d's results, in an order of their own."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from threads import differences
from torch.nn import functional as TF

from cos_ext import functional as F
from cos_ext._functional.events import pack_weight

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# C, outputs, kernel, stride, padding, dilation, size: tails of channels, borders, blocks.
CASES = [
    (1, 1, 3, 1, 1, 1, (5, 6)),
    (3, 17, (3, 2), (2, 1), 1, 1, (9, 7)),
    (17, 63, 5, 1, 2, 1, (7, 7)),
    (63, 64, 3, 1, 0, 2, (8, 9)),
    (64, 65, 3, 2, 1, 1, (9, 8)),
    (65, 200, 1, 1, 0, 1, (6, 5)),
    (200, 3, 3, 1, (1, 2), (2, 1), (9, 7)),
    (130, 20, 2, 3, 1, 3, (11, 10)),
    (16, 16, 7, 4, 3, 1, (13, 40)),
    (16, 33, (1, 5), 1, (0, 2), (1, 2), (4, 12)),
    (48, 48, 3, 5, 4, 4, (3, 3)),
    (16, 16, 3, 1, 1, 1, (28, 28)),
    (40, 30, 3, 1, 2, 1, (9, 8)),
    (64, 64, 3, 1, 1, 1, (7, 7)),
    (20, 24, 3, 2, 1, 1, (9, 9)),
    (33, 64, 1, 2, 0, 1, (8, 7)),
    (16, 32, 1, 2, 1, 1, (5, 6)),
    (300, 64, 5, 1, 2, 1, (20, 24)),  # the list of events is full before the rows are
]


def spikes(n, channels, size, density, dtype=torch.float32, whole=False):
    shape = (n, channels, *size)
    values = torch.randint(-3, 4, shape) if whole else torch.randn(shape)
    return (values * (torch.rand(shape) < density)).to(dtype)


def one_level(x, level=0.7):
    return torch.where(x != 0, torch.tensor(level, dtype=x.dtype), x)


def weights(channels, outputs, kernel, dtype=torch.float32, whole=False):
    shape = (outputs, channels, *((kernel, kernel) if isinstance(kernel, int) else kernel))
    weight = torch.randint(-4, 5, shape) if whole else torch.randn(shape)
    return weight.to(dtype), torch.randint(-4, 5, (outputs,)).to(dtype)


@pytest.mark.parametrize("density", ["one", 0.02, 0.5, 1, 0])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_the_dense_convolution(case, density):
    channels, outputs, kernel, stride, padding, dilation, size = case
    weight, bias = weights(channels, outputs, kernel, torch.float64)
    x = spikes(3, channels, size, 0 if density == "one" else density, torch.float64)
    if density == "one":
        x[1, channels // 2, size[0] // 2, size[1] // 2] = 1.5
    for given in (None, bias):
        ours = F.spike_conv2d(x, weight, given, stride, padding, dilation)
        dense = TF.conv2d(x, weight, given, stride, padding, dilation)
        assert ours.shape == dense.shape and ours.dtype == dense.dtype
        assert ours.is_contiguous(memory_format=torch.channels_last)
        assert (ours - dense).abs().max() <= 1e-12 * max(1, dense.abs().max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_level_changes_no_bit(case, dtype):
    """Products are made once for spikes; an image with other values is computed by itself."""
    channels, outputs, kernel, *arguments, size = case
    weight, bias = weights(channels, outputs, kernel, dtype)
    repeats = -(-300 // (size[0] * size[1]))
    x = one_level(spikes(4, channels, size, 0.3, dtype)).repeat(repeats, 1, 1, 1)
    odd = torch.cat([x, spikes(1, channels, size, 0.3, dtype), x])
    ours = F.spike_conv2d(odd, weight, bias, *arguments)
    alone = [F.spike_conv2d(image[None], weight, bias, *arguments) for image in odd]
    assert torch.equal(ours, torch.cat(alone))
    if dtype == torch.float64:
        dense = TF.conv2d(x, weight, bias, *arguments)
        assert (F.spike_conv2d(x, weight, bias, *arguments) - dense).abs().max() <= 1e-12 * max(
            1, dense.abs().max()
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.0])
@pytest.mark.parametrize("channels", [7, 16])
def test_what_is_no_spike_among_spikes(channels, value):
    weight, bias = weights(channels, 16, 3)
    x = one_level(spikes(2, channels, (20, 20), 0.3))
    x[1, 3, 15, 15] = value
    ours, dense = F.spike_conv2d(x, weight, bias), TF.conv2d(x, weight, bias)
    assert torch.allclose(ours, dense, atol=1e-5, equal_nan=True)
    x[0, 0, 0, 0] = value  # what is taken for the level
    ours, dense = F.spike_conv2d(x, weight, bias), TF.conv2d(x, weight, bias)
    assert torch.allclose(ours, dense, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_sums_that_are_exact_are_equal(case, dtype):
    channels, outputs, kernel, *arguments, size = case
    weight, bias = weights(channels, outputs, kernel, dtype, whole=True)
    x = spikes(2, channels, size, 0.05, dtype, whole=True)
    dense = TF.conv2d(x.double(), weight.double(), bias.double(), *arguments)
    assert torch.equal(F.spike_conv2d(x, weight, bias, *arguments), dense.to(dtype))


def sums_in_order(x, weight, bias):
    """One output: from the bias on, columns first, then rows, then channels."""
    total = bias.clone()
    for j in range(x.shape[2]):
        for k in range(x.shape[1]):
            for c in range(x.shape[0]):
                if x[c, k, j] != 0:
                    total = total + weight[:, c, k, j] * x[c, k, j]
    return total


@pytest.mark.parametrize("outputs", [5, 32, 64, 130])
def test_the_order_of_the_sum(outputs):
    weight, bias = weights(37, outputs, 3)
    x = spikes(1, 37, (3, 3), 0.3)
    ours = F.spike_conv2d(x, weight, bias)[0, :, 0, 0]
    assert torch.equal(ours, sums_in_order(x[0], weight, bias))


def results():
    """The bits of a few convolutions."""
    torch.manual_seed(0)
    for channels, outputs, kernel, *arguments, size in CASES:
        weight, bias = weights(channels, outputs, kernel)
        out = F.spike_conv2d(spikes(3, channels, size, 0.3), weight, bias, *arguments)
        yield out.contiguous().numpy().tobytes()
        x = one_level(spikes(40, channels, size, 0.3))
        yield F.spike_conv2d(x, weight, bias, *arguments).contiguous().numpy().tobytes()


@pytest.mark.parametrize("capability", ["avx512", "avx2", "baseline"])
def test_instruction_sets_and_threads_give_the_same_bits(capability, monkeypatch):
    monkeypatch.setenv("COS_EXT_CPU_CAPABILITY", capability)
    code = (
        "import sys, torch, hashlib; sys.path[:0] = sys.argv[1:]; torch.set_num_threads(3);"
        "import test_spike_conv as t; print(hashlib.sha1(b''.join(t.results())).hexdigest())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, Path(__file__).parents[:2])],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == hashlib.sha1(b"".join(results())).hexdigest()


def test_samples_do_not_depend_on_the_batch():
    weight, bias = weights(20, 40, 3)
    x = spikes(7, 20, (30, 31), 0.3)
    whole = F.spike_conv2d(x, weight, bias, 1, 1)
    assert torch.equal(
        torch.cat([F.spike_conv2d(part, weight, bias, 1, 1) for part in x.split(2)]), whole
    )


def test_layouts_and_empty_batches():
    weight, bias = weights(6, 9, 3)
    x = spikes(4, 6, (8, 10), 0.4)
    expected = F.spike_conv2d(x, weight, bias)
    wide = torch.zeros(4, 12, 8, 20)
    wide[:, ::2, :, ::2] = x
    for given in (
        x.contiguous(memory_format=torch.channels_last),
        wide[:, ::2, :, ::2],
        wide.contiguous(memory_format=torch.channels_last)[:, ::2, :, ::2],
        x.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        assert torch.equal(F.spike_conv2d(given, weight, bias), expected)
    repeated = x[:1].expand(4, -1, -1, -1)
    assert torch.equal(F.spike_conv2d(repeated, weight, bias), expected[:1].expand(4, -1, -1, -1))
    assert F.spike_conv2d(x[:0], weight, bias).shape == (0, 9, 6, 8)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_comes_out(value):
    weight, bias = weights(70, 5, 3)
    x = torch.zeros(2, 70, 6, 6)
    x[1, 66, 2, 3] = value
    ours, dense = F.spike_conv2d(x, weight, bias, 1, 1), TF.conv2d(x, weight, bias, 1, 1)
    assert ours[0].isfinite().all()
    near = dense[1].nan_to_num(7.0, 8.0, -8.0)
    assert torch.allclose(ours[1, :, 1:4, 2:5].nan_to_num(7.0, 8.0, -8.0), near[:, 1:4, 2:5])
    assert not ours[1, :, 1:4, 2:5].isfinite().any()


def test_linear():
    for channels, outputs in ((1, 1), (70, 10), (200, 130)):
        weight, bias = torch.randn(outputs, channels).double(), torch.randn(outputs).double()
        x = spikes(12, channels, (1, 1), 0.3, torch.float64).flatten(1)
        dense = TF.linear(x, weight, bias)
        assert (F.spike_linear(x, weight, bias) - dense).abs().max() < 1e-12
        cube = x.view(3, 4, channels)
        assert torch.equal(F.spike_linear(cube, weight), F.spike_linear(x, weight).view(3, 4, -1))
        assert torch.equal(F.spike_linear(x[0], weight), F.spike_linear(x, weight)[0])


def test_threads_at_once():
    weight, bias = weights(32, 64, 3)
    inputs = [spikes(4, 32, (12, 12), 0.2) for _ in range(4)]
    expected = [F.spike_conv2d(x, weight, bias) for x in inputs]
    assert differences(lambda x: F.spike_conv2d(x, weight, bias), inputs, expected) == 0


@pytest.mark.parametrize(
    ("outputs", "block", "blocks"), [(1, 16, 1), (31, 32, 1), (33, 64, 1), (65, 64, 2)]
)
def test_packing(outputs, block, blocks):
    weight, _ = weights(5, outputs, (3, 2), torch.float16)
    packed = pack_weight(weight)
    assert packed.shape == (blocks, 2, 3, 5, block) and packed.dtype == torch.float32
    flat = packed.permute(0, 4, 3, 2, 1).flatten(0, 1)
    assert torch.equal(flat[:outputs], weight.float()) and not flat[outputs:].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("last", [False, True])
def test_opcheck(dtype, last):
    weight, bias = weights(5, 20, (3, 2), dtype)
    x = spikes(2, 5, (6, 7), 0.4, dtype)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    state = torch.float64 if dtype == torch.float64 else torch.float32
    for arguments in ((2, 1, 1, 0, 1, 2), (1, 1, 0, 0, 1, 1)):
        torch.library.opcheck(
            torch.ops.cos_ext.spike_conv2d,
            (x, None, pack_weight(weight), bias.to(state), 20, *arguments),
        )


def test_compiled():
    weight, bias = weights(5, 20, 3)
    compiled = torch.compile(lambda x: F.spike_conv2d(x, weight, bias, 2, 1), fullgraph=True)
    for n in (2, 3, 5):
        x = spikes(n, 5, (8, 8), 0.4)
        assert torch.equal(compiled(x), F.spike_conv2d(x, weight, bias, 2, 1))


X, W, B = torch.zeros(2, 3, 5, 5), torch.zeros(4, 3, 3, 3), torch.zeros(4)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (([1.0], W), TypeError, "x must be a tensor, got list"),
        ((X, 3), TypeError, "weight must be a tensor"),
        ((X.int(), W), TypeError, "x must be float32"),
        ((X, W.double()), TypeError, "weight must be .*, x's dtype, got torch.float64"),
        ((X[0], W), ValueError, r"must be \[N, C, H, W\]"),
        ((X[:, :2], W), ValueError, r"got \(2, 2, 5, 5\) and \(4, 3, 3, 3\)"),
        ((X, W[:0]), ValueError, "x and weight must be"),
        ((X, W, B[:3]), ValueError, r"bias must be \[4\], got \(3,\)"),
        ((X, W, B, 0), ValueError, "stride must be"),
        ((X, W, B, 1.5), TypeError, "stride must be"),
        ((X, W, B, (1, 1, 1)), ValueError, "stride must be an int or two"),
        ((X, W, B, 1, -1), ValueError, "padding must be"),
        ((X, W, B, 1, 2**40), ValueError, "padding must be"),
        ((X, W, B, 1, 0, 3), ValueError, "x must be as large as the window"),
        ((X.requires_grad_(False), W.clone().requires_grad_()), RuntimeError, "no gradient"),
    ],
)
def test_what_is_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        F.spike_conv2d(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        (X, None, W, None, 4, 1, 1, 0, 0, 1, 1),  # not packed
        (X, None, pack_weight(W), None, 17, 1, 1, 0, 0, 1, 1),
        (X, None, pack_weight(W), None, 0, 1, 1, 0, 0, 1, 1),
        (X, None, pack_weight(W), B.double(), 4, 1, 1, 0, 0, 1, 1),
        (X, None, pack_weight(W).double(), None, 4, 1, 1, 0, 0, 1, 1),
        (X[:, :2], None, pack_weight(W), None, 4, 1, 1, 0, 0, 1, 1),
        (X, None, pack_weight(W), None, 4, 0, 1, 0, 0, 1, 1),
        (X, None, pack_weight(W), None, 4, 1, 1, -1, 0, 1, 1),
        (X, None, pack_weight(W), None, 4, 1, 1, 0, 0, 3, 1),
        (X.int(), None, pack_weight(W), None, 4, 1, 1, 0, 0, 1, 1),
    ],
    ids=lambda arguments: "",
)
def test_the_operator_itself_refuses(arguments):
    with pytest.raises(RuntimeError, match="must|has"):
        torch.ops.cos_ext.spike_conv2d(*arguments)
