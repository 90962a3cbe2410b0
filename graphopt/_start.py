"""What a session starts from."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from graphopt.carried import Carried, View, filled, initial_values, joined
from graphopt.feeds import in_native_byte_order


class Start:
    """What the carried values are before the first step, made one by one: they may be large.

    Each is handed out once, and not held any more then.
    """

    def __init__(self, carried: Sequence[Carried], parameters: Mapping[str, Any] | None) -> None:
        """Check what is given.

        Raises:
            TypeError: It is no dict, or an array of it has the wrong dtype.
            ValueError: A name is unknown, an array has the wrong shape, or one is missing.
        """
        if not isinstance(parameters, Mapping | None):
            raise TypeError(
                f"parameters: got {type(parameters).__name__}, expected a dict of arrays by name"
            )
        given = dict(parameters or {})
        # Parameters and running statistics; a state of the optimizer starts as one number, or
        # as they do.
        own = [value for value in carried if not isinstance(value.initial, int | float | str)]
        names = dict.fromkeys(view.name for value in own for view in value.views)
        unknown = [name for name in given if name not in names]
        if unknown:
            raise ValueError(
                f"parameters: {', '.join(repr(name) for name in unknown)} "
                f"{'is' if len(unknown) == 1 else 'are'} not trained by this graph; "
                f"it has {', '.join(repr(name) for name in names)}"
            )
        self._by_input = {value.input: replace(value, initial=None) for value in carried}
        starts = (value.initial for value in carried if isinstance(value.initial, str))
        self._uses = Counter([*self._by_input, *starts])
        self._arrays = initial_values(carried)
        missing = [name for name in names if name not in given and name not in self._arrays]
        if missing:
            raise ValueError(
                f"parameters: no value for {', '.join(repr(name) for name in missing)}; neither an "
                "update graph nor the graph of a session holds any, give them with "
                "Session(graph, parameters={name: array})"
            )
        for value in own:
            for view in value.views:
                if view.name in given:
                    array = in_native_byte_order(np.asarray(given[view.name]))
                    self._arrays[view.name] = _checked_parameter(view, value.dtype, array)

    def of(self, value: Carried) -> np.ndarray:
        """The array of a carried value."""
        if isinstance(value.initial, int | float):
            return filled(value)
        if isinstance(value.initial, str):
            same = self._taken(value.initial)
            return same.reshape(value.shape).astype(value.dtype)
        return self._taken(value.input)

    def _taken(self, name: str) -> np.ndarray:
        """The array of an input, which is not held where nothing else starts as it does."""
        value = self._by_input[name]
        array = joined(value, self._arrays)
        self._uses[name] -= 1
        if not self._uses[name]:
            for view in value.views:
                del self._arrays[view.name]
        return array


def _checked_parameter(view: View, dtype: str, array: np.ndarray) -> np.ndarray:
    if array.shape != view.shape:
        raise ValueError(
            f"parameter '{view.name}': got shape {list(array.shape)}, expected {list(view.shape)}"
        )
    if array.dtype.name != dtype:
        raise TypeError(
            f"parameter '{view.name}': got dtype {array.dtype.name}, expected {dtype}; "
            f"convert it, for example with .astype('{dtype}')"
        )
    return array
