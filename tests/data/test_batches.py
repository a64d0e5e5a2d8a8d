"""Batches of an image set: lengths, normalisation, shuffling, augmentation, seeds, indexing."""

import pytest
import torch

from cos_ext.data import ImageSet


def numbered(count=10, channels=1, height=8, width=8, classes=10):
    """Every image constant, and as bright as its index, so that a batch tells which images it
    has.
    """
    images = (
        torch.arange(1, count + 1, dtype=torch.uint8)
        .view(-1, 1, 1, 1)
        .expand(-1, channels, height, width)
    )
    return ImageSet(
        images.contiguous(),
        torch.arange(count) % classes,
        (0.0,) * channels,
        (1.0,) * channels,
        classes,
    )


def seen(batches):
    return [
        round(float(pixel) * 255) - 1 for images, _ in batches for pixel in images.amax((1, 2, 3))
    ]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 5, 9, 10, 11])
def test_batch_lengths(batch_size, drop_last):
    batches = numbered().batches(batch_size, drop_last=drop_last)
    sizes = [len(labels) for _, labels in batches]
    whole, rest = divmod(10, batch_size)
    assert sizes == [batch_size] * whole + ([rest] if rest and not drop_last else [])
    assert len(batches) == len(sizes)
    assert seen(batches) == list(range(sum(sizes)))
    assert seen(batches) == list(range(sum(sizes)))  # re-iterable


def test_batches_are_normalised_float32_with_int64_labels():
    images, labels = next(iter(numbered().batches(4)))
    assert images.dtype == torch.float32 and images.shape == (4, 1, 8, 8)
    assert labels.dtype == torch.int64 and labels.tolist() == [0, 1, 2, 3]


def test_shuffle_gives_every_image_once_with_its_label():
    source = numbered(200, classes=200)
    batches = source.batches(7, shuffle=True, generator=torch.Generator().manual_seed(1))
    first, second = seen(batches), seen(batches)
    assert sorted(first) == sorted(second) == list(range(200))
    assert first != second != list(range(200)) != first
    assert [int(label) for _, labels in batches for label in labels] != first
    for images, labels in batches:
        assert torch.equal((images[:, 0, 0, 0] * 255).round().long() - 1, labels)
    assert len(seen(source.batches(7, shuffle=True, drop_last=True))) == 196


@pytest.mark.parametrize("augment", [False, True])
def test_same_seed_same_batches(augment):
    source = ImageSet(
        torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8),
        torch.arange(40) % 10,
        (0.5,) * 3,
        (0.25,) * 3,
        10,
    )

    def run(seed):
        batches = source.batches(
            16, shuffle=True, augment=augment, generator=torch.Generator().manual_seed(seed)
        )
        return torch.cat([images for _ in range(2) for images, _ in batches])

    assert torch.equal(run(3), run(3))
    assert not torch.equal(run(3), run(4))
    before = torch.get_rng_state()
    run(3)
    assert torch.equal(
        torch.get_rng_state(), before
    )  # a generator of one's own leaves torch's alone


@pytest.mark.parametrize("height, width, pad", [(28, 28, 3), (32, 32, 4), (8, 16, 1), (4, 4, 1)])
def test_augmentation_only_shifts_and_mirrors(height, width, pad):
    count, channels = 60, 2
    images = torch.randint(1, 256, (count, channels, height, width), dtype=torch.uint8)
    source = ImageSet(images, torch.zeros(count, dtype=torch.int64), (0.5, 0.25), (0.5, 0.25), 1)
    augmented, _ = next(
        iter(source.batches(count, augment=True, generator=torch.Generator().manual_seed(0)))
    )
    assert augmented.shape == images.shape and augmented.is_contiguous()
    used = set()
    for result, image in zip(augmented, images):
        # Black before normalisation: the border becomes (0 - mean) / std, not 0.
        padded = torch.nn.functional.pad(image, (pad, pad, pad, pad))
        matches = []
        for mirror in (False, True):
            source_image = padded.flip(-1) if mirror else padded
            for top in range(2 * pad + 1):
                for left in range(2 * pad + 1):
                    window = source_image[:, top : top + height, left : left + width]
                    if torch.equal(source.normalise(window[None])[0], result):
                        matches.append((mirror, top, left))
        assert len(matches) == 1
        used.add(matches[0])
    assert {mirror for mirror, _, _ in used} == {False, True}
    assert {top for _, top, _ in used} == {left for _, _, left in used} == set(range(2 * pad + 1))
    assert torch.equal(next(iter(source.batches(count)))[0], source.normalise(images))


def test_normalise():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    image_set = ImageSet(pixels, torch.tensor([0]), (0.5, 0.1, 0.25), (0.5, 0.2, 0.125), 1)
    normalised = image_set.normalise(image_set.images)
    assert normalised.dtype == torch.float32
    assert torch.allclose(normalised.flatten(), torch.tensor([-1.0, 0.5, 6.0]))
    assert image_set.images.flatten().tolist() == [0, 51, 255]


def test_indexing():
    source = numbered(5)
    for index in range(-5, 5):
        image, label = source[index]
        assert image.shape == (1, 8, 8) and image.dtype == torch.float32 and type(label) is int
        assert label == index % 5 and round(float(image[0, 0, 0]) * 255) == label + 1
    for index in (5, 100, -6):
        with pytest.raises(IndexError):
            source[index]
    assert [label for _, label in source] == [0, 1, 2, 3, 4]  # iteration ends
    loader = torch.utils.data.DataLoader(source, 2)
    assert [labels.tolist() for _, labels in loader] == [[0, 1], [2, 3], [4]]


def test_split():
    source = numbered(5)
    rest, last = source.split(2)
    assert torch.equal(rest.images, source.images[:3]) and len(last) == 2
    assert torch.equal(last.labels, source.labels[3:]) and last.mean == source.mean
    assert last.images.data_ptr() == source.images[3].data_ptr()
    for count in (0, 5, 6, -1):
        with pytest.raises(ValueError, match=f"count must lie in 1..4, got {count}"):
            source.split(count)


def test_first():
    source = numbered(5)
    assert source.first(None) is source
    part = source.first(2)
    assert (
        len(part) == 2
        and part.images.data_ptr() == source.images.data_ptr()
        and part.num_classes == 10
    )
    assert len(source.first(5)) == 5 and len(source.first(1)) == 1
    for count in (0, -1, 6):
        with pytest.raises(ValueError, match=rf"1\.\.5, got {count}"):
            source.first(count)


def test_image_set_checks():
    images, labels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4)
    for wrong in (images.float(), images[:, 0]):
        with pytest.raises(ValueError, match="uint8"):
            ImageSet(wrong, labels, (0.0,), (1.0,), 10)
    with pytest.raises(ValueError, match="4 and 3"):
        ImageSet(images, labels[:3], (0.0,), (1.0,), 10)
    for wrong in (labels + 7, labels - 1):
        with pytest.raises(ValueError, match=r"0\.\.9, got"):
            ImageSet(images, wrong, (0.0,), (1.0,), 10)
    for mean, std in [
        ((0.0,) * 3, (1.0,)),
        ((0.0,), (1.0,) * 3),
    ]:  # would broadcast to three channels
        with pytest.raises(ValueError, match="mean and std"):
            ImageSet(images, labels, mean, std, 10)
    with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
        ImageSet(images, labels, (0.0,), (1.0,), 10).batches(0)
    empty = ImageSet(images[:0], labels[:0], (0.0,), (1.0,), 10)
    assert len(empty) == 0 and list(empty.batches(3)) == []
