"""How far a value may be off because of rounding: measured where nothing is optimized."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graphopt.inspection.verification.batches import Array
from graphopt.inspection.verification.interpreter import as_double

_TIMES = 16  # what rounding did where nothing is optimized, it may do so many times
_UNITS = 128  # in the last place of the largest element


def worst(got: Any, exact: Any, plain: Any, least: float = 0.0, units: float = 1.0) -> float:
    """The largest difference of an element, as a part of what rounding explains.

    Args:
        got: What was computed, in any floating-point type.
        exact: The same in float64.
        plain: The same in the type of ``got``, without optimizations.
        least: How far rounding moves it at least, in units of its type.
        units: How many times as far as otherwise rounding may move it.

    Returns:
        Up to 1 it is the same; infinity where one is NaN or infinite, and the others are not.
    """
    got = np.asarray(got)
    if got.size == 0 or got.dtype.kind not in "fV":
        return 0.0
    unit = np.finfo(got.dtype).eps if got.dtype.kind == "f" else 2.0**-8
    wide, still = as_double(got), as_double(plain)
    if wide.shape != np.shape(exact):
        return np.inf
    usable = np.isfinite(exact) & np.isfinite(still)
    if not usable.any():
        return 0.0
    if not np.isfinite(wide[usable]).all():
        return np.inf
    noise = np.abs(still - exact)[usable].max()
    largest = np.abs(exact[usable]).max()
    allowed = _TIMES * noise + units * unit * (_UNITS * largest + least) + np.finfo(np.float64).tiny
    return float(np.abs(wide - exact)[usable].max() / allowed)


def worst_by_name(
    names: Sequence[str],
    got: Mapping[str, Any],
    exact: Mapping[str, Any],
    plain: Mapping[str, Any],
    units: float,
) -> dict[str, float]:
    """The same for several values; rounding moves all by a unit of the largest of them."""
    sizes = [_largest(np.asarray(exact[name])) for name in names]
    least = max(sizes, default=0.0)
    return {name: worst(got[name], exact[name], plain[name], least, units) for name in names}


def _largest(array: Array) -> float:
    return float(np.abs(array[np.isfinite(array)]).max(initial=0.0))
