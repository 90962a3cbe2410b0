"""Puts together what is known about a model."""

import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from graphopt import _checks, in_place
from graphopt.inspection import _layers, _memory, _shapes, _stages, _targets
from graphopt.inspection._carried import Write, gradient_buffers, pairs, writes
from graphopt.inspection._costs import stage_facts
from graphopt.inspection._dataflow import Dataflow, Value, dtype_name
from graphopt.inspection._errors import naming
from graphopt.inspection._formula import formula
from graphopt.inspection._merged import Merged, merged
from graphopt.inspection._metadata import Described, described
from graphopt.inspection._nodes_of import nodes_of
from graphopt.inspection._open import opened
from graphopt.inspection._recovered import KINDS, Recovered, recovered
from graphopt.inspection._state import state_facts
from graphopt.inspection._untrained import could_be_trained, weight_of
from graphopt.inspection.facts import (
    BucketFacts,
    Inspection,
    MemoryFacts,
    ModelFacts,
    OptimizerFacts,
    ParameterFacts,
    Shape,
    Stage,
    ValueFacts,
)
from graphopt.inspection.hazards import Subject, hazards
from graphopt.requirements import requirements

_SEQUENCES = {"params", "gradients"}


def inspect(
    model: Any,
    *,
    steps: int | None = None,
    target: str | None = None,
    batch_size: int = 32,
    dims: Mapping[str, int] | None = None,
) -> Inspection:
    """Read what a training graph does: its optimizer, parameters, state, costs and hazards.

    Everything is read in the model itself; it is not run, and no runtime is needed. The optimizer
    is recognised by what the nodes compute, and compared with what the metadata says of it; the
    source of the facts is one of them. Any ONNX file can be inspected: what it has not is missing
    in the result. Nothing in the file is executed, and no other file is opened.

    Args:
        model: A path, a `TrainingGraph`, an ``onnx.ModelProto`` or an ``onnx_ir.Model``.
        steps: The number of steps that are planned: hazards then say which schedule is too short.
        target: What the graph shall run on, such as "onnxruntime==1.19".
        batch_size: The size that is assumed for open dimensions, where costs depend on them.
        dims: The sizes of some of them, by name.

    Returns:
        The facts; `Inspection.to_dict` makes JSON of them.

    Raises:
        FileNotFoundError: There is no such file.
        TypeError: An argument has the wrong type.
        ValueError: The file is no ONNX model, is damaged, or too large to be inspected; an
            argument is out of range.

    Example:
        >>> graph = update_graph(RMSProp([Parameter("w", (3, 5))], learning_rate=0.01))
        >>> found = graphopt.inspect(graph)
        >>> found.optimizer.name, found.optimizer.decay, found.parameters[0].learning_rate
        ('RMSProp', 0.9, 0.01)
        >>> found.hazards
        ()
    """
    _check(steps, batch_size, dims)
    wanted = None if target is None else _targets.parse_target(target)
    proto = opened(model)
    with naming(model):
        return _inspected(proto, _name(model, proto), steps, wanted, batch_size, dims or {})


def _inspected(
    proto: onnx.ModelProto,
    name: str,
    steps: int | None,
    target: _targets.Target | None,
    batch_size: int,
    dims: Mapping[str, int],
) -> Inspection:
    flow = Dataflow(proto)
    carried = writes(proto, flow)
    nodes = recovered(flow, carried)
    metadata, damage = _metadata(proto)
    optimizer = merged(metadata, nodes, steps)
    buffers = gradient_buffers(flow)
    needed = requirements(proto)
    sizes = dict.fromkeys(_shapes.open_dimensions(proto), batch_size) | dict(dims)
    shapes = _shapes.infer(proto, sizes)
    stages = _stages_of(proto, flow, carried, nodes, buffers)
    frozen = could_be_trained(proto, flow, stages, _names(optimizer.parameters))
    in_place_writes = any(write.output is None for write in carried) or bool(buffers)
    early, overwritable = _order(proto, carried, in_place=in_place_writes)
    subject = Subject(
        model=proto,
        flow=flow,
        carried=carried,
        recovered=nodes,
        merged=optimizer,
        frozen=frozen,
        stages=stages,
        steps=steps,
        above_target=_targets.exceeds(needed, target),
        damage=damage,
        buffers=buffers,
        early=early,
        in_place=in_place_writes,
    )
    kind = _kind(proto, carried, nodes, buffers)
    parameters = _parameters(optimizer, flow) or _parameters_of(frozen, flow, buffers)
    trained = kind != "model"
    buckets = _buckets(proto, flow, carried, nodes, metadata)
    return Inspection(
        model=ModelFacts(
            name=name,
            kind=kind,
            producer=proto.producer_name,
            nodes=len(proto.graph.node),
            bytes=proto.ByteSize(),
        ),
        optimizer=_optimizer(optimizer, carried, trained=trained),
        groups=optimizer.groups,
        parameters=parameters,
        frozen=tuple(name for name in frozen if name not in _names(parameters)),
        state=state_facts(carried, nodes, overwritable),
        layout=_layout(metadata, buckets, parameters),
        buckets=buckets,
        inputs=_inputs(proto, carried),
        outputs=_outputs(proto, carried),
        stages=stage_facts(proto, stages, shapes),
        layers=_layers.layers(proto, stages, _names(parameters)),
        memory=_memory_facts(proto, carried, nodes, parameters, stages, shapes, sizes),
        requirements=needed,
        targets=_targets.targets(proto, needed),
        hazards=hazards(subject),
    )


