"""The update in NumPy and float64, written from the specification: the oracle of the tests.

It shares no code with the ONNX functions.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from graphopt.rmsprop import RMSProp

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
            self.state[f"mean_square.{name}"] = np.ones_like(w)
            self.state[f"moment.{name}"] = np.zeros_like(w)
            if optimizer.centered:
                self.state[f"mean_grad.{name}"] = np.zeros_like(w)

    def step(self, gradients: Mapping[str, npt.ArrayLike]) -> None:
        """Apply the gradients of ``loss_scale * loss``, by parameter name."""
        opt = self.optimizer
        step = int(self.state["global_step"])
        for parameter, rule in zip(opt.params, opt.rules, strict=True):
            name = parameter.name
            w, s, m = self._get(name), self._get(f"mean_square.{name}"), self._get(f"moment.{name}")
            g = np.asarray(gradients[name], np.float64)
            g = g + w * (rule.weight_decay * opt.loss_scale)
            g = g / opt.loss_scale
            s = opt.decay * s + (1 - opt.decay) * g**2
            under_the_root = s + opt.epsilon
            if opt.centered:
                a = opt.decay * self._get(f"mean_grad.{name}") + (1 - opt.decay) * g
                self.state[f"mean_grad.{name}"] = a
                under_the_root = s - a**2 + opt.epsilon
            with np.errstate(invalid="ignore", divide="ignore"):
                lr = rule.learning_rate.value(step)
                moved = opt.momentum * m + lr * g / np.sqrt(under_the_root)
            if opt.centered:
                moves = under_the_root > 0
                m, w = np.where(moves, moved, m), np.where(moves, w - moved, w)
            else:
                m, w = moved, w - moved
            self.state |= {name: w, f"mean_square.{name}": s, f"moment.{name}": m}
        self.state["global_step"] = step + 1

    def _get(self, name: str) -> Float64:
        value = self.state[name]
        assert not isinstance(value, int)
        return value
