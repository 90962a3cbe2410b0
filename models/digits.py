"""The handwritten digits that scikit-learn carries: 1,797 pictures of 8 x 8 pixels."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


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


def load(test_fraction: float = 0.2, seed: int = 0) -> Digits:
    """Loads the digits, split so that both parts hold every digit in the same proportion.

    Args:
        test_fraction: The part of the samples kept for testing, between 0 and 1.
        seed: Seed of the split: the same seed always gives the same split.

    Example:
        >>> load().train.x.shape
        (1437, 1, 8, 8)
    """
    pixels, labels = load_digits(return_X_y=True)
    x = (pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    x_train, x_test, labels_train, labels_test = train_test_split(
        x, labels.astype(np.int64), test_size=test_fraction, random_state=seed, stratify=labels
    )
    return Digits(Samples(x_train, labels_train), Samples(x_test, labels_test))
