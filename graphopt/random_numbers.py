"""Random numbers that a graph computes: from a seed, the step, the node, and the place in it.

The functions ``Random*`` of the update compute them, in integers and in float32 numbers that are
exact, so that they are the same bits on all runtimes and devices. What is constant is made here.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

PRIME = 2147483693
"""The smallest prime above 2**31 modulo which cubes are one to one."""
LANES = 9
"""How many integers a row is made of: eight factors of its elements, and their last bits."""
PER_ROW = 1024
"""How many elements a row has."""
SEEDS = 2**31
"""How many seeds there are."""

_LEVELS = 2048
_CONSTANTS = 314159265, 358979323, 846264338

Integers = npt.NDArray[np.int64]


def checked_seed(value: Any) -> int | None:
    """The seed of random numbers, or None.

    Raises:
        TypeError: It is neither.
        ValueError: It is out of range.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"seed: got {value!r} ({type(value).__name__}), expected an int or None")
    if not 0 <= value < SEEDS:
        raise ValueError(f"seed: got {value}, expected an int >= 0 and < 2**31")
    return value


def mixed(x: Integers, y: Integers | int) -> Integers:
    """What the function ``RandomMix`` computes: (x + y)**3 modulo a prime."""
    base = (x + y) % PRIME
    cube: Integers = base * base % PRIME * base % PRIME
    return cube


def columns() -> npt.NDArray[np.float32]:
    """What the factors of a row are multiplied by, [9, 1024]; the last one by zeros.

    Multiples of 2**-11 from -1/2 to 1/2, so that the products of eight factors below 2**11 add up
    to a multiple of 2**-11 that float32 has exactly. One of each column is odd, so that the
    fraction of such a sum has all values, each as often as the others.
    """
    factors = LANES - 1
    whole = _constants(1, factors, PER_ROW) % _LEVELS - _LEVELS // 2
    number = np.arange(PER_ROW)
    whole[number % factors, number] |= 1
    last = np.zeros((1, PER_ROW), np.int64)
    return (np.concatenate([whole, last]) / _LEVELS).astype(np.float32)


def nodes(count: int) -> Integers:
    """What distinguishes the nodes that draw: nine integers each."""
    return _constants(2, count, LANES)


def _constants(kind: int, *shape: int) -> Integers:
    """Integers without a pattern, others for each kind."""
    numbers = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
    numbers = mixed(numbers, kind * 2**28)
    for constant in _CONSTANTS:
        numbers = mixed(numbers, constant)
    return numbers
