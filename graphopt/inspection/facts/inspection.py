"""Everything that is known about a model."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from graphopt.inspection.facts.costs import MemoryFacts, StageFacts, TargetFacts
from graphopt.inspection.facts.hazard import Hazard
from graphopt.inspection.facts.optimizer import GroupFacts, OptimizerFacts, ParameterFacts
from graphopt.inspection.facts.structure import (
    BucketFacts,
    LayerFacts,
    ModelFacts,
    StateFacts,
    ValueFacts,
)
from graphopt.requirement import Requirements

VERSION = 1
"""The version of the JSON; a key that is added does not change it."""


@dataclass(frozen=True)
class Contents:
    """What `diff` and checkpoints look into beside the facts; it stands in no JSON.

    Attributes:
        nodes: The nodes of the forward pass and of the loss, by name: operator and attributes.
        tensors: What the parameters and running statistics start from, and the constants that these
            nodes read, by name.
        rates: The learning rate of each parameter by the number of a step, where nodes say it;
            None where it cannot be computed.
    """

    nodes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    tensors: Mapping[str, Any] = field(default_factory=dict)
    rates: Mapping[str, Callable[[int], float | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Inspection:
    """Everything that is known about a model; see `graphopt.inspect`.

    Attributes:
        model: What kind of file it is.
        optimizer: The optimizer; None if there is none.
        groups: The parameter groups.
        parameters: The trained parameters, in the order of the optimizer; in a model without an
            optimizer, those that could be.
        frozen: Names of floating-point initializers that could be trained and are not.
        state: What is carried from step to step.
        layout: "chunks", "buckets", "separate", or None.
        buckets: What is updated together.
        inputs: What a caller feeds.
        outputs: What a caller gets.
        stages: What each stage does.
        layers: The graph by stage and layer.
        memory: What a step needs.
        requirements: What a runtime must support.
        targets: What runs it.
        hazards: What goes wrong, or may, the worst first.
        contents: The forward pass, the values that it begins with and the learning rates, for
            `diff` and checkpoints alone.
    """

    model: ModelFacts
    optimizer: OptimizerFacts | None
    groups: tuple[GroupFacts, ...]
    parameters: tuple[ParameterFacts, ...]
    frozen: tuple[str, ...]
    state: tuple[StateFacts, ...]
    layout: str | None
    buckets: tuple[BucketFacts, ...]
    inputs: tuple[ValueFacts, ...]
    outputs: tuple[ValueFacts, ...]
    stages: tuple[StageFacts, ...]
    layers: tuple[LayerFacts, ...]
    memory: MemoryFacts
    requirements: Requirements
    targets: tuple[TargetFacts, ...]
    hazards: tuple[Hazard, ...]
    contents: Contents = field(default_factory=Contents, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """All facts, for `json.dumps`; the keys are the names of the attributes."""
        facts = asdict(replace(self, contents=Contents()))
        del facts["contents"]
        return {"version": VERSION} | facts
