"""What an inspection finds: plain values, which become JSON as they are.

Sizes are in bytes, numbers of elements or floating-point operations; an int that is not known,
because a dimension is open or an operator unknown, is None.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from graphopt.accumulation import Accumulation
from graphopt.average import ParameterAverage
from graphopt.requirement import Requirements
from graphopt.stage import Stage

VERSION = 1
"""The version of the JSON; a key that is added does not change it."""

Source = Literal["metadata and graph", "metadata", "graph", "none"]
"""Where a fact was read: in the model's metadata, in its nodes, or in both, which agree."""

Level = Literal["error", "warning", "note"]
"""Training goes wrong; training may go wrong; worth knowing."""
LEVELS: tuple[Level, ...] = ("error", "warning", "note")

Schedule = float | Mapping[str, Any] | None
"""A number where it is fixed. Otherwise a dict, whose ``schedule`` is the name of the schedule, and
the other keys are its arguments; or "expression", with the ``formula``. None where it is unknown.
"""

Shape = tuple[int | str | None, ...]
"""Dimensions: a size, the name of an open one, or None where nothing is known of it."""


def static(shape: Shape | None) -> tuple[int, ...] | None:
    """The sizes of a shape; None where one is not known."""
    sizes = tuple(size for size in shape or () if isinstance(size, int))
    return sizes if shape is not None and len(sizes) == len(shape) else None


@dataclass(frozen=True)
class ModelFacts:
    """What kind of file it is.

    Attributes:
        name: The path as it was given, or the name of the graph.
        kind: "training graph" (forward, gradients and update), "update graph", "on-device training
            model" (the update is in it), "on-device gradient model" (it is not), "on-device
            optimizer model", or "model".
        producer: Who wrote it; "" if it does not say.
        nodes: Their number, those in branches, loops and functions not counted.
        bytes: The size of the model.
        precision: The floating-point types in which the forward pass computes, those of the most
            digits first.
    """

    name: str
    kind: str
    producer: str
    nodes: int
    bytes: int
    precision: tuple[str, ...] = ()


@dataclass(frozen=True)
class OptimizerFacts:
    """The optimizer and its hyperparameters; what it does not have is None.

    Attributes:
        name: "RMSProp", "AdamW", "SGD", or "unknown".
        source: Where the hyperparameters were read.
        decay: Decay of the mean square.
        momentum: 0.0 without.
        epsilon: Added to the mean square.
        centered: Whether the square of the mean gradient is subtracted.
        loss_scale: What gradients are divided by; a dict where it is state of the graph
            ("DynamicLossScale"), or an input of it ("FromCaller").
        use_locking: Only the metadata says it.
        epsilon_inside_root: False: it is added to the root.
        initial_mean_square: What the mean square starts at.
        learning_rate_inside_moment: False: the moment is multiplied by it.
        decoupled_weight_decay: Taken off the parameter, not added to the gradient.
        nesterov: Whether the step looks ahead.
        skip_on_overflow: Whether a step whose gradients are not all finite changes nothing.
        clip_norm: What the norm of gradients is limited to.
        clip_norm_per: What each norm is over: "all" gradients, those of a "group", that of a
            "parameter", or "other" gradients than it limits.
        clip_value: What the elements of gradients are limited to.
        average: The moving average of the parameters, if there is one.
        accumulation: How many steps make an update, if not each is one.
        group_mask: Whether an input says which groups are updated.
        guarded: Centered: whether an element whose radicand is not positive stays as it is.
        steps: For how many steps there is a learning rate, if a list gives it.
        formula: The update of a parameter, line by line.
        others: Hyperparameters of other optimizers, by name.
    """

    name: str
    source: Source
    decay: float | None = None
    momentum: float | None = None
    epsilon: float | None = None
    centered: bool | None = None
    loss_scale: Schedule | None = None
    use_locking: bool | None = None
    epsilon_inside_root: bool | None = None
    initial_mean_square: float | None = None
    learning_rate_inside_moment: bool | None = None
    decoupled_weight_decay: bool | None = None
    nesterov: bool | None = None
    skip_on_overflow: bool | None = None
    clip_norm: float | None = None
    clip_norm_per: str | None = None
    clip_value: float | None = None
    average: ParameterAverage | None = None
    accumulation: Accumulation | None = None
    group_mask: bool | None = None
    guarded: bool | None = None
    steps: int | None = None
    formula: tuple[str, ...] = ()
    others: Mapping[str, float] = field(default_factory=dict)

    @property
    def constant_loss_scale(self) -> float:
        """The loss scale where it is a number; 1 where it is none, or not known."""
        return self.loss_scale if isinstance(self.loss_scale, int | float) else 1.0

    @property
    def dynamic_loss_scale(self) -> Mapping[str, Any] | None:
        """The rule of the loss scale, where that is state of the graph."""
        scale = self.loss_scale
        is_state = isinstance(scale, Mapping) and scale.get("schedule") != "FromCaller"
        return scale if is_state and isinstance(scale, Mapping) else None

    @property
    def unscales_first(self) -> bool:
        """Whether gradients are divided by the loss scale before anything else."""
        constant = isinstance(self.loss_scale, int | float) or self.loss_scale is None
        clips_scaled = self.clip_value is not None and self.loss_scale != 1
        return not constant or self.clip_norm is not None or clips_scaled

    @property
    def carried_loss_scale(self) -> float:
        """The loss scale that gradients carry through weight decay."""
        return 1.0 if self.unscales_first else self.constant_loss_scale


