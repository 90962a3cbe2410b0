"""What limits gradients: their norm, or their elements."""

from typing import Any, Literal, get_args

from graphopt import _checks

ClipNormPer = Literal["all", "group", "parameter"]

SMALLEST_NORM = 1e-6
"""What is added to a norm before anything is divided by it."""


def check_clipping(clip_norm: Any, clip_norm_per: Any, clip_value: Any) -> None:
    """Check the arguments of the optimizer.

    Raises:
        TypeError: One has the wrong type.
        ValueError: One is out of range, or has no effect beside another.
    """
    _checks.one_of("clip_norm_per", clip_norm_per, get_args(ClipNormPer))
    if clip_norm is not None:
        _checks.above_zero("clip_norm", clip_norm)
    if clip_value is not None:
        _checks.above_zero("clip_value", clip_value)
    if clip_norm is not None and clip_value is not None:
        raise ValueError(
            f"clip_value: got {clip_value} beside clip_norm={clip_norm}; clip by one of them"
        )
    if clip_norm is None and clip_norm_per != "all":
        raise ValueError(
            f"clip_norm_per: got '{clip_norm_per}', which has no effect without clip_norm; "
            "leave it out"
        )