def _check(steps: Any, batch_size: Any, dims: Any) -> None:
    if steps is not None:
        _checks.steps("steps", steps)
    _checks.steps("batch_size", batch_size)
    for name, size in (dims or {}).items():
        _checks.steps(f"dims['{name}']", size)


def _name(model: Any, proto: onnx.ModelProto) -> str:
    return os.fspath(model) if isinstance(model, str | os.PathLike) else proto.graph.name


def _names(parameters: Iterable[ParameterFacts]) -> list[str]:
    return [parameter.name for parameter in parameters]


def _metadata(model: onnx.ModelProto) -> tuple[Described | None, str | None]:
    """What the metadata says, and what is wrong with it."""
    try:
        return described(model), None
    except ValueError as error:
        return None, str(error)


def _order(
    model: onnx.ModelProto, carried: Sequence[Write], *, in_place: bool
) -> tuple[list[str], set[str]]:
    """The inputs that may be overwritten too early, and those that may be overwritten."""
    if in_place:
        early = _early_writes(model)
        return early, {write.input.name for write in carried} - set(early)
    proven = _overwritable(model, carried)
    return [write.input.name for write in carried if write.input.name not in proven], proven


def _early_writes(model: onnx.ModelProto) -> list[str]:
    return in_place.early_writes(model)


def _overwritable(model: onnx.ModelProto, carried: Sequence[Write]) -> set[str]:
    return in_place.overwritable(model, pairs(carried)) if carried else set()


def _kind(
    model: onnx.ModelProto,
    carried: Sequence[Write],
    nodes: Recovered | None,
    buffers: Mapping[str, Value],
) -> str:
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


def _optimizer(
    optimizer: Merged, carried: Sequence[Write], *, trained: bool
) -> OptimizerFacts | None:
    facts = optimizer.optimizer
    if facts is None:
        return OptimizerFacts("unknown", "none") if carried and trained else None
    if not trained and not carried:
        return replace(facts, formula=())
    decays = any(parameter.weight_decay != 0 for parameter in optimizer.parameters)
    centralized = any(parameter.grad_centralization for parameter in optimizer.parameters)
    return replace(facts, formula=formula(facts, decays=decays, centralized=centralized))


def _parameters(optimizer: Merged, flow: Dataflow) -> tuple[ParameterFacts, ...]:
    return tuple(
        parameter
        if parameter.op_type is not None
        else replace(parameter, op_type=weight_of(flow, parameter.name))
        for parameter in optimizer.parameters
    )


def _parameters_of(
    names: Sequence[str], flow: Dataflow, buffers: Mapping[str, Value]
) -> tuple[ParameterFacts, ...]:
    """Those that have a buffer for gradients, or could be trained."""
    return tuple(
        ParameterFacts(
            name=name,
            shape=shape,
            dtype=dtype,
            op_type=weight_of(flow, name),
            group=None,
            learning_rate=None,
            weight_decay=None,
            grad_centralization=False,
            states=(),
            bytes=math.prod(shape) * np.dtype(dtype).itemsize,
            state_bytes=0,
            gradient=buffers[name].name if name in buffers else None,
        )
        for name in buffers or names
        if name in flow.values
        for shape in [_static(flow.values[name].shape)]
        for dtype in [flow.values[name].dtype or "float32"]
    )


def _static(shape: Shape | None) -> tuple[int, ...]:
    return tuple(size for size in shape or () if isinstance(size, int))


