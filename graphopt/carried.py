"""The values that a graph carries from step to step, and where the graph declares them.

Each is an input and an output of the graph. The declaration stands in the model itself, in
``training_info``: ``update_binding`` says which output feeds which input at the next step, and
``initialization`` is a graph without inputs that computes the values before the first step. What
parts flat states have stands in the metadata, see `graphopt.manifest`.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from graphopt import states
from graphopt.dtypes import dtype_of
from graphopt.mapped_values import array_of, tensor_at

Array = npt.NDArray[np.generic]

NEXT = ".next"
"""The end of the name of the output that feeds the input of the name before it."""


class View(NamedTuple):
    """A named part of a flat state tensor.

    Attributes:
        name: What the part is called in `Session.state`, for example ``"moment.fc.weight"``.
        shape: The shape it is shown with.
        offset: Where it begins in the flat tensor, in elements.
    """

    name: str
    shape: tuple[int, ...]
    offset: int = 0

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Carried:
    """A value that one step hands to the next.

    Attributes:
        input: The graph's input.
        output: The graph's output that feeds it at the next step.
        shape: Its shape in the graph.
        dtype: NumPy's name of its element type.
        views: What it holds: itself, or for a flat state the parts of several parameters.
        initial: The value before the first step: an array, a number that fills it, the name of the
            input whose first value it has too, or None where the caller must give it.
    """

    input: str
    output: str
    shape: tuple[int, ...]
    dtype: str
    views: tuple[View, ...]
    initial: Array | float | str | None = field(default=None, compare=False)

    @property
    def bytes(self) -> int:
        """The memory that it takes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def parts(value: Carried, array: Array) -> Iterator[tuple[View, Array]]:
    """The views of a carried value, each with its part of an array of it, which it shares."""
    flat = array.reshape(-1)
    for view in value.views:
        yield view, flat[view.offset : view.offset + view.size].reshape(view.shape)


def joined(value: Carried, by_name: Mapping[str, Array]) -> Array:
    """The array of a carried value, from those of its views; of a single one, its own memory."""
    arrays = [by_name[view.name].ravel() for view in value.views]
    flat = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return flat.reshape(value.shape)


def filled(value: Carried) -> Array:
    """The array before the first step, which must be a number throughout."""
    assert isinstance(value.initial, int | float)
    return np.full(value.shape, value.initial, value.dtype)


def initial_values(carried: Iterable[Carried]) -> dict[str, Array]:
    """The arrays before the first step, by name; not those that are one number throughout."""
    return {
        view.name: part
        for value in carried
        if isinstance(value.initial, np.ndarray)
        for view, part in parts(value, value.initial)
    }


def averaged(carried: Iterable[Carried], state: Mapping[str, Array]) -> dict[str, Array]:
    """A state whose parameters, and running statistics where they have some, are their averages.

    Raises:
        ValueError: None is carried.
    """
    # Averages alone start as another value does.
    held = (v.name for value in carried if isinstance(value.initial, str) for v in value.views)
    return {**state, **states.averages(state, held)}


def declare(model: onnx.ModelProto, carried: Iterable[Carried]) -> None:
    """Write the carried values into the ``training_info`` of a model, for as long as they are held.

    Arrays before the first step stay where they are; see `mapped_values`.
    """
    info = model.training_info.add()
    graph = info.initialization
    graph.name = "initialization"
    carried = list(carried)
    unknown = {value.input for value in carried if value.initial is None}
    for value in carried:
        info.update_binding.add(key=value.input, value=value.output)
        if value.initial is None or (isinstance(value.initial, str) and value.initial in unknown):
            continue
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype))
        if isinstance(value.initial, np.ndarray):
            graph.initializer.append(tensor_at(value.initial, value.input))
        elif isinstance(value.initial, str):
            shape = numpy_helper.from_array(np.array(value.shape, np.int64), f"{value.input}/shape")
            flat = f"{value.input}/reshaped"
            graph.initializer.append(shape)
            graph.node.append(helper.make_node("Reshape", [value.initial, shape.name], [flat]))
            graph.node.append(helper.make_node("Cast", [flat], [value.input], to=kind))
        else:
            filling = numpy_helper.from_array(np.array([value.initial], value.dtype))
            shape = numpy_helper.from_array(np.array(value.shape, np.int64), f"{value.input}/shape")
            graph.initializer.append(shape)
            graph.node.append(
                helper.make_node("ConstantOfShape", [shape.name], [value.input], value=filling)
            )
        graph.output.append(helper.make_tensor_value_info(value.input, kind, value.shape))
        info.initialization_binding.add(key=value.input, value=value.input)


