"""What may stand between neurons, and what may not: one file a family of operations. Importing this
room fills the registry; base.py says what a rule is.
"""

from . import (
    constants,
    curves,
    joining,
    linear,
    normalisation,
    pooling,
    rectifiers,
    refused,
    shapes,
    sizes,
    static,
    sums,
)
from .base import Call, Memory, Refusal, Rule, register, rule_for, rule_of

__all__ = [
    "Call",
    "Memory",
    "Refusal",
    "Rule",
    "constants",
    "curves",
    "joining",
    "linear",
    "normalisation",
    "pooling",
    "rectifiers",
    "refused",
    "register",
    "rule_for",
    "rule_of",
    "shapes",
    "sizes",
    "static",
    "sums",
]
