"""load_qcfs_checkpoint: state dicts with the authors' key names, against their networks.

Those are in authors.py. What is refused: test_checkpoints_refused.py. No training, no conversion.
"""

import os

import pytest
import torch
from authors import (
    LEVELS,
    THRESHOLDS,
    assert_computes_theirs,
    make_state,
    resnet_state,
    state_of,
    vgg_state,
)
from safetensors.torch import save_file

from cos_ext import QCFS, models

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", models.ARCHITECTURES)
@pytest.mark.parametrize("repository", THRESHOLDS)
def test_small_images_give_their_output(repository, name):
    state = make_state(name, repository, classes=100)
    model = models.load_qcfs_checkpoint(state, name, levels=LEVELS)
    assert_computes_theirs(
        model, state, repository, name, torch.rand(2, 3, 32, 32, dtype=torch.float64)
    )
    activations = [module for module in model.modules() if isinstance(module, QCFS)]
    assert all(module.levels == LEVELS for module in activations)
    assert len({module.threshold.item() for module in activations}) == len(activations)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    "repository, name", [("ANN2SNN_COS", "resnet34"), ("ANN_SNN_QCFS", "resnet18")]
)
def test_their_resnets_have_the_small_stem_on_imagenet_too(repository, name):
    state = make_state(name, repository, classes=1000)
    model = models.load_qcfs_checkpoint(state, name, levels=LEVELS)
    assert_computes_theirs(
        model, state, repository, name, torch.rand(2, 3, 56, 40, dtype=torch.float64)
    )


@pytest.mark.slow
def test_imagenet_vgg16():
    state = vgg_state("ANN2SNN_COS", classes=1000, features=512 * 7 * 7)
    model = models.load_qcfs_checkpoint(state, "vgg16", levels=LEVELS)
    x = torch.rand(1, 3, 224, 224, dtype=torch.float64)  # its classifier takes no smaller image
    assert_computes_theirs(model, state, "ANN2SNN_COS", "vgg16", x)


def test_other_image_sizes_of_vgg16_are_theirs_too():
    state = vgg_state("ANN2SNN_COS")
    model = models.load_qcfs_checkpoint(state, "vgg16", levels=LEVELS)
    # At 48 pixels the fifth pool sees 3x3 and drops a row and a column; a global pool would not.
    assert_computes_theirs(
        model, state, "ANN2SNN_COS", "vgg16", torch.rand(2, 3, 48, 48, dtype=torch.float64)
    )
    with pytest.raises(RuntimeError, match="too small"):
        model(torch.rand(1, 3, 28, 28, dtype=torch.float64))


def test_vgg16_without_biases():
    state = vgg_state("ANN2SNN_COS", bias=False)
    model = models.load_qcfs_checkpoint(state, "vgg16", levels=LEVELS)
    assert_computes_theirs(
        model, state, "ANN2SNN_COS", "vgg16", torch.rand(2, 3, 32, 32, dtype=torch.float64)
    )
    assert all((model.classifier[i].bias == 0).all() for i in (1, 4, 7))


def test_vgg16_is_the_stock_architecture(tmp_path):
    model = models.load_qcfs_checkpoint(state_of("vgg16"), "vgg16", levels=LEVELS)
    torch.save(model.state_dict(), tmp_path / "ours.pt")
    stock = models.vgg16(10, levels=LEVELS)
    models.load_weights(stock, tmp_path / "ours.pt")
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(stock.eval()(x), model(x))


# ---------------------------------------------------------------- what is inferred, and what must
# be said
@pytest.mark.parametrize("classes, channels", [(10, 1), (100, 3), (7, 4), (1, 2)])
def test_classes_and_channels_come_from_the_shapes(classes, channels):
    model = models.load_qcfs_checkpoint(
        resnet_state("resnet20", "ANN_SNN_QCFS", classes, channels), "resnet20", levels=2
    )
    assert (model.fc.out_features, model.stem[0].in_channels) == (classes, channels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["resnet20", "vgg16"])
