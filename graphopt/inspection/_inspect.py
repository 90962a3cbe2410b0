"""Puts together what is known about a model."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from graphopt import _checks, in_place
from graphopt.inspection.costs.operations import stage_facts
from graphopt.inspection.costs.totals import memory_facts
from graphopt.inspection.facts import Inspection, ModelFacts, OptimizerFacts, ParameterFacts
from graphopt.inspection.hazards import hazards
from graphopt.inspection.hazards.hazard import Subject
from graphopt.inspection.opening.errors import naming
from graphopt.inspection.reading.dataflow import Dataflow
from graphopt.inspection.reading.merged import Merged
from graphopt.inspection.reading.read_model import Reading, read
from graphopt.inspection.reading.writes import Write, pairs
from graphopt.inspection.show.formula import formula
from graphopt.inspection.structure import layers
from graphopt.inspection.structure.buckets import bucket_facts, layout_of
from graphopt.inspection.structure.interface import inputs_of, outputs_of
from graphopt.inspection.structure.roles import kind_of, stages_of_nodes
from graphopt.inspection.structure.state import state_facts
from graphopt.inspection.structure.untrained import could_be_trained, untrained, weight_of
from graphopt.inspection.targets import Target, exceeds, parse_target, targets
from graphopt.requirement import requirements
from graphopt.shapes.engine import infer, open_dimensions
from graphopt.stage import Stage


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
        >>> found = inspect(graph)
        >>> found.optimizer.name, found.optimizer.decay, found.parameters[0].learning_rate
        ('RMSProp', 0.9, 0.01)
        >>> found.hazards
        ()
    """
    _check(steps, batch_size, dims)
    wanted = None if target is None else parse_target(target)
    reading = read(model, steps)
    with naming(model):
        return _inspected(reading, steps, wanted, batch_size, dims or {})


def _inspected(
    reading: Reading,
    steps: int | None,
    target: Target | None,
    batch_size: int,
    dims: Mapping[str, int],
) -> Inspection:
    proto, flow, carried = reading.file.proto, reading.flow, reading.carried
    nodes, optimizer, buffers = reading.recovered, reading.merged, reading.buffers
    needed = requirements(proto)
    sizes = dict.fromkeys(open_dimensions(reading.file.model), batch_size)
    for name in dims:
        if name not in sizes:
            listed = ", ".join(f"'{size}'" for size in sizes) or "none"
            raise ValueError(f"dims: '{name}' is not an open dimension; open: {listed}")
    sizes |= dims
    tensors = infer(reading.file.model, sizes)
    stages = stages_of_nodes(proto, flow, carried, nodes, buffers)
    holders = [*(write.input.name for write in carried), *(buffers or ())]
    frozen = could_be_trained(proto, flow, stages, _names(optimizer.parameters), holders)
    in_place_writes = any(write.output is None for write in carried) or bool(buffers)
    if in_place_writes:
        early = in_place.early_writes(proto)
        overwritable = {write.input.name for write in carried} - set(early)
    else:
        overwritable = in_place.overwritable(proto, pairs(carried))
        early = [write.input.name for write in carried if write.input.name not in overwritable]
    state = state_facts(carried, nodes, overwritable)
    subject = Subject(
        **vars(reading),
        stages=stages,
        frozen=frozen,
        state=state,
        early=early,
        in_place=in_place_writes,
        steps=steps,
        above_target=exceeds(needed, target),
    )
    kind = kind_of(proto, carried, nodes, buffers)
    parameters = _parameters(optimizer, flow, stages) or untrained(frozen, flow, buffers, stages)
    known = set(_names(parameters))
    trained = kind != "model"
    buckets = bucket_facts(proto, flow, carried, nodes, reading.described)
    return Inspection(
        model=ModelFacts(
            name=reading.file.name,
            kind=kind,
            producer=reading.file.model.producer_name or "",
            nodes=len(reading.file.model.graph),
            bytes=reading.file.bytes,
        ),
        optimizer=_optimizer(optimizer, carried, trained=trained),
        groups=optimizer.groups,
        parameters=parameters,
        frozen=tuple(name for name in frozen if name not in known),
        state=state,
        layout=layout_of(reading.described, buckets, parameters),
        buckets=buckets,
        inputs=inputs_of(reading.file.model, carried),
        outputs=outputs_of(reading.file.model, carried),
        stages=stage_facts(stages, tensors),
        layers=layers.layers(proto, stages, _names(parameters)),
        memory=memory_facts(proto, carried, nodes, parameters, stages, tensors, sizes),
        requirements=needed,
        targets=targets(proto, needed),
        hazards=hazards(subject),
    )


def _check(steps: Any, batch_size: Any, dims: Any) -> None:
    if steps is not None:
        _checks.steps("steps", steps)
    _checks.steps("batch_size", batch_size)
    for name, size in (dims or {}).items():
        _checks.steps(f"dims['{name}']", size)


def _names(parameters: Iterable[ParameterFacts]) -> list[str]:
    return [parameter.name for parameter in parameters]


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


def _parameters(
    optimizer: Merged, flow: Dataflow, stages: Sequence[Stage]
) -> tuple[ParameterFacts, ...]:
    return tuple(
        parameter
        if parameter.op_type is not None
        else replace(parameter, op_type=weight_of(flow, parameter.name, stages))
        for parameter in optimizer.parameters
    )
