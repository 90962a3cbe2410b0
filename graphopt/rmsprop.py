"""What the user writes: hyperparameters, checked once and resolved to one rule per parameter."""

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass
from typing import Any

from graphopt import _checks, states
from graphopt._slips import says_what_is_meant
from graphopt.accumulation import Accumulation
from graphopt.average import ParameterAverage, checked_average
from graphopt.clipping import ClipNormPer, check_clipping
from graphopt.groups import as_weight_decay, read_groups
from graphopt.loss_scale import DynamicLossScale, LossScale, checked_loss_scale
from graphopt.parameter import Parameter
from graphopt.schedules import LearningRateSchedule
from graphopt.schedules.base import Fixed
from graphopt.schedules.parse import learning_rate as as_learning_rate

_CONVOLUTIONS = ("Conv", "ConvTranspose")


@dataclass(frozen=True)
class Rule:
    """How one parameter is updated, after defaults and exclusions have been settled.

    Attributes:
        group: The index of its group.
        learning_rate: Its learning rate.
        weight_decay: The factor of the parameter that is added to its gradient.
        grad_centralization: Whether the mean over all axes but the first is subtracted from its
            gradient.
    """

    group: int
    learning_rate: LearningRateSchedule
    weight_decay: LearningRateSchedule
    grad_centralization: bool = False

    @property
    def decays(self) -> bool:
        """Whether there is any weight decay."""
        return self.weight_decay != Fixed(0.0)