def test_the_dtype_is_the_checkpoints(name, dtype):
    state = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in state_of(name).items()
    }
    model = models.load_qcfs_checkpoint(state, name, levels=2)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert {value.dtype for key, value in model.state_dict().items() if "num_batches" in key} == {
        torch.int64
    }


def test_float32_values_arrive_bit_for_bit_but_for_the_means_that_absorb_a_bias():
    state = state_of("resnet20")
    loaded = models.load_qcfs_checkpoint(state, "resnet20", levels=2).state_dict()
    assert sorted(v.double().sum().item() for v in state.values()) == sorted(
        v.double().sum().item() for v in loaded.values()
    )
    state = state_of("vgg16")
    loaded = models.load_qcfs_checkpoint(state, "vgg16", levels=2).state_dict()
    for theirs, ours in (
        ("layer5.4", "features.37"),
        ("layer5.5", "features.38"),
        ("classifier.7", "classifier.7"),
    ):
        assert torch.equal(loaded[f"{ours}.weight"], state[f"{theirs}.weight"])
    mean = (state["layer5.5.running_mean"].double() - state["layer5.4.bias"].double()).float()
    assert torch.equal(loaded["features.38.running_mean"], mean)


def test_the_dict_is_copied_and_random_numbers_are_left_alone():
    state = {key: value.clone() for key, value in state_of("resnet20").items()}
    before, generator = {key: value.clone() for key, value in state.items()}, torch.get_rng_state()
    model = models.load_qcfs_checkpoint(state, "resnet20", levels=2)
    assert torch.equal(torch.get_rng_state(), generator)
    for parameter in model.parameters():
        parameter.data.fill_(0)
    assert state.keys() == before.keys() and all(
        torch.equal(value, before[key]) for key, value in state.items()
    )


@pytest.mark.parametrize("name", ["resnet20", "vgg16"])
def test_levels_must_be_said(name):
    with pytest.raises(ValueError, match=r"does not say its L: pass levels=L.*_L4\.pth"):
        models.load_qcfs_checkpoint(state_of(name), name)


@pytest.mark.parametrize(
    "levels, error",
    [(0, ValueError), (-3, ValueError), (4.0, TypeError), ("4", TypeError), (True, TypeError)],
)
def test_bad_levels(levels, error):
    with pytest.raises(error, match="levels must be"):
        models.load_qcfs_checkpoint(state_of("resnet20"), "resnet20", levels=levels)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("save", [torch.save, save_file], ids=["torch", "safetensors"])
@pytest.mark.parametrize("as_text", [False, True])
def test_files(tmp_path, save, as_text):
    state = state_of("resnet20", "ANN_SNN_QCFS")
    path = tmp_path / "resnet20_L[4].pth"
    save(state, path)
    model = models.load_qcfs_checkpoint(str(path) if as_text else path, "resnet20", levels=LEVELS)
    assert_computes_theirs(
        model.double(),
        {k: v.double() for k, v in state.items()},
        "ANN_SNN_QCFS",
        "resnet20",
        torch.rand(2, 3, 32, 32, dtype=torch.float64),
    )


