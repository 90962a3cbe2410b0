"""What the nodes of a graph compute in float64, so that rounding hides nothing.

Each node runs by itself, on a kernel in float64; no runtime optimizes anything.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx

from graphopt.carried import Carried, filled, parts
from graphopt.forward import to_ir
from graphopt.graph import TrainingGraph
from graphopt.graphs import without_functions
from graphopt.inspection.verification.interpreter import Interpreter, as_double, in_double
from graphopt.inspection.verification.runnable import NotRunError
from tools.field.gradients import Values

_SECONDS = 300.0


def exact_steps(graph: TrainingGraph, feeds: Iterable[Mapping[str, Any]]) -> Values:
    """What is carried after so many steps, by the names in `Session.state`.

    Args:
        graph: The training graph.
        feeds: What each step is fed.

    Raises:
        NotRunError: A node has no kernel in float64, or it takes too long.
    """
    proto = without_functions(graph.model)
    del proto.training_info[:]
    model = to_ir(proto)
    model.functions.clear()
    in_double(model)
    interpreter = Interpreter(model, time.monotonic() + _SECONDS)
    nodes = interpreter.needed(value.output for value in graph.carried)
    state = {value.input: as_double(_start(value)) for value in graph.carried}
    for fed in feeds:
        doubled = {name: as_double(array) for name, array in fed.items()}
        values = interpreter.run(nodes, {**state, **doubled})
        state = {value.input: values[value.output] for value in graph.carried}
    return {
        view.name: part
        for value in graph.carried
        for view, part in parts(value, state[value.input])
    }


def exact_output(
    model: onnx.ModelProto, feeds: Mapping[str, Any], output: str
) -> Callable[[Values], np.ndarray]:
    """A function of some weights, initializers or constants, that gives an output of a file.

    Raises:
        NotRunError: When it is called: a node has no kernel in float64, it takes too long, or a
            weight is inside a branch.
    """
    graph = to_ir(model)
    in_double(graph)
    interpreter = Interpreter(graph, time.monotonic() + _SECONDS)
    nodes = interpreter.needed([output])
    given = {name: as_double(array) for name, array in feeds.items()}
    outside = {str(value.name) for value in graph.graph.initializers.values()}
    outside |= {str(value.name) for node in interpreter.nodes for value in node.outputs}

    def run(weights: Values) -> np.ndarray:
        if inside := weights.keys() - outside:
            raise NotRunError(f"'{min(inside)}' is inside a branch")
        computed = (node for node in nodes if node.outputs[0].name not in weights)
        moved = {name: np.asarray(array) for name, array in weights.items()}
        values = interpreter.run(computed, {**given, **moved})
        return np.asarray(values[output])

    return run


def _start(value: Carried) -> np.ndarray:
    return value.initial if isinstance(value.initial, np.ndarray) else filled(value)
