"""torchvision's and timm's convolutional networks, one small network a family."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from .networks import Network, image

TORCHVISION = {  # by the size of the images
    32: (
        "convnext_tiny densenet121 densenet161 densenet169 densenet201 efficientnet_b0 "
        "efficientnet_b1 efficientnet_v2_s googlenet mnasnet0_5 mnasnet1_0 mobilenet_v2 "
        "mobilenet_v3_small mobilenet_v3_large regnet_x_400mf regnet_y_400mf resnet18 resnet34 "
        "resnet50 resnet101 resnet152 resnext50_32x4d wide_resnet50_2 shufflenet_v2_x0_5 "
        "shufflenet_v2_x1_0 squeezenet1_0 squeezenet1_1 vgg11 vgg11_bn vgg16_bn"
    ),
    75: "alexnet inception_v3",
}
TIMM = {
    32: (
        "dla34 dpn48b densenet121 efficientnet_b0 efficientnetv2_rw_t "
        "fasternet_t0 ghostnet_050 hardcorenas_a hgnetv2_b0 hrnet_w18_small "
        "inception_next_atto lcnet_035 lcnetv2_small mobilenetv3_small_050 mobilenetv4_conv_small "
        "mnasnet_small mobilenetv2_035 fbnetv3_b tinynet_e mixnet_s regnetx_002 regnety_002 "
        "regnetz_005 repghostnet_050 repvit_m0_9 repvgg_a0 mobileone_s0 res2net50_14w_8s "
        "resnest14d resnet10t resnet18d seresnet18 ecaresnet26t resnext26ts gernet_s "
        "resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18 skresnet18 starnet_s050 "
        "vgg11_bn ese_vovnet19b_slim xception41 cs3darknet_s cspresnet50 cspnext_tiny "
        "convnext_atto convmixer_768_32 rdnet_tiny mambaout_femto nfnet_l0 convformer_s18"
    ),
    64: "efficientnet_lite0 ghostnetv2_100 tresnet_m",
    96: "inception_v4 inception_resnet_v2 legacy_xception",
}


def torchvision() -> list[Network]:
    def build(name: str) -> nn.Module:
        import torchvision

        options: dict[str, Any] = {"weights": None, "num_classes": 10}
        if name in ("googlenet", "inception_v3"):
            options |= {"aux_logits": False, "init_weights": False}
        return torchvision.models.get_model(name, **options)

    return [
        Network(name, partial(build, name), image(size), needs=("torchvision",))
        for size, names in TORCHVISION.items()
        for name in names.split()
    ]


def timm() -> list[Network]:
    def build(name: str) -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False, num_classes=10)

    return [
        Network(name, partial(build, name), image(size), needs=("timm",))
        for size, names in TIMM.items()
        for name in names.split()
    ]