def _stages_of(
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
    after = _after(flow, gradients)
    written = {write.output for write in carried}
    reported = [
        flow.values[value.name].source
        for value in model.graph.output
        if value.name not in written and value.name in flow.values
    ]
    reported = [value for value in reported if id(value) not in after]
    loss = [v for v in reported if v is _loss(model, flow, reported)] if gradients else []
    return _stages.stages_of(
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


def _after(flow: Dataflow, values: Collection[Value]) -> set[int]:
    """What is computed from any of these."""
    found = {id(value) for value in values}
    for operation in flow.operations:
        if any(operand is not None and id(operand) in found for operand in operation.inputs):
            found.update(id(output) for output in operation.outputs)
    return found - {id(value) for value in values}


def _buckets(
    model: onnx.ModelProto,
    flow: Dataflow,
    carried: Sequence[Write],
    nodes: Recovered | None,
    metadata: Described | None,
) -> tuple[BucketFacts, ...]:
    if nodes is None:
        return ()
    known = {} if metadata is None else {bucket.name: bucket for bucket in metadata.buckets}
    by_input = {id(write.input): write for write in carried}
    members: dict[str, list[str]] = {}
    for trained in nodes.trained:
        members.setdefault(trained.write.input.name, []).append(trained.facts.name)
    buckets = []
    for name, update in nodes.updates.items():
        old = [update.value(letter) for letter in ("w", *KINDS)]
        new = [
            by_input[id(value)].new for value in old if value is not None and id(value) in by_input
        ]
        node = update.new.operation
        called = model.graph.node[node.node] if node is not None else onnx.NodeProto()
        is_function = any(
            (f.domain, f.name) == (called.domain, called.op_type) for f in model.functions
        )
        shape = known[name].shape if name in known else _static(flow.values[name].shape)
        buckets.append(
            BucketFacts(
                name=name,
                function=called.op_type if is_function else None,
                shape=shape,
                parameters=tuple(members.get(name, ())),
                nodes=nodes_of(model, new, update),
            )
        )
    return tuple(buckets)


def _layout(
    metadata: Described | None,
    buckets: Sequence[BucketFacts],
    parameters: Sequence[ParameterFacts],
) -> str | None:
    if metadata is not None and metadata.layout is not None:
        return metadata.layout
    if not buckets:
        return None
    shapes = {parameter.name: parameter.shape for parameter in parameters}
    if all(
        len(bucket.parameters) == 1 and shapes.get(bucket.parameters[0]) == bucket.shape
        for bucket in buckets
    ):
        return "separate"
    return "chunks" if all(len(bucket.shape) == 2 for bucket in buckets) else "buckets"


def _inputs(model: onnx.ModelProto, carried: Sequence[Write]) -> tuple[ValueFacts, ...]:
    known = {write.input.name for write in carried}
    known |= {tensor.name for tensor in model.graph.initializer}
    return tuple(_value(value) for value in model.graph.input if value.name not in known)


def _outputs(model: onnx.ModelProto, carried: Sequence[Write]) -> tuple[ValueFacts, ...]:
    known = {write.output for write in carried}
    return tuple(_value(value) for value in model.graph.output if value.name not in known)


def _value(value: onnx.ValueInfoProto) -> ValueFacts:
    kind = value.type.WhichOneof("value") or "unknown"
    if kind != "tensor_type":
        return ValueFacts(value.name, None, kind.removesuffix("_type"))
    dtype = dtype_name(value.type.tensor_type.elem_type) or "unknown"
    return ValueFacts(value.name, Value(value.name, type=value.type).shape, dtype)


def _memory_facts(
    model: onnx.ModelProto,
    carried: Sequence[Write],
    nodes: Recovered | None,
    parameters: Sequence[ParameterFacts],
    stages: Sequence[Stage],
    shapes: Any,
    sizes: Mapping[str, int],
) -> MemoryFacts:
    size = sum(parameter.bytes for parameter in parameters)
    trained = nodes.trained if nodes is not None else ()
    own = {parameter.name for parameter in parameters}
    resident = [write.input.name for write in carried]
    resident += [tensor.name for tensor in model.graph.initializer]
    resident += [t.gradient.source.name for t in trained if t.gradient is not None]
    return MemoryFacts(
        parameters=size,
        frozen=sum(
            math.prod(tensor.dims) * (np.dtype(dtype).itemsize if dtype else 0)
            for tensor in model.graph.initializer
            if tensor.name not in own
            for dtype in [dtype_name(tensor.data_type)]
        ),
        gradients=size if any(parameter.gradient for parameter in parameters) else 0,
        states=sum(parameter.state_bytes for parameter in parameters),
        activations=_memory.peak_activations(model, stages, shapes, resident),
        sizes=sizes,
    )
