"""The update in NumPy and float64, written from the specification: the oracle of the tests.

It shares no code with the ONNX functions.
"""

from collections.abc import Iterable, Mapping, Sequence

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
        if opt.unscales_first:
            arrays = self._limited(self._unscaled(arrays, loss_scale), enabled)
        elif opt.clip_value is not None:
            arrays = {n: np.clip(g, -opt.clip_value, opt.clip_value) for n, g in arrays.items()}
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

    def _unscaled(
        self, arrays: Mapping[str, Float64], loss_scale: float | None
    ) -> dict[str, Float64]:
        scale = self.optimizer.loss_scale
        if isinstance(scale, DynamicLossScale):
            scale = self._number("loss_scale")
        if isinstance(scale, FromCaller):
            if loss_scale is None:
                raise ValueError(f"loss_scale: got None, expected a number, fed as '{scale.name}'")
            scale = loss_scale
        with np.errstate(invalid="ignore", over="ignore"):
            return {name: array / scale for name, array in arrays.items()}

    def _limited(
        self, arrays: dict[str, Float64], enabled: Sequence[bool] | None
    ) -> dict[str, Float64]:
        """The unscaled gradients, clipped."""
        opt, limit = self.optimizer, self.optimizer.clip_norm
        if opt.clip_value is not None:
            return {n: np.clip(g, -opt.clip_value, opt.clip_value) for n, g in arrays.items()}
        if limit is None:
            return arrays
        groups = {p.name: rule.group for p, rule in zip(opt.params, opt.rules, strict=True)}
        counted = [n for n in arrays if enabled is None or enabled[groups[n]]]

        def norm(names: Iterable[str]) -> float:
            with np.errstate(invalid="ignore", over="ignore"):
                return float(np.sqrt(sum(np.sum(arrays[name] ** 2) for name in names)))

        self.gradient_norm = norm(counted)

        def together(name: str) -> list[str]:
            if opt.clip_norm_per == "parameter":
                return [name]
            of_group = opt.clip_norm_per == "group"
            return [n for n in counted if not of_group or groups[n] == groups[name]]

        with np.errstate(invalid="ignore"):
            return {
                name: array * min(limit / (norm(together(name)) + SMALLEST_NORM), 1.0)
                for name, array in arrays.items()
            }

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
