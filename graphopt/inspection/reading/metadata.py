"""What the metadata of a model says about its optimizer, read without trusting it."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.inspection.facts import GroupFacts, OptimizerFacts, ParameterFacts
from graphopt.manifest import BucketEntry, Manifest, ParameterEntry
from graphopt.states import State, kept_by


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
    layout: str | None
    buckets: tuple[BucketEntry, ...]


def described(model: ir.Model) -> Described | None:
    """What the metadata of a model says; None if it does not.

    Raises:
        ValueError: It is damaged.
    """
    said = Manifest.read(model, "optimizer", "groups", "parameters", "layout")
    if said.optimizer is None:
        return None
    if said.groups is None or said.parameters is None:
        raise ValueError("the metadata is damaged: it lacks the groups or the parameters")
    buckets = () if said.layout is None else said.layout.buckets
    states = kept_by(said.optimizer)
    return Described(
        OptimizerFacts(source="metadata", **vars(said.optimizer)),
        tuple(GroupFacts(**vars(group)) for group in said.groups),
        tuple(_parameter(parameter, states) for parameter in said.parameters),
        said.layout.name if said.layout is not None and buckets else None,
        buckets,
    )


def _parameter(entry: ParameterEntry, states: tuple[State, ...]) -> ParameterFacts:
    try:
        dtype, size = np.dtype(entry.dtype), int(np.prod(entry.shape, dtype=float))
    except (TypeError, OverflowError) as error:
        raise ValueError(f"the metadata is damaged: {type(error).__name__} {error}") from None
    return ParameterFacts(
        **vars(entry) | {"dtype": dtype.name},
        states=tuple(state.name for state in states),
        bytes=size * dtype.itemsize,
        state_bytes=size * sum(np.dtype(state.dtype).itemsize for state in states),
    )
