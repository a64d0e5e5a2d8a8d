"""Frames of event recordings: counted by hand, and through a network. The recordings are simulated
(simulate_saccades.py), in N-MNIST's format, which tonic reads.
"""

import pickle
import sys

import numpy as np
import pytest
import simulate_saccades
import torch
from torch.utils.data import DataLoader

import cos_ext
from cos_ext.data import EventFrames

SENSOR = (34, 34, 2)
LABELS = {0: 9, 1: 2}


def recordings():
    """(events, label) of the files, read by tonic."""
    io = pytest.importorskip("tonic.io", reason="tonic is not installed (extra events)")
    kind = np.dtype([("x", int), ("y", int), ("t", int), ("p", int)])
    paths = {number: simulate_saccades.path_of(number) for number in simulate_saccades.IMAGES}
    return [(io.read_mnist_file(str(path), dtype=kind), LABELS[n]) for n, path in paths.items()]


def by_hand(events, steps, by):
    """Every event in the bin that its time or its number says, until the bins are full."""
    found = torch.zeros(steps, 2, 34, 34)
    first, last = int(events["t"][0]), int(events["t"][-1])
    width = (last - first) // steps if by == "time" else len(events) // steps
    for number, event in enumerate(events):
        at = int(event["t"]) - first if by == "time" else number
        if at // width < steps:
            found[at // width, event["p"], event["y"], event["x"]] += 1
    return found


@pytest.mark.parametrize("number", simulate_saccades.IMAGES)
def test_the_recordings_are_what_the_script_makes(number):
    path = simulate_saccades.path_of(number)
    assert path.read_bytes() == simulate_saccades.recording(number)


def test_the_files_are_read_as_they_were_written():
    image = cos_ext.data.fashion_mnist().images[0, 0].numpy().astype(np.int64)
    events = recordings()[0][0]
    written = simulate_saccades.events_of(image)
    assert [tuple(map(int, event)) for event in events] == written
    assert len({p for *_, p in written}) == 2 and written[-1][2] > 250_000


@pytest.mark.parametrize("steps", [1, 4, 7])
@pytest.mark.parametrize("by", ["time", "events"])
def test_frames_have_every_event(by, steps):
    both = recordings()
    collate = EventFrames(SENSOR, steps, by=by)
    frames, labels = collate(both)
    assert frames.dtype == torch.float32 and frames.shape == (steps, 2, 2, 34, 34)
    assert labels.dtype == torch.int64 and labels.tolist() == [9, 2]
    for sample, (events, _) in enumerate(both):
        assert torch.equal(frames[:, sample], by_hand(events, steps, by))
        assert frames[:, sample].flatten(1).sum(1).min() > 0
    assert pickle.loads(pickle.dumps(collate)).frames(both[0][0]).equal(frames[:, 0])


def test_a_sensor_that_is_no_square():
    (events, _), _ = recordings()
    low = events[(events["y"] < 20) & (events["x"] < 30)]
    frames = EventFrames((30, 20, 2), 3).frames(low)
    assert frames.shape == (3, 2, 20, 30) and frames.sum() > 100


def test_a_loader_through_a_network():
    loader = DataLoader(recordings(), batch_size=2, collate_fn=EventFrames(SENSOR, 6))
    torch.manual_seed(0)
    model = cos_ext.models.resnet20(num_classes=10, in_channels=2, levels=4)
    network = cos_ext.convert(model.eval(), timesteps=4, rho=6)
    (frames, labels) = next(iter(loader))
    outputs = network.run(frames)
    answers = outputs.cumsum(0).argmax(-1)
    result = cos_ext.evaluate(network, loader, over_time=True, progress=False)
    assert result.accuracy == (answers == labels).double().mean(1).tolist()
    assert result.samples == 2 and result.spike_rate > 0
    with pytest.raises(ValueError, match=r"4 dimensions.*to run\(\)"):
        cos_ext.evaluate(network, loader, progress=False)


def events_of(*rows):
    kind = [("x", int), ("y", int), ("t", int), ("p", int)]
    return np.array(list(rows), dtype=kind)


WRONG = {
    "none": (events_of(), ValueError, "4 frames, got 0 events"),
    "too quick": (events_of((0, 0, 5, 0), (0, 0, 8, 1)), ValueError, "got 3 units of time"),
    "outside": (events_of((0, 0, 5, 0), (3, 34, 99, 1)), ValueError, r"y of .* 0\.\.33 .* 0\.\.34"),
    "polarity": (events_of((0, 0, 5, 0), (3, 3, 99, 2)), ValueError, "p of an event"),
    "no fields": (np.zeros((3, 4)), TypeError, "fields x, y, t and p, got ndarray"),
    "no time": (
        np.zeros(3, [("x", int), ("y", int), ("p", int)]),
        TypeError,
        "got .*'x', 'y', 'p'",
    ),
}


@pytest.mark.parametrize("events, error, words", WRONG.values(), ids=WRONG.keys())
def test_recordings_that_are_refused(events, error, words):
    pytest.importorskip("tonic", reason="tonic is not installed (extra events)")
    with pytest.raises(error, match=words):
        EventFrames(SENSOR, 4)([(events, 0)])


def test_too_few_events():
    pytest.importorskip("tonic", reason="tonic is not installed (extra events)")
    events = events_of((0, 0, 0, 0), (1, 1, 900, 1))
    assert EventFrames(SENSOR, 4).frames(events).sum() == 1  # the last one ends the last bin
    with pytest.raises(ValueError, match="4 frames, got 2 events"):
        EventFrames(SENSOR, 4, by="events").frames(events)


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"sensor_size": (34, 34)}, ValueError, "width, height, polarities.*got 2"),
        ({"sensor_size": (34, 0, 2)}, ValueError, "sensor_size"),
        ({"timesteps": 0}, ValueError, "timesteps"),
        ({"timesteps": 2.5}, TypeError, "timesteps"),
        ({"by": "count"}, ValueError, "by must be one of .*'time', 'events'.*'count'"),
    ],
)
def test_arguments_that_are_refused(changes, error, words):
    pytest.importorskip("tonic", reason="tonic is not installed (extra events)")
    given = {"sensor_size": SENSOR, "timesteps": 4, **changes}
    with pytest.raises(error, match=words):
        EventFrames(**given)


def test_without_tonic(monkeypatch):
    monkeypatch.setitem(sys.modules, "tonic", None)
    monkeypatch.setitem(sys.modules, "tonic.transforms", None)
    with pytest.raises(ImportError, match=r"tonic: pip install '\.\[events\]'"):
        EventFrames(SENSOR, 4)
