"""Whether a state fits a graph, and whether training may have left it behind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt import mapped_values
from graphopt._files import PathLike
from graphopt.checkpoint.safetensors_file import State
from graphopt.fingerprint import shortened
from graphopt.finite import lost_in
from graphopt.loss_scale import SMALLEST
from graphopt.states import COUNTERS, LOSS_SCALE, NOT_NEGATIVE, split

_LARGEST_COUNT = 2**53  # schedules compute in float64, which counts to there

Expected = Mapping[str, tuple[tuple[int, ...], str]]
"""The shape and dtype of each value that a state should have."""


@dataclass(frozen=True)
class LoadReport:
    """What was loaded of a checkpoint.

    Attributes:
        loaded: The names of the values that were loaded.
        kept: Those that the session kept, because the checkpoint has none that fits.
        ignored: Those of the checkpoint that the session does not have.
        differences: What is different about the graph and its hyperparameters, in words.
    """

    loaded: tuple[str, ...]
    kept: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()


def impossible(state: State) -> list[str]:
    """What no training leaves behind: numbers that are none, negative squares, wild counters."""
    problems = []
    for name, array in state.items():
        kind = split(name, state)[0] or name
        if count := lost_in(array):
            verb = "is" if count == 1 else "are"
            problems.append(f"{count} of {array.size} numbers of '{name}' {verb} NaN or infinite")
        elif kind in NOT_NEGATIVE and array.size and array.min() < 0:
            problems.append(f"'{name}' has the value {array.min()}, expected 0 or more")
        elif name == LOSS_SCALE.name and array.size and array.min() < SMALLEST:
            problems.append(f"'{name}' is {array.min()}, expected {SMALLEST} or more")
        elif name in COUNTERS and array.size and array.max() > _LARGEST_COUNT:
            problems.append(f"'{name}' is {array.max()}, expected {_LARGEST_COUNT} at most")
        mapped_values.give_back(array)
    return problems


def misfits(state: State, expected: Expected) -> list[str]:
    """How a state differs from the names, shapes and dtypes that it should have."""
    problems = [f"it lacks '{name}'" for name in expected if name not in state]
    problems += [
        f"it has '{name}', which the graph does not" for name in state if name not in expected
    ]
    for name, array in state.items():
        if name in expected and not fits(array, expected[name]):
            shape, dtype = expected[name]
            problems.append(
                f"'{name}' is {array.dtype.name}{list(array.shape)} in it, "
                f"but {dtype}{list(shape)} in the graph"
            )
    return problems


def check_given(state: State, expected: Expected, argument: str = "state") -> None:
    """Refuse values of one's own, of which there may be some only.

    Raises:
        ValueError: One does not fit, or no training leaves it behind.
    """
    given = {name: expected[name] for name in expected if name in state}
    if problems := misfits(state, given) + impossible(state):
        raise ValueError(f"{argument}: {shortened(problems)}")


def fits(array: np.ndarray, expected: tuple[tuple[int, ...], str]) -> bool:
    """Whether an array has this shape and dtype."""
    return (array.shape, array.dtype.name) == expected


def fitting(
    state: State, expected: Expected, differences: Sequence[str]
) -> tuple[dict[str, np.ndarray], LoadReport]:
    """What of a state fits a graph, and the report of loading that alone."""
    found = {
        name: array
        for name, array in state.items()
        if name in expected and fits(array, expected[name])
    }
    return found, LoadReport(
        loaded=tuple(found),
        kept=tuple(name for name in expected if name not in found),
        ignored=tuple(name for name in state if name not in expected),
        differences=tuple(differences),
    )


class OtherGraphError(ValueError):
    """A checkpoint is whole, but that of another graph."""


def refuse(
    path: PathLike, whose: str, problems: list[str], error: type[ValueError] = ValueError
) -> None:
    """Raise an error if there are problems with a checkpoint."""
    if problems:
        raise error(f"checkpoint '{path}' {whose}: {shortened(problems)}")
