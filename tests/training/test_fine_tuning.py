"""Fine-tuning: it learns, what it minimises, what bounds θ, resuming, refusals, the command."""

import json
import math

import pytest
import torch
from torch.nn import functional as TF
from toy import assert_same, make_images, network, snapshot, train, without_time

import cos_ext
from cos_ext.cli import main
from cos_ext.surrogate import ATan, Triangle
from cos_ext.training.fine_tuning import FineTuneConfig, RateTask
from cos_ext.training.train import TrainConfig

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images():
    return make_images()


@pytest.fixture(scope="module")
def ann(images):
    model = network(dropout=0.0, width=16)
    train(model, images, TrainConfig(epochs=12, learning_rate=0.05), batches_of(images))
    return model


def batches_of(images):
    """Not augmented: a mirrored image has another label."""
    generator = torch.Generator().manual_seed(11)
    return images.batches(16, shuffle=True, generator=generator)


def trainable(ann, timesteps=1, **options):
    return cos_ext.convert(ann, timesteps=timesteps, trainable=True, **options)


def quiet(ann):
    """At T = 1 its θ lets little through."""
    return trainable(ann, thresholds={"2": 5.0})


def tune(snn, images, **options):
    options = {"epochs": 2, "progress": False, **options}
    return cos_ext.fine_tune(snn, batches_of(images), test_batches=images.batches(32), **options)


def test_a_tiny_network_learns_its_task(images, ann):
    snn = quiet(ann)
    before = cos_ext.evaluate(snn, images.batches(32), progress=False).accuracy[0]
    result = tune(snn, images, epochs=30, lr=0.02, threshold_lr=0.01, v_init_lr=0.01)
    assert result.before == before < 0.9
    assert result.accuracy == 1.0 and result.timesteps == 1
    after = cos_ext.evaluate(snn, images.batches(32), progress=False)
    assert after.accuracy == [1.0] and after.latency == [1] and not snn.training
    assert len(result.history) == 30 and result.history[-1]["loss"] < result.history[0]["loss"]
    lines = str(result).splitlines()
    assert len(lines) >= 32 and "100.00%" in lines[-1] and f"{before:.2%}" in str(result)


def test_everything_that_may_learn_does(images, ann):
    snn = trainable(ann, 2)
    before = snapshot(snn)
    tune(snn, images)
    assert all(not torch.equal(before[name], p) for name, p in snn.named_parameters())


def test_what_has_no_gradient_stays(images, ann):
    snn = trainable(ann, 2)
    frozen = {
        name: p for name, p in snn.named_parameters() if "v_" in name or name.endswith("5.bias")
    }
    for p in frozen.values():
        p.requires_grad_(False)
    before = snapshot(snn)
    tune(snn, images, weight_decay=0.1)
    for name, p in snn.named_parameters():
        assert torch.equal(before[name], p) == (name in frozen), name


@pytest.mark.parametrize("name, stays", [("threshold_lr", "v_threshold"), ("v_init_lr", "v_init")])
def test_a_rate_of_0_keeps_them(images, ann, name, stays):
    snn = trainable(ann, 2)
    before = snapshot(snn)
    tune(snn, images, **{name: 0})
    changed = {n for n, p in snn.named_parameters() if not torch.equal(before[n], p)}
    assert {n for n in before if n.endswith(stays)}.isdisjoint(changed) and len(changed) > 3


def test_rates_of_thresholds_are_in_their_own_units(ann):
    """A network whose currents are k times as large, and its θ too, learns the same."""
    k, found = 3.0, []
    x, labels = torch.rand(8, 1, 8, 8), torch.arange(8) % 4
    for factor in (1.0, k):
        snn = trainable(ann, 2)
        with torch.no_grad():
            snn.module.get_submodule("0").weight.mul_(factor)
            snn.module.get_submodule("0").bias.mul_(factor)
            node = next(iter(snn.nodes().values()))
            node.v_threshold.mul_(factor)
            node.v_init.mul_(factor)
            snn.module.get_submodule("5").weight.div_(factor)
        task = RateTask(snn, FineTuneConfig(), None)
        optimizer = torch.optim.SGD(task.groups()[:2])
        task.loss(x, labels)[0].backward()
        theta = node.v_threshold.item()
        optimizer.step()
        found.append((node.v_threshold.item() / theta, node.v_init.item() / theta))
    assert found[0] == pytest.approx(found[1], rel=1e-4) and found[0][0] != 1


