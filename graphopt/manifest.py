"""What a graph says of itself in its metadata: written and read here, and nowhere else.

A field of `Manifest` is the entry ``graphopt.<field>`` of ``metadata_props``, as JSON that has the
names and the order of the fields. Programs in other languages read it.
"""

import base64
import binascii
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, get_args, get_type_hints

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from graphopt._records import Schedule, plain, reader
from graphopt.accumulation import Accumulation
from graphopt.average import ParameterAverage
from graphopt.carried import Array, View
from graphopt.external_data import check_values
from graphopt.large_models import mapped
from graphopt.limits import memory_limit, too_large
from graphopt.mapped_values import array_of, loaded, tensor_at, tensor_of
from graphopt.operators.labels import ClassLabels
from graphopt.requirement import Requirements
from graphopt.rmsprop import RMSProp
from graphopt.schedules import FromCaller
from graphopt.schedules.base import Fixed, LearningRateSchedule, Listed

VERSION = 1
"""That of the metadata; an entry or a key that is added does not change it."""

_PREFIX = "graphopt."
_LONGEST = 2**26  # characters of JSON
_UNPACKED = 2**28  # bytes of a forward model, packed as small as it may be
_RATIO = 20  # of these bytes to the packed ones; a model that is larger has few zeros


@dataclass(frozen=True)
class OptimizerEntry:
    """The optimizer and its hyperparameters, as `RMSProp` has them.

    Attributes:
        name: "RMSProp".
        steps: For how many steps there is a learning rate, if a list gives it.
        group_mask: Whether the graph has the input ``group_mask``.
    """

    name: str
    decay: float
    momentum: float
    epsilon: float
    centered: bool
    loss_scale: Schedule
    use_locking: bool
    epsilon_inside_root: bool
    initial_mean_square: float
    learning_rate_inside_moment: bool
    decoupled_weight_decay: bool
    nesterov: bool
    skip_on_overflow: bool = False
    clip_norm: float | None = None
    clip_norm_per: str = "all"
    clip_value: float | None = None
    average: ParameterAverage | None = None
    accumulation: Accumulation | None = None
    steps: int | None = None
    group_mask: bool = False


@dataclass(frozen=True)
class LossEntry:
    """What is minimized.

    Attributes:
        name: A built-in loss, a scalar output of the model, or the name of a function.
        output: The output that it applies to, where that was said.
        straight_through: Whether gradients go through quantization.
        operators: Of a function: the operators that it appends.
        precision: In what the model before it is computed where that is safe.
    """

    name: str
    output: str | None = None
    straight_through: bool = False
    operators: tuple[str, ...] | None = None
    precision: str = "float32"


@dataclass(frozen=True)
class GroupEntry:
    """A parameter group; its parameters by name."""

    parameters: tuple[str, ...]
    learning_rate: Schedule
    weight_decay: Schedule
    grad_centralization: bool


