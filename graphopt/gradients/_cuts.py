"""Where the forward pass is cut into segments, which the backward pass computes one by one."""

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from itertools import accumulate

import numpy as np
import onnx_ir as ir

from graphopt.gradients._forward import FloatArray, Forward, bytes_of

_MOST_SEGMENTS = 32
_MOST_CUTS = 1024  # that are looked at for the best ones
_TEMPORARY = 3  # gradients of a value, about, that the backward pass of a node holds


def near_equal(
    forward: Forward, again: Collection[ir.Value], kept: Collection[ir.Value], is_last: bool
) -> list[int]:
    """Many segments, each with its share of what is computed again, where little crosses a cut.

    Args:
        forward: The forward pass.
        again: What is computed again.
        kept: What is kept anyway.
        is_last: Whether what crosses a cut stays kept; then, it is no more than such a share.
    """
    sizes, crossing = forward.bytes_by_node(again), forward.crossing_bytes(kept)
    cuts = _cuts(sizes, crossing, forward.possible_cuts(), _MOST_SEGMENTS)
    if is_last:
        cuts = [at for at in cuts if crossing[at] <= sum(sizes) / _MOST_SEGMENTS]
    return cuts


def least_held(forward: Forward, read: Collection[ir.Value]) -> list[int]:
    """The segments with which the backward pass holds least, if each is computed again whole.

    When it comes to a node, it holds what crosses the cuts up to there, what it reads of the
    segment up to the node, some gradients of what that gives, and the gradients of the parameters
    of later nodes; the latter do not count where the batch is open, beside which they are small.

    Args:
        forward: The forward pass.
        read: What the backward pass reads.
    """
    sizes = forward.bytes_by_node(read)
    possible = _cuts(sizes, forward.crossing_bytes(()), forward.possible_cuts(), _MOST_CUTS)
    cuts = np.array([*possible, len(sizes)])
    places = np.array([*forward.place.values()])  # sorted
    lasts = np.array([forward.last_reader.get(value, -1) for value in forward.place])
    sizes_of = np.array([bytes_of(value) for value in forward.place], np.float64)
    sums = np.concatenate([[0], np.cumsum(sizes)])
    held_beside = forward.parameter_gradients()
    held_beside[1:] += _TEMPORARY * np.array(sizes)
    # What the segment from each cut to an end holds by itself, and what it leaves for later ones.
    inside, left = np.full((2, len(cuts), len(cuts)), np.inf)
    for at, end in enumerate(cuts[1:], 1):
        crossing = np.cumsum(np.where(lasts >= end, sizes_of, 0))
        before = np.concatenate([[0], crossing])[np.searchsorted(places, cuts[: at + 1])]
        left[:at, at] = before[-1] - before[:-1]
        inside[:at, at] = _from_each(sums[: end + 1] + held_beside[: end + 1])[cuts[:at]]
        inside[:at, at] -= sums[cuts[:at]]
    low, high, best = 0.0, float(inside[0, -1]), [0]
    while high - low > high / 256:
        middle = (low + high) / 2
        found = _within(middle, inside, left)
        if found:
            high, best = middle, found
        else:
            low = middle
    return [int(cuts[at]) for at in best]


def _from_each(values: FloatArray) -> FloatArray:
    """The largest value from each place on."""
    return np.maximum.accumulate(values[::-1])[::-1]


def _within(most: float, inside: FloatArray, left: FloatArray) -> list[int]:
    """Cuts with which no segment holds more; empty if there are none."""
    kept = np.full(len(inside), np.inf)
    kept[0] = 0
    came_from = np.zeros(len(inside), int)
    for at in range(1, len(inside)):
        held = kept[:at]
        total = np.where(held + inside[:at, at] <= most, held + left[:at, at], np.inf)
        came_from[at] = np.argmin(total)
        kept[at] = total[came_from[at]]
    if not np.isfinite(kept[-1]):
        return []
    cuts, at = [], int(came_from[-1])
    while at:
        cuts.append(at)
        at = int(came_from[at])
    return [0, *reversed(cuts)]


def _cuts(
    sizes: Sequence[int], crossing: Sequence[int], possible: Sequence[int], number: int
) -> list[int]:
    """So many cuts, the first at 0: near equal shares of the sizes, where least crosses."""
    sums = [0, *accumulate(sizes)]
    share = sums[-1] / (number + 1)
    before = [sums[at] for at in possible]
    cuts = {0}
    for k in range(1, number + 1):
        first = bisect_left(before, (k - 0.5) * share)
        near = possible[first : bisect_right(before, (k + 0.5) * share)]
        if near:
            cuts.add(min(near, key=lambda at: (crossing[at], at)))
    return sorted(cuts)