def test_the_loss(images, ann):
    snn, (x, labels) = trainable(ann, 3), next(iter(images.batches(16)))
    config = FineTuneConfig(distillation=0.25, temperature=3.0, label_smoothing=0.1)
    rate = snn(x).mean(0)
    plain = TF.cross_entropy(rate, labels, label_smoothing=0.1)
    loss, answers = RateTask(snn, config, None).loss(x, labels)
    assert torch.equal(loss, plain) and torch.equal(answers, rate)
    loss, _ = RateTask(snn, config, ann.eval()).loss(x, labels)
    p, q = (ann(x) / 3).softmax(1), (rate / 3).softmax(1)
    divergence = (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(loss, 0.75 * plain + 0.25 * 9 * divergence)
    ann.zero_grad()
    loss.backward()
    assert all(p.grad is None for p in ann.parameters())


def test_a_teacher_alone_draws_the_network_to_it(images, ann):
    snn, x = quiet(ann), next(iter(images.batches(64)))[0]

    def distance():
        with torch.no_grad():
            p, q = ann.eval()(x).log_softmax(1), snn.rate(x).log_softmax(1)
            return TF.kl_div(q, p, reduction="batchmean", log_target=True).item()

    before = distance()
    tune(snn, images, epochs=8, teacher=ann, distillation=1.0, temperature=1.0)
    assert distance() < before / 2


def test_thresholds_stay_positive(images, ann):
    snn = trainable(ann, 2)
    first = next(iter(snn.nodes().values())).v_threshold.item()
    task = RateTask(snn, FineTuneConfig(), None)
    theta = next(iter(snn.nodes().values())).v_threshold
    with torch.no_grad():
        theta.fill_(-5.0)
    task.stepped()
    assert theta.item() == pytest.approx(first / 100)


def test_the_surrogate_is_the_neurons(images, ann):
    snn = trainable(ann, 2)
    tune(snn, images, epochs=1)
    assert [n.surrogate for n in snn.nodes().values()] == [Triangle()]
    tune(snn, images, epochs=1, surrogate=ATan(3.0), detach_reset=True)
    assert [(n.surrogate, n.detach_reset) for n in snn.nodes().values()] == [(ATan(3.0), True)]


def test_without_test_batches(images, ann):
    result = cos_ext.fine_tune(trainable(ann), batches_of(images), epochs=1, progress=False)
    assert result.before is None and result.accuracy is None and result.seconds > 0
    assert "test_accuracy" not in result.history[0] and "1" in str(result)


# ---------------------------------------------------------------- resumption


def test_resuming_equals_never_stopping(images, ann, tmp_path):
    def run(epochs_killed):
        snn, path = trainable(ann, 2), tmp_path / f"state{epochs_killed}"
        options = {"epochs": 3, "teacher": ann, "state_path": path, "resume": True}
        if epochs_killed:
            kept = path.with_suffix(".kept")
            batches, seen = images.batches(32), []

            class Tests:
                def __iter__(self):
                    seen.append(path.exists() and path.read_bytes())
                    return iter(batches)

            cos_ext.fine_tune(
                trainable(ann, 2),
                batches_of(images),
                test_batches=Tests(),
                progress=False,
                **options,
            )
            kept.write_bytes(seen[1 + epochs_killed])  # as it was after so many epochs
            kept.replace(path)
        result = tune(snn, images, **options)
        return snn, result

    whole, one = run(0), run(1)
    assert_same(one[0], snapshot(whole[0]))
    assert without_time(one[1].history) == without_time(whole[1].history)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"lr": 0.005}, "learning_rate"),
        ({"threshold_lr": 0.5}, "threshold_lr"),
        ({"surrogate": ATan()}, "surrogates"),
        ({"teacher": None}, "teacher"),
    ],
)
def test_another_run_is_refused(images, ann, tmp_path, change, named):
    options = {"epochs": 1, "teacher": ann, "state_path": tmp_path / "state"}
    tune(trainable(ann, 2), images, **options)
    snn = trainable(ann, 2)
    before = snapshot(snn)
    with pytest.raises(ValueError, match=f"another run.*{named}"):
        tune(snn, images, **{**options, **change, "resume": True})
    assert_same(snn, before)


# ---------------------------------------------------------------- refusals