@dataclass(frozen=True)
class ParameterEntry:
    """A parameter, the index of its group, and how it is updated after exclusions."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    op_type: str | None
    group: int
    learning_rate: Schedule
    weight_decay: Schedule
    grad_centralization: bool


@dataclass(frozen=True)
class BucketEntry:
    """Parameters that are updated together.

    Attributes:
        name: Its name.
        function: The ONNX function that updates it.
        shape: In which it is updated and its states are carried.
        group: The index of its group.
        parameters: Their names, in order.
    """

    name: str
    function: str
    shape: tuple[int, ...]
    group: int
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class LayoutEntry:
    """What is updated together, and what that layout is called."""

    name: str
    buckets: tuple[BucketEntry, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a graph says of itself; None is what it does not say.

    Attributes:
        version: `VERSION` when it was written; 0 where it was written before there were versions.
        optimizer: The optimizer.
        groups: Its groups.
        parameters: Its parameters, in its order.
        layout: What is updated together.
        loss: What is minimized.
        class_labels: The inputs that hold class indices.
        momentums: Of an on-device optimizer model: which of ONNX Runtime's two states of a
            parameter is which kind of ours.
        requirements: What a runtime must support.
        forward: The forward model, packed; see `unpacked`.
        update_binding: The output that feeds each carried input at the next step.
        views: What each carried input holds.
        gradients: The value of the graph that is the gradient of each parameter, and that of the
            batch for each running statistic: all that the update reads of the batch.
    """

    version: int = VERSION
    optimizer: OptimizerEntry | None = None
    groups: tuple[GroupEntry, ...] | None = None
    parameters: tuple[ParameterEntry, ...] | None = None
    layout: LayoutEntry | None = None
    loss: LossEntry | None = None
    class_labels: tuple[ClassLabels, ...] | None = None
    momentums: dict[str, str] | None = None
    requirements: Requirements | None = None
    forward: str | None = None
    update_binding: dict[str, str] | None = None
    views: dict[str, tuple[View, ...]] | None = None
    gradients: dict[str, str] | None = None

    @classmethod
    def of(cls, optimizer: RMSProp, *, group_mask: bool = False) -> "Manifest":
        """What it says about an optimizer, its groups and its parameters."""
        rates = [group.learning_rate for group in optimizer.groups]
        steps = [len(rate.values) for rate in rates if isinstance(rate, Listed)]
        names = (field.name for field in fields(OptimizerEntry))
        own: dict[str, Any] = {name: getattr(optimizer, name, None) for name in names}
        if not isinstance(optimizer.loss_scale, float):
            own["loss_scale"] = dict(optimizer.loss_scale.describe())
        own |= {"name": "RMSProp", "steps": min(steps, default=None), "group_mask": group_mask}
        groups = tuple(
            GroupEntry(
                tuple(parameter.name for parameter in group.params),
                _described(group.learning_rate),
                _described(group.weight_decay),
                group.grad_centralization,
            )
            for group in optimizer.groups
        )
        parameters = tuple(
            ParameterEntry(
                name=parameter.name,
                shape=parameter.shape,
                dtype=parameter.dtype,
                op_type=parameter.op_type,
                group=rule.group,
                learning_rate=_described(rule.learning_rate),
                weight_decay=_described(rule.weight_decay),
                grad_centralization=rule.grad_centralization,
            )
            for parameter, rule in zip(optimizer.params, optimizer.rules, strict=True)
        )
        return cls(optimizer=OptimizerEntry(**own), groups=groups, parameters=parameters)

    @classmethod
    def read(cls, model: onnx.ModelProto | ir.Model, *names: str) -> "Manifest":
        """What a model says, which is not trusted.

        Args:
            model: The model.
            names: The fields to read; all of them by default.

        Raises:
            ValueError: An entry is damaged, or a newer graphopt wrote it.

        Example:
            >>> graph = update_graph(RMSProp([Parameter("w", (3,))], momentum=0.9))
            >>> Manifest.read(graph.model, "optimizer").optimizer.momentum
            0.9
        """
        texts = (
            model.metadata_props
            if isinstance(model, ir.Model)
            else {entry.key: entry.value for entry in model.metadata_props}
        )
        found: dict[str, Any] = {"version": 0}
        for name, read in _readers().items():
            text = texts.get(f"{_PREFIX}{name}")
            if text is not None and (not names or name in {"version", *names}):
                found[name] = text if name == "forward" else _parsed(name, text, read)
        if found["version"] > VERSION:
            raise ValueError(
                f"the metadata has version {found['version']}, expected {VERSION} at most; "
                "a newer graphopt wrote it"
            )
        return cls(**found)

    def fed_rates(self) -> tuple[str, ...]:
        """The inputs from which learning rates and weight decays are fed, each once."""
        schedules = [
            schedule
            for parameter in self.parameters or ()
            for schedule in (parameter.learning_rate, parameter.weight_decay)
        ]
        return tuple(dict.fromkeys(name for schedule in schedules for name in _fed(schedule)))

    def entries(self) -> dict[str, str]:
        """The entries of ``metadata_props``, by key."""
        said = {name: value for name, value in vars(self).items() if value is not None}
        return {
            f"{_PREFIX}{name}": value if name == "forward" else json.dumps(plain(value))
            for name, value in said.items()
        }


@cache
def _readers() -> dict[str, Callable[[Any, str], Any]]:
    """What reads each entry, which is not null where it is there."""
    kinds = get_type_hints(Manifest).items()
    return {name: reader(get_args(kind)[0] if get_args(kind) else kind) for name, kind in kinds}


