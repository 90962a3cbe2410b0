"""Handwritten digits: 1,797 pictures of 8 x 8 pixels, which are part of the package.

They are the test set of "Optical Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak,
from the UCI Machine Learning Repository, under the licence CC BY 4.0; the order is another one.
"""

from importlib import resources
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_TRAIN = 1437
"""The first ones are for training; each part has every digit in about the same proportion."""


class Samples(NamedTuple):
    """Pictures and what they show.

    Attributes:
        x: Pixels from 0 (white) to 1 (black), float32 ``[n, 1, 8, 8]``.
        labels: The digits, int64 ``[n]``.
    """

    x: NDArray[np.float32]
    labels: NDArray[np.int64]


class Digits(NamedTuple):
    """The two parts of the data; no sample is in both."""

    train: Samples
    test: Samples


def load() -> Digits:
    """Loads the digits: 1,437 for training and 360 for testing, always the same.

    Example:
        >>> load().train.x.shape
        (1437, 1, 8, 8)
    """
    file = resources.files("graphopt.examples") / "digits.npz"
    with file.open("rb") as stream, np.load(stream) as archive:
        x = (archive["pixels"] / np.float32(16)).reshape(-1, 1, 8, 8)
        labels = archive["labels"].astype(np.int64)
    return Digits(Samples(x[:_TRAIN], labels[:_TRAIN]), Samples(x[_TRAIN:], labels[_TRAIN:]))
