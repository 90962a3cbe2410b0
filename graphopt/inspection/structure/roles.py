"""What a graph is, and which part of it does what."""

from collections.abc import Mapping, Sequence

import onnx

from graphopt.inspection.reading.dataflow import Dataflow, Value
from graphopt.inspection.reading.recovered import Recovered
from graphopt.inspection.reading.writes import Write
from graphopt.inspection.structure import stages
from graphopt.stage import Stage

_SEQUENCES = {"params", "gradients"}


def kind_of(
    model: onnx.ModelProto,
    carried: Sequence[Write],
    nodes: Recovered | None,
    buffers: Mapping[str, Value],
) -> str:
    """The kind of a model; see `facts.ModelFacts`."""
    inputs = {value.name for value in model.graph.input if value.type.HasField("sequence_type")}
    if inputs >= _SEQUENCES:
        return "on-device optimizer model"
    if any(write.output is None for write in carried) and nodes is not None and nodes.trained:
        return "on-device training model"
    if buffers:
        return "on-device gradient model"
    if not carried:
        return "model"
    fed = nodes is not None and all(
        trained.gradient is not None and trained.gradient.source.is_input
        for trained in nodes.trained
    )
    return "update graph" if fed and nodes is not None and nodes.trained else "training graph"


def stages_of_nodes(
    model: onnx.ModelProto,
    flow: Dataflow,
    carried: Sequence[Write],
    nodes: Recovered | None,
    buffers: Mapping[str, Value],
) -> list[Stage]:
    """The stage of each node."""
    trained = nodes.trained if nodes is not None else ()
    gradients = [t.gradient.source for t in trained if t.gradient is not None]
    gradients += [value.source for value in buffers.values()]
    after = flow.after({id(value) for value in gradients})
    written = {write.output for write in carried}
    reported = [
        flow.values[value.name].source
        for value in model.graph.output
        if value.name not in written and value.name in flow.values
    ]
    reported = [value for value in reported if id(value) not in after]
    loss = [v for v in reported if v is _loss(model, flow, reported)] if gradients else []
    return stages.stages_of(
        model.graph,
        reported=[value.name for value in reported if value not in loss],
        loss=[value.name for value in loss],
        gradients=[value.name for value in gradients],
        carried=[name for name in written if name is not None],
    )


def _loss(model: onnx.ModelProto, flow: Dataflow, reported: Sequence[Value]) -> Value | None:
    """The output ``loss``, or the first scalar."""
    named = flow.values.get("loss")
    if named is not None and any(named.source is value for value in reported):
        return named.source
    outputs = (flow.values[value.name] for value in model.graph.output if value.name in flow.values)
    scalars = (v.source for v in outputs if v.shape in ((), (1,)) and v.source in reported)
    return next(scalars, None)