def _parsed(name: str, text: str, read: Callable[[Any, str], Any]) -> Any:
    key = f"{_PREFIX}{name}"
    if len(text) > _LONGEST:
        raise ValueError(f"the metadata is damaged: '{key}' has {len(text)} characters")
    try:
        return read(json.loads(text), key)
    except ValueError as error:
        raise ValueError(f"the metadata is damaged: '{key}' is not JSON: {error}") from None
    except (KeyError, TypeError, RecursionError, OverflowError) as error:
        raise ValueError(f"the metadata is damaged: {type(error).__name__} {error}") from None


def _fed(schedule: Any) -> Iterator[str]:
    """The inputs that a schedule, or one in it, is fed from."""
    if isinstance(schedule, list | tuple):
        for inner in schedule:
            yield from _fed(inner)
    elif isinstance(schedule, Mapping):
        name = schedule.get("input")
        if schedule.get("schedule") == FromCaller.__name__ and isinstance(name, str):
            yield name
        yield from _fed(list(schedule.values()))


def _described(schedule: LearningRateSchedule) -> Schedule:
    """A number where it is fixed, otherwise a dict."""
    return schedule.constant if isinstance(schedule, Fixed) else dict(schedule.describe())


def packed(forward: onnx.ModelProto, stored: Mapping[str, Array]) -> str:
    """A forward model as text, without the values that stand in the training graph anyway.

    Args:
        forward: The model.
        stored: The values that are in the training graph, by name.
    """

    def stripped(tensor: onnx.TensorProto) -> onnx.TensorProto:
        array = array_of(tensor)
        other = stored.get(tensor.name)
        if other is not None and _is_the_same(other, array):
            return onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        return tensor

    model = loaded(mapped(forward, stripped, least=0))
    return base64.b64encode(zlib.compress(model.SerializeToString())).decode()


def _is_the_same(one: Array, other: Array) -> bool:
    same = (one.dtype, one.shape) == (other.dtype, other.shape)
    # The same place in a file is not looked at.
    return same and (one.ctypes.data == other.ctypes.data or np.array_equal(one, other))


def unpacked(
    text: str,
    values: Mapping[str, Array],
    initial: Mapping[str, Array],
    stored: Mapping[str, onnx.TensorProto],
) -> onnx.ModelProto:
    """The forward model, in which large values are left where they are.

    Args:
        text: What `packed` returned.
        values: What its initializers shall hold, by name, as long as somebody holds these.
        initial: The same for others.
        stored: The initializers of the training graph, by name.

    Raises:
        ValueError: It is damaged, or takes more memory than is allowed.
    """
    model = stripped(text)
    for tensor in model.graph.initializer:
        array = values.get(tensor.name)
        if array is not None:
            tensor.CopyFrom(tensor_at(array, tensor.name))
        elif tensor.name in initial:
            tensor.CopyFrom(tensor_of(initial[tensor.name], tensor.name))
        elif is_stripped(tensor):
            if tensor.name not in stored:
                raise ValueError(
                    f"the metadata is damaged: '{_PREFIX}forward' has no value of '{tensor.name}'"
                )
            tensor.CopyFrom(stored[tensor.name])
    check_values(model)
    return model


def stripped(text: str) -> onnx.ModelProto:
    """The forward model as `packed` left it, where initializers may have no values.

    Raises:
        ValueError: It is damaged, or takes more memory than is allowed.
    """
    try:
        return onnx.load_model_from_string(_decompressed(text))
    except (binascii.Error, zlib.error, DecodeError, UnicodeError) as error:
        raise ValueError(f"the metadata is damaged: '{_PREFIX}forward': {error}") from None


def _decompressed(text: str) -> bytes:
    """What a text holds, of which no more is taken than the limit."""
    data = base64.b64decode(text, validate=True)
    most = memory_limit(max(_UNPACKED, _RATIO * len(data)))
    stream = zlib.decompressobj()
    found = stream.decompress(data, most)
    if len(found) == most and stream.decompress(stream.unconsumed_tail, 1):
        raise ValueError(f"the forward model in '{_PREFIX}forward' {too_large(most)}")
    if not stream.eof:
        raise zlib.error("it is truncated")
    return found


def is_stripped(tensor: onnx.TensorProto) -> bool:
    """Whether an initializer has elements, but no values."""
    kept = {"name", "dims", "data_type"}
    return bool(np.prod(tensor.dims)) and all(f.name in kept for f, _ in tensor.ListFields())
