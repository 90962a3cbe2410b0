"""Whether a state has numbers that are none: NaN or infinite, after which training is lost."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]

_BLOCK = 2**20  # elements that are looked at at once: their marks stay in the cache
_SHOWN = 3


def check_finite(state: Mapping[str, Array]) -> None:
    """Refuse a state with NaN or infinite numbers.

    A NaN in a parameter or in its mean square stays there for ever, and what it is multiplied with
    becomes NaN too; with ``centered=True`` its parameter never moves again, without a sign of it in
    the loss.

    Args:
        state: The arrays, by name.

    Raises:
        FloatingPointError: It has such numbers; the message names where.

    Example:
        >>> check_finite({"w": np.float32([0, np.nan])})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        FloatingPointError: the state is lost: 1 of 2 numbers of ...
    """
    lost = {name: count for name, array in state.items() if (count := lost_in(array))}
    if not lost:
        return
    parts = [f"{lost[name]} of {state[name].size} numbers of '{name}'" for name in lost][:_SHOWN]
    more = f", and some of {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
    step = f"after step {state['global_step']} " if "global_step" in state else ""
    verb = "is" if sum(lost.values()) == 1 else "are"
    raise FloatingPointError(
        f"{step}the state is lost: {', '.join(parts)}{more} {verb} NaN or infinite; go on from an "
        "earlier checkpoint, and look for such numbers in what was fed, for a learning rate that "
        "is too high, or a loss scale that is too large"
    )


def lost_in(array: Array) -> int:
    """How many numbers are NaN or infinite."""
    if array.dtype.kind not in "fc" and array.dtype.name != "bfloat16":
        return 0
    flat = array.reshape(-1)
    blocks = (flat[start : start + _BLOCK] for start in range(0, flat.size, _BLOCK))
    return sum(int(block.size - np.count_nonzero(np.isfinite(block))) for block in blocks)
