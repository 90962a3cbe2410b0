"""What the user writes: hyperparameters, checked once and resolved to one rule per parameter."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from graphopt import _checks
from graphopt.parameters import Parameter
from graphopt.schedules import LearningRateSchedule
from graphopt.schedules._parse import learning_rate as as_learning_rate

# Parameters of these dtypes can be updated; the arithmetic and the state are float32.
_TRAINABLE = ("float32", "float16")


@dataclass(frozen=True)
class Rule:
    """How one parameter is updated, after defaults and exclusions have been settled.

    Attributes:
        learning_rate: Its learning rate.
        weight_decay: The factor of the parameter that is added to its gradient; 0 for none.
    """

    learning_rate: LearningRateSchedule
    weight_decay: float


class RMSProp:
    r"""The RMSProp optimizer, plain or centered, with the semantics of ``mindspore.nn.RMSProp``.

    For each parameter :math:`w` with gradient :math:`g` (of the loss times ``loss_scale``):

    .. math::
        g &\leftarrow (g + w \cdot \mathit{weight\_decay} \cdot \mathit{loss\_scale})
                      / \mathit{loss\_scale} \\
        s &\leftarrow \rho s + (1 - \rho) g^2 \\
        a &\leftarrow \rho a + (1 - \rho) g \quad\text{(centered only)} \\
        m &\leftarrow \beta m + \eta g / \sqrt{s + \epsilon}
             \quad\text{(centered: } \sqrt{s - a^2 + \epsilon}\text{)} \\
        w &\leftarrow w - m

    where :math:`\rho` is ``decay``, :math:`\beta` is ``momentum``, :math:`\eta` the learning rate
    and :math:`\epsilon` is ``epsilon``, inside the root. The mean square :math:`s` starts at
    **ones**, the moment :math:`m` and the mean gradient :math:`a` at zeros. Centered: an element
    whose :math:`s - a^2 + \epsilon` is not positive keeps its moment and its weight in that step.
    State and arithmetic are float32, whatever the dtype of the parameter.

    Args:
        params: The parameters to train, any iterable of `Parameter`; every other initializer of
            the model is frozen. Gradients come in this order.
        learning_rate: A number >= 0.
        decay: :math:`\rho`, a float >= 0.
        momentum: :math:`\beta`, a float >= 0. With 0 no moment is stored.
        epsilon: A float > 0.
        use_locking: Serialise steps and reads of the state from several threads. Without it a
            `Session` that is in use by one thread refuses a second one.
        centered: Subtract the square of the mean gradient under the root.
        loss_scale: The number > 0 by which the loss was multiplied before the backward pass; the
            gradients are divided by it.
        weight_decay: A number >= 0. Parameters whose name contains "beta" or "gamma" are excluded.

    Raises:
        TypeError: An argument has the wrong type (``decay``, ``momentum`` and ``epsilon`` must be
            floats), or a parameter is neither float32 nor float16.
        ValueError: An argument is out of range; there is no parameter, one stands twice, or one
            has no elements.

    Source:
        Tieleman and Hinton, "Lecture 6.5 - RMSProp", 2012; Graves, "Generating sequences with
        recurrent neural networks", 2013 (centered); ``mindspore.nn.RMSProp`` (the details).

    Example:
        >>> opt = RMSProp([Parameter("w", (3, 5))], learning_rate=0.01, momentum=0.9)
        >>> opt.states
        ('mean_square', 'moment')
    """

    def __init__(
        self,
        params: Iterable[Parameter],
        learning_rate: float = 0.1,
        decay: float = 0.9,
        momentum: float = 0.0,
        epsilon: float = 1e-10,
        use_locking: bool = False,
        centered: bool = False,
        loss_scale: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        """See the class."""
        self.decay = _checks.at_least_zero("decay", _checks.floating("decay", decay))
        self.momentum = _checks.at_least_zero("momentum", _checks.floating("momentum", momentum))
        self.epsilon = _checks.above_zero("epsilon", _checks.floating("epsilon", epsilon))
        self.use_locking = _checks.boolean("use_locking", use_locking)
        self.centered = _checks.boolean("centered", centered)
        self.loss_scale = _checks.above_zero("loss_scale", _checks.number("loss_scale", loss_scale))
        decay_factor = _checks.at_least_zero(
            "weight_decay", _checks.number("weight_decay", weight_decay)
        )
        rate = as_learning_rate("learning_rate", learning_rate)
        self.params = _checked_params(params)
        self.rules = tuple(
            Rule(rate, 0.0 if _excluded_from_decay(parameter) else decay_factor)
            for parameter in self.params
        )

    @property
    def states(self) -> tuple[str, ...]:
        """The kinds of state that each parameter has, in the order of the update."""
        return (
            "mean_square",
            *(("mean_grad",) if self.centered else ()),
            *(("moment",) if self.momentum > 0 else ()),
        )

    def __repr__(self) -> str:
        """The hyperparameters, without the list of parameters."""
        return (
            f"RMSProp({len(self.params)} parameters, decay={self.decay}, "
            f"momentum={self.momentum}, epsilon={self.epsilon}, centered={self.centered}, "
            f"loss_scale={self.loss_scale}, use_locking={self.use_locking})"
        )


def _checked_params(params: Any) -> tuple[Parameter, ...]:
    if params is None:
        raise ValueError("params: got None, expected a list of Parameter")
    if isinstance(params, Parameter | str | bytes | dict):
        raise TypeError(f"params: got {type(params).__name__}, expected a list of Parameter")
    try:
        checked: tuple[Parameter, ...] = tuple(params)
    except TypeError:
        raise TypeError(
            f"params: got {type(params).__name__}, expected a list of Parameter"
        ) from None
    if not checked:
        raise ValueError("params: got no parameter, expected at least one")
    for index, parameter in enumerate(checked):
        if not isinstance(parameter, Parameter):
            raise TypeError(
                f"params[{index}]: got {type(parameter).__name__}, expected a Parameter "
                "(graphopt.parameters(model) lists those of a model)"
            )
        if parameter.dtype not in _TRAINABLE:
            raise TypeError(
                f"params[{index}]: parameter '{parameter.name}' has dtype {parameter.dtype}, "
                f"expected {' or '.join(_TRAINABLE)}; convert the model first"
            )
        if parameter.size == 0:
            raise ValueError(
                f"params[{index}]: parameter '{parameter.name}' of shape {parameter.shape} has no "
                "elements; leave it out"
            )
    twice = [name for name, n in Counter(parameter.name for parameter in checked).items() if n > 1]
    if twice:
        raise ValueError(f"params: these names stand more than once: {', '.join(twice)}")
    return checked


def _excluded_from_decay(parameter: Parameter) -> bool:
    return "beta" in parameter.name or "gamma" in parameter.name
