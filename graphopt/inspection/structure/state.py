"""The state of a graph, value by value."""

import math
from collections.abc import Collection, Sequence

import numpy as np

from graphopt import in_place, states
from graphopt.carried import Carried
from graphopt.inspection.facts import StateFacts
from graphopt.inspection.reading.dataflow import Value
from graphopt.inspection.reading.pattern import Any, Op, match
from graphopt.inspection.reading.read_model import Reading
from graphopt.inspection.reading.recovered import Recovered
from graphopt.inspection.reading.update import average
from graphopt.inspection.reading.writes import Write
from graphopt.on_device.tensor_names import ACCUMULATED
from graphopt.states import (
    ACCUMULATION_COUNT,
    AVERAGE,
    COUNTERS,
    GLOBAL_STEP,
    LOSS_SCALE,
    RANDOM_SEED,
    STATISTIC,
)

_SCALARS = {LOSS_SCALE.name: "loss scale", RANDOM_SEED.name: "seed"}
_AVERAGE = average(Any("old"), Any("new"))


def state_facts(reading: Reading, overwritable: Collection[str] = ()) -> tuple[StateFacts, ...]:
    """What is handed from step to step.

    Args:
        reading: The model.
        overwritable: The inputs whose new value may have their memory.
    """
    kinds = _kinds(reading.recovered)
    return tuple(
        StateFacts(
            input=write.input.name,
            output=write.output,
            kind=kinds.get(id(write.input)) or _other_kind(write),
            shape=write.input.shape or (),
            dtype=write.input.dtype or "unknown",
            bytes=_bytes(write.input),
            overwritable=write.input.name in overwritable,
            initial=write.initial,
        )
        for write in reading.carried
    )


def overwriting(reading: Reading) -> tuple[Collection[str], Sequence[str]]:
    """The inputs whose new value may have their memory, and those that may be overwritten early."""
    model, names = reading.file.model, [write.input.name for write in reading.carried]
    if reading.in_place:
        early = in_place.early_writes(model)
        return set(names) - set(early), early
    pairs = [Carried(w.input.name, w.output or "", (), "float32", ()) for w in reading.carried]
    overwritable = in_place.overwritable(model, pairs)
    return overwritable, [name for name in names if name not in overwritable]


def _kinds(nodes: Recovered | None) -> dict[int, str]:
    kinds: dict[int, str] = {}
    if nodes is None:
        return kinds
    for name, write in nodes.counters.writes.items():
        kinds[id(write.input)] = _SCALARS.get(name, "counter")
    for value in nodes.averages.of_others:
        kinds[id(value)] = AVERAGE.name
    for write in nodes.averages.writes.values():
        kinds[id(write.input)] = AVERAGE.name
    for update in nodes.updates.values():
        kinds[id(update.value("w"))] = "parameter"
        kinds[id(update.value("total"))] = states.ACCUMULATED.name
        kinds |= {id(old): state.name for state, old, _ in update.states()}
    return kinds


def _other_kind(write: Write) -> str:
    value = write.input
    if value.name == ACCUMULATION_COUNT.name:
        return "counter"
    if value.name in COUNTERS - {GLOBAL_STEP.name}:
        return "other"  # it does not count what it should
    if value.name in {GLOBAL_STEP.name, ACCUMULATED} or _is_counter(value):
        return "step"
    new = write.new.source
    masked = match(Op("Where", Any("on"), Any("new"), Any("old")), new)
    kept = masked is not None and masked["old"] is value.source
    if masked is not None and kept and isinstance(masked["new"], Value):
        # The mask of a group keeps its statistics, as it keeps its parameters.
        new = masked["new"]
    average = match(_AVERAGE, new)
    return STATISTIC.name if average is not None and average["old"] is value.source else "other"


def _is_counter(value: Value) -> bool:
    return value.dtype == "int64" and value.shape == ()


def _bytes(value: Value) -> int | None:
    shape, dtype = value.static_shape, value.dtype
    return None if shape is None or dtype is None else math.prod(shape) * np.dtype(dtype).itemsize
