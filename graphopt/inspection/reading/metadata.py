"""What the metadata of a model says about its optimizer, read without trusting it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from graphopt.graph import GROUPS_KEY, LAYOUT_KEY, OPTIMIZER_KEY, PARAMETERS_KEY
from graphopt.inspection.facts import GroupFacts, OptimizerFacts, ParameterFacts, Schedule
from graphopt.states import kept_by

_LONGEST = 2**26
_DEEPEST = 20  # schedules in schedules
_NUMBERS = (
    "decay",
    "momentum",
    "epsilon",
    "loss_scale",
    "initial_mean_square",
)
_FLAGS = (
    "centered",
    "use_locking",
    "epsilon_inside_root",
    "learning_rate_inside_moment",
    "decoupled_weight_decay",
    "nesterov",
    "group_mask",
)


@dataclass(frozen=True)
class Bucket:
    """What is updated together, as the metadata says."""

    name: str
    function: str
    shape: tuple[int, ...]
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Described:
    """What the metadata says.

    Attributes:
        optimizer: The optimizer.
        groups: Its groups, without curves.
        parameters: Its parameters, in its order.
        layout: The name of the layout; None if it does not say.
        buckets: What is updated together.
    """

    optimizer: OptimizerFacts
    groups: tuple[GroupFacts, ...]
    parameters: tuple[ParameterFacts, ...]
    layout: str | None = None
    buckets: tuple[Bucket, ...] = field(default=())


def described(model: onnx.ModelProto) -> Described | None:
    """What the metadata of a model says; None if it does not.

    Raises:
        ValueError: It is damaged.
    """
    entries = {entry.key: entry.value for entry in model.metadata_props}
    if OPTIMIZER_KEY not in entries:
        return None
    try:
        optimizer = _optimizer(_parsed(entries, OPTIMIZER_KEY, dict))
        groups = tuple(_group(group) for group in _parsed(entries, GROUPS_KEY, list))
        parameters = tuple(
            _parameter(parameter, optimizer) for parameter in _parsed(entries, PARAMETERS_KEY, list)
        )
        if LAYOUT_KEY not in entries:
            return Described(optimizer, groups, parameters)
        layout = _parsed(entries, LAYOUT_KEY, dict)
        buckets = tuple(_bucket(bucket) for bucket in _typed(layout, "buckets", list))
        name = _typed(layout, "name", str)
        return Described(optimizer, groups, parameters, name if buckets else None, buckets)
    except (KeyError, TypeError, RecursionError, OverflowError) as error:
        raise ValueError(f"the metadata is damaged: {type(error).__name__} {error}") from None


def _parsed(entries: Mapping[str, str], key: str, kind: type) -> Any:
    text = entries[key]
    if len(text) > _LONGEST:
        raise ValueError(f"the metadata is damaged: '{key}' has {len(text)} characters")
    try:
        return _is(json.loads(text), kind, key)
    except json.JSONDecodeError as error:
        raise ValueError(f"the metadata is damaged: '{key}' is not JSON: {error}") from None


def _is(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"'{where}' is {type(value).__name__}, expected {kind.__name__}")
    return value


def _typed(entry: Mapping[str, Any], key: str, kind: type) -> Any:
    return _is(entry[key], kind, key)


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"'{where}' is {type(value).__name__}, expected a number")
    return float(value)


def _optimizer(entry: Mapping[str, Any]) -> OptimizerFacts:
    steps = entry.get("steps")
    values: dict[str, Any] = {name: _number(entry[name], name) for name in _NUMBERS}
    values |= {name: _typed(entry, name, bool) for name in _FLAGS}
    values["steps"] = None if steps is None else _is(steps, int, "steps")
    return OptimizerFacts(name=_typed(entry, "name", str), source="metadata", **values)


def _group(entry: Any) -> GroupFacts:
    _is(entry, dict, "group")
    return GroupFacts(
        parameters=_names(entry["parameters"]),
        learning_rate=_schedule(entry["learning_rate"]),
        weight_decay=_schedule(entry["weight_decay"]),
        grad_centralization=_typed(entry, "grad_centralization", bool),
    )


def _parameter(entry: Any, optimizer: OptimizerFacts) -> ParameterFacts:
    _is(entry, dict, "parameter")
    shape = _shape(entry["shape"])
    dtype = np.dtype(_typed(entry, "dtype", str))
    op_type = entry["op_type"]
    size = int(np.prod(shape, dtype=float))
    states = kept_by(optimizer)
    return ParameterFacts(
        name=_typed(entry, "name", str),
        shape=shape,
        dtype=dtype.name,
        op_type=None if op_type is None else _is(op_type, str, "op_type"),
        group=_typed(entry, "group", int),
        learning_rate=_schedule(entry["learning_rate"]),
        weight_decay=_schedule(entry["weight_decay"]),
        grad_centralization=_typed(entry, "grad_centralization", bool),
        states=tuple(state.name for state in states),
        bytes=size * dtype.itemsize,
        state_bytes=size * sum(np.dtype(state.dtype).itemsize for state in states),
    )


def _bucket(entry: Any) -> Bucket:
    _is(entry, dict, "bucket")
    return Bucket(
        _typed(entry, "name", str),
        _typed(entry, "function", str),
        _shape(entry["shape"]),
        _names(entry["parameters"]),
    )


def _names(value: Any) -> tuple[str, ...]:
    return tuple(_is(name, str, "name") for name in _is(value, list, "parameters"))


def _shape(value: Sequence[Any]) -> tuple[int, ...]:
    shape = tuple(_is(size, int, "shape") for size in _is(value, list, "shape"))
    if any(size < 0 for size in shape):
        raise TypeError(f"'shape' is {list(shape)}, expected sizes >= 0")
    return shape


def _schedule(value: Any) -> Schedule:
    if isinstance(value, dict):
        _typed(value, "schedule", str)
        _check_depth(value, _DEEPEST)
        return value
    return _number(value, "learning_rate")


def _check_depth(value: Any, left: int) -> None:
    if left == 0:
        raise TypeError(f"a schedule has more than {_DEEPEST} levels")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for entry in inner:
        _check_depth(entry, left - 1)
