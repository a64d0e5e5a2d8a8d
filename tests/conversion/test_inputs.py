"""Which arguments of forward are inputs: those with a default, by name, shapes that decide."""

import pytest
import torch
from torch import nn
from untraced import untraced

import cos_ext
from cos_ext import QCFS, ConversionError, calibrate_thresholds, convert, evaluate


class Masked(nn.Module):
    """forward(x, mask=None, scale=1.0)"""

    def __init__(self):
        super().__init__()
        self.a, self.act, self.head = nn.Linear(4, 8), QCFS(4, 1.0), nn.Linear(8, 3)

    def forward(self, x, mask=None, scale=1.0):
        h = self.a(x)
        if mask is not None:
            h = h * mask
        return self.head(self.act(h * scale))


class Optional(nn.Module):
    """All arguments have a default."""

    def __init__(self):
        super().__init__()
        self.net = Masked()

    def forward(self, pixel_values=None, labels=None, output_attentions=None):
        logits = self.net(pixel_values)
        if labels is not None:
            return nn.functional.cross_entropy(logits, labels), logits
        return logits


class Two(nn.Module):
    """Two inputs, untraceable where `walk`."""

    def __init__(self, walk=False):
        super().__init__()
        self.a, self.b, self.act = nn.Linear(4, 8), nn.Linear(5, 8), nn.ReLU()
        self.head, self.walk = nn.Linear(8, 3), walk

    def forward(self, x, y, *, flip=None):
        if self.walk:
            untraced(x)
        return self.head(self.act(self.a(x) + self.b(y)))


def seeded(model):
    torch.manual_seed(0)
    return model().eval()


X, Y, MASK = torch.randn(6, 4), torch.randn(6, 5), (torch.rand(6, 8) > 0.5).float()
OPTIONS = {"timesteps": 4, "rho": 4}


def test_an_input_that_was_fixed_is_refused():
    network = convert(seeded(Masked), **OPTIONS)
    assert network.inputs.names == ("x",)
    for call in (
        lambda: network(X, MASK),
        lambda: network(X, mask=MASK),
        lambda: network.rate(X, mask=MASK),
        lambda: network(X, scale=2.0),
    ):
        with pytest.raises(TypeError, match=r"(mask|scale).* had the default.*example_input"):
            call()
    expected = network(X)
    assert torch.equal(network(X, mask=None), expected)  # as it was
    assert torch.equal(network(x=X), expected)


@pytest.mark.parametrize("example", [(X, MASK), {"mask": MASK, "x": X}, [X, MASK, None]], ids="tdl")
def test_an_input_of_the_example_is_used(example):
    model = seeded(Masked)
    network = convert(model, example_input=example, **OPTIONS)
    assert network.inputs.names == ("x", "mask")
    levels = cos_ext.convert(seeded(Masked), **OPTIONS)(X)
    out = network(X, MASK)
    assert not torch.equal(out, levels)
    assert torch.equal(network(mask=MASK, x=X), out) and torch.equal(network(X, mask=MASK), out)
    assert torch.allclose(out.mean(0), model(X, MASK), atol=1e-5)
    for missing in (lambda: network(X), lambda: network(mask=MASK), lambda: network(X, X, MASK)):
        with pytest.raises(TypeError, match=r"inputs are \['x', 'mask'\]|had the default"):
            missing()
    with pytest.raises(TypeError, match="scale had the default"):
        network(X, MASK, scale=2.0)


def test_files_keep_the_inputs(tmp_path):
    model = seeded(Masked)
    network = convert(model, example_input=(X, MASK), **OPTIONS)
    network.save(tmp_path / "n")
    loaded = cos_ext.load_network(tmp_path / "n", model, example_input=(X, MASK))
    assert torch.equal(loaded(X, mask=MASK), network(X, MASK))


def test_an_unknown_name_is_no_input():
    with pytest.raises(TypeError, match=r"\['x', 'mask', 'scale'\], of which \['x'\] have no"):
        convert(seeded(Masked), example_input={"x": X, "masks": MASK}, **OPTIONS)
    with pytest.raises(TypeError, match="have no default; got"):
        convert(seeded(Masked), example_input={"mask": MASK}, **OPTIONS)
    with pytest.raises(TypeError, match=r"takes 3 input\(s\)"):
        convert(seeded(Masked), example_input=(X, MASK, MASK, MASK), **OPTIONS)


