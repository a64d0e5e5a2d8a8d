"""A state is of one run: what differs is named, and files have their names in full. That going on
equals never stopping: test_resuming.py.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset
from toy import CONFIG, assert_same, make_images, network, shuffled, snapshot, train

from cos_ext import QCFS
from cos_ext.training.identity import differences, identity, unknown
from cos_ext.training.state import beside, check_output
from cos_ext.training.train import fit, save_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
SHORT = replace(CONFIG, epochs=1)


def with_neuron(neuron):
    model = network()
    model[2] = neuron
    return model


def frozen():
    model = network()
    model[0].weight.requires_grad_(False)
    return model


def one_pixel(images):
    pixels = images.images.clone()
    pixels[3, 0, 2, 2] += 1
    return replace(images, images=pixels)


def two_labels(images):
    labels = images.labels.clone()
    labels[:2] = labels[:2].flip(0)
    return replace(images, labels=labels)


@pytest.fixture(scope="module")
def images():
    return make_images()


@pytest.fixture
def state(images, tmp_path):
    path = tmp_path / "run.state"
    train(network(), images, SHORT, state_path=path)
    return path


@pytest.mark.parametrize(
    "model, named",
    [
        (lambda: with_neuron(QCFS(8, 2.0)), "levels (4 there, 8 now)"),
        (lambda: with_neuron(QCFS(4, 3.0)), "initial thresholds (2.0 there, 3.0 now)"),
        (lambda: with_neuron(nn.ReLU()), "architecture (2: QCFS() there, 2: ReLU() now)"),
        (lambda: network(dropout=0.3), "architecture (4: Dropout(p=0.2"),
        (lambda: network(width=9), "architecture"),
        (frozen, "architecture"),
    ],
)
def test_another_model(images, state, model, named):
    other = model()
    before, raw = snapshot(other), state.read_bytes()
    with pytest.raises(ValueError) as caught:
        train(other, images, SHORT, state_path=state, resume=True)
    assert named in str(caught.value) and "start anew" in str(caught.value)
    assert str(state) in str(caught.value)
    assert_same(other, before)
    assert state.read_bytes() == raw


@pytest.mark.parametrize(
    "other, named",
    [
        (two_labels, "training labels"),
        (one_pixel, "training images"),
        (lambda images: replace(images, mean=(0.5,)), "training images"),
        (lambda images: replace(images, std=(0.5,)), "training images"),
    ],
)
def test_other_data(images, state, other, named):
    changed = other(images)
    with pytest.raises(ValueError, match=named):
        train(network(), changed, SHORT, shuffled(changed), state_path=state, resume=True)


@pytest.mark.parametrize(
    "options, named",
    [
        ({"augment": False}, "augmentation"),
        ({"shuffle": False}, "shuffling"),
        ({"drop_last": True}, "shuffling"),
        ({"batch_size": 15}, "batch_size"),
        ({"generator": torch.Generator().manual_seed(12)}, "seed of the batches"),
    ],
)
def test_other_batches(images, state, options, named):
    usual = {"batch_size": 16, "shuffle": True, "augment": True}
    usual["generator"] = torch.Generator().manual_seed(11)
    batches = images.batches(**usual | options)
    with pytest.raises(ValueError, match=named):
        train(network(), images, SHORT, batches, state_path=state, resume=True)


def test_other_test_images(images, state):
    with pytest.raises(ValueError, match="test labels"):
        fit(
            network(),
            shuffled(images),
            two_labels(images).batches(32),
            SHORT,
            state_path=state,
            resume=True,
            progress=False,
        )


@pytest.mark.parametrize("kind", ["loader", "subset", "list"])
def test_data_of_torch_and_lists_are_told_apart(images, tmp_path, kind):
    def batches(labels):
        tensors = TensorDataset(images.normalise(images.images), labels)
        if kind == "loader":
            return DataLoader(tensors, 16)
        if kind == "subset":
            return DataLoader(Subset(tensors, range(32)), 16)
        return list(DataLoader(tensors, 16))

    path = tmp_path / "run.state"
    history = train(network(), images, SHORT, batches(images.labels), state_path=path)
    same = train(
        network(seed=3), images, SHORT, batches(images.labels), state_path=path, resume=True
    )
    assert same == history
    with pytest.raises(ValueError, match="training labels"):
        others = batches(two_labels(images).labels)
        train(network(), images, SHORT, others, state_path=path, resume=True)


def test_a_state_of_an_older_version_is_refused(images, state):
    content = torch.load(state, weights_only=True)
    del content["run"]
    torch.save({**content, "config": {}}, state)
    with pytest.raises(ValueError, match=r"cos_ext 0\.1.*start anew"):
        train(network(), images, SHORT, state_path=state, resume=True)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name, record",
    [
        ("run.safetensors", "run.json"),
        ("run_lr0.1.safetensors", "run_lr0.1.json"),
        ("run_lr0.1", "run_lr0.1.json"),
        ("run_lr0.2", "run_lr0.2.json"),
        ("run.pt", "run.pt.json"),
        ("run", "run.json"),
    ],
)
def test_names_are_kept_in_full(tmp_path, name, record):
    save_checkpoint(network(), tmp_path / name, {})
    assert {file.name for file in tmp_path.iterdir()} == {name, record}
    assert beside(name, ".state").name == record.removesuffix("json") + "state"


@pytest.mark.parametrize("name", ["m.json", "s.state"])
def test_a_checkpoint_is_not_named_like_what_lies_beside_it(tmp_path, name):
    with pytest.raises(ValueError, match="has the name of a record or a state"):
        check_output(tmp_path / name)


def test_a_record_that_cannot_be_written_leaves_no_weights(tmp_path):
    (tmp_path / "net.json").mkdir()
    with pytest.raises(IsADirectoryError):
        save_checkpoint(network(), tmp_path / "net.safetensors", {})
    assert [file.name for file in tmp_path.iterdir()] == ["net.json"]


def test_the_place_of_the_state_is_checked_before_the_work(images, tmp_path):
    model = network()
    before = snapshot(model)
    for path in (tmp_path, tmp_path / "made" / ("n" * 300)):
        with pytest.raises(OSError):
            train(model, images, SHORT, state_path=path)
    assert_same(model, before)


def tensors(seed):
    made = torch.Generator().manual_seed(seed)
    return TensorDataset(
        torch.rand(8, 1, 4, 4, generator=made), torch.randint(0, 3, (8,), generator=made)
    )


def test_joined_datasets_are_compared():
    joined = [ConcatDataset([tensors(0), tensors(seed)]) for seed in (1, 1, 2)]
    first, same, other = (
        identity(network(), DataLoader(each), DataLoader(each), SHORT) for each in joined
    )
    assert differences(first, same) == ""
    assert "training labels" in differences(first, other)


def test_what_cannot_be_compared():
    class Own(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            return torch.zeros(1, 4, 4), 0

    run = identity(network(), DataLoader(Own()), DataLoader(tensors(0)), SHORT)
    assert unknown(run) == "training images, training labels"
    assert unknown(identity(network(), DataLoader(tensors(0)), [], SHORT)) == ""


def test_going_on_with_data_that_cannot_be_compared_warns(images, state):
    class Own:
        def __iter__(self):
            return iter(images.batches(32))

    with pytest.warns(UserWarning, match="its test images, test labels could not be compared"):
        fit(
            network(),
            shuffled(images),
            Own(),
            SHORT,
            state_path=state,
            resume=True,
            progress=False,
        )
