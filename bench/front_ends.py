"""What does a run without data trace, beside torch.fx and torch.export?

    pip install transformers
    python bench/front_ends.py

HuggingFace encoders with small random configurations; no weights are loaded. Says whether torch.fx
traces a model, whether the graph of a run is the model for 1, 2 and 4 samples, and what
torch.export makes of the same: its calls, and how many different functions they call. Measures no
time and no accuracy.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from cos_ext._batches import Inputs
from cos_ext.conversion.tracing import trace

try:
    import transformers as hf
except ImportError as error:
    raise SystemExit(f"nothing to measure: {error}; pip install transformers") from error

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
TOKENS = {"vocab_size": 99, **SMALL}
PATCHES = {"image_size": 32, "patch_size": 8, **SMALL}
STAGES = {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]}
MODELS: dict[str, tuple[dict[str, Any], str, int]] = {
    "BertModel": (TOKENS, "tokens", 11),
    "RobertaModel": (TOKENS, "tokens", 11),
    "T5EncoderModel": ({"vocab_size": 99, "d_model": 32, "d_kv": 16, "d_ff": 64}, "tokens", 11),
    "ViTModel": (PATCHES, "images", 32),
    "CLIPVisionModel": (PATCHES, "images", 32),
    "SwinModel": (
        {"image_size": 64, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4},
        "images",
        64,
    ),
    "ConvNextModel": (STAGES, "images", 64),
    "SegformerForSemanticSegmentation": ({**STAGES, "decoder_hidden_size": 16}, "images", 64),
    "ResNetForImageClassification": ({"layer_type": "basic"}, "images", 32),
    "MobileNetV2ForImageClassification": ({"depth_multiplier": 0.35}, "images", 64),
}


def made(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model and an example."""
    options, kind, size = MODELS[name]
    model = getattr(hf, name)(getattr(hf, name).config_class(**options)).eval()
    if kind == "tokens":
        return model, {"input_ids": torch.randint(2, 90, (2, size))}
    return model, {"pixel_values": torch.randn(2, 3, size, size)}


def said(function: Callable[[], str]) -> str:
    """What a front end made of a model, or that it failed."""
    try:
        return function()
    except Exception as error:  # of the model's code
        return f"fails: {type(error).__name__}"


@torch.no_grad()
def by_run(model: nn.Module, example: dict[str, Tensor]) -> str:
    traced = trace(model, Inputs.of(model, example), example, runs=True)
    if traced.graph is None:
        return f"fails: {traced.why_not}"
    assert isinstance(traced.module, fx.GraphModule)
    for batch in (1, 2, 4):
        inputs = {name: torch.cat([x, x.flip(0)])[:batch] for name, x in example.items()}
        ours = tree_leaves(traced.module(*inputs.values()))
        for mine, theirs in zip(ours, tree_leaves(model(**inputs)), strict=True):
            torch.testing.assert_close(mine, theirs)
    return f"equal, {len(traced.graph.nodes)} nodes"


@torch.no_grad()
def by_export(model: nn.Module, example: dict[str, Tensor], targets: set[str]) -> str:
    batch = {name: {0: torch.export.Dim.AUTO} for name in example}
    program = torch.export.export(model, (), example, dynamic_shapes=batch, strict=False)
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    targets.update(called)
    return f"{len(called)} calls"


def main() -> None:
    logging.disable(logging.CRITICAL)
    torch.manual_seed(0)
    targets: set[str] = set()
    print(f"torch {torch.__version__}, transformers {hf.__version__}")
    print(f"{'model':36}{'torch.fx':12}{'a run':22}torch.export")
    for name in MODELS:
        model, example = made(name)
        by_fx = trace(model, Inputs.of(model, example)).graph
        run = said(lambda: by_run(model, example))  # noqa: B023
        exported = said(lambda: by_export(model, example, targets))  # noqa: B023
        print(f"{name:36}{'fails' if by_fx is None else 'traces':12}{run:22}{exported}", flush=True)
    print(f"torch.export calls {len(targets)} different functions")


if __name__ == "__main__":
    main()