@pytest.mark.parametrize("example", [None, X, (X,), {"pixel_values": X}], ids=["no", *"tTm"])
def test_where_all_have_defaults_the_first_or_the_given_is_the_input(example):
    model = seeded(Optional)
    network = convert(model, example_input=example, **OPTIONS)
    assert network.inputs.names == ("pixel_values",)
    assert torch.allclose(network.rate(X), model(X), atol=1e-5)
    assert torch.equal(network(pixel_values=X), network(X))
    with pytest.raises(TypeError, match="labels had the default"):
        network(X, labels=torch.zeros(6).long())


def test_thresholds_take_what_the_loader_yields():
    model = seeded(Masked)
    model.act = nn.ReLU()
    plain = calibrate_thresholds(model, [(X, MASK)], progress=False)  # a label, for all we know
    named = calibrate_thresholds(model, [{"x": X}], progress=False)
    masked = calibrate_thresholds(model, [{"mask": 0.5 * MASK, "x": X, "id": 3}], progress=False)
    with torch.no_grad():
        assert plain == named == {"act": model.a(X).max()}
        assert masked == {"act": (model.a(X) * 0.5 * MASK).max()}
    optional = seeded(Optional)
    optional.net.act = nn.ReLU()
    found = calibrate_thresholds(optional, [{"pixel_values": X}], progress=False)
    assert found == {"net.act": plain["act"]}
    with pytest.raises(ValueError, match=r"a mapping lacks \['mask'\]"):
        calibrate_thresholds(model, [{"x": X, "mask": MASK}, {"x": X}], progress=False)


@pytest.mark.parametrize("batch", [(X, Y, 3), {"y": Y, "x": X}], ids=["tuple", "mapping"])
@pytest.mark.parametrize("walk", [False, True])
def test_two_inputs(walk, batch):
    model = seeded(lambda: Two(walk))
    thresholds = calibrate_thresholds(model, [batch], progress=False)
    with torch.no_grad():
        assert thresholds == {"act": (model.a(X) + model.b(Y)).max()}
    example = batch if isinstance(batch, dict) else batch[:2]
    network = convert(model, thresholds=thresholds, example_input=example, **OPTIONS)
    out = network(X, Y)
    assert torch.equal(network(y=Y, x=X), out)
    with pytest.raises(TypeError, match="flip had the default"):
        network(X, Y, flip=True)
    assert network.statistics([batch], progress=False).samples == 6
    labels = out.sum(0).argmax(-1)
    for inputs in ((X, Y), {"x": X, "y": Y}):
        assert evaluate(network, [(inputs, labels)], progress=False).accuracy[-1] == 1
    model.act = QCFS(4, 1.0)
    again = convert(model, example_input=example, **OPTIONS)
    report = cos_ext.offset_spike_report(model, again, [batch], progress=False)
    assert report.samples == 6
    cos_ext.fit_v_init(again, [batch], progress=False)


