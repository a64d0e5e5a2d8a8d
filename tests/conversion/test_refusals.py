"""What convert() refuses, call by call, with the reason, and that it says everything at once. What
converts: test_convert.py.
"""

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as TF
from wrapped import IMAGES, InPlace, Wrapped, lossless

from cos_ext import QCFS, ConversionError, IFNode, convert

pytestmark = pytest.mark.usefixtures("one_thread")


def small(*layers):
    return nn.Sequential(nn.Conv2d(1, 4, 3), *layers, nn.Flatten(), nn.LazyLinear(3))


@fx.wrap
def mean(x):  # a rule must not go by the name
    return x.abs()


def alias_of_an_addition(m, x):
    y = m.a(m.q1(m.c(x)))
    z = y
    y += m.b(x)
    return m.d(m.q2(y)) + m.e(z)


def ignored_add_(m, x):
    y = m.a(x)
    y.add_(m.q1(m.b(x)))
    return m.d(m.q2(m.c(y))) + m.e(y)


def relu_of_an_alias(m, x):
    x = m.a(m.q1(m.c(x)))
    i = m.identity(x)
    return m.d(m.relu(x) + i)


def relu_read_again(m, x):
    y = m.a(x)
    m.relu(y)
    return m.d(y) + m.e(m.q1(m.b(x)))


@pytest.mark.parametrize(
    "forward", [alias_of_an_addition, ignored_add_, relu_of_an_alias, relu_read_again]
)
def test_in_place_operations_that_others_see_are_refused(forward):
    with pytest.raises(ConversionError, match="in place (to|on) a tensor that others may read"):
        convert(InPlace(forward), timesteps=4, thresholds={"relu": 1.0})


def test_hooks_are_refused():
    for name in ("act", "conv"):
        for register in ("register_forward_hook", "register_forward_pre_hook"):
            model = Wrapped(lambda m, x: m.head(m.act(m.conv(x)).flatten(1)))
            getattr(getattr(model, name), register)(lambda *_: None)
            with pytest.raises(ConversionError, match=f"{name} .*has forward hooks"):
                convert(model, timesteps=4)


def test_batch_norm_without_statistics_is_refused():
    model = Wrapped(
        lambda m, x: m.head(m.norm(m.act(m.conv(x))).flatten(1)), norm=nn.BatchNorm2d(4)
    )
    model.norm.running_mean = model.norm.running_var = None
    with pytest.raises(ConversionError, match="no running statistics"):
        convert(model, timesteps=4)


def test_an_example_shows_what_mixes_the_batch():
    model = Wrapped(lambda m, x: m.head(m.act(m.conv(x)).flatten(1)))
    model.conv.forward = lambda x: TF.conv2d(x, model.conv.weight.to(x), padding=1) + x.mean()
    with pytest.raises(ConversionError, match="depends on the other samples"):
        convert(model, timesteps=4, example_input=IMAGES)


def test_an_example_of_the_wrong_shape_is_told_so():
    with pytest.raises(ConversionError, match="Wrapped does not run on the first sample"):
        convert(
            Wrapped(lambda m, x: m.head(m.act(m.conv(x)).flatten(1))),
            timesteps=4,
            example_input=torch.rand(2, 5),
        )