@dataclass(frozen=True)
class GroupFacts:
    """A parameter group.

    Attributes:
        parameters: Their names.
        learning_rate: Its learning rate.
        weight_decay: Its weight decay.
        grad_centralization: Whether gradients of convolution weights are centralized.
        curve: The learning rate at some steps, ``(step, value)``; a fixed one has one point, one
            that is not computed from the step none.
    """

    parameters: tuple[str, ...]
    learning_rate: Schedule
    weight_decay: Schedule
    grad_centralization: bool
    curve: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class ParameterFacts:
    """A parameter that is trained.

    Attributes:
        name: Its name.
        shape: Its dimensions.
        dtype: NumPy's name of its element type.
        op_type: The operator whose weight it is, if that is known.
        group: The index of its group; None if it is in none.
        learning_rate: Its learning rate.
        weight_decay: Its weight decay, after exclusions.
        grad_centralization: Whether its own gradient is centralized.
        states: The kinds of its states: "mean_square", "mean_grad", "moment".
        bytes: Of the parameter.
        state_bytes: Of its states.
        gradient: The tensor of the graph that is its gradient, if one is.
        bucket: The name of what it is updated with.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    op_type: str | None = None
    group: int | None = None
    learning_rate: Schedule = None
    weight_decay: Schedule = None
    grad_centralization: bool = False
    states: tuple[str, ...] = ()
    bytes: int = 0
    state_bytes: int = 0
    gradient: str | None = None
    bucket: str | None = None

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class StateFacts:
    """A value that one step hands to the next.

    Attributes:
        input: The graph's input.
        output: The output that feeds it at the next step; None if it is written in place.
        kind: "parameter", "mean_square", "mean_grad", "moment", "statistic" (of batch
            normalization), "average", "accumulated", "step", "loss scale", "counter", "seed" or
            "other".
        shape: Its shape in the graph.
        dtype: NumPy's name of its element type.
        bytes: Its size.
        overwritable: Whether it is proven that every node that reads it runs before its new value
            is written, so that one may have the memory of the other.
        initial: What it starts from: "values", a number that fills it, or None where the caller
            must give it.
    """

    input: str
    output: str | None
    kind: str
    shape: Shape
    dtype: str
    bytes: int | None
    overwritable: bool
    initial: float | str | None


@dataclass(frozen=True)
class BucketFacts:
    """Parameters that are updated together.

    Attributes:
        name: Its name.
        function: The ONNX function that updates it; None where the nodes stand in the graph.
        shape: In which it is updated.
        parameters: Their names, in order.
        nodes: The nodes of the graph that update it, as ONNX text, in order.
    """

    name: str
    function: str | None
    shape: tuple[int, ...]
    parameters: tuple[str, ...]
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ValueFacts:
    """What a caller feeds or gets.

    Attributes:
        name: Its name.
        shape: Its dimensions; None where even their number is open.
        dtype: NumPy's name of its element type, or the type as text.
    """

    name: str
    shape: Shape | None
    dtype: str


@dataclass(frozen=True)
class LayerFacts:
    """The nodes of one stage that belong to one forward node.

    Attributes:
        stage: The stage.
        name: The forward node, or the bucket in the update.
        op_types: The operators, each with how often it occurs.
        nodes: The number of nodes.
        parameters: The trained parameters that the forward node reads.
        after: Names of the layers of the same stage whose results it reads.
    """

    stage: Stage
    name: str
    op_types: Mapping[str, int]
    nodes: int
    parameters: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class StageFacts:
    """What a stage of a step does.

    Attributes:
        stage: Which one.
        nodes: The number of nodes, those of functions, branches and loops counted once each.
        flops: Floating-point operations, a multiplication with an addition counted as two. None
            where nothing of it is known.
        bytes: What its operators read and write, as if nothing stayed in caches.
        unknown: How many nodes could not be counted, because a shape is not known.
    """

    stage: Stage
    nodes: int
    flops: int | None
    bytes: int | None
    unknown: int = 0


@dataclass(frozen=True)
class MemoryFacts:
    """Bytes that a step needs.

    Attributes:
        parameters: Those that are trained.
        frozen: Initializers.
        gradients: The gradient of each trained parameter.
        states: The states of the optimizer.
        activations: The most that forward and backward pass hold at once, beside the other four:
            nodes run in the order of the file, and each tensor is held until its last reader. None
            where shapes are not known.
        sizes: The open dimensions, and the size that was assumed for each.
    """

    parameters: int
    frozen: int
    gradients: int
    states: int
    activations: int | None
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class TargetFacts:
    """Whether something runs the graph.

    Attributes:
        name: What.
        runs: Whether it does.
        reasons: Why not, or what to know.
    """

    name: str
    runs: bool
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Hazard:
    """Something that goes wrong, or may.

    Attributes:
        kind: Its name, which stays the same, such as "no-gradient".
        level: How bad it is.
        where: The parameters, states, nodes or inputs it is about.
        why: What is wrong.
        fix: What to do.
    """

    kind: str
    level: Level
    where: tuple[str, ...]
    why: str
    fix: str


def worst_first(hazards: Iterable[Hazard]) -> tuple[Hazard, ...]:
    """Hazards by level, those of one level in their order."""
    return tuple(sorted(hazards, key=lambda hazard: LEVELS.index(hazard.level)))


@dataclass(frozen=True)
class Contents:
    """What `diff` looks into beside the facts; it stands in no JSON.

    Attributes:
        nodes: The nodes of the forward pass and of the loss, by name: operator and attributes.
        tensors: What the parameters and running statistics start from, and the constants that these
            nodes read, by name.
    """

    nodes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    tensors: Mapping[str, Any] = field(default_factory=dict)


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
        contents: The forward pass and the values that it begins with, for `diff` alone.
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
