"""Puts together what is known about a model."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from graphopt import _checks
from graphopt.inspection.costs.memory import memory_facts
from graphopt.inspection.costs.operations import stage_facts
from graphopt.inspection.facts import Inspection, ModelFacts, OptimizerFacts
from graphopt.inspection.hazards import hazards
from graphopt.inspection.hazards.hazard import Subject
from graphopt.inspection.reading.read_model import Reading, read
from graphopt.inspection.show.formula import formula
from graphopt.inspection.structure.buckets import bucket_facts, layout_of
from graphopt.inspection.structure.contents import contents_of
from graphopt.inspection.structure.interface import inputs_of, outputs_of
from graphopt.inspection.structure.layers import layers
from graphopt.inspection.structure.precision import precision_of
from graphopt.inspection.structure.roles import kind_of, stages_of_nodes
from graphopt.inspection.structure.state import overwriting, state_facts
from graphopt.inspection.structure.untrained import could_be_trained, parameters_of, weights_of
from graphopt.inspection.targets import (
    Provider,
    Target,
    documented,
    exceeds,
    parse_target,
    targets,
)
from graphopt.requirement import requirements
from graphopt.shapes.engine import open_dimensions
from graphopt.soundness.errors import about


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
        target: What the graph shall run on, such as "onnxruntime==1.19", or an execution provider:
            "coreml", "directml", "migraphx", "nnapi", "openvino", "openvino-gpu", "qnn", "xnnpack".
            What such a one takes, by its documents, is the last of the targets then.
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
    with about(reading.file):
        return _inspected(reading, steps, wanted, batch_size, dims or {})


def _inspected(
    reading: Reading,
    steps: int | None,
    target: Target | Provider | None,
    batch_size: int,
    dims: Mapping[str, int],
) -> Inspection:
    model = reading.file.model
    needed = requirements(model)
    sizes = _sizes(reading, batch_size, dims)
    tensors = reading.file.shapes(sizes)
    stages = stages_of_nodes(reading)
    weights = weights_of(reading, stages)
    could_be = could_be_trained(reading, weights, stages)
    overwritable, early = overwriting(reading)
    state = state_facts(reading, overwritable)
    kind = kind_of(reading)
    parameters = parameters_of(reading, weights, could_be)
    names = [parameter.name for parameter in parameters]
    buckets = bucket_facts(reading)
    subject = Subject(
        **vars(reading),
        stages=stages,
        frozen=could_be,
        state=state,
        early=early,
        steps=steps,
        above_target=exceeds(needed, None if isinstance(target, Provider) else target),
    )
    others = (
        [documented(target, stages, reading.file.shapes())] if isinstance(target, Provider) else []
    )
    return Inspection(
        model=ModelFacts(
            name=reading.file.name,
            kind=kind,
            producer=model.producer_name or "",
            nodes=len(model.graph),
            bytes=reading.file.bytes,
            precision=precision_of(model.graph, stages, tensors),
        ),
        optimizer=_optimizer(reading, trained=kind != "model"),
        groups=reading.merged.groups,
        parameters=parameters,
        frozen=tuple(name for name in could_be if name not in set(names)),
        state=state,
        layout=layout_of(reading, buckets, parameters),
        buckets=buckets,
        inputs=inputs_of(reading),
        outputs=outputs_of(reading),
        stages=stage_facts(stages, tensors),
        layers=layers(model.graph, stages, names),
        memory=memory_facts(reading, parameters, stages, tensors, sizes),
        requirements=needed,
        targets=(*targets(model, needed), *others),
        hazards=hazards(subject),
        contents=contents_of(reading, stages),
    )


def _check(steps: Any, batch_size: Any, dims: Any) -> None:
    if steps is not None:
        _checks.steps("steps", steps)
    _checks.steps("batch_size", batch_size)
    for name, size in (dims or {}).items():
        _checks.steps(f"dims['{name}']", size)


def _sizes(reading: Reading, batch_size: int, dims: Mapping[str, int]) -> dict[str, int]:
    """What open dimensions are taken to be."""
    sizes = dict.fromkeys(open_dimensions(reading.file.model), batch_size)
    for name in dims:
        if name not in sizes:
            listed = ", ".join(f"'{size}'" for size in sizes) or "none"
            raise ValueError(f"dims: '{name}' is not an open dimension; open: {listed}")
    return sizes | dict(dims)


def _optimizer(reading: Reading, *, trained: bool) -> OptimizerFacts | None:
    facts, parameters = reading.merged.optimizer, reading.merged.parameters
    if facts is None:
        return OptimizerFacts("unknown", "none") if reading.carried and trained else None
    if not trained and not reading.carried:
        return replace(facts, formula=())
    decays = any(parameter.weight_decay != 0 for parameter in parameters)
    centralized = any(parameter.grad_centralization for parameter in parameters)
    return replace(facts, formula=formula(facts, decays=decays, centralized=centralized))