class Many(nn.Module):
    """Inputs and settings in any order."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.act = nn.Linear(4, 8), nn.Linear(5, 8), QCFS(4, 1.0)
        self.head = nn.Linear(8, 3)

    def forward(self, x, y=None, flag=True, *, scale=2.0, mask=None):
        h = self.a(x) if y is None else self.a(x) + self.b(y)
        h = h if mask is None else h * mask
        return self.head(self.act(h * scale if flag else -h))


@pytest.mark.parametrize("names", ["x", "xy", "xm", "xym"])
def test_any_of_several_inputs(names, capfd):
    given = {"x": X, "y": Y, "mask": MASK}
    example = {name: given[name] for name in given if name[0] in names}
    model = seeded(Many)
    network = convert(model, example_input=dict(reversed(example.items())), **OPTIONS)
    assert network.inputs.names == tuple(example)
    assert torch.allclose(network.rate(**example), model(**example), atol=1e-5)
    assert torch.equal(network(*example.values()), network(**example))
    assert network.activation_bytes(*example.values()) > 0
    with pytest.raises(TypeError, match="flag had the default"):
        network(**example, flag=False)
    for call in (network.activation_bytes, network.capture, network):
        with pytest.raises(TypeError, match="had the default|the inputs are"):
            call(X, Y, MASK, X)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "example, words",
    [
        (X[:0], "at least one sample"),
        (torch.tensor(1.0), "at least one sample"),
        ((X, Y[:2]), "one batch size"),
    ],
)
def test_examples_without_samples(example, words, capfd):
    with pytest.raises(ValueError, match=words):
        convert(seeded(Many), example_input=example, **OPTIONS)
    assert capfd.readouterr().err == ""


class Checks(nn.Module):
    """Looks at the shapes of its input and of what it computes."""

    def __init__(self, how):
        super().__init__()
        self.conv, self.act, self.head, self.how = (
            nn.Conv2d(3, 4, 3),
            QCFS(4, 1.0),
            nn.Linear(4, 2),
            how,
        )

    def forward(self, x):
        if self.how == "check" and x.shape[1] != 3:
            raise ValueError(f"three channels, got {x.shape[1]}")
        if self.how == "assert":
            assert x.dim() == 4, "a batch of images"
            assert x.size(2) == x.size(3)
        h = self.act(self.conv(x))
        if self.how == "later" and h.shape[2] > 4:
            h = h[:, :, 1:-1, 1:-1]
        if self.how == "ndim" and x.ndim == 3:
            h = h[None]
        if self.how == "range":
            return sum(self.head(h[:, :, i].mean(-1)) for i in range(h.shape[2]))
        if self.how == "batch" and x.shape[0] > 100:
            h = h * 2
        if self.how == "values" and x.sum() > 1e9:
            h = h * 2
        return self.head(h.mean((2, 3)))


IMAGES = torch.randn(3, 3, 8, 8)


@pytest.mark.parametrize("how", ["check", "assert", "later", "ndim", "range"])
def test_shapes_of_the_example_decide(how):
    model = seeded(lambda: Checks(how))
    network = convert(model, example_input=IMAGES, **OPTIONS)
    assert torch.allclose(network.rate(IMAGES), model(IMAGES), atol=1e-4)
    more = torch.cat([IMAGES, IMAGES.flip(0)])
    assert torch.allclose(network.rate(more), model(more), atol=1e-4)
    if how != "assert":  # that one is no branch
        with pytest.raises(ValueError, match="must be .B, 3, 8, 8.*convert it with an example"):
            network(torch.randn(3, 3, 9, 9))
    with pytest.raises(ConversionError, match=r"cannot be traced.*test_inputs.py:\d+: "):
        if how != "assert":
            convert(model, **OPTIONS)
        else:
            convert(seeded(lambda: Checks("check")), **OPTIONS)


class Unknown(nn.Module):
    def forward(self, x):
        return x


@pytest.mark.parametrize("how, words", [("batch", "size of the batch"), ("values", "values")])
def test_batches_and_values_decide_nothing(how, words):
    with pytest.raises(ConversionError, match=rf"cannot be traced.*{words}.*test_inputs.py:\d+"):
        # Module by module: the mean is no module, so that the model is checked as a whole.
        model = seeded(lambda: Checks(how))
        model.head = nn.Sequential(model.head, Unknown())
        convert(model, example_input=IMAGES, **OPTIONS)


class WithLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.act, self.last = nn.Linear(8, 8), QCFS(4), nn.Linear(8, 2)

    def forward(self, x, mask=None, labels=None):
        h = self.first(x)
        return self.last(self.act(h if mask is None else h * mask))


MEASURES = {
    "statistics": lambda batches: convert(WithLoss(), timesteps=2).statistics(
        batches, progress=False
    ),
    "energy_report": lambda batches: convert(WithLoss(), timesteps=2).energy_report(
        batches, progress=False
    ),
    "fit_v_init": lambda batches: cos_ext.fit_v_init(
        convert(WithLoss(), timesteps=2), batches, progress=False
    ),
    "calibrate_thresholds": lambda batches: calibrate_thresholds(
        WithLoss(), [{"x": torch.ones(2, 8)}, *batches], progress=False
    ),
}


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_a_batch_with_an_input_that_was_fixed_is_refused(measure):
    x, labels = torch.ones(2, 8), torch.zeros(2, dtype=torch.int64)
    measure([{"x": x, "mask": None, "labels": labels}])
    with pytest.raises(TypeError, match="mask had the default .* and is fixed"):
        measure([{"x": x, "mask": x}])


@pytest.mark.parametrize("timesteps", [1, 4])
def test_a_single_sample_for_a_linear_layer_is_refused(timesteps):
    with pytest.raises(ValueError, match=r"must have at least 2 dimensions.*x\[None\]"):
        convert(WithLoss(), timesteps=timesteps)(torch.ones(8))
