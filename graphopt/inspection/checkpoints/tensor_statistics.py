"""The values of a tensor in numbers and in a histogram."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from graphopt.carried import Array
from graphopt.inspection.checkpoints.checkpoint_facts import (
    BINS,
    Histogram,
    Scale,
    Statistics,
    TensorValues,
)
from graphopt.inspection.checkpoints.floats import Float64, pieces, scaled, unit_of


def tensor_values(name: str, array: Array, scale: Scale) -> TensorValues:
    """A tensor, with a histogram on this scale."""
    return TensorValues(
        name=name,
        shape=array.shape,
        dtype=array.dtype.name,
        bytes=array.nbytes,
        statistics=None if array.dtype.kind == "c" else _statistics(array, scale),
    )


@dataclass
class _Range:
    """Where the finite elements of a tensor lie."""

    finite: int = 0
    zeros: int = 0
    nan: int = 0
    inf: int = 0
    low: float = math.inf
    high: float = -math.inf
    least: float = math.inf  # the smallest magnitude but zero

    @property
    def largest(self) -> float:
        return max(abs(self.low), abs(self.high))

    def add(self, piece: Float64) -> None:
        finite = piece[np.isfinite(piece)]
        nan = int(np.isnan(piece).sum())
        self.nan += nan
        self.inf += piece.size - finite.size - nan
        if finite.size:
            self.finite += finite.size
            self.low = min(self.low, float(finite.min()))
            self.high = max(self.high, float(finite.max()))
            magnitudes = np.abs(finite[finite != 0])
            self.zeros += finite.size - magnitudes.size
            self.least = min(self.least, float(magnitudes.min(initial=math.inf)))


def _statistics(array: Array, scale: Scale) -> Statistics:
    # Signalling NaNs and magnitudes at the ends of float64 are ordinary here.
    with np.errstate(all="ignore"):
        found = _Range()
        for (piece,) in pieces(array):
            found.add(piece)
        if not found.finite:
            return Statistics(None, None, None, None, 0, found.nan, found.inf, None)
        unit = unit_of(array, found.largest)
        sums, squares = [], []
        for (piece,) in pieces(array):
            finite = scaled(piece[np.isfinite(piece)], unit)
            sums.append(float(finite.sum()))
            squares.append(float(np.square(finite).sum()))
        mean = math.fsum(sums) / found.finite * unit
        rms = math.sqrt(math.fsum(squares) / found.finite) * unit
        return Statistics(
            minimum=found.low,
            maximum=found.high,
            mean=max(found.low, min(found.high, mean)),
            rms=min(rms, found.largest),
            zeros=found.zeros,
            nan=found.nan,
            inf=found.inf,
            histogram=_histogram(array, found)
            if scale == "linear"
            else _log_histogram(array, found),
        )


def _histogram(array: Array, found: _Range) -> Histogram:
    unit = unit_of(array, found.largest)
    values = (scaled(piece[np.isfinite(piece)], unit) for (piece,) in pieces(array))
    counts = _counts(values, found.low / unit, found.high / unit)
    return Histogram("linear", found.low, found.high, counts)


def _log_histogram(array: Array, found: _Range) -> Histogram | None:
    if not found.largest:
        return None
    values = (
        np.log10(np.abs(piece[np.isfinite(piece) & (piece != 0)])) for (piece,) in pieces(array)
    )
    low, high = float(np.log10(found.least)), float(np.log10(found.largest))
    return Histogram("log10", low, high, _counts(values, low, high))


def _counts(parts: Iterable[Float64], low: float, high: float) -> tuple[int, ...]:
    """How many values are in each bin from ``low`` to ``high``."""
    counts = np.zeros(BINS, np.int64)
    edges = np.linspace(low, high, BINS + 1)
    for piece in parts:
        if low == high:
            counts[BINS // 2] += piece.size
        else:
            bins = np.searchsorted(edges, piece, side="right") - 1
            counts += np.bincount(np.clip(bins, 0, BINS - 1), minlength=BINS)
    return tuple(counts.tolist())
