"""A graph that trains: an ONNX model, and what it declares about itself."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper
from onnx_ir.passes import common as passes

from graphopt import _checks
from graphopt._file_sets import write_together
from graphopt._files import PathLike, about as about_file, check_target
from graphopt._outputs import check_outputs, same_file
from graphopt._records import plain
from graphopt.carried import Carried, declare, declared, initial_values, with_averages
from graphopt.external_data import check_values
from graphopt.feeds import Feed, feed_of
from graphopt.forward import read_with_files
from graphopt.graphs import all_nodes, put_last
from graphopt.large_models import DATA, save_model
from graphopt.limits import check_memory
from graphopt.local_functions import DOMAIN, VERSION, local_functions
from graphopt.manifest import (
    BucketEntry,
    LayoutEntry,
    LossEntry,
    Manifest,
    OptimizerEntry,
    packed,
    unpacked,
)
from graphopt.mapped_values import arrays_in_memory, loaded
from graphopt.operators.labels import ClassLabels
from graphopt.requirement import requirements
from graphopt.rmsprop import RMSProp
from graphopt.soundness.errors import about, taking_memory
from graphopt.start_values import check_starts, start_file, write_start
from graphopt.update import core
from graphopt.update.core import Variant
from graphopt.update.emit import AppendedUpdate

Start = Literal["safetensors"]
"""How what training starts from is written beside a graph."""


class TrainingGraph:
    """An ONNX model of which one run is one training step.

    Made by `training_graph` and `update_graph`, read back by `load`. Everything that is known
    about it stands in the model itself.

    Attributes:
        carried: The values that one step hands to the next.
        files: The files that it was read from, or the forward model that it was built from: the
            model first, then those that have values of it. Nothing is written to these.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        carried: Sequence[Carried] | None = None,
        files: Sequence[Path] = (),
    ) -> None:
        """Wrap a model.

        Args:
            model: The model.
            carried: What it declares that it carries; read from it, which is checked, by default.
            files: The files that it was read from.

        Raises:
            ValueError: The model does not declare what it carries from step to step, or is damaged.
        """
        self._model = model
        self._held = arrays_in_memory(model)
        self.files = tuple(files)
        self._is_whole_file = carried is None
        if carried is None:
            with about(self):
                check_values(model)
                said = Manifest.read(model)
                carried = declared(model, said.views or {})
                if said.optimizer is not None and said.optimizer.average is not None:
                    carried = with_averages(carried)
        self.carried = tuple(carried)

    @property
    def model(self) -> onnx.ModelProto:
        """The model with all its values, which are read here if they were left in files.

        Its ``training_info`` declares which output feeds which input at the next step
        (``update_binding``) and the values before the first step (``initialization``); its
        ``metadata_props`` repeat the binding and describe the optimizer, the parameters and the
        layout of the state, as JSON.
        """
        with taking_memory(self):
            self._model, self._held = loaded(self._model), []
        return self._model

    @property
    def lean(self) -> onnx.ModelProto:
        """The model, of which large values may be left in files; see `mapped_values`."""
        return self._model

    @property
    def inputs(self) -> list[Feed]:
        """What a step must be given; what is carried from step to step is not among it."""
        carried = {value.input for value in self.carried}
        return [feed_of(value) for value in self.lean.graph.input if value.name not in carried]

    @property
    def layout(self) -> Mapping[str, Any]:
        """What is updated together.

        ``name`` ("chunks", "buckets" or "separate") and ``buckets``, a list of dicts with ``name``,
        ``function`` (the ONNX function that updates it), ``shape`` (in which it is updated and
        its states are carried), ``group`` (an index) and ``parameters`` (their names, in order).
        """
        layout: dict[str, Any] = plain(self._layout)
        return layout

    @property
    def buckets(self) -> tuple[BucketEntry, ...]:
        """What is updated together, in the order of the update; also in `layout`."""
        return self._layout.buckets

    @property
    def use_locking(self) -> bool:
        """Whether the optimizer was built with ``use_locking``."""
        return self._optimizer is not None and self._optimizer.use_locking

    @property
    def group_mask(self) -> bool:
        """Whether the graph has the input ``group_mask``."""
        return self._optimizer is not None and self._optimizer.group_mask

    @property
    def steps(self) -> int | None:
        """The number of steps for which there is a learning rate, if a list gives it."""
        return None if self._optimizer is None else self._optimizer.steps

    @property
    def class_labels(self) -> tuple[ClassLabels, ...]:
        """The inputs that hold class indices."""
        return Manifest.read(self.lean, "class_labels").class_labels or ()

    @property
    def fed_rates(self) -> tuple[str, ...]:
        """The inputs from which learning rates and weight decays are fed."""
        return Manifest.read(self.lean, "parameters").fed_rates()

    @property
    def fed_loss_scale(self) -> str | None:
        """The input from which the loss scale is fed, if it is."""
        scale = None if self._optimizer is None else self._optimizer.loss_scale
        return scale.get("input") if isinstance(scale, Mapping) else None

    def save(self, path: PathLike, *, start: Start | None = None) -> None:
        """Write the model to a file, atomically; one of 2 GiB or more has its values in another.

        That is ``<path>.data``, which must stay beside it. The file ends with its digest, so that
        `load` finds damage, while other programs may change the model as they like.

        Args:
            path: Of the file.
            start: "safetensors": write what training starts from beside it too, as
                ``<path without ending>.start.safetensors``, a tensor for each carried input. The
                model has it in ``training_info``, which ONNX Runtime shows to no program.

        Raises:
            FileNotFoundError: The folder does not exist.
            ValueError: The file is one that the forward model was read from; or the graph has
                nothing to start from.
        """
        if not (self._is_whole_file and self.files and same_file(Path(path), self.files[0])):
            self.check_output(path)
        if start is None:
            save_model(self.lean, path, seal=True)
            return
        _checks.one_of("start", start, get_args(Start))
        check_starts(self.carried)
        target = check_target(path)
        beside = start_file(target)
        self.check_output(beside)

        def fill(folder: Path) -> None:
            with about_file(beside):
                write_start(folder / beside.name, self.carried)
            with about_file(path):
                save_model(self.lean, folder / target.name, seal=True)

        names = [beside.name, f"{target.name}{DATA}", target.name]
        write_together(target.parent, fill, names, target.name)

    def check_output(self, path: PathLike) -> None:
        """Refuse to write to a file that the graph, or the model it was built from, was read from.

        Raises:
            ValueError: It is one.
        """
        inputs = [("the file that the graph comes from", file) for file in self.files]
        check_outputs([("path", path), ("path", f"{path}{DATA}")], inputs)

    def forward(self, values: Mapping[str, np.ndarray]) -> onnx.ModelProto:
        """The forward model that this graph was made from, with these values in it.

        Args:
            values: Initializers by name; those not given keep the value they were built with.

        Raises:
            ValueError: The graph has no forward model, because it is an update alone.
        """
        with taking_memory(self):
            return loaded(self.lean_forward(values))  # while the values are there

    def lean_forward(self, values: Mapping[str, np.ndarray]) -> onnx.ModelProto:
        """The same, of which large values are left where they are; see `mapped_values`."""
        with about(self):
            text = Manifest.read(self.lean, "forward").forward
            if text is None:
                raise ValueError(
                    "this graph is an update alone, it holds no forward model to export"
                )
            stored = {tensor.name: tensor for tensor in self.lean.graph.initializer}
            return unpacked(text, values, initial_values(self.carried), stored)

    def without_initial_values(self) -> "TrainingGraph":
        """The same graph in memory of its own, without the values that parameters start from."""
        model = onnx.ModelProto(ir_version=self.lean.ir_version, graph=self.lean.graph)
        for field, value in self.lean.ListFields():
            if field.name not in ("graph", "ir_version", "training_info"):
                if isinstance(value, str | int):
                    setattr(model, field.name, value)
                else:
                    getattr(model, field.name).extend(value)
        carried = tuple(
            replace(value, initial=None) if isinstance(value.initial, np.ndarray) else value
            for value in self.carried
        )
        declare(model, carried)
        return TrainingGraph(model, carried, self.files)

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs: all values are in the model."""
        return self.__dict__ | {"_model": loaded(self._model), "_held": []}

    def __repr__(self) -> str:
        """The optimizer and the size of the graph."""
        return (
            f"TrainingGraph({self._optimizer.name if self._optimizer else 'unknown optimizer'}, "
            f"{len(self.lean.graph.node)} nodes, {len(self.carried)} carried values)"
        )

    @property
    def _layout(self) -> LayoutEntry:
        return Manifest.read(self.lean, "layout").layout or LayoutEntry("unknown", ())

    @property
    def _optimizer(self) -> OptimizerEntry | None:
        return Manifest.read(self.lean, "optimizer").optimizer


def load(path: PathLike) -> TrainingGraph:
    """Read a training graph from a file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not an ONNX model, not a training graph, or damaged.

    Example:
        >>> graph = load("train.onnx")  # doctest: +SKIP
        >>> Session(graph).step({"x": x, "labels": labels})  # doctest: +SKIP
    """
    model, files = read_with_files(path, leaving=True)
    return TrainingGraph(model, files=files)


def as_training_graph(graph: TrainingGraph | onnx.ModelProto | PathLike) -> TrainingGraph:
    """A training graph, from whatever holds one.

    Raises:
        FileNotFoundError: There is no such file.
        TypeError: It is none of these.
        ValueError: The model is not a training graph.
    """
    if isinstance(graph, TrainingGraph):
        return graph
    if isinstance(graph, onnx.ModelProto):
        return TrainingGraph(graph)
    if isinstance(graph, str | os.PathLike):
        return load(graph)
    raise TypeError(
        f"graph: got {type(graph).__name__}, "
        "expected a TrainingGraph, an onnx.ModelProto or the path of a training graph"
    )


def check_state(graph: TrainingGraph) -> None:
    """Refuse a graph whose state takes more memory than is allowed.

    Raises:
        ValueError: It does.
    """
    needed = sum(value.bytes for value in graph.carried)
    with about(graph):
        check_memory(needed, "the state of the training graph")


def assemble(
    model: ir.Model,
    update: AppendedUpdate,
    manifest: Manifest,
    forward: onnx.ModelProto | None = None,
    *,
    files: Sequence[Path] = (),
) -> TrainingGraph:
    """Finish a graph to which the update has been appended; see `manifest_of`."""
    carried = update.carried
    _check_names(carried)
    put_last(model.graph.inputs, [value.input for value in carried])
    put_last(model.graph.outputs, [value.output for value in carried])
    manifest = replace(
        manifest,
        forward=None if forward is None else packed(forward, _stored(model.graph, carried)),
        update_binding={value.input: value.output for value in carried},
        views={value.input: value.views for value in carried},
    )
    proto = finished(model, update.variants, manifest)
    declare(proto, carried)
    return TrainingGraph(proto, carried, files)


def manifest_of(
    optimizer: RMSProp,
    update: AppendedUpdate,
    labels: Sequence[ClassLabels] = (),
    group_mask: bool = False,
    loss: LossEntry | None = None,
) -> Manifest:
    """What a graph says of its optimizer, of what is updated together, its labels and its loss."""
    buckets = tuple(
        BucketEntry(
            bucket.name,
            variant.name,
            bucket.shape,
            bucket.rule.group,
            tuple(parameter.name for parameter in bucket),
        )
        for bucket, variant in zip(update.layout.buckets, update.variants, strict=True)
    )
    return replace(
        Manifest.of(optimizer, group_mask=group_mask),
        layout=LayoutEntry(update.layout.name, buckets),
        class_labels=tuple(labels) or None,
        loss=loss,
    )


def finished(model: ir.Model, variants: Iterable[Variant], manifest: Manifest) -> onnx.ModelProto:
    """A model as a file has it: with the functions that it calls, and with what it says of itself.

    Args:
        model: The model.
        variants: The functions of the update that it calls.
        manifest: What it says; what a runtime must support is added.
    """
    model.graph.opset_imports[DOMAIN] = VERSION
    passes.RemoveUnusedOpsetsPass()(model)
    model.producer_name = "graphopt"
    variants = tuple(variants)
    called = {node.op_type for node in all_nodes(model.graph) if node.domain == DOMAIN}
    proto = ir.to_proto(model)
    stages = called - {one.name for one in (*variants, *proto.functions)}
    proto.functions.extend(core.functions_of(variants, stages, model.graph.opset_imports[""]))
    proto.functions.extend(local_functions(model.graph))
    bodies = map(ir.serde.deserialize_function, proto.functions)
    whole = ir.Model(model.graph, ir_version=model.ir_version, functions=tuple(bodies))
    helper.set_model_props(proto, replace(manifest, requirements=requirements(whole)).entries())
    return proto


def _check_names(carried: Sequence[Carried]) -> None:
    names = Counter(view.name for value in carried for view in value.views)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ValueError(
            f"'{twice[0]}' is both a parameter and the state of one, or two states; "
            "rename the parameter in the model"
        )


def _stored(graph: ir.Graph, carried: Sequence[Carried]) -> dict[str, np.ndarray]:
    """The values that stand in a graph or start it, by name."""
    constants = {name: value.const_value for name, value in graph.initializers.items()}
    arrays = {name: tensor.numpy() for name, tensor in constants.items() if tensor is not None}
    return arrays | initial_values(carried)
