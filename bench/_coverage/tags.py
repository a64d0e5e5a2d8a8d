"""What calls hand on while a network runs: whether a tensor comes after a layer, and which
activations reach a layer from it. No quantiser stands here, and nothing of cos_ext.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

LAYERS = {"linear", *(f"conv{d}d" for d in (1, 2, 3)), *(f"conv_transpose{d}d" for d in (1, 2, 3))}
PRODUCTS = {"matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "einsum"}
PRODUCTS |= {"scaled_dot_product_attention", "multi_head_attention_forward"}
FACTORS = {"mul", "mul_", "__mul__", "__rmul__", "__imul__"}
# Activations that are no rectifiers: what they give gets neurons with a sign.
CURVES = {"gelu", "silu", "mish", "elu", "celu", "selu", "leaky_relu", "hardswish", "softplus"}
CURVES |= {"softsign", "softshrink", "hardshrink", "tanhshrink", "logsigmoid", "prelu"}
GATES = {"sigmoid", "tanh", "hardsigmoid"}
RECTIFIERS = {"relu", "relu_", "relu6", "hardtanh", "hardtanh_", "threshold", "threshold_"}
RECTIFIERS |= {"clamp", "clamp_", "clip", "clip_", "clamp_min", "clamp_min_"}


def name_of(func: Any) -> str:
    return str(getattr(func, "__name__", func))


class Tag(NamedTuple):
    """What is known of a tensor.

    given: it depends on the input. passed: and comes after a layer or a product. ends: activations,
    by the number of their calls, that it comes from with no other between. gates: sigmoids, since
    the last layer.
    """

    given: bool = False
    passed: bool = False
    ends: frozenset[int] = frozenset()
    gates: frozenset[int] = frozenset()


class Tags(TorchFunctionMode):
    """Follows tensors through all calls that are made while it is active."""

    PRODUCTS = PRODUCTS

    def __init__(self) -> None:
        super().__init__()
        self.number = -1  # of the call
        self.tags: dict[int, tuple[Tensor, Tag]] = {}  # holds the tensor: ids are used again
        self.curves: set[int] = set()  # calls after a layer
        self.read: set[int] = set()  # by a layer, or a product
        self.scaling: set[int] = set()  # gates that are factors

    def begin(self, inputs: Any) -> Any:
        """Note what the network is called with."""
        for x in tree_leaves(inputs):
            self.tags[id(x)] = x, Tag(given=True)
        return inputs

    def signed(self) -> frozenset[int]:
        """The calls between two layers that get neurons with a sign."""
        return frozenset(self.curves & self.read - self.scaling)

    def tag(self, x: Any) -> Tag:
        found = self.tags.get(id(x))
        return Tag() if found is None else found[1]

    def passed(self, x: Any) -> bool:
        return self.tag(x).passed

    def called(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self.number += 1
        number, name = self.number, name_of(func)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        tags = [self.tag(x) for x in given]
        out = self.called(func, args, kwargs or {})
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if name == "__setitem__":
            made = given[:1]
        tag = self._next(name, number, tags)
        for x in made:
            self.tags[id(x)] = x, tag
        return out

    def _next(self, name: str, number: int, tags: list[Tag]) -> Tag:
        """The tag of what a call makes of tensors with these."""
        none: frozenset[int] = frozenset()
        given = any(tag.given for tag in tags)
        passed = any(tag.passed for tag in tags)
        ends = none.union(*(tag.ends for tag in tags))
        gates = none.union(*(tag.gates for tag in tags))
        if name in LAYERS or name in PRODUCTS:
            self.read |= ends
            return Tag(given, given)
        if name in FACTORS:
            self.scaling |= gates
        one = frozenset((number,))
        if name in CURVES or name in GATES:
            self.curves |= one if passed else none
        if name in GATES:
            return Tag(given, passed, ends | one, gates | one)
        if name in CURVES or name in RECTIFIERS:
            return Tag(given, passed, one, gates)
        return Tag(given, passed, ends, gates)
