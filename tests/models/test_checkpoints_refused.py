"""load_qcfs_checkpoint: what does not fit one of the authors' networks is refused, and everything
is listed at once. What loads: test_checkpoints.py.
"""

import pytest
import torch
from authors import VGG16, State, state_of
from torch import nn

from cos_ext import QCFS, models

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_prefix_on_some_of_the_keys_is_refused():
    state = state_of("resnet20")
    state["module.fc.bias"] = state.pop("fc.bias")
    assert_refused(
        state, "resnet20", "missing: fc.bias (ours: fc.bias)", "unexpected: module.fc.bias"
    )


# ---------------------------------------------------------------- what does not fit


def assert_refused(state, architecture, *said, levels=2):
    """A ValueError that says all of `said`; an instance stays as it was."""
    instance = architecture if isinstance(architecture, nn.Module) else None
    before = (
        {}
        if instance is None
        else {key: value.clone() for key, value in instance.state_dict().items()}
    )
    training = instance is not None and instance.training
    with pytest.raises(ValueError, match="does not fit .*, nothing was loaded") as caught:
        models.load_qcfs_checkpoint(state, architecture, levels=levels)
    for text in said:
        assert text in str(caught.value), str(caught.value)
    if instance is not None:
        assert instance.training == training
        assert all(torch.equal(value, before[key]) for key, value in instance.state_dict().items())
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, repository",
    [("resnet20", "ANN2SNN_COS"), ("resnet20", "ANN_SNN_QCFS"), ("vgg16", "SNN_conversion_QCFS")],
)
def test_every_key_is_needed(name, repository):
    whole = state_of(name, repository)
    for key in whole:
        message = assert_refused(
            {k: v for k, v in whole.items() if k != key}, name, f"missing: {key} (ours: "
        )
        assert len(message.splitlines()) == 2, message  # and nothing else is wrong


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet20", "vgg16"])
def test_every_shape_is_checked(name):
    whole = state_of(name)
    for key, value in whole.items():
        # One more value in the last dimension (of a kernel, where there is one), or a dimension too
        # many.
        shape = (*value.shape[:-1], value.shape[-1] + 1) if value.ndim else (1,)
        message = assert_refused(
            {**whole, key: value.new_ones(()).expand(shape)},
            name,
            f"mis-shaped: {key} {shape} (ours: ",
        )
        assert len(message.splitlines()) == 2, message


def test_classes_and_channels_that_are_none():
    state = state_of("resnet20")
    for key in ("fc.weight", "conv1.0.weight"):
        assert_refused(
            {**state, key: state[key].unsqueeze(0)}, "resnet20", f"mis-shaped: {key} (1, "
        )


def test_classes_that_disagree():
    state = state_of("resnet20")
    assert_refused(
        {**state, "fc.bias": torch.zeros(11)},
        "resnet20",
        "mis-shaped: fc.bias (11,) (ours: fc.bias (10,))",
    )


def test_everything_is_listed_at_once():
    state = state_of("vgg16")
    del state["layer1.0.bias"], state["layer3.6.up"], state["classifier.5.up"]
    state |= {
        "layer9.0.weight": torch.zeros(1),
        "extra": torch.zeros(2),
        "layer2.1.bias": torch.zeros(5),
        "classifier.4.bias": torch.zeros(4096, dtype=torch.int64),
        "layer4.2.up": torch.tensor([-1.0]),
    }
    message = assert_refused(
        state,
        "vgg16",
        "missing: layer3.6.up (ours: features.19.threshold), classifier.5.up (ours: "
        "classifier.5.threshold), "
        "layer1.0.bias (ours: features.1.running_mean)",
        "unexpected: layer9.0.weight, extra",
        "mis-shaped: layer2.1.bias (5,) (ours: features.8.bias (128,))",
        "not floating-point: classifier.4.bias torch.int64",
        "thresholds that are not positive and finite: layer4.2.up = -1.0",
    )
    assert len(message.splitlines()) == 6


