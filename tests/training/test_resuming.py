"""Training that was killed and goes on: equal to a run that never stopped, and what is refused."""

import os
from dataclasses import asdict, replace
from functools import partial

import pytest
import torch
from torch import nn
from toy import CONFIG, assert_same, make_images, network, shuffled, snapshot, train, without_time

from cos_ext import QCFS
from cos_ext.training.train import (
    SCHEDULES,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images():
    return make_images()


class Killed(Exception):
    pass


class Killing:
    """Batches that raise in the given pass, at the given batch."""

    def __init__(self, batches, epoch, index):
        self.batches, self.epoch, self.index, self.passes = batches, epoch, index, 0

    def __getattr__(self, name):
        return getattr(self.batches, name)

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        self.passes += 1
        for index, batch in enumerate(self.batches):
            if (self.passes, index) == (self.epoch, self.index):
                raise Killed
            yield batch


# ---------------------------------------------------------------- resumption


@pytest.mark.parametrize("own_generator", [True, False])
@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_resuming_equals_never_stopping(
    images, tmp_path, monkeypatch, schedule, precision, own_generator
):
    config = replace(CONFIG, schedule=schedule, precision=precision)
    # With float16 the loss scale doubles at every step, so that it overflows, and skips steps,
    # after the first epoch.
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, growth_interval=1))

    def batches():
        return shuffled(images, own_generator=own_generator)

    whole = network()
    expected = train(whole, images, config, batches=batches())

    path = tmp_path / "new folder" / "run.state"
    killed = network()
    with pytest.raises(Killed):
        train(killed, images, config, batches=Killing(batches(), epoch=2, index=2), state_path=path)
    assert [file.name for file in path.parent.iterdir()] == ["run.state"]

    resumed = network(seed=123)  # other initial weights: all must come from the file
    torch.rand(5)
    history = train(resumed, images, config, batches=batches(), state_path=path, resume=True)
    assert_same(resumed, snapshot(whole))
    assert without_time(history) == without_time(expected)
    assert not all(torch.equal(p, q) for p, q in zip(killed.parameters(), whole.parameters()))

    finished = network(seed=55)  # nothing is left to do
    assert (
        train(finished, images, config, batches=batches(), state_path=path, resume=True) == history
    )
    assert_same(finished, snapshot(whole))
    assert [file.name for file in path.parent.iterdir()] == ["run.state"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_resuming_equals_never_stopping_on_cuda(images, tmp_path):
    torch.backends.cudnn.deterministic = True
    whole, killed, resumed = network(), network(), network(seed=123)
    train(whole, images, device="cuda")
    with pytest.raises(Killed):
        train(
            killed,
            images,
            batches=Killing(shuffled(images), 2, 2),
            state_path=tmp_path / "run",
            device="cuda",
        )
    train(resumed, images, state_path=tmp_path / "run", resume=True, device="cuda")
    assert_same(resumed, snapshot(whole))


def test_without_resume_training_starts_anew(images, tmp_path):
    path = tmp_path / "run.state"
    first, second = network(), network()
    train(first, images, state_path=path)
    history = train(second, images, state_path=path)
    assert len(history) == 2
    assert_same(second, snapshot(first))


def test_resume_without_a_file_starts_anew(images, tmp_path):
    first, second = network(), network()
    train(first, images)
    train(second, images, state_path=tmp_path / "none.state", resume=True)
    assert_same(second, snapshot(first))


@pytest.fixture
def half_way(images, tmp_path):
    """The state file of a run that was killed in its second epoch."""
    path = tmp_path / "run.state"
    with pytest.raises(Killed):
        train(
            network(), images, batches=Killing(shuffled(images), epoch=2, index=1), state_path=path
        )
    return path


def assert_refused(images, path, match, model=None, config=CONFIG, batches=None):
    model = model or network(seed=321)
    before, raw = snapshot(model), path.read_bytes()
    with pytest.raises(ValueError, match=match) as caught:
        train(model, images, config, batches=batches, state_path=path, resume=True)
    assert str(path) in str(caught.value)
    assert_same(model, before)
    assert path.read_bytes() == raw


@pytest.mark.parametrize(
    "setting, value",
    [
        ("epochs", 3),
        ("learning_rate", 0.06),
        ("momentum", 0.8),
        ("weight_decay", 0.0),
        ("label_smoothing", 0.1),
        ("schedule", "onecycle"),
        ("precision", "bfloat16"),
        ("seed", 8),
        ("clip_norm", 1.0),
    ],
)
def test_resuming_with_other_settings(images, half_way, setting, value):
    assert set(asdict(CONFIG)) == {
        "epochs",
        "learning_rate",
        "momentum",
        "weight_decay",
        "label_smoothing",
        "schedule",
        "precision",
        "seed",
        "clip_norm",
    }
    assert_refused(
        images,
        half_way,
        rf"differ: (batches in all \(.*now\), )?{setting} \(",
        config=replace(CONFIG, **{setting: value}),
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_resuming_with_other_batches(images, tmp_path, schedule):
    config, path = replace(CONFIG, schedule=schedule), tmp_path / "run.state"
    with pytest.raises(Killed):
        train(network(), images, config, batches=Killing(shuffled(images), 2, 0), state_path=path)
    for batch_size in (8, 32):
        assert_refused(
            images, path, "batches in all", config=config, batches=shuffled(images, batch_size)
        )


def test_resuming_another_model(images, half_way):
    wider, deeper = network(width=9), nn.Sequential(network(), QCFS(4))
    assert_refused(images, half_way, "architecture", wider)
    assert_refused(images, half_way, "architecture", deeper)


def test_truncated_or_corrupt_state(images, half_way):
    raw = half_way.read_bytes()
    for length in (0, 1, 3, 100, len(raw) // 4, len(raw) // 2, len(raw) - 30, len(raw) - 1):
        half_way.write_bytes(raw[:length])
        assert_refused(images, half_way, "truncated")
    half_way.write_bytes(b"not a state file")
    assert_refused(images, half_way, "truncated")


@pytest.mark.parametrize(
    "missing",
    ["model", "optimizer", "scheduler", "scaler", "torch_rng", "data_rng", "run", "history"],
)
def test_state_that_lacks_something(images, half_way, missing):
    state = torch.load(half_way, weights_only=True)
    del state[missing]
    torch.save(state, half_way)
    assert_refused(images, half_way, "does not fit|not a training state")


@pytest.mark.filterwarnings("ignore")  # torch's, about a tensor indexed by a string
def test_file_that_is_no_state(images, half_way):
    for content in ([1, 2], {"run": 3, "history": []}, network().state_dict(), torch.zeros(3)):
        torch.save(content, half_way)
        assert_refused(images, half_way, "not a training state")
    torch.save(network(), half_way)  # a pickled module
    assert_refused(images, half_way, "not a training state")


def test_state_that_runs_code_is_refused(images, half_way, tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({**torch.load(half_way, weights_only=True), "run": Attack()}, half_way)
    assert_refused(images, half_way, "not a training state")
    assert not (tmp_path / "executed").exists()
    torch.load(half_way, weights_only=False)
    assert (tmp_path / "executed").exists()


def test_a_kill_while_writing_leaves_the_previous_state(images, half_way, monkeypatch):
    before = half_way.read_bytes()
    save = torch.save

    def half(content, path, **options):
        save(content, path, **options)
        with open(path, "r+b") as file:
            file.truncate(500)
        raise Killed

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(Killed):
        train(network(), images, state_path=half_way, resume=True)
    monkeypatch.undo()
    assert half_way.read_bytes() == before
    whole, resumed = network(), network()
    train(whole, images)
    train(resumed, images, state_path=half_way, resume=True)
    assert_same(resumed, snapshot(whole))
    assert [file.name for file in half_way.parent.iterdir()] == [half_way.name]