class RMSProp:
    """The RMSProp optimizer, plain or centered, with the semantics of ``mindspore.nn.RMSProp``.

    For each parameter w with gradient g (of the loss times ``loss_scale``)::

        g ← (g + w · weight_decay · loss_scale) / loss_scale
        s ← decay · s + (1 - decay) · g²
        a ← decay · a + (1 - decay) · g                             centered only
        m ← momentum · m + learning_rate · g / √(s + epsilon)       centered: √(s - a² + epsilon)
        w ← w - m

    The mean square s starts at **ones**, the moment m and the mean gradient a at zeros. Centered:
    an element whose s - a² + epsilon is not positive keeps its moment and its weight in that step
    (decoupled weight decay still applies).
    State and arithmetic are float32; of parameters that are float64, float64.

    Parameter groups are dicts with ``params`` and, each optional, ``lr`` (or ``learning_rate``),
    ``weight_decay`` and ``grad_centralization`` (False); what a group lacks is the optimizer's.
    The order is that of the groups, or that of ``order_params``, a list of all of them in a dict
    of its own. ``grad_centralization`` subtracts from the gradient of each convolution weight,
    after weight decay, its mean over all axes but the first.

    The keyword-only arguments say what other frameworks do differently.

    Args:
        params: The parameters to train: any iterable of `Parameter`, or a list of groups; every
            other initializer of the model is frozen.
        learning_rate: A number >= 0; a list, another iterable or a 1-D array (NumPy or ONNX) with
            a value for each step; a 0-D array; or a `schedules.LearningRateSchedule`.
        decay: A float >= 0.
        momentum: A float >= 0. With 0 no moment is stored.
        epsilon: A float > 0.
        use_locking: Serialise steps and reads of the state from several threads. Without it a
            `Session` that is in use by one thread refuses a second one.
        centered: Subtract the square of the mean gradient under the root.
        loss_scale: What the loss is multiplied by before the backward pass, and the gradients
            divided by: a number > 0; a `DynamicLossScale`, which is state of the graph; or a
            ``schedules.FromCaller("loss_scale")``, an input of the graph of that name.
        weight_decay: A number >= 0 or a schedule. Without groups, parameters whose name contains
            "beta" or "gamma" are excluded.
        epsilon_inside_root: Divide by √(s + epsilon); False: by √s + epsilon.
        initial_mean_square: The value >= 0 that the mean square starts at.
        learning_rate_inside_moment: Accumulate learning_rate · g / √(s + epsilon) in the
            moment; False: accumulate without the rate, and multiply when the weight moves.
        decoupled_weight_decay: Multiply the weight by ``1 - learning_rate * weight_decay`` before
            the update, instead of adding to the gradient.
        nesterov: Move by what the next moment would be at the same gradient; needs momentum.
        skip_on_overflow: A step in which a gradient is infinite or NaN changes no parameter, no
            state, no running statistic and not ``global_step``; ``updated`` is False, and
            ``skipped_steps`` counts it. A dynamic loss scale implies it.
        clip_norm: A number > 0, at most which the norm of the gradients shall be: they are
            multiplied by min(1, clip_norm / (norm + 1e-6)), without the loss scale, before weight
            decay. The graph then has the output ``gradient_norm``, that of all gradients before
            clipping, which is all that a large number does.
        clip_norm_per: What each norm is over: "all" gradients of the groups that are updated,
            each "group", or each "parameter".
        clip_value: A number > 0: elements of the gradients, without the loss scale and before
            weight decay, are limited to it on both sides. Not beside ``clip_norm``.
        average: A `ParameterAverage`, or its decay: the graph also carries a moving average of
            each parameter, and ``Session.export(path, average=True)`` writes a model of them.

    Attributes:
        params: All parameters, in the order of the optimizer.
        rules: How each is updated.
        groups: The groups; one that holds everything if there are none.
        accumulation: How many steps make an update; a training graph says it.
        seed: What random numbers begin with, where the training graph draws some.

    Raises:
        KeyError: A group has no ``params``, or a key that is unknown.
        TypeError: An argument has the wrong type (``decay``, ``momentum`` and ``epsilon`` must be
            floats), or a parameter is not of a floating-point type.
        ValueError: An argument is out of range; there is no parameter, one stands twice, or one
            has no elements; a group has both ``lr`` and ``learning_rate``; ``order_params`` is
            not a permutation of the grouped parameters; or some parameters are float64, and others
            are not.

    Source:
        Tieleman and Hinton, "Lecture 6.5 - RMSProp", 2012; Graves, "Generating sequences with
        recurrent neural networks", 2013 (centered); ``mindspore.nn.RMSProp`` (the details).

    Example:
        >>> opt = RMSProp([Parameter("w", (3, 5))], learning_rate=0.01, momentum=0.9)
        >>> opt.states
        ('mean_square', 'moment')
    """

    @says_what_is_meant
    def __init__(
        self,
        params: Iterable[Parameter | dict[str, Any]],
        learning_rate: Any = 0.1,
        decay: float = 0.9,
        momentum: float = 0.0,
        epsilon: float = 1e-10,
        use_locking: bool = False,
        centered: bool = False,
        loss_scale: LossScale = 1.0,
        weight_decay: float | LearningRateSchedule = 0.0,
        *,
        epsilon_inside_root: bool = True,
        initial_mean_square: float = 1.0,
        learning_rate_inside_moment: bool = True,
        decoupled_weight_decay: bool = False,
        nesterov: bool = False,
        skip_on_overflow: bool = False,
        clip_norm: float | None = None,
        clip_norm_per: ClipNormPer = "all",
        clip_value: float | None = None,
        average: ParameterAverage | float | None = None,
    ) -> None:
        """See the class."""
        self.decay = _checks.rate("decay", decay, allow_zero=True)
        self.momentum = _checks.rate("momentum", momentum, allow_zero=True)
        self.epsilon = _checks.rate("epsilon", epsilon)
        self.use_locking = _checks.boolean("use_locking", use_locking)
        self.centered = _checks.boolean("centered", centered)
        self.loss_scale = checked_loss_scale(loss_scale)
        self.skip_on_overflow = (
            _checks.boolean("skip_on_overflow", skip_on_overflow)
            or self.dynamic_loss_scale is not None
        )
        check_clipping(clip_norm, clip_norm_per, clip_value)
        self.clip_norm = None if clip_norm is None else float(clip_norm)
        self.clip_norm_per = clip_norm_per
        self.average = checked_average(average)
        self.accumulation: Accumulation | None = None
        self.seed: int | None = None
        self.clip_value = None if clip_value is None else float(clip_value)
        self.epsilon_inside_root = _checks.boolean("epsilon_inside_root", epsilon_inside_root)
        self.initial_mean_square = _checks.at_least_zero("initial_mean_square", initial_mean_square)
        self.learning_rate_inside_moment = _checks.boolean(
            "learning_rate_inside_moment", learning_rate_inside_moment
        )
        self.decoupled_weight_decay = _checks.boolean(
            "decoupled_weight_decay", decoupled_weight_decay
        )
        self.nesterov = _checks.boolean("nesterov", nesterov)
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: got True with momentum=0.0, expected a momentum > 0")
        self.groups, self.params, grouped = read_groups(
            params,
            as_learning_rate("learning_rate", learning_rate),
            as_weight_decay("weight_decay", weight_decay),
        )
        _check_one_arithmetic(self.params)
        rules = {
            parameter.name: Rule(
                index,
                group.learning_rate,
                Fixed(0.0) if not grouped and _excluded(parameter) else group.weight_decay,
                group.grad_centralization and _is_convolution_weight(parameter),
            )
            for index, group in enumerate(self.groups)
            for parameter in group.params
        }
        for rule in rules.values():
            if self.loss_scale in (rule.learning_rate, rule.weight_decay):
                raise ValueError(
                    f"loss_scale: got {self.loss_scale}, which a learning rate or weight decay is "
                    "too; give it another name"
                )
            if isinstance(rule.weight_decay, Fixed):
                factor = rule.weight_decay.constant * self.carried_loss_scale
                _checks.in_float32("weight_decay * loss_scale", factor)
        self.rules = tuple(rules[parameter.name] for parameter in self.params)

    @property
    def dtype(self) -> str:
        """In what the update is computed and states are carried: float32 or float64."""
        is_double = any(parameter.dtype == "float64" for parameter in self.params)
        return "float64" if is_double else "float32"

    @property
    def states(self) -> tuple[str, ...]:
        """The kinds of state that each parameter has, in the order of the update."""
        return tuple(state.name for state in states.kept_by(self))

    def accumulating(self, accumulation: Accumulation | None) -> "RMSProp":
        """The same optimizer, applied to gradients of several steps."""
        made = copy(self)
        made.accumulation = accumulation
        return made

    def drawing(self, seed: int | None) -> "RMSProp":
        """The same optimizer, for a graph whose random numbers begin with a seed, if it has one."""
        made = copy(self)
        made.seed = seed
        return made

    @property
    def random_operators(self) -> bool:
        """Whether it is for a graph whose random numbers follow from a seed."""
        return self.seed is not None

    @property
    def dynamic_loss_scale(self) -> DynamicLossScale | None:
        """The rule of the loss scale, where that is state of the graph."""
        return self.loss_scale if isinstance(self.loss_scale, DynamicLossScale) else None

    @property
    def initial_loss_scale(self) -> float:
        """What a dynamic loss scale starts at."""
        return 1.0 if self.dynamic_loss_scale is None else self.dynamic_loss_scale.initial

    @property
    def unscales_first(self) -> bool:
        """Whether gradients are multiplied by a factor of the step before anything else.

        Otherwise they carry a constant loss scale through weight decay, and are divided by it
        then, as MindSpore does.
        """
        constant = isinstance(self.loss_scale, float)
        clips_scaled = self.clip_value is not None and self.loss_scale != 1
        adds_up = self.accumulation is not None
        return not constant or self.clip_norm is not None or clips_scaled or adds_up

    @property
    def carried_loss_scale(self) -> float:
        """The loss scale that gradients carry through weight decay."""
        if isinstance(self.loss_scale, float) and not self.unscales_first:
            return self.loss_scale
        return 1.0

    def __repr__(self) -> str:
        """The hyperparameters, without the list of parameters."""
        return (
            f"RMSProp({len(self.params)} parameters, decay={self.decay}, "
            f"momentum={self.momentum}, epsilon={self.epsilon}, centered={self.centered}, "
            f"loss_scale={self.loss_scale}, use_locking={self.use_locking})"
        )


def _check_one_arithmetic(params: Iterable[Parameter]) -> None:
    """Refuse parameters of float64 beside others."""
    by_dtype = {parameter.dtype: parameter.name for parameter in params}
    if "float64" in by_dtype and len(by_dtype) > 1:
        named = " and ".join(f"'{name}' is {dtype}" for dtype, name in by_dtype.items())
        raise ValueError(
            f"params: {named}, but an update is computed in float64 for all parameters or for "
            "none; convert the model to one of them, or leave the others out"
        )


def _excluded(parameter: Parameter) -> bool:
    return "beta" in parameter.name or "gamma" in parameter.name


def _is_convolution_weight(parameter: Parameter) -> bool:
    return parameter.op_type in _CONVOLUTIONS and len(parameter.shape) > 1
