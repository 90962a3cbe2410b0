"""A graph that trains: an ONNX model, and what it declares about itself."""

import base64
import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper
from onnx_ir.passes import common as passes

from graphopt._files import PathLike, write_atomically
from graphopt.carried import Carried, declare, declared, initial_values
from graphopt.forward import read_proto
from graphopt.operators.labels import ClassLabels
from graphopt.requirement import METADATA_KEY, requirements
from graphopt.rmsprop import RMSProp
from graphopt.schedules.base import Fixed, LearningRateSchedule, Listed, local_functions
from graphopt.update import core, functions
from graphopt.update.emit import Update

_FORWARD = "graphopt.forward"
GROUPS_KEY = "graphopt.groups"
_LABELS = "graphopt.class_labels"
LAYOUT_KEY = "graphopt.layout"
OPTIMIZER_KEY = "graphopt.optimizer"
PARAMETERS_KEY = "graphopt.parameters"
_TWO_GIB = 2**31


class TrainingGraph:
    """An ONNX model of which one run is one training step.

    Made by `training_graph` and `update_graph`, read back by `load`. Everything that is known
    about it stands in the model itself.

    Attributes:
        model: The ``onnx.ModelProto``. Its ``training_info`` declares which output feeds which
            input at the next step (``update_binding``) and the values before the first step
            (``initialization``); its ``metadata_props`` repeat the binding and describe the
            optimizer, the parameters and the layout of the state, as JSON.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        """Wrap a model.

        Raises:
            ValueError: The model does not declare what it carries from step to step.
        """
        self.model = model
        self._carried = tuple(declared(model))

    @property
    def carried(self) -> tuple[Carried, ...]:
        """The values that one step hands to the next."""
        return self._carried

    @property
    def layout(self) -> Mapping[str, Any]:
        """What is updated together.

        ``name`` ("chunks", "buckets" or "separate") and ``buckets``, a list of dicts with ``name``,
        ``function`` (the ONNX function that updates it), ``shape`` (in which it is updated and
        its states are carried), ``group`` (an index) and ``parameters`` (their names, in order).
        """
        layout: dict[str, Any] = self._metadata(LAYOUT_KEY, {"name": "unknown", "buckets": []})
        return layout

    @property
    def use_locking(self) -> bool:
        """Whether the optimizer was built with ``use_locking``."""
        return bool(self._metadata(OPTIMIZER_KEY, {}).get("use_locking", False))

    @property
    def group_mask(self) -> bool:
        """Whether the graph has the input ``group_mask``."""
        return bool(self._metadata(OPTIMIZER_KEY, {}).get("group_mask", False))

    @property
    def steps(self) -> int | None:
        """The number of steps for which there is a learning rate, if a list gives it."""
        steps = self._metadata(OPTIMIZER_KEY, {}).get("steps")
        return None if steps is None else int(steps)

    @property
    def class_labels(self) -> tuple[ClassLabels, ...]:
        """The inputs that hold class indices."""
        return tuple(ClassLabels(**label) for label in self._metadata(_LABELS, []))

    def save(self, path: PathLike) -> None:
        """Write the model to a file, atomically.

        Raises:
            FileNotFoundError: The folder does not exist.
            ValueError: The model is larger than 2 GiB, which an ONNX file cannot hold.
        """
        save_model(self.model, path)

    def forward(self, values: Mapping[str, np.ndarray]) -> onnx.ModelProto:
        """The forward model that this graph was made from, with these values in it.

        Args:
            values: Initializers by name; those not given keep the value they were built with.

        Raises:
            ValueError: The graph has no forward model, because it is an update alone.
        """
        packed = {entry.key: entry.value for entry in self.model.metadata_props}.get(_FORWARD)
        if packed is None:
            raise ValueError("this graph is an update alone, it holds no forward model to export")
        proto = onnx.load_model_from_string(zlib.decompress(base64.b64decode(packed)))
        here = {tensor.name: tensor for tensor in self.model.graph.initializer}
        initial = initial_values(self.carried)
        for tensor in proto.graph.initializer:
            array = values.get(tensor.name, initial.get(tensor.name))
            if array is not None:
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
            elif _is_stripped(tensor):
                tensor.CopyFrom(here[tensor.name])
        return proto

    def __repr__(self) -> str:
        """The optimizer and the size of the graph."""
        return (
            f"TrainingGraph({self._metadata(OPTIMIZER_KEY, {}).get('name', 'unknown optimizer')}, "
            f"{len(self.model.graph.node)} nodes, {len(self.carried)} carried values)"
        )

    def _metadata(self, key: str, default: Any) -> Any:
        for entry in self.model.metadata_props:
            if entry.key == key:
                return json.loads(entry.value)
        return default


def load(path: PathLike) -> TrainingGraph:
    """Read a training graph from a file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not an ONNX model, or not a training graph.

    Example:
        >>> graph = load("train.onnx")  # doctest: +SKIP
        >>> Session(graph).step({"x": x, "labels": labels})  # doctest: +SKIP
    """
    model = read_proto(path)
    try:
        return TrainingGraph(model)
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from None


def assemble(
    model: ir.Model,
    optimizer: RMSProp,
    update: Update,
    forward: onnx.ModelProto | None = None,
    labels: Sequence[ClassLabels] = (),
    group_mask: bool = False,
) -> TrainingGraph:
    """Finish a graph to which the update has been appended."""
    _check_names(update.carried)
    _order_interface(model.graph, update.carried)
    proto = described(model, optimizer, update, labels, group_mask)
    if forward is not None:
        entry = proto.metadata_props.add()
        entry.key, entry.value = _FORWARD, _pack(forward, proto.graph, update.carried)
    declare(proto, update.carried)
    return TrainingGraph(proto)


def described(
    model: ir.Model,
    optimizer: RMSProp,
    update: Update,
    labels: Sequence[ClassLabels] = (),
    group_mask: bool = False,
) -> onnx.ModelProto:
    """The model with the functions that it calls, and with what it is in its metadata."""
    model.graph.opset_imports[functions.DOMAIN] = functions.VERSION
    passes.RemoveUnusedOpsetsPass()(model)
    model.producer_name = "graphopt"
    proto = ir.to_proto(model)
    called = {node.op_type for node in model.graph.all_nodes() if node.domain == functions.DOMAIN}
    stages = called - {variant.name for variant in update.variants}
    opset = model.graph.opset_imports[""]
    proto.functions.extend(core.load(update.variants, stages, opset))
    proto.functions.extend(local_functions(model.graph))
    metadata = describe(optimizer, group_mask) | {LAYOUT_KEY: json.dumps(_describe_layout(update))}
    if labels:
        metadata[_LABELS] = json.dumps([asdict(label) for label in labels])
    metadata[METADATA_KEY] = requirements(proto).to_json()
    helper.set_model_props(proto, metadata)
    return proto


def describe(optimizer: RMSProp, group_mask: bool = False) -> dict[str, str]:
    """What the metadata of a model says about its optimizer, groups and parameters, as JSON."""
    return {
        OPTIMIZER_KEY: json.dumps(_describe(optimizer) | {"group_mask": group_mask}),
        GROUPS_KEY: json.dumps(_describe_groups(optimizer)),
        PARAMETERS_KEY: json.dumps(_describe_parameters(optimizer)),
    }


def save_model(model: onnx.ModelProto, path: PathLike) -> None:
    """Write a model atomically; see `TrainingGraph.save`."""
    size = model.ByteSize()
    if size >= _TWO_GIB:
        raise ValueError(
            f"cannot write '{path}': the model has {size / 2**30:.1f} GiB, "
            "and one ONNX file holds less than 2 GiB"
        )
    write_atomically(path, lambda part: Path(part).write_bytes(model.SerializeToString()))


def _check_names(carried: Sequence[Carried]) -> None:
    names = Counter(view.name for value in carried for view in value.views)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ValueError(
            f"'{twice[0]}' is both a parameter and the state of one, or two states; "
            "rename the parameter in the model"
        )


def _order_interface(graph: ir.Graph, carried: Sequence[Carried]) -> None:
    """Put what a step is fed and what it reports before what it carries."""
    inputs = {value.input: index for index, value in enumerate(carried)}
    outputs = {value.output: index for index, value in enumerate(carried)}
    graph.inputs[:] = sorted(graph.inputs, key=lambda value: inputs.get(str(value.name), -1))
    graph.outputs[:] = sorted(graph.outputs, key=lambda value: outputs.get(str(value.name), -1))


def _describe(optimizer: RMSProp) -> dict[str, object]:
    rates = [group.learning_rate for group in optimizer.groups]
    steps = [len(rate.values) for rate in rates if isinstance(rate, Listed)]
    return {
        "name": "RMSProp",
        "decay": optimizer.decay,
        "momentum": optimizer.momentum,
        "epsilon": optimizer.epsilon,
        "centered": optimizer.centered,
        "loss_scale": optimizer.loss_scale,
        "use_locking": optimizer.use_locking,
        "epsilon_inside_root": optimizer.epsilon_inside_root,
        "initial_mean_square": optimizer.initial_mean_square,
        "learning_rate_inside_moment": optimizer.learning_rate_inside_moment,
        "decoupled_weight_decay": optimizer.decoupled_weight_decay,
        "nesterov": optimizer.nesterov,
        "steps": min(steps) if steps else None,
    }


def _describe_groups(optimizer: RMSProp) -> list[dict[str, object]]:
    return [
        {
            "parameters": [parameter.name for parameter in group.params],
            "learning_rate": _describe_schedule(group.learning_rate),
            "weight_decay": _describe_schedule(group.weight_decay),
            "grad_centralization": group.grad_centralization,
        }
        for group in optimizer.groups
    ]


def _describe_parameters(optimizer: RMSProp) -> list[dict[str, object]]:
    return [
        {
            "name": parameter.name,
            "shape": parameter.shape,
            "dtype": parameter.dtype,
            "op_type": parameter.op_type,
            "group": rule.group,
            "learning_rate": _describe_schedule(rule.learning_rate),
            "weight_decay": _describe_schedule(rule.weight_decay),
            "grad_centralization": rule.grad_centralization,
        }
        for parameter, rule in zip(optimizer.params, optimizer.rules, strict=True)
    ]


def _describe_layout(update: Update) -> dict[str, object]:
    buckets = [
        {
            "name": bucket.name,
            "function": variant.name,
            "shape": bucket.shape,
            "group": bucket.rule.group,
            "parameters": [parameter.name for parameter in bucket],
        }
        for bucket, variant in zip(update.layout.buckets, update.variants, strict=True)
    ]
    return {"name": update.layout.name, "buckets": buckets}


def _describe_schedule(schedule: LearningRateSchedule) -> object:
    """A number where it is fixed, otherwise a dict."""
    return schedule.constant if isinstance(schedule, Fixed) else dict(schedule.describe())


def _pack(forward: onnx.ModelProto, graph: onnx.GraphProto, carried: Sequence[Carried]) -> str:
    """The forward model as text, without the values that stand in the training graph anyway."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    stored |= initial_values(carried)
    packed = onnx.ModelProto()
    packed.CopyFrom(forward)
    for tensor in packed.graph.initializer:
        array = numpy_helper.to_array(tensor)
        other = stored.get(tensor.name)
        if other is not None and other.dtype == array.dtype and np.array_equal(other, array):
            tensor.CopyFrom(
                onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
            )
    return base64.b64encode(zlib.compress(packed.SerializeToString())).decode()


def _is_stripped(tensor: onnx.TensorProto) -> bool:
    kept = {"name", "dims", "data_type"}
    return bool(np.prod(tensor.dims)) and all(f.name in kept for f, _ in tensor.ListFields())