@pytest.mark.parametrize("value", [0.0, -0.5, float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("repository", ["ANN2SNN_COS", "ANN_SNN_QCFS"])
def test_thresholds_are_positive_and_finite(repository, value):
    whole = state_of("resnet20", repository)
    for key in (key for key in whole if key.endswith(("up", "thresh"))):
        assert_refused({**whole, key: torch.tensor([value])}, "resnet20", f"{key} = {value}")


def test_a_threshold_that_underflows_in_the_models_dtype():
    state = {**state_of("resnet20"), "conv1.2.up": torch.tensor([1e-9])}
    models.load_qcfs_checkpoint(state, "resnet20", levels=2)
    assert_refused(state, models.resnet20(10, levels=2).half(), "conv1.2.up = 0.0")


@pytest.mark.parametrize("of", models.ARCHITECTURES)
@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_wrong_architecture(of, name):
    if of != name:
        assert_refused(state_of(of, "ANN_SNN_QCFS"), name, f"its keys look like those of {of}")


def test_mixed_threshold_names():
    state = state_of("resnet20", "ANN2SNN_COS")
    state["conv1.2.thresh"] = state.pop("conv1.2.up")
    assert_refused(state, "resnet20", "missing: conv1.2.up", "unexpected: conv1.2.thresh")


def test_a_plain_relu_checkpoint_has_no_thresholds():
    state = {key: value for key, value in state_of("resnet20").items() if not key.endswith(".up")}
    message = assert_refused(state, "resnet20", "missing: conv1.2.up (ours: stem.2.threshold)")
    assert message.count(".threshold)") == 19


def test_our_own_checkpoint_is_told_to_load_weights():
    state = models.resnet20(10).state_dict()
    assert_refused(
        state, "resnet20", "its keys look like cos_ext's own: use cos_ext.models.load_weights"
    )


@pytest.mark.parametrize(
    "extra, architecture, network",
    [
        ("conv1.3.weight", "resnet18", "resnet20p of ANN2SNN_COS: a stem of three convolutions"),
        ("conv2_x.0.residual_function.6.weight", "resnet34", "a ResNet of bottleneck blocks"),
        ("module_list.0.weight", "vgg16", "vgg16_normed"),
    ],
)
def test_networks_of_theirs_that_we_lack(extra, architecture, network):
    state = {**state_of(architecture), extra: torch.zeros(64, 64, 3, 3)}
    assert_refused(state, architecture, f"looks like {network}", f"unexpected: {extra}")


def test_vgg16_without_batchnorm_has_max_pooling_and_is_refused():
    state = State(torch.float32)
    width = 3
    for layer, widths in enumerate(VGG16, 1):
        for index, out in enumerate(widths):
            state.conv(f"layer{layer}.{3 * index}", out, width, 3, bias=True)
            state.threshold(f"layer{layer}.{3 * index + 1}.thresh")
            width = out
    state |= {
        key: value
        for key, value in state_of("vgg16", "ANN_SNN_QCFS").items()
        if key.startswith("classifier")
    }
    assert_refused(
        state, "vgg16", "looks like vgg16_wobn of ANN_SNN_QCFS: no BatchNorm, and max pooling"
    )


def test_another_depth_of_vgg_is_refused():
    state = state_of("vgg16")
    state |= {
        key.replace("layer3.8", "layer3.12"): value
        for key, value in state.items()
        if key.startswith("layer3.8")
    }
    assert_refused(state, "vgg16", "unexpected: layer3.12.weight, layer3.12.bias")


def set_at(model, path, value):
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, value)


def strided(model):
    model.stages[1][0].conv1.stride = (1, 1)


def share(model):
    model.stages[0][1].act1 = model.stages[0][0].act1


def ceiled(model):
    model.features[6].ceil_mode = True


@pytest.mark.parametrize(
    "name, change, said",
    [
        ("resnet20", lambda m: set_at(m, "stem.2", nn.ReLU()), "stem.2: ReLU() instead of QCFS"),
        (
            "resnet20",
            lambda m: set_at(m, "pool", nn.AdaptiveMaxPool2d(1)),
            "pool: AdaptiveMaxPool2d(output_size=1)",
        ),
        (
            "resnet20",
            lambda m: set_at(m, "stages.0.1.bn1", nn.BatchNorm2d(16, eps=1e-3)),
            "BatchNorm2d(16, eps=0.001",
        ),
        (
            "resnet20",
            lambda m: set_at(m, "stages.0.1.bn1", nn.BatchNorm2d(16, affine=False)),
            "affine=False",
        ),
        ("resnet20", lambda m: set_at(m, "fc", nn.Linear(64, 10, bias=False)), "fc: Linear("),
        (
            "resnet20",
            lambda m: set_at(m, "stem.0", nn.Conv2d(3, 16, 3, padding=1)),
            "stem.0: Conv2d(",
        ),
        ("resnet20", lambda m: m.stem.append(nn.AvgPool2d(2)), "padding=0) instead of nothing"),
        (
            "resnet20",
            lambda m: set_at(m, "stem.2.threshold", nn.Parameter(torch.ones(16, 1, 1))),
            "mis-shaped: conv1.2.up (1,) (ours: stem.2.threshold (16, 1, 1))",
        ),
        ("resnet20", strided, "stages.1.0.conv1: Conv2d(16, 32, kernel_size=(3, 3), stride=(1, 1)"),
        (
            "resnet20",
            share,
            "stages.0.1.act1.threshold is the same tensor as stages.0.0.act1.threshold",
        ),
        ("vgg16", lambda m: set_at(m, "features.6", nn.MaxPool2d(2)), "features.6: MaxPool2d("),
        (
            "vgg16",
            lambda m: set_at(m, "features.43", nn.AdaptiveMaxPool2d(1)),
            "features.43: AdaptiveMaxPool2d(",
        ),
        (
            "vgg16",
            lambda m: set_at(m, "features.13", nn.AdaptiveAvgPool2d(1)),
            "features.13: AdaptiveAvgPool2d(",
        ),
        (
            "vgg16",
            lambda m: set_at(m, "features.43", nn.AdaptiveAvgPool2d(2)),
            "features.43: AdaptiveAvgPool2d(",
        ),
        ("vgg16", ceiled, "features.6: AvgPool2d("),
    ],
    ids=range(15),
)
def test_an_instance_that_computes_something_else(name, change, said):
    model = models.build(name, 10, levels=2, stem="cifar")
    change(model)
    message = assert_refused(state_of(name), model, said)
    assert len(message.splitlines()) == 2, message


def test_an_instance_with_other_activations():
    message = assert_refused(
        state_of("resnet20"),
        models.resnet20(10, activation=nn.ReLU),
        "stem.2: ReLU() instead of QCFS",
    )
    assert message.count("ReLU() instead of") == 19


def test_instances_of_another_size_or_stem():
    state = state_of("resnet20")
    assert_refused(
        state,
        models.resnet20(100, levels=2),
        "mis-shaped: fc.weight (10, 64) (ours: fc.weight (100, 64)), fc.bias (10,)",
    )
    assert_refused(
        state,
        models.resnet20(10, 1, levels=2),
        "mis-shaped: conv1.0.weight (16, 3, 3, 3) (ours: stem.0.weight (16, 1, 3, 3))",
    )
    assert_refused(
        state,
        models.resnet20(10, levels=2, stem="imagenet"),
        "mis-shaped: conv1.0.weight",
        "stem.3: AvgPool2d(",
    )
    assert_refused(
        state_of("resnet34"),
        models.resnet18(10, levels=2),
        "unexpected: conv2_x.2.",
        "its keys look like those of resnet34",
    )
    assert_refused(
        state_of("vgg16"), models.resnet18(10, levels=2), "its keys look like those of vgg16"
    )


def test_instances_that_are_none_of_theirs():
    with pytest.raises(ValueError, match=r"stages of \[1, 1\] blocks"):
        models.load_qcfs_checkpoint(
            state_of("resnet20"), models.ResNet([1, 1], [16, 32], 10, 3, "cifar", lambda: QCFS(2))
        )

    class Other(models.ResNet):
        def forward(self, x):
            return -super().forward(x)

    model = Other([3, 3, 3], [16, 32, 64], 10, 3, "cifar", lambda: QCFS(2))
    assert_refused(state_of("resnet20"), model, "the model: Other instead of ResNet")


# ---------------------------------------------------------------- types


@pytest.mark.parametrize(
    "source", [None, 3, [("fc.weight", torch.zeros(1))], nn.Linear(2, 2), b"path"]
)
def test_sources_of_the_wrong_type(source):
    with pytest.raises(TypeError, match="path_or_dict must be a path or a state dict, got"):
        models.load_qcfs_checkpoint(source, "resnet20", levels=2)


def test_dicts_of_something_else():
    with pytest.raises(TypeError, match=r"got \{'state_dict': 'dict', 'epoch': 'int'\}"):
        models.load_qcfs_checkpoint(
            {"state_dict": state_of("resnet20"), "epoch": 3}, "resnet20", levels=2
        )
    with pytest.raises(TypeError, match=r"got \{1: 'Tensor'\}"):
        models.load_qcfs_checkpoint({1: torch.zeros(1)}, "resnet20", levels=2)
    assert_refused({}, "resnet20", "missing: conv1.0.weight")


@pytest.mark.parametrize(
    "architecture", [None, 20, nn.Linear(2, 2), models.resnet20, models.ResNet]
)
def test_architectures_of_the_wrong_type(architecture):
    with pytest.raises(TypeError, match="architecture must be a name or a ResNet or VGG"):
        models.load_qcfs_checkpoint(state_of("resnet20"), architecture, levels=2)


@pytest.mark.parametrize("architecture", ["resnet50", "ResNet20", ""])
def test_unknown_architectures(architecture):
    with pytest.raises(ValueError, match=r"\['resnet18', 'resnet20', 'resnet34', 'vgg16'\], got"):
        models.load_qcfs_checkpoint(state_of("resnet20"), architecture, levels=2)
