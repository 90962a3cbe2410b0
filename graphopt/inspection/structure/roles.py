"""What a graph is, and which part of it does what."""

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.inspection.reading.dataflow import Dataflow, Value
from graphopt.inspection.reading.read_model import Reading
from graphopt.inspection.structure import stages
from graphopt.on_device.tensor_names import SEQUENCES
from graphopt.stage import Stage


def kind_of(reading: Reading) -> str:
    """The kind of a model; see `facts.ModelFacts`."""
    inputs = reading.file.model.graph.inputs
    sequences = {value.name for value in inputs if isinstance(value.type, ir.SequenceType)}
    if sequences.issuperset(SEQUENCES[:2]):
        return "on-device optimizer model"
    trained = reading.recovered.trained if reading.recovered is not None else ()
    if trained and any(write.output is None for write in reading.carried):
        return "on-device training model"
    if reading.buffers:
        return "on-device gradient model"
    if not reading.carried:
        return "model"
    gradients = [parameter.gradient for parameter in trained]
    fed = all(gradient is not None and gradient.source.is_input for gradient in gradients)
    return "update graph" if trained and fed else "training graph"


def stages_of_nodes(reading: Reading) -> list[Stage]:
    """The stage of each node."""
    graph, flow = reading.file.model.graph, reading.flow
    trained = reading.recovered.trained if reading.recovered is not None else ()
    gradients = [t.gradient.source for t in trained if t.gradient is not None]
    gradients += [value.source for value in reading.buffers.values()]
    after = flow.after({id(value) for value in gradients})
    written = {write.output for write in reading.carried}
    reported = [
        flow.values[str(value.name)].source for value in graph.outputs if value.name not in written
    ]
    reported = [value for value in reported if id(value) not in after]
    loss = [v for v in reported if v is _loss(graph, flow, reported)] if gradients else []
    return stages.stages_of(
        graph,
        reported=[value.name for value in reported if value not in loss],
        loss=[value.name for value in loss],
        gradients=[value.name for value in gradients],
        carried=[name for name in written if name is not None],
    )


def _loss(graph: ir.Graph, flow: Dataflow, reported: Sequence[Value]) -> Value | None:
    """The output ``loss``, or the first scalar."""
    named = flow.values.get("loss")
    if named is not None and any(named.source is value for value in reported):
        return named.source
    outputs = (flow.values[str(value.name)] for value in graph.outputs)
    scalars = (v.source for v in outputs if v.shape in ((), (1,)) and v.source in reported)
    return next(scalars, None)
