"""Shards: the batches of a data set dealt out to several processes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cos_ext import data

pytestmark = pytest.mark.usefixtures("one_thread")


def image_set(count):
    images = torch.randint(0, 256, (count, 1, 2, 2), dtype=torch.uint8)
    return data.ImageSet(images, torch.arange(count) % 10, (0.5,), (0.5,), 10)


@given(
    count=st.integers(0, 30),
    size=st.integers(1, 7),
    processes=st.integers(1, 5),
    drop=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_shards_are_the_batches_dealt_out(count, size, processes, drop):
    images = image_set(count)
    whole = list(images.batches(size, drop_last=drop))
    for index in range(processes):
        share = images.batches(size, drop_last=drop, shard=(index, processes))
        expected = whole[index::processes]
        assert len(share) == len(expected) == len(list(share))
        for (ours, our_labels), (theirs, their_labels) in zip(share, expected):
            assert torch.equal(ours, theirs) and torch.equal(our_labels, their_labels)


def test_shards_of_a_folder(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="needs the extra `vision`")
    for number in range(7):
        folder = tmp_path / f"class{number % 2}"
        folder.mkdir(exist_ok=True)
        image.new("RGB", (8, 8), (30 * number, 0, 0)).save(folder / f"{number}.png")
    folder = data.ImageFolder(tmp_path, size=8)
    whole = list(folder.batches(2))
    for processes in (2, 5):
        for index in range(processes):
            share = folder.batches(2, shard=(index, processes))
            expected = whole[index::processes]
            assert len(share) == len(expected)
            for ours, theirs in zip(share, expected, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


def test_shards_are_checked():
    for shard in ((1, 1), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="shard must be"):
            image_set(4).batches(2, shard=shard)
    with pytest.raises(ValueError, match="shuffle must be False with a shard"):
        image_set(4).batches(2, shuffle=True, shard=(0, 2))
