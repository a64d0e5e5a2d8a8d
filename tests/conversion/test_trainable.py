"""Networks of convert(trainable=True): what trains, modes, fusing, files, ways to run. Fine-tuning
is in tests/training.
"""

import copy

import pytest
import torch
import zoo
from quantised import thresholds_of
from torch import nn
from torch.nn import functional as TF

import cos_ext
from cos_ext import QCFS
from cos_ext.network import memory
from cos_ext.surrogate import Sigmoid

T = 3


class Residual(nn.Module):
    """Two convolutions with BatchNorm, a residual sum, pooling, dropout, a head."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1, self.act1 = (
            nn.Conv2d(1, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            QCFS(4, 1.0),
        )
        self.conv2, self.norm2, self.act2 = (
            nn.Conv2d(6, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            QCFS(4, 1.5),
        )
        self.pool, self.drop, self.head = nn.AvgPool2d(2), nn.Dropout(0.5), nn.Linear(6 * 16, 3)

    def forward(self, x):
        x = self.act1(self.norm1(self.conv1(x)))
        x = self.act2(self.norm2(self.conv2(x)) + x)
        return self.head(self.drop(self.pool(x).flatten(1)))


@pytest.fixture
def ann():
    torch.manual_seed(3)
    model = Residual()
    with torch.no_grad():
        for norm in (model.norm1, model.norm2):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 2)
            norm.weight.uniform_(0.5, 1.5)
    return model.double().eval()


@pytest.fixture
def x():
    return torch.rand(5, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def trainable(ann, **options):
    return cos_ext.convert(ann, **{"timesteps": T, "trainable": True, **options})


def gradients(network, *x):
    network.zero_grad()
    network(*x).square().sum().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.requires_grad}


def plain(network, x, surrogate):
    """The same network as a loop over steps in plain torch; BatchNorm folded."""
    m, nodes = network.module, network.nodes()
    v = {site: node.v_init for site, node in nodes.items()}
    outs = []
    for _ in range(T):

        def fire(site, current):
            theta = nodes[site].v_threshold
            potential = v[site] + current
            spike = surrogate((potential - theta) / theta)
            v[site] = potential - theta * spike
            return theta * spike

        first = fire("act1", m.conv1(x))
        second = fire("act2", m.conv2(first) + first)
        outs.append(m.head(TF.avg_pool2d(second, 2).flatten(1)))
    return torch.stack(outs)


@pytest.mark.parametrize("fuse", [True, False])
def test_gradients_are_those_of_a_loop_over_steps(ann, x, fuse):
    network, surrogate = trainable(ann, fuse=fuse), Sigmoid(3.0)
    for node in network.nodes().values():
        node.surrogate = surrogate
    found = gradients(network, x)
    assert {"module.act1.v_threshold", "module.act2.v_init", "module.conv1.weight"} <= found.keys()
    assert all(bool(g.abs().sum() > 0) for g in found.values())
    network.zero_grad()
    expected = plain(network, x, surrogate)
    torch.testing.assert_close(network(x), expected, rtol=1e-12, atol=1e-12)
    expected.square().sum().backward()
    for name, p in network.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-10, atol=1e-12, msg=name)


def test_any_loss_over_steps(ann, x):
    network, labels = trainable(ann), torch.tensor([0, 1, 2, 0, 1])
    out = network(x)
    by_step = torch.stack([TF.cross_entropy(each, labels) for each in out]).mean()  # as in TET
    by_step.backward()
    first = network.module.conv1.weight.grad.clone()
    network.zero_grad()
    TF.cross_entropy(network.rate(x), labels).backward()
    assert not torch.equal(first, network.module.conv1.weight.grad)


def test_the_same_outputs_as_without(ann, x):
    with torch.no_grad():
        for fold in (True, False, "frozen"):
            other = cos_ext.convert(ann, timesteps=T, fold_batchnorm=fold is True, fuse=False)
            found = trainable(ann, fold_batchnorm=fold)
            torch.testing.assert_close(found(x), other(x), rtol=1e-12, atol=1e-12)


def test_nothing_trains_unless_asked(ann, x):
    network = cos_ext.convert(ann, timesteps=T)
    assert not network.trainable and not any(p.requires_grad for p in network.parameters())
    assert not network.train().training and not network(x).requires_grad
    assert all(p.requires_grad for p in trainable(ann).parameters())


def test_train_mode_means_it(ann, x):
    network = trainable(ann)
    assert not network.training
    torch.manual_seed(0)
    assert network.train().training
    assert not torch.equal(network(x), network(x))  # dropout
    assert torch.equal(network.eval()(x), network(x))


@pytest.mark.parametrize("fold", [False, "frozen"])
def test_batch_norm_trains_or_is_frozen(ann, x, fold):
    network = trainable(ann, fold_batchnorm=fold)
    assert all(isinstance(network.module.get_submodule(f"norm{i}"), nn.BatchNorm2d) for i in (1, 2))
    norm = network.module.norm2
    before, trains = norm.running_mean.clone(), fold is False
    found = gradients(network.train(), x)
    assert torch.equal(norm.running_mean, before) == (not trains)
    assert ("module.norm2.weight" in found) == trains
    assert norm.training == trains and network.module.drop.training


def test_batch_norm_that_cannot_be_folded_keeps_its_statistics(x):
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), QCFS(4, 1.0), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3)
    )
    network = trainable(model.double().eval()).train()
    before = network.module.get_submodule("2").running_mean.clone()
    assert network.module.get_submodule("2").weight.requires_grad
    gradients(network, x)
    assert torch.equal(before, network.module.get_submodule("2").running_mean)


def test_sums_and_pooling_are_fused_and_parameters_are_not(ann):
    network = trainable(ann, fold_batchnorm=False, fuse="bias")
    reasons = {entry.site: (entry.status, entry.reason) for entry in network.report.entries}
    assert reasons["pool"][0] == "fused" and reasons["norm2"][0] == "kept"
    assert all(node.in_bias is None and node.in_scale is None for node in network.nodes().values())
    assert network.module.conv2.bias is not None


def test_calibration_is_refused_where_a_gradient_is_wanted(ann, x):
    with pytest.raises(ValueError, match="rho must be 0 with trainable=True, got 2"):
        trainable(ann, rho=2)
    network = trainable(ann)
    network.rho = 2
    with pytest.raises(RuntimeError, match="gradient"):
        network(x)
    with torch.no_grad():
        calibrated = cos_ext.convert(ann, timesteps=T, rho=2, fuse=False)
        torch.testing.assert_close(network(x), calibrated(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fold", [True, False, "frozen"])
def test_a_file_keeps_what_was_learned(ann, x, tmp_path, fold):
    network = trainable(ann, fold_batchnorm=fold).train()
    optimizer = torch.optim.SGD(network.parameters(), 1e-4)
    gradients(network, x)
    optimizer.step()
    network.eval().save(tmp_path / "network")
    again = cos_ext.load_network(tmp_path / "network", Residual().double())
    assert again.trainable and not again.training
    assert torch.equal(again(x), network(x))
    assert gradients(again, x).keys() == gradients(network, x).keys()
    copied = copy.deepcopy(network)
    assert torch.equal(copied(x), network(x))


def test_a_file_of_a_network_that_calibrates_later(ann, x, tmp_path):
    network = trainable(ann)
    network.rho, network.iterations = 2, None
    network.save(tmp_path / "network")
    again = cos_ext.load_network(tmp_path / "network", Residual().double())
    assert again.rho == 2 and again.iterations is None and again.trainable
    with torch.no_grad():
        assert torch.equal(again(x), network(x))


def test_measuring_is_in_eval_mode(ann, x):
    network = trainable(ann, fold_batchnorm=False)
    expected = network.statistics([x], progress=False).to_dict()
    before = network.module.norm2.running_mean.clone()
    assert network.train().statistics([x], progress=False).to_dict() == expected
    assert torch.equal(network.module.norm2.running_mean, before) and not network.training
    with network.record(what="v") as recording:
        network(x)
    assert not recording["act1"].v.requires_grad
    network.rho, network.emission = T, "even"
    network.train().counts(x)
    assert torch.equal(network.module.norm2.running_mean, before)


def test_potentials_that_learn_are_not_fitted(ann, x):
    with pytest.raises(ValueError, match="must not be trainable, its v.0. are parameters"):
        cos_ext.fit_v_init(trainable(ann), [x], progress=False)


@pytest.mark.parametrize("fold", ["folded", "yes"])
def test_a_wrong_choice_of_batch_norm(ann, fold):
    with pytest.raises(ValueError, match=f"fold_batchnorm must be True, False or .*{fold}"):
        trainable(ann, fold_batchnorm=fold)


@pytest.mark.parametrize("name", zoo.CONVERTS)
def test_the_zoo_learns_fused_and_apart(name):
    make, shapes = zoo.CONVERTS[name]
    model = zoo.prepared(name, make).double()
    inputs = tuple(x.double() for x in zoo.inputs_of(shapes))
    with torch.no_grad():
        thresholds = thresholds_of(model, inputs)
    found = []
    for fuse in (True, False):
        network = trainable(
            model, thresholds=thresholds, max_pool="before", example_input=inputs, fuse=fuse
        )
        for node in network.nodes().values():
            node.surrogate = Sigmoid(1.0)
        found.append(gradients(network, *inputs))
    fused, apart = found
    assert fused and fused.keys() == apart.keys()
    for name, gradient in fused.items():
        size = apart[name].abs().max().item()
        assert size > 0 or "bias" in name, name
        torch.testing.assert_close(gradient, apart[name], rtol=1e-9, atol=1e-9 * size, msg=name)


def test_memory_limits_split_no_batch_that_learns(ann, x):
    network = trainable(ann, fold_batchnorm=False).train()
    network.module.drop.p = 0.0
    network.memory_limit = network.activation_bytes(x) // 2
    with torch.no_grad():  # what it would do to others
        assert memory.parts(copy.deepcopy(network).eval(), (x,)) > 1
    parts = gradients(copy.deepcopy(network), x)
    network.memory_limit = None
    for name, found in gradients(network, x).items():
        assert torch.equal(parts[name], found), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast(ann, x, dtype):
    network = trainable(ann.float())
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        found = gradients(network, x.float())
    assert all(g.isfinite().all() and g.dtype == torch.float32 for g in found.values())


class Kept:
    """Bytes that a forward keeps for the backward pass."""

    def __enter__(self):
        self.sizes = {}

        def keep(x):
            self.sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        self.hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x)
        self.hooks.__enter__()
        return self

    def __exit__(self, *_):
        self.hooks.__exit__(*_)
        self.bytes = sum(self.sizes.values())


@pytest.mark.parametrize("fold", [True, "frozen"])
def test_checkpointing_keeps_spikes_alone_and_gives_the_same_gradients(ann, x, fold):
    network = trainable(ann, fold_batchnorm=fold, timesteps=32).train()
    weights = sum(p.nbytes for p in network.parameters()) + sum(b.nbytes for b in network.buffers())
    kept, found = {}, {}
    for on in (False, True):
        network.checkpointing = on
        torch.manual_seed(5)  # of dropout
        network.zero_grad()
        with Kept() as record:
            out = network(x)
        kept[on] = record.bytes - weights
        out.square().sum().backward()
        found[on] = [p.grad.clone() for p in network.parameters() if p.requires_grad]
    assert all(map(torch.equal, found[True], found[False])) and len(found[True]) > 9
    layer = 32 * x.shape[0] * 6 * 64 * 8  # spikes of one layer
    assert kept[True] < 2.2 * layer and kept[False] > 3 * layer


@pytest.mark.parametrize("name", [name for name in zoo.CONVERTS if name != "untraceable"])
def test_the_zoo_in_segments(name):
    make, shapes = zoo.CONVERTS[name]
    model, inputs = zoo.prepared(name, make), zoo.inputs_of(shapes)
    with torch.no_grad():
        thresholds = thresholds_of(model, inputs)
    network = trainable(model, thresholds=thresholds, max_pool="before", example_input=inputs)
    expected = gradients(network, *inputs)
    network.checkpointing = True
    found = gradients(network, *inputs)
    assert all(torch.equal(found[name], g) for name, g in expected.items())
    with torch.no_grad():
        assert not network(*inputs).requires_grad
    copied = copy.deepcopy(network).double()  # constants of the model have moved
    assert copied.checkpointing and copied(*(x.double() for x in inputs)).dtype == torch.float64


def test_checkpointing_is_refused(ann):
    with pytest.raises(ValueError, match="BatchNorm that does not train"):
        trainable(ann, fold_batchnorm=False).checkpointing = True
    make, shapes = zoo.CONVERTS["untraceable"]
    inputs = zoo.inputs_of(shapes)
    model = zoo.prepared("untraceable", make)
    with torch.no_grad():
        thresholds = thresholds_of(model, inputs)
    network = trainable(model, thresholds=thresholds, example_input=inputs)
    with pytest.raises(ValueError, match="module by module"):
        network.checkpointing = True
    assert not network.checkpointing


@pytest.mark.slow
def test_compiled_it_learns_the_same(ann, x):
    network = trainable(ann)
    expected = gradients(network, x)
    network.zero_grad()
    torch.compile(network, backend="aot_eager")(x).square().sum().backward()
    for name, p in network.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("fold", [True, False, "frozen"])
def test_sync_batch_norm_trains_as_batch_norm(ann, x, fold):
    sync = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(ann)).eval()
    ours, theirs = (trainable(each, fold_batchnorm=fold, fuse=False) for each in (sync, ann))
    for network in (ours, theirs):
        network.train()
        network.module.drop.eval()
    found, wanted = gradients(ours, x), gradients(theirs, x)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, msg=name)
    state, expected = ours.state_dict(), theirs.state_dict()
    assert state.keys() == expected.keys()
    torch.testing.assert_close(dict(state), dict(expected))
    moved = "module.norm1.running_mean" in state and not torch.equal(
        state["module.norm1.running_mean"], ann.norm1.running_mean
    )
    assert moved is (fold is False)
