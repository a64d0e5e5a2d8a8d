"""nn.MultiheadAttention written out, so that its layers and products can be traced. Nothing is
traced here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as TF

from .graphs import changed


class Attention(nn.Module):
    """What an nn.MultiheadAttention with batch_first computes in eval mode, from the same weights.

    Where a mask of each sample is given, the module itself is called. One for all is added.
    """

    # What torch's transformer layers ask of theirs; the latter, so that they call it.
    batch_first, in_proj_bias = True, None

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        own, width = attention, attention.embed_dim
        given: Tensor | None = own.in_proj_weight
        weights = (
            (own.q_proj_weight, own.k_proj_weight, own.v_proj_weight)
            if given is None
            else given.chunk(3)
        )
        bias: Tensor | None = own.in_proj_bias
        biases = (None, None, None) if bias is None else bias.chunk(3)
        self.heads, self.width, self.masked = own.num_heads, width, own
        self.query, self.key, self.value = (
            _linear(weight, bias) for weight, bias in zip(weights, biases)
        )
        self.out_proj = _linear(own.out_proj.weight, own.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """[B, N, E] of queries, keys and values to [B, N, E] and the weights, [B, N, N] or None;
        also [N, E] of one sample, as torch has it.
        """
        masked = attn_mask is not None and attn_mask.dim() == 2
        if key_padding_mask is not None or ((attn_mask is not None or is_causal) and not masked):
            options = (key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)
            return self.masked(query, key, value, *options)
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(-3, -2)
            for layer, x in ((self.query, query), (self.key, key), (self.value, value))
        )
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            barred = torch.zeros_like(attn_mask, dtype=q.dtype)
            attn_mask = barred.masked_fill(attn_mask, float("-inf"))
        if need_weights:
            scale = (self.width // self.heads) ** -0.5
            scores = (q * scale) @ k.transpose(-2, -1)
            weights = TF.softmax(scores if attn_mask is None else scores + attn_mask, -1)
            mixed, shown = weights @ v, weights.mean(-3) if average_attn_weights else weights
        else:  # is_causal says that the mask is the causal one, which is then left out
            given = None if is_causal else attn_mask
            mixed, shown = TF.scaled_dot_product_attention(q, k, v, given, 0.0, is_causal), None
        return self.out_proj(mixed.transpose(-3, -2).flatten(-2)), shown


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    made.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return made


def _written_out(module: nn.Module) -> nn.Module | None:
    """What stands for a module of torch's; None: it stays."""
    if type(module) is not nn.MultiheadAttention or not module.batch_first or changed(module):
        return None
    added: Tensor | None = module.bias_k
    return Attention(module) if added is None and not module.add_zero_attn else None


def write_out(model: nn.Module) -> nn.Module:
    """The model with its attention written out, in place, where it has the batch first."""
    for name, child in model.named_children():
        made = _written_out(child)
        if made is not None:
            setattr(model, name, made.train(child.training))
        else:
            write_out(child)
    return model