def test_levels_in_the_metadata(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(state_of("resnet20"), path, metadata={"levels": "16"})
    assert models.load_qcfs_checkpoint(path, "resnet20").stem[2].levels == 16
    assert models.load_qcfs_checkpoint(path, "resnet20", levels=16).stem[2].levels == 16
    with pytest.raises(ValueError, match=r"one L.*\[8\].*\[16\]"):
        models.load_qcfs_checkpoint(path, "resnet20", levels=8)
    with pytest.raises(ValueError, match=r"one L.*\[16\].*\[8\]"):
        models.load_qcfs_checkpoint(path, models.resnet20(10, levels=8))
    save_file(state_of("resnet20"), path, metadata={"levels": "four"})
    with pytest.raises(ValueError, match="levels must be an integer, got 'four'"):
        models.load_qcfs_checkpoint(path, "resnet20", levels=4)


class Attack:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_pickled_objects_are_refused(tmp_path):
    path, witness = tmp_path / "weights.pth", tmp_path / "executed"
    torch.save({**state_of("resnet20"), "fc.bias": Attack(str(witness))}, path)
    with pytest.raises(ValueError, match=r"weights\.pth"):
        models.load_qcfs_checkpoint(path, "resnet20", levels=2)
    assert not witness.exists()
    torch.save(models.resnet20(10), path)  # a pickled module
    with pytest.raises(ValueError, match=r"weights\.pth"):
        models.load_qcfs_checkpoint(path, "resnet20", levels=2)


def test_files_that_are_no_state_dict(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": state_of("resnet20"), "epoch": 3}, path)
    with pytest.raises(ValueError, match="no state dict of tensors"):
        models.load_qcfs_checkpoint(path, "resnet20", levels=2)
    path.write_bytes(b"<html>404</html>")
    with pytest.raises(ValueError, match="truncated or is not a checkpoint"):
        models.load_qcfs_checkpoint(path, "resnet20", levels=2)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        models.load_qcfs_checkpoint(tmp_path / "nowhere", "resnet20", levels=2)


# ---------------------------------------------------------------- DataParallel


@pytest.mark.parametrize("name", ["resnet20", "vgg16"])
def test_the_prefix_of_dataparallel(name):
    state = state_of(name)
    plain = models.load_qcfs_checkpoint(state, name, levels=2).state_dict()
    parallel = models.load_qcfs_checkpoint(
        {f"module.{k}": v for k, v in state.items()}, name, levels=2
    ).state_dict()
    assert plain.keys() == parallel.keys() and all(
        torch.equal(plain[key], parallel[key]) for key in plain
    )


# ---------------------------------------------------------------- instances


@pytest.mark.parametrize(
    "name, repository", [("resnet20", "ANN2SNN_COS"), ("vgg16", "ANN_SNN_QCFS")]
)
@pytest.mark.parametrize("given", [None, LEVELS])
def test_instance(name, repository, given):
    state = make_state(name, repository)
    model = models.build(name, 10, levels=LEVELS, stem="cifar").double()
    if name == "vgg16":
        model.classifier[3].p = 0.5  # the identity in eval mode
    tensors = {key: value.data_ptr() for key, value in model.state_dict().items()}
    assert models.load_qcfs_checkpoint(state, model, levels=given) is model
    assert {key: value.data_ptr() for key, value in model.state_dict().items()} == tensors
    assert_computes_theirs(
        model, state, repository, name, torch.rand(2, 3, 32, 32, dtype=torch.float64)
    )


@pytest.mark.parametrize("name", ["resnet20", "vgg16"])
def test_what_was_loaded_can_be_loaded_again(name):
    model = models.load_qcfs_checkpoint(state_of(name), name, levels=2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    models.load_qcfs_checkpoint(state_of(name), model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_instance_keeps_its_dtype():
    model = models.resnet20(10, levels=LEVELS).double()
    models.load_qcfs_checkpoint(state_of("resnet20"), model)
    assert model.fc.weight.dtype == torch.float64
    assert torch.equal(model.fc.weight, state_of("resnet20")["fc.weight"].double())


def test_levels_of_an_instance():
    with pytest.raises(ValueError, match=r"one L; levels: \[4\], the model: \[8\]"):
        models.load_qcfs_checkpoint(state_of("resnet20"), models.resnet20(10, levels=8), levels=4)
    model = models.resnet20(10, levels=8)
    model.stem[2].levels = 4
    with pytest.raises(ValueError, match=r"one L; the model: \[4, 8\]"):
        models.load_qcfs_checkpoint(state_of("resnet20"), model)
