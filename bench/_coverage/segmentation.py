"""Segmentation, video and vision transformers of segmentation-models-pytorch and torchvision."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from .networks import Input, Network, image

DECODERS = (
    "Unet UnetPlusPlus MAnet Linknet FPN PSPNet PAN DeepLabV3 DeepLabV3Plus UPerNet Segformer"
)
SIZES = {"PAN": 128}
WHOLE = "fcn_resnet50 deeplabv3_resnet50 deeplabv3_mobilenet_v3_large lraspp_mobilenet_v3_large"
VIDEO = "r3d_18 mc3_18 r2plus1d_18"
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "vit_b_16": {"image_size": 64},
    "swin_t": {},
    "swin_v2_t": {},
}


def segmentation() -> list[Network]:
    def decoder(name: str) -> nn.Module:
        import segmentation_models_pytorch as smp

        return getattr(smp, name)("resnet18", encoder_weights=None, classes=3)

    def own(name: str, **options: Any) -> nn.Module:
        import torchvision

        if name in WHOLE:
            options["weights_backbone"] = None
        return torchvision.models.get_model(name, weights=None, num_classes=10, **options)

    theirs = [
        Network(f"smp.{name}", partial(decoder, name), image(SIZES.get(name, 64)), needs=(SMP,))
        for name in DECODERS.split()
    ]
    theirs += [Network(name, partial(own, name), image(), needs=VISION) for name in WHOLE.split()]
    clip = (Input((3, 8, 32, 32)),)
    theirs += [Network(name, partial(own, name), clip, needs=VISION) for name in VIDEO.split()]
    for name, options in TRANSFORMERS.items():
        theirs.append(Network(name, partial(own, name, **options), image(), "inputs", VISION))
    return theirs


SMP, VISION = "segmentation_models_pytorch", ("torchvision",)
