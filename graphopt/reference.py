"""The update in NumPy and float64, written from the specification: the oracle of the tests.

It shares no code with the ONNX functions.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.clipping import SMALLEST_NORM
from graphopt.loss_scale import DynamicLossScale
from graphopt.rmsprop import RMSProp, Rule
from graphopt.schedules import FromCaller

Float64 = npt.NDArray[np.float64]


class ReferenceRMSProp:
    """RMSProp in float64, one step a call.

    Attributes:
        state: Parameters under their own names, ``mean_square.<p>``, ``mean_grad.<p>`` (centered),
            ``moment.<p>`` (also with momentum 0, where it is the last update), all float64, and
            ``global_step``, an int; with a dynamic loss scale ``loss_scale`` and
            ``loss_scale_steps``, and where steps are skipped, ``skipped_steps``.
        gradient_norm: That of the last step, where the optimizer clips by norm.

    Example:
        >>> opt = RMSProp([Parameter("w", (2,))], learning_rate=0.1)
        >>> reference = ReferenceRMSProp(opt, {"w": np.zeros(2)})
        >>> reference.step({"w": np.array([1.0, 0.0])})
        True
        >>> reference.state["w"].round(6)
        array([-0.1,  0. ])
    """

    def __init__(self, optimizer: RMSProp, parameters: Mapping[str, npt.ArrayLike]) -> None:
        """Start from these parameters, by name; they are copied."""
        self.optimizer = optimizer
        self.state: dict[str, Float64 | float] = {"global_step": 0}
        self.gradient_norm: float | None = None
        if optimizer.dynamic_loss_scale is not None:
            self.state |= {"loss_scale": optimizer.initial_loss_scale, "loss_scale_steps": 0}
        if optimizer.skip_on_overflow:
            self.state["skipped_steps"] = 0
        for parameter in optimizer.params:
            name, w = parameter.name, np.array(parameters[parameter.name], np.float64)
            self.state[name] = w
            self.state[f"mean_square.{name}"] = np.full_like(w, optimizer.initial_mean_square)
            self.state[f"moment.{name}"] = np.zeros_like(w)
            if optimizer.centered:
                self.state[f"mean_grad.{name}"] = np.zeros_like(w)

    def step(
        self,
        gradients: Mapping[str, npt.ArrayLike],
        enabled: Sequence[bool] | None = None,
        loss_scale: float | None = None,
    ) -> bool:
        """Apply the gradients of ``loss_scale * loss``, by parameter name.

        Args:
            gradients: The gradient of each parameter.
            enabled: Which groups are updated; all by default.
            loss_scale: That of the step, where the caller gives it.

        Returns:
            Whether anything was updated: False where the step was skipped.
        """
        opt = self.optimizer
        step = int(self._number("global_step"))
        arrays = {p.name: np.asarray(gradients[p.name]).astype(np.float64) for p in opt.params}
        finite = all(np.isfinite(array).all() for array in arrays.values())
        factors = self.factors(arrays, enabled, loss_scale)
        arrays = {name: self._clipped(g, factors[name]) for name, g in arrays.items()}
        if (rule_of_scale := opt.dynamic_loss_scale) is not None:
            self.state["loss_scale"], self.state["loss_scale_steps"] = rule_of_scale.after(
                self._number("loss_scale"), int(self._number("loss_scale_steps")), finite=finite
            )
        if opt.skip_on_overflow and not finite:
            self.state["skipped_steps"] = int(self._number("skipped_steps")) + 1
            return False
        for parameter, rule in zip(opt.params, opt.rules, strict=True):
            if enabled is None or enabled[rule.group]:
                self._update(parameter.name, rule, arrays[parameter.name], step)
        self.state["global_step"] = step + 1
        return True

    def factors(
        self,
        gradients: Mapping[str, npt.NDArray[Any]],
        enabled: Sequence[bool] | None = None,
        loss_scale: float | None = None,
    ) -> dict[str, float]:
        """What each gradient is multiplied by before anything else, by parameter name.

        Args:
            gradients: As for `step`; the others as well.
            enabled: See `step`.
            loss_scale: See `step`.
        """
        opt, limit = self.optimizer, self.optimizer.clip_norm
        if not opt.unscales_first:
            return dict.fromkeys(gradients, 1.0)
        scale = self._scale(loss_scale)
        if limit is None:
            return dict.fromkeys(gradients, 1 / scale)
        groups = {p.name: rule.group for p, rule in zip(opt.params, opt.rules, strict=True)}
        total, sums = 0.0, dict[object, float]()
        for name, gradient in gradients.items():
            with np.errstate(invalid="ignore", over="ignore"):
                square = float(np.sum(np.square(gradient, dtype=np.float64)))
            counts = enabled is None or enabled[groups[name]]
            total += square if counts else 0.0
            if counts or opt.clip_norm_per == "parameter":
                key = _set_of(name, groups[name], opt.clip_norm_per)
                sums[key] = sums.get(key, 0.0) + square
        self.gradient_norm = math.sqrt(total) / scale
        norms = {key: math.sqrt(square) / scale for key, square in sums.items()}

        def factor(name: str) -> float:
            norm = norms.get(_set_of(name, groups[name], opt.clip_norm_per), 0.0)
            return min(limit / (norm + SMALLEST_NORM), 1.0) / scale

        return {name: factor(name) for name in gradients}

    def _scale(self, loss_scale: float | None) -> float:
        scale = self.optimizer.loss_scale
        if isinstance(scale, DynamicLossScale):
            return self._number("loss_scale")
        if isinstance(scale, FromCaller):
            if loss_scale is None:
                raise ValueError(f"loss_scale: got None, expected a number, fed as '{scale.name}'")
            return loss_scale
        return scale

    def _clipped(self, gradient: Float64, factor: float) -> Float64:
        """A gradient as the update takes it."""
        limit = self.optimizer.clip_value
        with np.errstate(invalid="ignore", over="ignore"):
            scaled = gradient * factor
        return scaled if limit is None else np.clip(scaled, -limit, limit)

    def _number(self, name: str) -> float:
        return float(self.state[name])

    def _update(self, name: str, rule: Rule, gradient: Float64, step: int) -> None:
        opt = self.optimizer
        w, s, m = (self._get(key) for key in (name, f"mean_square.{name}", f"moment.{name}"))
        lr, weight_decay = rule.learning_rate.value(step), rule.weight_decay.value(step)
        g, scale = gradient, opt.carried_loss_scale
        if opt.decoupled_weight_decay:
            w = w - lr * weight_decay * w
        else:
            g = g + w * (weight_decay * scale)
        if rule.grad_centralization:
            g = g - g.mean(axis=tuple(range(1, g.ndim)), keepdims=True)
        g = g / scale
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
        return np.asarray(self.state[name])


def _set_of(name: str, group: int, per: str) -> object:
    """What the gradients have in common whose norm limits that of a parameter."""
    return {"all": None, "group": group, "parameter": name}[per]
