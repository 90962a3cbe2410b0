"""The update in NumPy and float64, written from the specification: the oracle of the tests.

It shares no code with the ONNX functions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.rmsprop import RMSProp, Rule

Float64 = npt.NDArray[np.float64]


class ReferenceRMSProp:
    """RMSProp in float64, one step a call.

    Attributes:
        state: Parameters under their own names, ``mean_square.<p>``, ``mean_grad.<p>`` (centered),
            ``moment.<p>`` (also with momentum 0, where it is the last update), all float64, and
            ``global_step``, an int.

    Example:
        >>> opt = RMSProp([Parameter("w", (2,))], learning_rate=0.1)
        >>> reference = ReferenceRMSProp(opt, {"w": np.zeros(2)})
        >>> reference.step({"w": np.array([1.0, 0.0])})
        >>> reference.state["w"].round(6)
        array([-0.1,  0. ])
    """

    def __init__(self, optimizer: RMSProp, parameters: Mapping[str, npt.ArrayLike]) -> None:
        """Start from these parameters, by name; they are copied."""
        self.optimizer = optimizer
        self.state: dict[str, Float64 | int] = {"global_step": 0}
        for parameter in optimizer.params:
            name, w = parameter.name, np.array(parameters[parameter.name], np.float64)
            self.state[name] = w
            self.state[f"mean_square.{name}"] = np.full_like(w, optimizer.initial_mean_square)
            self.state[f"moment.{name}"] = np.zeros_like(w)
            if optimizer.centered:
                self.state[f"mean_grad.{name}"] = np.zeros_like(w)

    def step(
        self, gradients: Mapping[str, npt.ArrayLike], enabled: Sequence[bool] | None = None
    ) -> None:
        """Apply the gradients of ``loss_scale * loss``, by parameter name.

        Args:
            gradients: The gradient of each parameter.
            enabled: Which groups are updated; all by default.
        """
        opt = self.optimizer
        step = int(self.state["global_step"])
        for parameter, rule in zip(opt.params, opt.rules, strict=True):
            if enabled is None or enabled[rule.group]:
                self._update(parameter.name, rule, np.asarray(gradients[parameter.name]), step)
        self.state["global_step"] = step + 1

    def _update(self, name: str, rule: Rule, gradient: npt.NDArray[Any], step: int) -> None:
        opt = self.optimizer
        w, s, m = (self._get(key) for key in (name, f"mean_square.{name}", f"moment.{name}"))
        lr, weight_decay = rule.learning_rate.value(step), rule.weight_decay.value(step)
        g = gradient.astype(np.float64)
        if opt.decoupled_weight_decay:
            w = w - lr * weight_decay * w
        else:
            g = g + w * (weight_decay * opt.loss_scale)
        if rule.grad_centralization:
            g = g - g.mean(axis=tuple(range(1, g.ndim)), keepdims=True)
        g = g / opt.loss_scale
        s = opt.decay * s + (1 - opt.decay) * g**2
        variance = s
        if opt.centered:
            a = opt.decay * self._get(f"mean_grad.{name}") + (1 - opt.decay) * g
            self.state[f"mean_grad.{name}"] = a
            variance = s - a**2
        with np.errstate(invalid="ignore", divide="ignore"):
            if opt.epsilon_inside_root:
                denominator = np.sqrt(variance + opt.epsilon)
            else:
                denominator = np.sqrt(variance) + opt.epsilon
            rate_inside, rate_outside = (lr, 1.0) if opt.learning_rate_inside_moment else (1.0, lr)
            u = rate_inside * g / denominator
        moved = opt.momentum * m + u
        ahead = opt.momentum * moved + u if opt.nesterov else moved
        if opt.centered:
            moves = (denominator if opt.epsilon_inside_root else variance) > 0
            m = np.where(moves, moved, m)
            w = np.where(moves, w - rate_outside * ahead, w)
        else:
            m, w = moved, w - rate_outside * ahead
        self.state |= {name: w, f"mean_square.{name}": s, f"moment.{name}": m}

    def _get(self, name: str) -> Float64:
        value = self.state[name]
        assert not isinstance(value, int)
        return value
