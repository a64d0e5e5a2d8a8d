"""data.load, and folders of images: order of classes, cropping, colour modes, truncated images."""

import sys

import numpy as np
import pytest
import torch
from damaged import assert_names, corrupted

from cos_ext import data


def test_load_names(tmp_path, test_set):
    assert torch.equal(data.load("fashion-mnist", None).labels, test_set.labels)
    for name in ("imagenet", "CIFAR10", ""):
        with pytest.raises(ValueError, match="fashion-mnist.*got"):
            data.load(name, tmp_path)
    for name in set(data.DATASETS) - {"fashion-mnist"}:
        with pytest.raises(ValueError, match="root"):
            data.load(name, None)
    with pytest.raises(ValueError, match="root"):
        data.load("fashion-mnist", None, train=True)
    for name in ("fashion-mnist", "cifar10", "cifar100"):
        with pytest.raises(FileNotFoundError):
            data.load(name, tmp_path)


def test_image_folder_without_pillow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match="Pillow"):
        data.ImageFolder(tmp_path)


@pytest.fixture
def pillow():
    return pytest.importorskip(
        "PIL.Image", reason="ImageFolder needs Pillow, which is not installed"
    )


def write_images(pillow, root, sizes=((40, 30), (30, 40), (64, 64))):
    for name, colour in {"ant": (255, 0, 0), "bee": (0, 255, 0), "cat": (0, 0, 255)}.items():
        (root / name / "deep").mkdir(parents=True)
        for index, size in enumerate(sizes):
            folder = root / name if index else root / name / "deep"
            pillow.new("RGB", size, colour).save(
                folder / f"{index}.{('png', 'JPEG', 'bmp')[index]}"
            )
        (root / name / "notes.txt").write_text("no image")


def test_image_folder(tmp_path, pillow):
    write_images(pillow, tmp_path)
    folder = data.ImageFolder(tmp_path, size=24)
    assert len(folder) == 9 and folder.classes == ("ant", "bee", "cat") and folder.num_classes == 3
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    for image, label in (folder[index] for index in range(9)):
        assert image.shape == (3, 24, 24) and image.dtype == torch.float32
        pixels = image * std.view(3, 1, 1) + mean.view(3, 1, 1)
        assert torch.allclose(
            pixels, torch.eye(3)[label].view(3, 1, 1).expand(3, 24, 24), atol=0.02
        )
    assert folder[-1][1] == 2
    images, labels = next(iter(folder.batches(9)))
    assert images.shape == (9, 3, 24, 24) and labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    augmented = data.ImageFolder(tmp_path, size=24, augment=True)
    assert all(augmented[index][0].shape == (3, 24, 24) for index in range(9))


def test_image_folder_crops_the_centre(tmp_path, pillow):
    (tmp_path / "one").mkdir()
    pixels = np.zeros((256, 512, 3), np.uint8)
    pixels[:, 144:368] = 255  # the 224 columns that a centre crop of size 224 keeps
    pillow.fromarray(pixels).save(tmp_path / "one" / "wide.png")
    image, _ = data.ImageFolder(tmp_path, size=224)[0]
    white = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(image, white.view(3, 1, 1).expand(3, 224, 224), atol=1e-5)


def test_image_folder_modes(tmp_path, pillow):
    (tmp_path / "one").mkdir()
    for mode in ("L", "P", "RGBA", "LA", "1"):
        pillow.new(mode, (20, 10)).save(tmp_path / "one" / f"{mode}.png")
    folder = data.ImageFolder(tmp_path, size=16)
    assert [folder[index][0].shape for index in range(5)] == [(3, 16, 16)] * 5


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "webp", "ppm"])
def test_image_folder_truncated_images(tmp_path, pillow, kind):
    (tmp_path / "one").mkdir()
    path = tmp_path / "one" / f"image.{kind}"
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    pillow.fromarray(noise).save(path)
    raw = path.read_bytes()
    folder = data.ImageFolder(tmp_path, size=16)
    folder[0]
    for length in [0, 1, 4, 9, 17, 20, 30, 41, 60, len(raw) // 2, 3 * len(raw) // 4]:
        path.write_bytes(raw[:length])
        assert_names(path, lambda: folder[0])
    for position in range(
        0, len(raw), 7
    ):  # a damaged image may still decode, but may not raise anything else
        path.write_bytes(corrupted(raw, position))
        try:
            folder[0]
        except ValueError as error:
            assert str(path) in str(error)


def test_image_folder_errors(tmp_path, pillow):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data.ImageFolder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no class folders"):
        data.ImageFolder(tmp_path)
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    with pytest.raises(FileNotFoundError, match="ant"):
        data.ImageFolder(tmp_path)


def test_load_folder_splits(tmp_path, pillow):
    write_images(pillow, tmp_path / "val")
    write_images(pillow, tmp_path / "train", ((10, 10),))
    assert len(data.load("folder", tmp_path, size=8)) == 9
    train = data.load("folder", tmp_path, train=True, size=8)
    assert len(train) == 3 and train.augment
    assert len(data.load("folder", tmp_path / "val", size=8)) == 9
