"""How two checkpoints differ, tensor by tensor."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt._files import PathLike
from graphopt.carried import Array
from graphopt.inspection.checkpoints.checkpoint_facts import (
    CheckpointDifference,
    DifferenceTotals,
    TensorDifference,
)
from graphopt.inspection.checkpoints.contents import open_checkpoint
from graphopt.inspection.checkpoints.floats import PIECE, Float64, finite, pieces, scaled, unit_of
from graphopt.inspection.checkpoints.roles import kinds_of


def diff_checkpoints(before: PathLike, after: PathLike) -> CheckpointDifference:
    """How the second checkpoint differs from the first.

    The two may be of different kinds: a session's and an on-device one of the same training, for
    example.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A file is not a checkpoint; see `inspect_checkpoint`.

    Example:
        >>> diff_checkpoints("5.safetensors", "10.safetensors").steps  # doctest: +SKIP
        (5, 10)
    """
    with open_checkpoint(before) as first, open_checkpoint(after) as second:
        in_first, in_second = kinds_of(first), kinds_of(second)
        measured = [
            _compared(
                name,
                kind,
                first.read(name) if name in in_first else None,
                second.read(name) if name in in_second else None,
            )
            for name, kind in (in_first | in_second).items()
        ]
        tensors = tuple(difference for difference, _ in measured)
        lengths = [
            pair for difference, pair in measured if difference.kind == "parameter" and pair.count
        ]
        return CheckpointDifference(
            names=(str(before), str(after)),
            kinds=(first.kind, second.kind),
            steps=(first.step, second.step),
            tensors=tensors,
            totals=_difference_totals(tensors, lengths),
        )


@dataclass(frozen=True)
class _Numbers:
    """What two tensors of one shape are to each other, as vectors, where both are finite."""

    count: int = 0  # of elements
    largest: float = 0.0  # absolute difference
    first: float = 0.0  # its length
    difference: float = 0.0  # its length
    relative: float | None = None  # the latter by the former, if there is such a number
    cosine: float | None = None  # of the angle between the two, if neither is zero


def _compared(
    name: str, kind: str, a: Array | None, b: Array | None
) -> tuple[TensorDifference, _Numbers]:
    shapes = (None if a is None else a.shape, None if b is None else b.shape)
    dtypes = (None if a is None else a.dtype.name, None if b is None else b.dtype.name)
    if a is None or b is None or a.shape != b.shape:
        return TensorDifference(name, kind, shapes, dtypes, equal=False), _Numbers()
    equal = _same_bits(a, b)
    if "c" in a.dtype.kind + b.dtype.kind:
        return TensorDifference(name, kind, shapes, dtypes, equal), _Numbers()
    with np.errstate(all="ignore"):
        numbers = _measured(a, b)
    difference = TensorDifference(
        name=name,
        kind=kind,
        shapes=shapes,
        dtypes=dtypes,
        equal=equal,
        largest=finite(numbers.largest) if numbers.count else None,
        relative_rms=numbers.relative,
        rms=_rms(numbers.difference, numbers.count),
        first_rms=_rms(numbers.first, numbers.count),
        cosine=numbers.cosine if kind == "parameter" else None,
        left_out=a.size - numbers.count,
    )
    return difference, numbers


def _rms(length: float, count: int) -> float | None:
    return finite(length / math.sqrt(count)) if count else None


def _same_bits(a: Array, b: Array) -> bool:
    if a.dtype != b.dtype:
        return False
    one, other = (np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (a, b))
    step = 8 * PIECE
    return all(
        np.array_equal(one[start : start + step], other[start : start + step])
        for start in range(0, one.size, step)
    )


def _measured(a: Array, b: Array) -> _Numbers:
    units = unit_of(a, _largest(a)), unit_of(b, _largest(b))
    unit = max(units)
    count, largest = 0, 0.0
    dots, squares, others, differences = [], [], [], []
    for x, y in _finite_pieces(a, b):
        difference = scaled(x, unit) - scaled(y, unit)
        p, q = scaled(x, units[0]), scaled(y, units[1])
        count += x.size
        largest = max(largest, float(np.abs(difference).max(initial=0.0)))
        dots.append(float(np.dot(p, q)))
        squares.append(float(np.dot(p, p)))
        others.append(float(np.dot(q, q)))
        differences.append(float(np.dot(difference, difference)))
    first, second, moved = (math.sqrt(math.fsum(s)) for s in (squares, others, differences))
    norm = first * second
    return _Numbers(
        count=count,
        largest=largest * unit,
        first=first * units[0],
        difference=moved * unit,
        relative=_ratio(moved * (unit / units[0]), first) if count else None,
        cosine=max(-1.0, min(1.0, math.fsum(dots) / norm)) if norm else None,
    )


def _largest(array: Array) -> float:
    """The largest finite magnitude, where squares could leave float64."""
    if array.dtype != np.float64:
        return 0.0
    magnitudes = (np.abs(piece[np.isfinite(piece)]) for (piece,) in pieces(array))
    return max((float(piece.max(initial=0.0)) for piece in magnitudes), default=0.0)


def _finite_pieces(a: Array, b: Array) -> Iterator[tuple[Float64, Float64]]:
    """The elements that are finite in both."""
    for x, y in pieces(a, b):
        both = np.isfinite(x) & np.isfinite(y)
        yield x[both], y[both]


def _ratio(difference: float, first: float) -> float | None:
    """One length by another; None where there is no such number."""
    if first:
        return finite(difference / first) if math.isfinite(first) else None
    return None if difference else 0.0


def _difference_totals(
    tensors: Sequence[TensorDifference], parameters: Sequence[_Numbers]
) -> DifferenceTotals:
    first = math.hypot(*(numbers.first for numbers in parameters))
    difference = math.hypot(*(numbers.difference for numbers in parameters))
    both = [tensor for tensor in tensors if None not in tensor.shapes]
    return DifferenceTotals(
        tensors=len(tensors),
        equal=sum(tensor.equal for tensor in both),
        different=sum(tensor.comparable and not tensor.equal for tensor in both),
        mismatched=sum(not tensor.comparable for tensor in both),
        only_first=sum(tensor.shapes[1] is None for tensor in tensors),
        only_second=sum(tensor.shapes[0] is None for tensor in tensors),
        relative_rms=_ratio(difference, first) if parameters else None,
    )
