"""Networks of transformers (HuggingFace), by their own configurations made small: vision, sound,
text, segmentation. They return ModelOutput, and are called by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from .networks import Input, Network

# What most transformers call their sizes.
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
PATCHES = {**SMALL, "image_size": 32, "patch_size": 8}
STAGES = {"depths": [1, 1, 2, 1], "hidden_sizes": [16, 32, 48, 64]}
PIXELS = {"pixel_values": Input((3, 32, 32))}
LARGER = {"pixel_values": Input((3, 64, 64))}
WAVE = {"input_values": Input((2000,))}
WORDS = {"input_ids": Input((12,), ids=99)}
TEXT = {**SMALL, "vocab_size": 99, "max_position_embeddings": 32, "pad_token_id": 0}
SOUND = {
    **SMALL,
    "conv_dim": (16, 16, 16),
    "conv_stride": (5, 4, 2),
    "conv_kernel": (10, 8, 4),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 16,
}
INPUTS = "inputs"
ACTIVATIONS = "activations"

# (architecture, its configuration, sizes, inputs, where its neurons stand)
Row = tuple[str, str, Mapping[str, Any], Mapping[str, Input], str]
CONVOLUTIONS: tuple[Row, ...] = (
    ("ResNetForImageClassification", "ResNetConfig", STAGES, LARGER, ACTIVATIONS),
    (
        "RegNetForImageClassification",
        "RegNetConfig",
        {**STAGES, "groups_width": 16, "embedding_size": 16},
        LARGER,
        ACTIVATIONS,
    ),
    (
        "BitForImageClassification",
        "BitConfig",
        {**STAGES, "embedding_size": 32, "num_groups": 4},
        LARGER,
        ACTIVATIONS,
    ),
    ("ConvNextForImageClassification", "ConvNextConfig", STAGES, LARGER, INPUTS),
    ("ConvNextV2ForImageClassification", "ConvNextV2Config", STAGES, LARGER, INPUTS),
    (
        "MobileNetV1ForImageClassification",
        "MobileNetV1Config",
        {"depth_multiplier": 0.25},
        LARGER,
        ACTIVATIONS,
    ),
    (
        "MobileNetV2ForImageClassification",
        "MobileNetV2Config",
        {"depth_multiplier": 0.35},
        LARGER,
        ACTIVATIONS,
    ),
    (
        "EfficientNetForImageClassification",
        "EfficientNetConfig",
        {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640},
        LARGER,
        ACTIVATIONS,
    ),
    ("HGNetV2ForImageClassification", "HGNetV2Config", {}, LARGER, ACTIVATIONS),
    ("TextNetForImageClassification", "TextNetConfig", {}, LARGER, ACTIVATIONS),
)
WINDOWS = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2]}
WINDOWS |= {"num_heads": [2, 4], "window_size": 4}
VISION: tuple[Row, ...] = (
    ("ViTForImageClassification", "ViTConfig", PATCHES, PIXELS, INPUTS),
    ("DeiTForImageClassification", "DeiTConfig", PATCHES, PIXELS, INPUTS),
    ("BeitForImageClassification", "BeitConfig", PATCHES, PIXELS, INPUTS),
    ("Dinov2ForImageClassification", "Dinov2Config", PATCHES, PIXELS, INPUTS),
    ("SiglipForImageClassification", "SiglipConfig", {"vision_config": PATCHES}, PIXELS, INPUTS),
    (
        "SwinForImageClassification",
        "SwinConfig",
        WINDOWS,
        PIXELS,
        INPUTS,
    ),
    (
        "Swinv2ForImageClassification",
        "Swinv2Config",
        WINDOWS,
        PIXELS,
        INPUTS,
    ),
    (
        "PoolFormerForImageClassification",
        "PoolFormerConfig",
        STAGES,
        LARGER,
        INPUTS,
    ),
    (
        "PvtForImageClassification",
        "PvtConfig",
        {"image_size": 64, "hidden_sizes": [16, 32, 80, 64], "depths": [1, 1, 1, 1]},
        LARGER,
        INPUTS,
    ),
    (
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64], "decoder_hidden_size": 32},
        LARGER,
        INPUTS,
    ),
    (
        "FocalNetForImageClassification",
        "FocalNetConfig",
        {"image_size": 64, "embed_dim": 16, "depths": [1, 1, 1, 1]},
        LARGER,
        INPUTS,
    ),
    (
        "LevitForImageClassification",
        "LevitConfig",
        {"image_size": 64, "hidden_sizes": [32, 48, 64], "depths": [1, 1, 1], "key_dim": [8, 8, 8]},
        LARGER,
        INPUTS,
    ),
    (
        "MobileViTForImageClassification",
        "MobileViTConfig",
        {"image_size": 64, "hidden_sizes": [32, 48, 64]},
        LARGER,
        INPUTS,
    ),
)
SOUNDS: tuple[Row, ...] = (
    ("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", SOUND, WAVE, INPUTS),
    ("HubertForSequenceClassification", "HubertConfig", SOUND, WAVE, INPUTS),
    (
        "ASTForAudioClassification",
        "ASTConfig",
        {**SMALL, "max_length": 64, "num_mel_bins": 32},
        {"input_values": Input((64, 32))},
        INPUTS,
    ),
)
TEXTS: tuple[Row, ...] = (
    ("BertForSequenceClassification", "BertConfig", TEXT, WORDS, INPUTS),
    ("RobertaForSequenceClassification", "RobertaConfig", TEXT, WORDS, INPUTS),
    (
        "AlbertForSequenceClassification",
        "AlbertConfig",
        {**TEXT, "embedding_size": 16},
        WORDS,
        INPUTS,
    ),
    ("ElectraForSequenceClassification", "ElectraConfig", TEXT, WORDS, INPUTS),
    (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 99},
        WORDS,
        INPUTS,
    ),
    ("FNetForSequenceClassification", "FNetConfig", TEXT, WORDS, INPUTS),
    (
        "OPTForSequenceClassification",
        "OPTConfig",
        {**TEXT, "use_cache": False, "ffn_dim": 64, "word_embed_proj_dim": 32},
        WORDS,
        INPUTS,
    ),
    (
        "GPT2ForSequenceClassification",
        "GPT2Config",
        {
            "use_cache": False,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "vocab_size": 99,
            "pad_token_id": 0,
        },
        WORDS,
        INPUTS,
    ),
)


def huggingface() -> list[Network]:
    def build(architecture: str, config: str, sizes: Mapping[str, Any]) -> nn.Module:
        import transformers

        own = getattr(transformers, config)(**sizes)
        return getattr(transformers, architecture)(own)

    return [
        Network(architecture, partial(build, architecture, config, sizes), inputs, spikes, NEEDS)
        for architecture, config, sizes, inputs, spikes in (
            *CONVOLUTIONS,
            *VISION,
            *SOUNDS,
            *TEXTS,
        )
    ]


NEEDS = ("transformers",)
