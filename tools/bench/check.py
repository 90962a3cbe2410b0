"""Whether contenders compute the same: how far a sample of elements moves in the first steps."""

import numpy as np
import numpy.typing as npt

from tools.bench.cases import DECAY, EPSILON, UpdateCase

Float64 = npt.NDArray[np.float64]

STEPS = 3
_SAMPLE = 4096
# Of the norm of all moves. A weight decay that is left out makes 1e-3, the rounding of float32
# less than 1e-4.
_TOLERANCE = 3e-4


def sample(arrays: list[np.ndarray]) -> Float64:
    """Some elements of each array, its first and its last among them."""
    count = max(2, _SAMPLE // len(arrays))
    return np.concatenate([_evenly(array.ravel(), count) for array in arrays])


def expected_moves(case: UpdateCase, steps: int = STEPS) -> Float64:
    """How far the sample moves, in float64, from the formulas of the algorithm."""
    start, g = sample(case.parameters()), sample(case.gradients())
    learning_rate, weight_decay = _hyperparameters(case)
    w, s, a, m = start.copy(), np.ones_like(g), np.zeros_like(g), np.zeros_like(g)
    for _ in range(steps):
        decayed = g + weight_decay * w
        s = DECAY * s + (1 - DECAY) * decayed**2
        a = DECAY * a + (1 - DECAY) * decayed
        variance = s - a**2 if case.variant.centered else s
        m = case.variant.momentum * m + learning_rate * decayed / np.sqrt(variance + EPSILON)
        w = w - m
    return w - start


def disagreement(moves: npt.ArrayLike, expected: Float64) -> str | None:
    """What is wrong with the moves, if anything."""
    got = np.asarray(moves, np.float64)
    if got.shape != expected.shape:
        return f"{got.size} elements were sampled, expected {expected.size}"
    error = float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
    if not error <= _TOLERANCE:
        return (
            f"after {STEPS} steps its parameters have moved otherwise than they should: "
            f"relative error {error:.1e}, expected at most {_TOLERANCE:.1e}"
        )
    return None


def _evenly(array: np.ndarray, count: int) -> Float64:
    places = np.linspace(0, array.size - 1, min(count, array.size)).astype(np.int64)
    return array[places].astype(np.float64)


def _hyperparameters(case: UpdateCase) -> tuple[Float64, Float64]:
    """The learning rate and the weight decay of each element of the sample."""
    rates = [np.empty(shape, np.float32) for shape in case.shapes]
    decays = [np.empty(shape, np.float32) for shape in case.shapes]
    for group in case.groups:
        for index in group.indices:
            rates[index].fill(group.learning_rate)
            decays[index].fill(group.weight_decay)
    return sample(rates), sample(decays)
