"""The optimizer, its groups and its parameters."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from graphopt.accumulation import Accumulation
from graphopt.average import ParameterAverage

Source = Literal["metadata and graph", "metadata", "graph", "none"]
"""Where a fact was read: in the model's metadata, in its nodes, or in both, which agree."""

Schedule = float | Mapping[str, Any] | None
"""A number where it is fixed. Otherwise a dict, whose ``schedule`` is the name of the schedule, and
the other keys are its arguments; or "expression", with the ``formula``. None where it is unknown.
"""


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
        adds_up = self.accumulation is not None
        return not constant or self.clip_norm is not None or clips_scaled or adds_up

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
