"""How good outputs are, added up batch by batch."""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt._slips import nearest

_TOP = re.compile(r"top(\d+)")


class Metric(ABC):
    """A number for many samples, of which some come at a time.

    Attributes:
        higher_is_better: Whether it is.
    """

    higher_is_better = True

    @abstractmethod
    def add(self, output: np.ndarray, labels: np.ndarray) -> None:
        """Some samples.

        Args:
            output: Of the model.
            labels: What it should be: for class indices, integers like the output without axis 1.

        Raises:
            ValueError: The metric is not for such labels.
        """

    @abstractmethod
    def value(self) -> float:
        """That of all samples so far; NaN where there are none."""


class TopK(Metric):
    """The share of labels among the k highest outputs of axis 1.

    Among equal outputs, the class with the lower index is the higher one; a NaN is higher than any
    number, so that a label is not among the highest because nothing can be compared with it.
    Where outputs and labels have one shape, k must be 1: an output above 0, the logit of one half,
    stands for a label above one half.
    """

    def __init__(self, k: int) -> None:
        """Nothing yet."""
        self._k, self._right, self._count = k, 0, 0

    def add(self, output: np.ndarray, labels: np.ndarray) -> None:
        """Some samples."""
        if not _are_classes(output, labels, f"top{self._k}"):
            if self._k > 1:
                raise ValueError(f"top{self._k}: expected labels that are classes of the output")
            right = (output > 0) == (labels > 0.5)
        else:
            flat, classes = _rows(output, labels)
            if self._k > flat.shape[1]:
                raise ValueError(
                    f"top{self._k}: the output has no more than {flat.shape[1]} classes"
                )
            own = np.take_along_axis(flat, classes[:, None], axis=1)
            index = np.arange(flat.shape[1])
            before = (flat == own) & (index < classes[:, None])
            higher = ~(flat <= own) | before
            right = higher.sum(axis=1) < self._k
        self._right += int(right.sum())
        self._count += right.size

    def value(self) -> float:
        """The share."""
        return self._right / self._count if self._count else float("nan")


class PerClass(Metric):
    """The mean over classes of precision, recall or F1.

    Classes that are neither a label nor the highest output of any sample are left out; a class that
    is never the highest output has the precision 0, one that is no label the recall 0.
    """

    def __init__(self, kind: str) -> None:
        """Nothing yet."""
        self._kind = kind
        self._confusion = np.zeros((0, 0), np.int64)  # of labels, and of highest outputs

    def add(self, output: np.ndarray, labels: np.ndarray) -> None:
        """Some samples."""
        if _are_classes(output, labels, self._kind):
            flat, classes = _rows(output, labels)
            found, count = flat.argmax(axis=1), flat.shape[1]
        else:
            found, classes, count = (output > 0).ravel() * 1, (labels > 0.5).ravel() * 1, 2
        if not len(self._confusion):
            self._confusion = np.zeros((count, count), np.int64)
        np.add.at(self._confusion, (classes, found), 1)

    def value(self) -> float:
        """The mean."""
        right = np.diag(self._confusion)
        labels, found = self._confusion.sum(axis=1), self._confusion.sum(axis=0)
        divisor = {"precision": found, "recall": labels, "f1": (labels + found) / 2}[self._kind]
        there = (labels + found) > 0
        if not there.any():
            return float("nan")
        return float(np.mean((right / np.maximum(divisor, 0.5))[there]))


class Error(Metric):
    """Mean absolute error, root of the mean square, or the share of the variance explained (R²).

    Over all elements. Of labels without variance, R² is NaN.
    """

    def __init__(self, kind: str) -> None:
        """Nothing yet."""
        self._kind, self.higher_is_better = kind, kind == "r2"
        self._count, self._absolute, self._squares = 0, 0.0, 0.0
        self._shift, self._sum, self._sum_of_squares = 0.0, 0.0, 0.0  # of labels

    def add(self, output: np.ndarray, labels: np.ndarray) -> None:
        """Some samples."""
        if output.shape != labels.shape:
            raise ValueError(
                f"{self._kind}: got outputs {list(output.shape)} and labels {list(labels.shape)}, "
                "expected the same shape"
            )
        wanted = labels.astype(np.float64)
        error = output.astype(np.float64) - wanted
        if not self._count:
            self._shift = float(wanted.mean())  # near the mean, squares lose nothing
        self._count += error.size
        self._absolute += float(np.abs(error).sum())
        self._squares += float(np.square(error).sum())
        self._sum += float((wanted - self._shift).sum())
        self._sum_of_squares += float(np.square(wanted - self._shift).sum())

    def value(self) -> float:
        """The number."""
        if not self._count:
            return float("nan")
        if self._kind == "mae":
            return self._absolute / self._count
        if self._kind == "rmse":
            return float(np.sqrt(self._squares / self._count))
        variance = self._sum_of_squares - self._sum**2 / self._count
        return 1 - self._squares / variance if variance > 0 else float("nan")


_PER_CLASS, _ERRORS = ("precision", "recall", "f1"), ("mae", "rmse", "r2")
METRICS = ("accuracy", "top5", *_PER_CLASS, *_ERRORS)
"""The names of metrics; top5 stands for any top<k>."""


def metric_of(name: Any) -> Metric:
    """The metric of a name.

    Raises:
        ValueError: There is none.

    Example:
        >>> metric = metric_of("accuracy")
        >>> metric.add(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1]))
        >>> metric.value()
        0.5
    """
    if name == "accuracy":
        return TopK(1)
    if name in _PER_CLASS:
        return PerClass(name)
    if name in _ERRORS:
        return Error(name)
    found = _TOP.fullmatch(name) if isinstance(name, str) else None
    if found is None or int(found[1]) < 1:
        meant = nearest(str(name), METRICS)
        remedy = f"did you mean '{meant}'?" if meant else f"expected {', '.join(METRICS)}"
        raise ValueError(f"metric: got '{name}', {remedy}")
    return TopK(int(found[1]))


def default_metrics(loss: str | None) -> Sequence[str]:
    """What is shown where nobody says it."""
    if loss in ("cross_entropy", "bce_with_logits"):
        return ("accuracy",)
    return ("mae",) if loss in ("mse", "l1", "huber") else ()


def _are_classes(output: np.ndarray, labels: np.ndarray, what: str) -> bool:
    """Whether labels are class indices; otherwise they are like the output."""
    if np.issubdtype(labels.dtype, np.integer) and (
        labels.shape == (*output.shape[:1], *output.shape[2:]) and output.ndim > 1
    ):
        count = output.shape[1]
        if wrong := labels[(labels < 0) | (labels >= count)].tolist():
            raise ValueError(
                f"{what}: got label {wrong[0]}, expected 0 to {count - 1}: the classes are axis 1 "
                f"of the output, which is {list(output.shape)}"
            )
        return True
    if output.shape != labels.shape:
        raise ValueError(
            f"{what}: got outputs {list(output.shape)} and labels {labels.dtype.name}"
            f"{list(labels.shape)}, expected class indices, or labels like the output"
        )
    return False


def _rows(output: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Outputs as rows of classes, and the class of each."""
    return np.moveaxis(output, 1, -1).reshape(-1, output.shape[1]), labels.reshape(-1)
