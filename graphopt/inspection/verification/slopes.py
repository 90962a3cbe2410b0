"""The derivative of a function along a line, from differences that are checked for kinks."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["same", "different", "unclear"]

_STEPS = (1.0, 0.25)
_CLEAR = 20  # a difference is so many times as large as what the two steps do not agree on


@dataclass(frozen=True)
class Precision:
    """How differences are taken.

    Attributes:
        name: The floating-point type.
        step: The larger of two steps, of parameters of size 1.
        tolerance: How far a derivative may be off, as a part of what makes it up.
        noise: How far differences may be off, as a part of the value of the function.
    """

    name: str
    step: float
    tolerance: float
    noise: float


DOUBLE = Precision("float64", 2e-6, 1e-6, 1e-9)
SINGLE = Precision("float32", 1e-2, 2e-2, 3e-4)


@dataclass(frozen=True)
class Slope:
    """A derivative, and what is known of it.

    Attributes:
        value: The derivative: central differences of two steps, extrapolated.
        spread: What the two do not agree on.
        kink: How much more the slopes on both sides differ than those of a smooth function.
        at: The value of the function.
    """

    value: float
    spread: float
    kink: float
    at: float

    def compared(self, claimed: float, size: float, precision: Precision) -> tuple[Verdict, float]:
        """Whether a derivative that is claimed is this one.

        Args:
            claimed: What is claimed.
            size: The sum of the magnitudes of its parts, which may cancel.
            precision: How the differences were taken.

        Returns:
            What it is, and how far it is off as a part of what is tolerated. It is unclear where
            the function has a kink.
        """
        tolerated = precision.tolerance * (size + abs(self.value)) + precision.noise * abs(self.at)
        off = abs(claimed - self.value)
        part = off / (tolerated + 4 * self.spread + math.ulp(0.0))
        if not math.isfinite(off):
            return "unclear", math.inf
        if part <= 1:
            is_sharp = self.spread <= 100 * tolerated
            return ("same" if is_sharp else "unclear"), part
        is_clear = _CLEAR * max(self.spread, self.kink) <= off
        return ("different" if is_clear else "unclear"), part


def slope(function: Callable[[float], float], step: float) -> Slope:
    """The derivative of a function at 0.

    Args:
        function: The function.
        step: The larger step.

    Example:
        >>> found = slope(lambda t: (1 + t) ** 3, 1e-3)
        >>> abs(found.value - 3) < 1e-9, found.kink < 1e-5
        (True, True)
    """
    at = function(0.0)
    central, curved = [], []
    for part in _STEPS:
        h = step * part
        above, below = function(h), function(-h)
        central.append((above - below) / (2 * h))
        curved.append((above - 2 * at + below) / h**2)
    large, small = central
    # The error of central differences falls with the square of the step.
    value = small + (small - large) / ((_STEPS[0] / _STEPS[1]) ** 2 - 1)
    return Slope(value, abs(large - small), abs(curved[0] - curved[1]) * step, at)