def declared(
    model: onnx.ModelProto, views: Mapping[str, tuple[View, ...]] = MappingProxyType({})
) -> tuple[Carried, ...]:
    """Read the carried values of a model.

    Args:
        model: The model.
        views: What they hold, by input; those that are missing hold themselves.

    Raises:
        ValueError: The model declares none, so graphopt did not make it; or what it declares
            cannot be.
    """
    if len(model.training_info) != 1 or not model.training_info[0].update_binding:
        raise ValueError(
            "the model is not a training graph: it declares no values that are carried from step "
            "to step; make one with graphopt.training_graph"
        )
    info = model.training_info[0]
    inputs = {value.name: value for value in model.graph.input}
    outputs = {value.name for value in model.graph.output}
    initial = _initial_values(info.initialization)
    carried = []
    for entry in info.update_binding:
        if entry.key not in inputs or entry.value not in outputs:
            raise ValueError(
                f"the training graph is damaged: it carries '{entry.value}' to '{entry.key}', "
                "which are not an output and an input of it"
            )
        shape, dtype = _type_of(inputs[entry.key])
        value = Carried(
            entry.key,
            entry.value,
            shape,
            dtype,
            views.get(entry.key, (View(entry.key, shape),)),
            initial.get(entry.key),
        )
        _check(value)
        carried.append(value)
    _check_references(carried)
    _check_once(value.input for value in carried)
    _check_once(value.output for value in carried)
    _check_once(view.name for value in carried for view in value.views)
    return tuple(carried)


def with_averages(carried: Iterable[Carried]) -> tuple[Carried, ...]:
    """The same, where averages start as what they are of, also if nobody has said as what."""
    carried = tuple(carried)
    by_input = {value.input: value for value in carried}
    made = []
    for value in carried:
        kind, name = states.split(value.input, by_input)
        is_average = kind == states.AVERAGE.name
        made.append(replace(value, initial=name) if is_average else value)
    return tuple(made)


def _type_of(value: onnx.ValueInfoProto) -> tuple[tuple[int, ...], str]:
    """The shape and the dtype of what is carried, which are fixed."""
    tensor = value.type.tensor_type
    sizes = tensor.shape.dim
    if not tensor.HasField("shape") or not all(d.HasField("dim_value") for d in sizes):
        raise ValueError(f"the training graph is damaged: '{value.name}' has no fixed shape")
    shape = tuple(dimension.dim_value for dimension in sizes)
    if any(size < 0 for size in shape):
        raise ValueError(f"the training graph is damaged: '{value.name}' has shape {list(shape)}")
    return shape, dtype_of(value)


def _check(value: Carried) -> None:
    """Refuse a carried value whose parts or first value do not fit it."""
    ends = list(accumulate((view.size for view in value.views), initial=0))
    if [view.offset for view in value.views] != ends[:-1] or ends[-1] != math.prod(value.shape):
        raise ValueError(
            f"the training graph is damaged: '{value.input}' of shape {list(value.shape)} does not "
            f"hold what the metadata says: parts at {[view.offset for view in value.views][:5]} "
            f"with {ends[-1]} elements"
        )
    array = value.initial
    if isinstance(array, np.ndarray) and (array.shape, array.dtype.name) != (
        value.shape,
        value.dtype,
    ):
        raise ValueError(
            f"the training graph is damaged: '{value.input}' is {value.dtype}{list(value.shape)}, "
            f"but starts as {array.dtype.name}{list(array.shape)}"
        )


def _check_references(carried: Iterable[Carried]) -> None:
    """Refuse a value that starts as one which is none, or another size, or no array."""
    by_input = {value.input: value for value in carried}
    for value in by_input.values():
        if not isinstance(value.initial, str):
            continue
        other = by_input.get(value.initial)
        is_array = other is not None and isinstance(other.initial, np.ndarray | None)
        if other is None or not is_array or math.prod(other.shape) != math.prod(value.shape):
            raise ValueError(
                f"the training graph is damaged: '{value.input}' starts as '{value.initial}', "
                "expected a parameter or a running statistic of its size"
            )


def _check_once(names: Iterable[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"the training graph is damaged: it carries '{name}' twice")


def _initial_values(graph: onnx.GraphProto) -> Mapping[str, Array | float | str]:
    reshaped: dict[str, str] = {}
    values: dict[str, Array | float | str] = {
        tensor.name: array_of(tensor) for tensor in graph.initializer
    }
    for node in graph.node:
        if node.op_type == "Reshape" and len(node.input) == 2 and len(node.output) == 1:
            reshaped[node.output[0]] = node.input[0]
            continue
        if node.op_type == "Cast" and len(node.output) == 1 and node.input[0] in reshaped:
            values[node.output[0]] = reshaped[node.input[0]]
            continue
        filling = [entry.t for entry in node.attribute if entry.name == "value"]
        arrays = [numpy_helper.to_array(tensor) for tensor in filling]
        if node.op_type != "ConstantOfShape" or [array.size for array in arrays] != [1]:
            raise ValueError(
                f"the training graph is damaged: '{next(iter(node.output), '')}' starts as what "
                f"{node.op_type} gives, expected an initializer, a ConstantOfShape, or another one"
            )
        values[node.output[0]] = arrays[0].item()
    return values
