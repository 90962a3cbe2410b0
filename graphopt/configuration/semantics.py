"""What RMSProp means in other frameworks: the arguments in which they differ from MindSpore."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_TORCH = {
    "epsilon_inside_root": False,
    "initial_mean_square": 0.0,
    "learning_rate_inside_moment": False,
    "learning_rate": 0.01,
    "decay": 0.99,
    "epsilon": 1e-8,
}
_KERAS = {
    "initial_mean_square": 0.0,
    "decoupled_weight_decay": True,
    "learning_rate": 0.001,
    "decay": 0.9,
    "epsilon": 1e-7,
}
_OPTAX = {
    "initial_mean_square": 0.0,
    "learning_rate": None,
    "decay": 0.9,
    "epsilon": 1e-8,
}
_TIMM = {"learning_rate": 0.01, "decay": 0.9, "epsilon": 1e-10}

MINDSPORE = "mindspore"

SEMANTICS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {MINDSPORE: {}, "torch": _TORCH, "timm": _TIMM, "keras": _KERAS, "optax": _OPTAX}
)
"""The arguments of `RMSProp` that make it the optimizer of a framework, with its defaults.

None: the framework has no default. ``docs/other_frameworks.md`` explains them, and a test compares
the two. Weight decay leaves out parameters by their names in MindSpore alone.
"""
