"""Operations that have a rule before the first neurons only. There anything may stand; the rule
tells that the result has its batch where the input has it.
"""

from __future__ import annotations

from torch import nn
from torch.nn import functional as TF

from .base import Call, Memory, Refusal, register
from .refused import Refused


@register
class Lookup(Refused):
    """Embedding by integers, which do not spike."""

    modules = (nn.Embedding,)
    functions = (TF.embedding,)
    memory = Memory.OWN
    why = Refusal("looks up integers, no spikes", "keep it before the first activation")

    def rank(self, call: Call) -> int | None:
        return None if call.rank is None else call.rank + 1

    def leads(self, call: Call) -> bool:
        return True