def test_refusals(images, ann):
    with pytest.raises(TypeError, match="must be one that cos_ext.convert made, got Sequential"):
        tune(ann, images)
    with pytest.raises(ValueError, match="must be trainable.*trainable=True"):
        tune(cos_ext.convert(ann, timesteps=2), images)
    snn = trainable(ann, 2)
    snn.rho = 1
    with pytest.raises(ValueError, match="rho must be 0, got 1"):
        tune(snn, images)
    snn.rho = 0
    with pytest.raises(ValueError, match="at least one batch"):
        cos_ext.fine_tune(snn, [], epochs=1)
    with pytest.raises(TypeError, match="surrogate"):
        tune(snn, images, surrogate=3)


@pytest.mark.parametrize(
    "name, value",
    [
        ("threshold_lr", -1.0),
        ("v_init_lr", math.inf),
        ("distillation", 1.5),
        ("temperature", 0.0),
        ("clip_norm", 0.0),
        ("epochs", 0),
        ("lr", math.nan),
    ],
)
def test_settings_out_of_range(images, ann, name, value):
    said = "learning_rate" if name == "lr" else name
    with pytest.raises(ValueError, match=said):
        tune(trainable(ann), images, **{name: value})


def test_an_unknown_setting(images, ann):
    with pytest.raises(TypeError, match="no setting .'learn_rate'."):
        tune(trainable(ann), images, learn_rate=1.0)


# ---------------------------------------------------------------- the command


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A checkpoint of `train`, and the shipped images instead of the training images."""
    shipped = cos_ext.data.fashion_mnist()
    monkeypatch.setattr(
        cos_ext.data, "load", lambda *_, train=False, **__: shipped.first(128 if train else 64)
    )
    from cos_ext.training.train import save_checkpoint

    torch.manual_seed(0)
    model = cos_ext.models.build("resnet20", 10, 1, levels=4, threshold=2.0)
    record = {"architecture": "resnet20", "levels": 4, "num_classes": 10, "in_channels": 1}
    save_checkpoint(model, tmp_path / "ann.safetensors", record)
    return tmp_path


def finetune(folder, *more):
    given = ("--checkpoint", folder / "ann.safetensors", "--output", folder / "snn.safetensors")
    few = ("--timesteps", 1, "--epochs", 1, "--data", folder, "--quiet")
    words = ("finetune", *given, *few, *more)
    return main([str(word) for word in words])


def test_the_command(small, capsys):
    assert finetune(small, "--lr", 0.001) == 0
    out = capsys.readouterr().out
    assert "epoch" in out and "snn.safetensors" in out
    record = json.loads((small / "snn.json").read_text())
    assert record["fine_tuning"]["timesteps"] == 1 and record["fine_tuning"]["lr"] == 0.001
    assert record["test_accuracy"] == record["fine_tuning"]["history"][-1]["test_accuracy"]
    model = cos_ext.models.build("resnet20", 10, 1, levels=4)
    network = cos_ext.load_network(small / "snn.safetensors", model)
    found = cos_ext.evaluate(network, cos_ext.data.load().batches(32), progress=False)
    assert found.accuracy == [record["test_accuracy"]]
    assert finetune(small, "--lr", 0.002, "--resume") == 2
    assert "learning_rate" in capsys.readouterr().err

    words = [
        "eval",
        "--checkpoint",
        str(small / "snn.safetensors"),
        "--timesteps",
        "2",
        "--rho",
        "1",
    ]
    assert main([*words, "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "fine-tuned at T = 1" in out and "ANN accuracy" not in out
    assert f"{record['test_accuracy']:.2%} (1)" in out


def test_the_command_refuses(small, capsys):
    """Files of its own as a checkpoint, the checkpoint as output, records that do not fit."""

    def refused(*more):
        before = {path: path.read_bytes() for path in small.iterdir()}
        assert finetune(small, *more) == 2
        assert {path: path.read_bytes() for path in small.iterdir()} == before
        return capsys.readouterr().err

    assert "--output must have another name" in refused("--output", small / "ann.safetensors")
    assert "--output must have another name" in refused("--output", small / "ann")
    record = json.loads((small / "ann.json").read_text())
    for change, said in (
        ({"num_classes": 5}, "must have the 5 classes of the checkpoint, got"),
        ({"levels": None}, "must have levels"),
    ):
        changed = {k: v for k, v in {**record, **change}.items() if v is not None}
        (small / "ann.json").write_text(json.dumps(changed))
        assert said in refused()
    (small / "ann.json").write_text("[1]")
    assert "must hold an object, got list" in refused()
    (small / "ann.json").write_text(json.dumps(record))
    trainable(cos_ext.models.build("resnet20", 10, 1, levels=4)).save(small / "ann.safetensors")
    assert "must be of `train`" in refused()
