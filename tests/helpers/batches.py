"""Batches of the digits."""

import numpy as np

from graphopt.examples import digits


def batches(count, size=32):
    data, rng = digits.load().train, np.random.default_rng(0)
    for _ in range(count):
        rows = rng.integers(0, len(data.x), size)
        yield {"x": data.x[rows], "labels": data.labels[rows]}
