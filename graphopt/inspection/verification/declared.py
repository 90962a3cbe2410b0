"""What a graph declares of what it carries and is fed, and whether it agrees with itself."""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from graphopt._words import shown
from graphopt.carried import Carried
from graphopt.graph import TrainingGraph
from graphopt.inspection.facts import OptimizerFacts
from graphopt.inspection.reading.pattern import Any, Op, match
from graphopt.inspection.reading.read_model import Reading
from graphopt.inspection.reading.recovered import Recovered
from graphopt.inspection.reading.update import average
from graphopt.inspection.verification.runnable import GraphFailsError, NotRunError, in_a_line
from graphopt.manifest import Manifest, stripped
from graphopt.states import LOSS_SCALE, OF_GRAPHS, OF_PARAMETERS, State, kept_by, split

_MOVES = average(Any("old"), Any("new"))
_MOMENTUM = 0.9  # of BatchNormalization, where it does not say another
_SAME = 1e-6


def declared_graph(reading: Reading) -> TrainingGraph:
    """The model as a graph that trains.

    Raises:
        GraphFailsError: What it declares cannot be.
        NotRunError: It declares no values that are carried from step to step.
    """
    proto = ir.to_proto(reading.file.model)
    proto.training_info.extend(reading.file.training)
    try:
        return TrainingGraph(proto)
    except ValueError as error:
        declares = any(info.update_binding for info in proto.training_info)
        declares &= reading.damage is None  # of metadata that are damaged, nothing is believed
        raise (GraphFailsError if declares else NotRunError)(in_a_line(error)) from None


def misdeclared(
    graph: TrainingGraph, reading: Reading, claimed: OptimizerFacts, nodes: Recovered
) -> Iterator[str]:
    """States that start or move otherwise than they should, or are missing; inputs that are none.

    Args:
        graph: The graph.
        reading: The same, as it was read.
        claimed: Its hyperparameters.
        nodes: What was recognised in it, which says the names of the parameters.
    """
    views = {view.name: (value, view) for value in graph.carried for view in value.views}
    trained = [parameter.facts.name for parameter in nodes.trained]
    if set(trained) <= views.keys():  # otherwise nobody says what is what
        for state in kept_by(claimed):
            for name in trained:
                if state.of(name) not in views:
                    yield f"no state is called '{shown(state.of(name))}'"
    records = {state.name: state for state in (*OF_PARAMETERS, *OF_GRAPHS)}
    for name, (value, view) in views.items():
        record = records.get(split(name, views)[0] or name)
        start = None if record is None else _start(record, claimed)
        found = _starts_at(value, view.offset, view.size)
        if start is None or found is None:
            continue
        different = found[found != np.asarray(start, found.dtype)]
        if different.size:
            yield f"'{shown(name)}' starts at {different[0]:.6g}, expected {start:.6g}"
    yield from _statistics(graph, reading)
    fed = {feed.name for feed in graph.inputs}
    named = [*(label.name for label in graph.class_labels), *graph.fed_rates]
    for name in named:
        if name not in fed:
            yield f"the metadata names '{shown(name)}' as what is fed, which is no input"


def _statistics(graph: TrainingGraph, reading: Reading) -> Iterator[str]:
    """Running statistics that move otherwise than the forward model says."""
    text = Manifest.read(graph.lean, "forward").forward
    if text is None:
        return
    said: dict[str, float] = {}  # in which several layers have a part, one after another
    for node in stripped(text).graph.node:  # a session's graph has no values for it
        if node.op_type == "BatchNormalization":
            given = [a.f for a in node.attribute if a.name == "momentum"]
            for name in node.input[3:5]:
                said[name] = said.get(name, 1.0) * (given[0] if given else _MOMENTUM)
    for write in reading.carried:
        name = write.input.name
        moved = write.new.source
        kept = match(Op("Where", Any("on"), Any("new"), Any("old")), moved)
        found = match(_MOVES, moved if kept is None else kept.value("new"))
        if name not in said or found is None or found["old"] is not write.input.source:
            continue
        decay = found.get("decay", None)
        if not isinstance(decay, float):
            decay = 1 - float(str(found["rest"]))
        if abs(decay - said[name]) > _SAME:
            yield (
                f"'{shown(name)}' moves with momentum {decay:.6g}, and the forward model says "
                f"{said[name]:.6g}"
            )


def _start(state: State, claimed: OptimizerFacts) -> float | None:
    """What a state starts at; None where nobody says it."""
    if state.name == LOSS_SCALE.name:
        rule = claimed.dynamic_loss_scale
        return None if rule is None else rule.get("initial")
    if isinstance(state.initial, str):
        return getattr(claimed, state.initial, None)
    return state.initial


def _starts_at(value: Carried, offset: int, size: int) -> np.ndarray | None:
    """What a part of a carried value starts at; None where that is another's value or unknown."""
    if isinstance(value.initial, np.ndarray):
        return value.initial.reshape(-1)[offset : offset + size]
    if value.initial is None or isinstance(value.initial, str):
        return None
    return np.full(min(size, 1), value.initial, value.dtype)
