"""What comparing finds: how far values are off, as a part of what is tolerated, and which."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from graphopt._words import shown
from graphopt.inspection.verification.batches import Array, Batch, Updated
from graphopt.inspection.verification.runnable import State


@dataclass
class Compared:
    """What comparing has found so far."""

    steps: int = 0
    deviation: float = 0.0
    differences: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    told: set[tuple[int, str, str]] = field(default_factory=set)
    """The steps, kinds and names whose difference is there."""


def compare_batch(
    batch: Batch,
    after: State,
    wanted: Mapping[str, Array],
    tolerated: Mapping[str, Array],
    number: int,
    found: Compared,
) -> None:
    """Compare parameters and states with what they should be after a step."""
    for parameter, part, rows in batch.pieces():
        for kind in batch.values:
            got = after[kind][parameter.name].reshape(-1)[part]
            values = got, wanted[kind][rows], tolerated[kind][rows]
            compare_parameter(parameter, kind, values, number, found, start=part.start)


def compare_parameter(
    parameter: Updated,
    kind: str,
    values: tuple[Array, Array, Array],
    number: int,
    found: Compared,
    start: int = 0,
) -> None:
    """Compare what is there, what is wanted and how far it may be off, of one parameter.

    Of a parameter in pieces, each from an element on, only the first piece that differs is told.
    """
    got, want, off = (array.reshape(-1) for array in values)
    parts = _parts(got, want, off)
    worst = int(np.argmax(parts))
    found.deviation = max(found.deviation, float(parts[worst]))
    told = (number, kind, parameter.name)
    if parts[worst] > 1 and told not in found.told:
        found.told.add(told)
        found.differences.append(
            f"step {number}: {_element(parameter, kind, start + worst)} is "
            f"{got[worst]:.6g}, expected {want[worst]:.6g}"
        )


def _parts(got: Array, want: Array, tolerated: Array) -> Array:
    """Differences as a part of what is tolerated; NaN and infinity must be in both."""
    with np.errstate(all="ignore"):
        rounded = want.astype(got.dtype)  # a large number is infinite in float16
        parts = np.abs(got.astype(np.float64) - want) / tolerated
    same = (np.isnan(got) & np.isnan(want)) | (got == rounded) | np.isinf(tolerated)
    return np.where(same, 0.0, np.where(np.isnan(parts), np.inf, parts))


def _element(parameter: Updated, kind: str, place: int) -> str:
    name = shown(f"{kind}.{parameter.name}" if kind else parameter.name)
    index = ", ".join(str(int(i)) for i in np.unravel_index(place, parameter.shape or (1,)))
    return f"{name}[{index}]" if parameter.shape else name
