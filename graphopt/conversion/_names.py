"""Which parameter of another framework is which of a graph, and how it lies there."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt import states
from graphopt.carried import Array, Carried

Names = Sequence[str] | Mapping[str, str]
"""Those of the parameters of an optimizer, in its order; a dict says what the graph calls each."""


@dataclass(frozen=True)
class Places:
    """What the graph carries, by name.

    Attributes:
        shapes: Shape and dtype of each value.
        trained: The parameters, in the order of the optimizer.
        transposed: The matrices whose axes are the other way round in the other framework.
    """

    shapes: Mapping[str, tuple[tuple[int, ...], str]]
    trained: tuple[str, ...]
    transposed: frozenset[str]

    @classmethod
    def of(
        cls, carried: Iterable[Carried], trained: Iterable[str], transposed: Collection[str]
    ) -> "Places":
        """Those of a graph.

        Raises:
            TypeError: ``transposed`` is a text.
            ValueError: One that is to be transposed is no matrix of the graph.
        """
        if isinstance(transposed, str):
            raise TypeError(f"transposed: got '{transposed}', expected a list of names")
        shapes = {v.name: (v.shape, value.dtype) for value in carried for v in value.views}
        trained = tuple(trained)
        for name in transposed:
            if name not in trained or len(shapes[name][0]) != 2:
                raise ValueError(f"transposed: '{name}' is no matrix that the graph trains")
        return cls(shapes, trained, frozenset(transposed))

    @property
    def statistics(self) -> list[str]:
        """The running statistics."""
        taken = {*self.trained, *(state.name for state in states.OF_GRAPHS)}
        shapes = self.shapes
        return [n for n in shapes if n not in taken and not states.split(n, shapes)[0]]

    def has(self, kind: states.State) -> bool:
        """Whether there is a state of this kind."""
        return kind.of(self.trained[0]) in self.shapes

    def ours(self, name: str, array: Array, what: str, kind: states.State | None = None) -> Array:
        """A value of a parameter or statistic, or of a state of a parameter, as the graph has it.

        Args:
            name: Of the parameter or statistic in the graph.
            array: The value there.
            what: What it is, for errors.
            kind: Of state, which is converted to the dtype of the graph's; None: it is the
                parameter or statistic itself, which must have that of the graph.

        Raises:
            ValueError: It has another shape or dtype.
        """
        shape, own = self.shapes[name]
        array = array.T if name in self.transposed else array
        if array.shape != shape:
            hint = (
                f"; if the graph has it transposed, say so: transposed=['{name}']"
                if array.ndim == 2 and array.T.shape == shape
                else ""
            )
            raise ValueError(
                f"{what} has the shape {list(array.shape)}, and '{name}' of the graph "
                f"{list(shape)}{hint}"
            )
        if kind is not None:
            own = self.shapes[kind.of(name)][1]
        elif array.dtype.name != own:
            raise ValueError(f"{what} is {array.dtype.name}, and '{name}' of the graph {own}")
        return np.ascontiguousarray(array, own).reshape(shape)

    def theirs(self, name: str, array: Array) -> Array:
        """A value of a parameter, or of a state of it, as the other framework has it."""
        return np.ascontiguousarray(array.T) if name in self.transposed else array


def by_name(names: Names, trained: Sequence[str]) -> dict[str, str]:
    """The names of the parameters of an optimizer, in its order, and what the graph calls each.

    Raises:
        TypeError: These are no names.
        ValueError: A name stands twice, or these are not the parameters that the graph trains.
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise TypeError(f"names: got {names!r}, expected a list or a dict of names")
    pairs = list(names.items()) if isinstance(names, Mapping) else [(n, n) for n in names]
    if not all(isinstance(text, str) for pair in pairs for text in pair):
        raise TypeError("names: expected texts, such as [n for n, _ in module.named_parameters()]")
    found = dict(pairs)
    ours = list(found.values())
    if len(found) < len(pairs) or len(set(ours)) < len(ours):
        raise ValueError("names: a name stands twice")
    unknown = [name for name in ours if name not in trained]
    missing = [name for name in trained if name not in ours]
    if unknown:
        raise ValueError(
            f"names: the graph does not train {_listed(unknown)}; it trains {_listed(trained)}. "
            "Leave out what the optimizer does not have either, or say with a dict what the graph "
            "calls it"
        )
    if missing:
        raise ValueError(
            f"names: the graph also trains {_listed(missing)}; name all parameters of the "
            "optimizer, or build the graph without those"
        )
    return found


def plain_array(value: Any) -> Array | None:
    """A tensor of PyTorch, or an array, as an array; None of anything else."""
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    if hasattr(value, "detach") and hasattr(value, "numpy"):
        return np.asarray(value.detach().cpu().numpy())
    return None


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(f"'{name}'" for name in names[:5]) + more
