"""What clients send back, and the mean of it."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.carried import Array
from graphopt.checkpoint import fits
from graphopt.fingerprint import shortened
from graphopt.finite import lost_in


@dataclass(frozen=True)
class ClientUpdate:
    """What a client has after its local training.

    Attributes:
        client: What it is called, in messages.
        values: Parameters and running statistics, by name.
        examples: How many examples it has trained on, >= 0: its weight.
    """

    client: str
    values: Mapping[str, Array]
    examples: int


Expected = Mapping[str, tuple[tuple[int, ...], str]]


def check_updates(updates: Sequence[ClientUpdate], expected: Expected) -> None:
    """Refuse updates that do not fit.

    Args:
        updates: One of each client.
        expected: Shape and dtype of each value, by name.

    Raises:
        FloatingPointError: Values are NaN or infinite. The message names the client, and so do
            the others.
        ValueError: A number of examples is none, names, shapes or dtypes are others than expected,
            a client is there twice, or nobody has examples.
    """
    for client, count in Counter(update.client for update in updates).items():
        if count > 1:
            raise ValueError(f"{client}: got {count} updates of it, expected one of each client")
    for update in updates:
        if problems := _misfits(update, expected):
            raise ValueError(f"{update.client}: {shortened(problems)}")
    if lost := [problem for update in updates if (problem := lost_of(update))]:
        raise FloatingPointError(
            f"{shortened(lost)}; leave such clients out of the mean, and look for such numbers in "
            "their data, or for a learning rate that is too high there"
        )
    if not any(update.examples for update in updates):
        raise ValueError(
            f"got {len(updates)} updates without any example, expected one with some: skip such "
            "a round"
        )


def lost_of(update: ClientUpdate) -> str:
    """Where an update has numbers that are NaN or infinite; empty if nowhere, or if it counts not.

    Example:
        >>> lost_of(ClientUpdate("node 7", {"w": np.float32([1, np.nan])}, 32))
        "node 7: 1 of 2 numbers of 'w' are NaN or infinite"
    """
    if update.examples == 0:
        return ""
    parts = [
        f"{count} of {array.size} numbers of '{name}'"
        for name, array in update.values.items()
        if (count := lost_in(array))
    ]
    return f"{update.client}: {shortened(parts)} are NaN or infinite" if parts else ""


def weighted_mean(updates: Sequence[ClientUpdate], name: str) -> npt.NDArray[np.float64]:
    """The mean of a value of all clients, weighted by their examples.

    With n_k examples of client k, it is Σ n_k · x_k / Σ n_k over all clients, in float64. Clients
    without examples do not count, whatever they have.

    Args:
        updates: One of each client, of which one has examples.
        name: The value that each of them has.

    Example:
        >>> updates = [ClientUpdate("a", {"w": np.float32([1, 2])}, 3),
        ...            ClientUpdate("b", {"w": np.float32([5, 2])}, 1)]
        >>> weighted_mean(updates, "w")
        array([2., 2.])
    """
    counted = [update for update in updates if update.examples]
    total = sum(update.examples for update in counted)
    mean = np.zeros(np.shape(counted[0].values[name]))
    for update in counted:
        mean += update.values[name].astype(np.float64) * (update.examples / total)
    return mean


def as_dtype(mean: npt.NDArray[np.float64], dtype: np.dtype[Any]) -> Array:
    """A mean in the dtype of what it is of: of integers the nearest one, halves to the even."""
    return np.rint(mean).astype(dtype) if dtype.kind in "iu" else mean.astype(dtype)


def check_numbers(values: Mapping[str, Array], names: Collection[str]) -> None:
    """Refuse values of which there is no mean.

    Raises:
        TypeError: One is neither of integers nor of floating-point numbers.
    """
    for name in names:
        dtype = values[name].dtype
        if dtype.kind not in "iuf":
            raise TypeError(
                f"'{name}' is {dtype.name}, of which there is no mean; expected integers or "
                "floating-point numbers: leave it in the clients' files"
            )


def _misfits(update: ClientUpdate, expected: Expected) -> list[str]:
    examples, values = update.examples, update.values
    problems = []
    if isinstance(examples, bool) or not isinstance(examples, int | np.integer) or examples < 0:
        problems.append(f"got {examples!r} examples, expected an int >= 0")
    problems += [f"it lacks '{name}'" for name in expected if name not in values]
    for name, array in values.items():
        if name not in expected:
            problems.append(f"it has '{name}', which the server did not ask for")
        elif not fits(array, expected[name]):
            shape, dtype = expected[name]
            problems.append(
                f"'{name}' is {array.dtype.name}{list(array.shape)}, "
                f"but {dtype}{list(shape)} on the server"
            )
    return problems
