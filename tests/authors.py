"""The networks of the authors' repositories: random state dicts under their key names, and their
forward passes as plain functions of such a dict.

What our models compute from one is compared with that. No tests here.
"""

import functools

import torch
from torch.nn import functional as F

# Which name each repository gives a threshold: in a Sequential, and after the sum of a residual
# block.
THRESHOLDS = {
    "ANN2SNN_COS": (".up", ".relu.up"),
    "SNN_conversion_QCFS": (".up", ".relu.up"),
    "ANN_SNN_QCFS": (".thresh", ".act.thresh"),
}
RESNETS = {
    "resnet18": ((2, 2, 2, 2), 64),
    "resnet20": ((3, 3, 3), 16),
    "resnet34": ((3, 4, 6, 3), 64),
}
VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
LEVELS = 4


# ---------------------------------------------------------------- their state dicts


class State(dict):
    """Random weights under given names; activations stay of the order of 1 through any depth."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def uniform(self, low, high, *shape):
        return torch.rand(shape, dtype=self.dtype) * (high - low) + low

    def conv(self, name, out, width, side, bias=False):
        scale = (6 / (width * side * side)) ** 0.5
        self[name + ".weight"] = self.uniform(-scale, scale, out, width, side, side)
        if bias:
            self[name + ".bias"] = self.uniform(-0.3, 0.3, out)

    def norm(self, name, width):
        self[name + ".weight"] = self.uniform(0.6, 1.4, width)
        self[name + ".bias"] = self.uniform(-0.3, 0.6, width)
        self[name + ".running_mean"] = self.uniform(-0.3, 0.3, width)
        self[name + ".running_var"] = self.uniform(0.5, 1.5, width)
        self[name + ".num_batches_tracked"] = torch.tensor(1234)

    def linear(self, name, out, width, bias=True):
        scale = (6 / width) ** 0.5
        self[name + ".weight"] = self.uniform(-scale, scale, out, width)
        if bias:
            self[name + ".bias"] = self.uniform(-0.3, 0.3, out)

    def threshold(self, name):
        self[name] = self.uniform(0.7, 2.5, 1)


def resnet_state(name, repository, classes=10, channels=3, dtype=torch.float64):
    state, (plain, residual) = State(dtype), THRESHOLDS[repository]
    blocks, width = RESNETS[name]
    state.conv("conv1.0", width, channels, 3)
    state.norm("conv1.1", width)
    state.threshold("conv1.2" + plain)
    for stage, count in enumerate(blocks):
        out = RESNETS[name][1] << stage
        for block in range(count):
            at = f"conv{stage + 2}_x.{block}."
            state.conv(at + "residual_function.0", out, width, 3)
            state.norm(at + "residual_function.1", out)
            state.threshold(at + "residual_function.2" + plain)
            state.conv(at + "residual_function.3", out, out, 3)
            state.norm(at + "residual_function.4", out)
            if width != out:
                state.conv(at + "shortcut.0", out, width, 1)
                state.norm(at + "shortcut.1", out)
            state.threshold(at[:-1] + residual)
            width = out
    state.linear("fc", classes, width)
    return state


def vgg_state(repository, classes=10, channels=3, features=512, bias=True, dtype=torch.float64):
    state, (plain, _) = State(dtype), THRESHOLDS[repository]
    width = channels
    for layer, widths in enumerate(VGG16, 1):
        for index, out in enumerate(widths):
            state.conv(f"layer{layer}.{4 * index}", out, width, 3, bias)
            state.norm(f"layer{layer}.{4 * index + 1}", out)
            state.threshold(f"layer{layer}.{4 * index + 2}{plain}")
            width = out
    state.linear("classifier.1", 4096, features, bias)
    state.threshold("classifier.2" + plain)
    state.linear("classifier.4", 4096, 4096, bias)
    state.threshold("classifier.5" + plain)
    state.linear("classifier.7", classes, 4096, bias)
    return state


def make_state(name, repository="ANN2SNN_COS", **options):
    return (
        vgg_state(repository, **options)
        if name == "vgg16"
        else resnet_state(name, repository, **options)
    )


@functools.cache
def _cached(name, repository):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return make_state(name, repository, dtype=torch.float32)


def state_of(name, repository="ANN2SNN_COS"):
    """A dict of one's own, of shared float32 tensors that no test writes to."""
    return dict(_cached(name, repository))


# ---------------------------------------------------------------- their networks


class Theirs:
    """A forward pass over one of those state dicts, in eval mode, for the activation of the
    repository.
    """

    def __init__(self, state, repository, levels=LEVELS):
        self.state, self.levels = state, levels
        self.plain, self.residual = THRESHOLDS[repository]
        self.clip_first = repository == "ANN_SNN_QCFS"

    def act(self, x, name):
        theta, levels = self.state[name], self.levels
        x = x / theta
        if self.clip_first:
            return torch.floor(x.clamp(0, 1) * levels + 0.5) / levels * theta
        return (torch.floor(x * levels + 0.5) / levels).clamp(0, 1) * theta

    def conv_norm(self, x, conv, norm, stride=1):
        s = self.state
        weight = s[conv + ".weight"]
        x = F.conv2d(x, weight, s.get(conv + ".bias"), stride, weight.shape[-1] // 2)
        return F.batch_norm(
            x,
            s[norm + ".running_mean"],
            s[norm + ".running_var"],
            s[norm + ".weight"],
            s[norm + ".bias"],
        )

    def linear(self, x, name):
        return F.linear(x, self.state[name + ".weight"], self.state.get(name + ".bias"))

    def resnet(self, x, name):
        x = self.act(self.conv_norm(x, "conv1.0", "conv1.1"), "conv1.2" + self.plain)
        for stage, count in enumerate(RESNETS[name][0]):
            for block in range(count):
                at = f"conv{stage + 2}_x.{block}."
                inner, stride = at + "residual_function.", 2 if stage and not block else 1
                y = self.act(
                    self.conv_norm(x, inner + "0", inner + "1", stride), inner + "2" + self.plain
                )
                y = self.conv_norm(y, inner + "3", inner + "4")
                if at + "shortcut.0.weight" in self.state:
                    x = self.conv_norm(x, at + "shortcut.0", at + "shortcut.1", stride)
                x = self.act(x + y, at[:-1] + self.residual)
        return self.linear(x.mean((2, 3)), "fc")

    def vgg(self, x):
        for layer, widths in enumerate(VGG16, 1):
            for index in range(len(widths)):
                at = f"layer{layer}."
                x = self.conv_norm(x, f"{at}{4 * index}", f"{at}{4 * index + 1}")
                x = self.act(x, f"{at}{4 * index + 2}{self.plain}")
            x = F.avg_pool2d(x, 2, 2)
        x = x.flatten(1)
        for linear, activation in ((1, 2), (4, 5)):
            x = self.act(
                self.linear(x, f"classifier.{linear}"), f"classifier.{activation}{self.plain}"
            )
        return self.linear(x, "classifier.7")

    def __call__(self, x, name):
        with torch.no_grad():
            return self.vgg(x) if name == "vgg16" else self.resnet(x, name)


def assert_computes_theirs(model, state, repository, name, x, tolerance=1e-9):
    assert not model.training
    with torch.no_grad():
        ours = model(x)
    theirs = Theirs(state, repository)(x, name)
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    assert (theirs[0] - theirs[-1]).abs().max() > 0.01 or len(x) == 1, (
        "a network without signal proves nothing"
    )
    assert theirs.std() > 0.05
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()