@pytest.mark.parametrize(
    "forward, layers, message",
    [
        (
            lambda m, x: m.head((m.act(m.conv(x)) / x.size(0)).flatten(1)),
            {},
            "uses the size of the batch",
        ),
        (
            lambda m, x: m.head(m.act(m.conv(x)).view(2 * x.size(0), -1)),
            {},
            "fixes the batch",
        ),
        (
            lambda m, x: m.head(m.act(m.conv(x)).view(-1, 72).view(x.size(0), -1)),
            {},
            "fixes the batch",
        ),
        (
            lambda m, x: m.head((m.act(m.conv(x)) + torch.cumsum(x, 3)).flatten(1)),
            {},
            "cumsum has the batch.*not known; pass example",
        ),
        (lambda m, x: m.head(m.act(m.conv(x)).view(2, -1)), {}, "fixes the batch"),
        (lambda m, x: m.head(TF.relu(m.act(m.conv(x))).flatten(1)), {}, "relu.*has no threshold"),
        (
            lambda m, x: m.head(torch.relu(m.act(m.conv(x))).flatten(1)),
            {},
            "relu.*has no threshold",
        ),
        (lambda m, x: m.head(m.act(m.conv(x)).relu_().flatten(1)), {}, "relu.*has no threshold"),
        (lambda m, x: m.head((m.act(m.conv(x)) // 2).flatten(1)), {}, "floordiv.*no rule"),
        (
            lambda m, x: m.head(m.act(m.conv(x)).permute(1, 0, 2, 3).flatten(1)),
            {},
            "moves the batch",
        ),
        (lambda m, x: m.head(m.act(m.conv(x)).squeeze().flatten(1)), {}, "squeeze the batch"),
        (
            lambda m, x: m.head(torch.stack([m.act(m.conv(x))] * 2).flatten(1)),
            {},
            "may be the batch",
        ),
        (
            lambda m, x: TF.linear(m.act(m.conv(x)).flatten(1), m.head(m.conv(x).flatten(1))),
            {},
            "weights that depend",
        ),
        (
            lambda m, x: torch.addmm(
                torch.ones(4, 3), m.act(m.conv(x)).flatten(1), m.head.weight.mT
            ),
            {},
            "would meet the batch",
        ),
        (
            lambda m, x: m.head(m.f(m.act(m.conv(x)).flatten(2))[1].flatten(1)),
            {"f": nn.GRU(36, 36, batch_first=True)},
            "hands on its state",
        ),
        (
            lambda m, x: torch.addmm(m.act(m.conv(x)).flatten(1), x.flatten(1), m.head.weight.mT),
            {},
            "weights that depend",
        ),
        (
            lambda m, x: m.head(TF.pad(m.act(m.conv(x)), (0, 0, 0, 0, 0, 0, 1, 1)).flatten(1)),
            {},
            "may pad the batch",
        ),
        (lambda m, x: m.head(m.act(m.conv(x))[x[:, 0, 0, 0] > 0].flatten(1)), {}, "indexing"),
        (lambda m, x: m.head(m.act(m.conv(x)).flatten(0)), {}, "may be the batch"),
        (lambda m, x: m.head(torch.cat([m.act(m.conv(x))] * 2).flatten(1)), {}, "may be the batch"),
        (lambda m, x: m.head(m.act(m.conv(x)).flatten(1)[0]), {}, "indexing"),
        (lambda m, x: m.head(m.f(m.act(m.conv(x)))), {"f": nn.Flatten(0)}, "may merge the batch"),
        (lambda m, x: m.head(m.g(m.act(m.conv(x))).flatten(1)), {"g": IFNode()}, "spiking already"),
        (
            lambda m, x: m.head(m.b(m.act(m.conv(x))).flatten(1)),
            {"b": nn.BatchNorm2d(4, track_running_stats=False)},
            "no running statistics",
        ),
        (lambda m, x: m.head(m.act(m.conv(x)).flatten(1)) + x.shape[0], {}, "adds a size"),
        (
            lambda m, x: m.head(m.act(m.conv(x)).flatten(1)).T,
            {},
            "no rule converts the attribute T",
        ),
        (lambda m, x: m.head(m.act(x).flatten(-3)), {}, "may be the batch"),  # of unknown rank
        (
            lambda m, x: (lambda z: z + z.sum((-1, -2)))(m.head(m.act(m.conv(x)).flatten(1))),
            {},
            "may be the batch",
        ),
        (lambda m, x: m.head(m.act(m.conv(x)).flatten(1)).sum(()), {}, "may be the batch"),
        (lambda m, x: m.head(m.act(m.conv(x)).flatten(1)).mean(), {}, "may be the batch"),
        (
            lambda m, x: m.head(m.act(m.conv(x)).flatten(1)).view(-1).sum(-1),
            {},
            "batch must be a dimension of its own",
        ),
        (
            lambda m, x: (lambda z: z.view(z.size(1), -1).sum(1))(
                m.head(m.act(m.conv(x)).flatten(1))
            ),
            {},
            "fixes the batch",
        ),
        (
            lambda m, x: (lambda z: z.view(-1, z.size(0)))(m.head(m.act(m.conv(x)).flatten(1))),
            {},
            "uses the size of the batch",
        ),
        (
            lambda m, x: m.head(torch.reshape(m.act(m.conv(x)), shape=(4, -1))),
            {},
            "fixes the batch",
        ),
        (
            lambda m, x: m.head(m.act(m.head.weight) + m.conv(x).flatten(1)),
            {},
            "there is no activation to convert",
        ),
        (
            lambda m, x: m.head(mean(m.act(m.conv(x))).flatten(1)),
            {},
            "mean.*no rule converts this function",
        ),
        (
            lambda m, x: torch.cat([m.head(m.act(m.conv(x)).flatten(1))] * 2, -2),
            {},
            "may be the batch",
        ),
        (lambda m, x: m.head(m.act(m.conv(x)).flatten(1)).mean(-2), {}, "may be the batch"),
        (
            lambda m, x: m.head(TF.dropout(m.act(m.conv(x)), 0.5).flatten(1)),
            {},
            "is active in evaluation",
        ),
        (lambda m, x: m.head(m.act(m.conv(x)).view(x.shape[0] + 0, -1)), {}, "adds a size"),
        (lambda m, x: m.head(m.conv(x).flatten(1)), {}, "there is no activation to convert"),
        (lambda m, x: (m.act(m.conv(x)), {m.conv(x)}), {}, "a set in it"),
        (
            lambda m, x: m.head(m.act(m.conv(x)).flatten(1)) if x.sum() > 0 else x,
            {},
            "cannot be traced by torch.fx",
        ),
    ],
)
def test_what_is_refused(forward, layers, message):
    with pytest.raises(ConversionError, match=message):
        convert(Wrapped(forward, **layers), timesteps=4)


@pytest.mark.parametrize(
    "forward, layers, message",
    [
        (
            lambda m, x: m.head((m.act(m.conv(x)) * m.act(m.conv(2 * x))).flatten(1)),
            {},
            "mul.*multiplies two spiking",
        ),
        (lambda m, x: m.head((1 / m.act(m.conv(x))).flatten(1)), {}, "divides by a spiking"),
        (
            lambda m, x: m.head(TF.max_pool2d(m.act(m.conv(x)), 2).flatten(1)),
            {},
            "max_pool2d.*max pooling",
        ),
        (
            lambda m, x: m.head(TF.hardtanh(m.act(m.conv(x))).flatten(1)),
            {},
            "hardtanh.*does not start at 0",
        ),
        (lambda m, x: m.head(m.act(m.conv(x)).flatten(1).softmax(1)), {}, "softmax.*not linear"),
        (
            lambda m, x: m.head(m.pool(m.act(m.conv(x))).flatten(1)),
            {"pool": nn.MaxPool2d(2)},
            r"pool \(MaxPool2d\): max pooling",
        ),
        (
            lambda m, x: m.head(m.g(m.act(m.conv(x))).flatten(1)),
            {"g": nn.GELU()},
            r"g \(GELU\): .*rectifier that starts at 0",
        ),
        (
            lambda m, x: m.head(m.g(m.act(m.conv(x))).flatten(1)),
            {"g": nn.GroupNorm(2, 4)},
            r"g \(GroupNorm\)",
        ),
        (
            lambda m, x: m.head(m.g(m.act(m.conv(x))).flatten(1)),
            {"g": nn.LeakyReLU()},
            r"g \(LeakyReLU\)",
        ),
    ],
)
def test_what_could_be_a_difference_is_refused_where_asked(forward, layers, message):
    with pytest.raises(ConversionError, match=f"{message}.*difference"):
        convert(Wrapped(forward, **layers), timesteps=4, nonlinear="error", spikes="rectifiers")
    convert(Wrapped(forward, **layers), timesteps=4, spikes="rectifiers")


def test_every_offender_is_listed_at_once():
    model = small(nn.ReLU(), nn.MaxPool2d(2), nn.GELU(), QCFS(4), nn.SiLU())
    model(IMAGES)
    with pytest.raises(ConversionError) as caught:
        convert(model, timesteps=4, nonlinear="error", spikes="rectifiers")
    listed = [(entry.site, entry.kind) for entry in caught.value.report.unsupported()]
    assert listed == [("1", "ReLU"), ("2", "MaxPool2d"), ("3", "GELU"), ("5", "SiLU")]
    assert all(f"{site} ({kind})" in str(caught.value) for site, kind in listed)
    assert "4 offending" in str(caught.value)


def test_a_non_positive_learned_threshold_is_refused():
    model = Wrapped(lambda m, x: m.head(m.act(m.conv(x)).flatten(1)))
    with torch.no_grad():
        model.act.threshold.fill_(-0.1)
    with pytest.raises(ConversionError, match=r"act \(QCFS\): v_threshold must be positive"):
        convert(model, timesteps=4)


def into_out(m, x):
    z = x.clone()
    torch.tanh(3 * x, out=z)
    return m.head(m.act(m.conv(z)).flatten(1))


def into_a_list(m, x):
    z = x + 0.0
    torch._foreach_mul_([z], 3.0)
    return m.head(m.act(m.conv(z)).flatten(1))


def by_another_name(m, x):
    z = x.clone()
    nn.init.constant_(z, 1.0)
    return m.head(m.act(m.conv(z)).flatten(1))


def by_the_method(m, x):
    z = x.clone()
    z.__setitem__((slice(None), 0), 1.0)
    return m.head(m.act(m.conv(z)).flatten(1))


@pytest.mark.parametrize("function", [into_out, into_a_list, by_another_name, by_the_method])
def test_writes_that_nobody_reads_by_their_name_are_refused(function):
    with pytest.raises(ConversionError, match="in place on a tensor that others may read"):
        convert(Wrapped(function), timesteps=2)


@pytest.mark.parametrize("function", [into_a_list, by_another_name])
def test_a_run_sees_what_such_writes_give(function):
    lossless(Wrapped(function))


@pytest.mark.parametrize("function", [into_out, by_the_method])
def test_a_run_refuses_such_writes(function):
    with pytest.raises(ConversionError, match="in place on a tensor that others may read"):
        convert(Wrapped(function), timesteps=2, example_input=IMAGES)
