"""The derivatives of the loss along random directions, and what the gradients say of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from graphopt.inspection.verification.batches import Array
from graphopt.inspection.verification.interpreter import as_double
from graphopt.inspection.verification.sample import Sample, Sampler
from graphopt.inspection.verification.slopes import DOUBLE, SINGLE, Precision, Verdict, slope
from graphopt.inspection.verification.training_part import Trained
from graphopt.marks import STOP_GRADIENT

_SMALLEST = 1e-3  # of a parameter of zeros
_WEAKEST = 1e-3  # of the steps that are equally strong
# Where the gradients themselves are not known in float64.
_ROUGH = replace(DOUBLE, tolerance=1e-3, noise=1e-6)

Direction = Mapping[str, Array]


class Derivatives:
    """The derivatives of the loss of a sample.

    Attributes:
        precision: How differences are taken.
    """

    def __init__(self, sampler: Sampler, sample: Sample, random: np.random.Generator) -> None:
        """Those of a sample."""
        self._sampler, self._sample, self._random = sampler, sample, random
        self._part = sampler.part
        source = sample.exact if sampler.differentiates else sample.got
        scale = self._part.scale(sample.known)
        self._gradients = {
            p.name: as_double(source[p.gradient]).reshape(p.shape) / scale
            for p in self._part.parameters
        }
        self.precision: Precision = SINGLE
        if sampler.interpreter is not None:
            self.precision = DOUBLE if sampler.differentiates else _ROUGH
        self._weights = self._equal_weights()

    def along(self, parameters: Sequence[Trained]) -> tuple[Verdict, float, float, float]:
        """Compare along a random direction in which some parameters move.

        Returns:
            What the comparison says, how far it is off as a part of what is tolerated, the
            derivative that the gradients give, and that of the loss.
        """
        direction = {
            p.name: self._random.standard_normal(p.shape) * self._weights[p.name]
            for p in parameters
        }
        parts = [float(np.sum(self._gradients[name] * d)) for name, d in direction.items()]
        size = sum(
            float(np.sqrt(np.sum((self._gradients[name] * d) ** 2)))
            for name, d in direction.items()
        )
        found = slope(self._loss_along(direction, parameters), self.precision.step)
        claimed = math.fsum(parts) if all(map(math.isfinite, parts)) else math.nan
        verdict, off = found.compared(claimed, size, self.precision)
        return verdict, off, claimed, found.value

    def _equal_weights(self) -> dict[str, float]:
        """How far each parameter moves: at most by its own size, and none moves the loss alone."""
        roots, effects = {}, {}
        for parameter in self._part.parameters:
            array = as_double(parameter.of(np.asarray(self._sample.known[parameter.input])))
            roots[parameter.name] = max(float(np.sqrt(np.mean(array**2))), _SMALLEST)
            gradient = self._gradients[parameter.name]
            effects[parameter.name] = roots[parameter.name] * float(np.linalg.norm(gradient))
        known = [effect for effect in effects.values() if effect > 0 and math.isfinite(effect)]
        median = float(np.median(known)) if known else 0.0
        return {
            name: root * max(min(median / effects[name], 1.0), _WEAKEST)
            if 0 < effects[name] < math.inf
            else root
            for name, root in roots.items()
        }

    def _loss_along(
        self, direction: Direction, parameters: Sequence[Trained]
    ) -> Callable[[float], float]:
        inputs = {p.input for p in parameters}
        interpreter, part, sample = self._sampler.interpreter, self._part, self._sample

        def moved(t: float) -> dict[str, Any]:
            values = {name: np.array(as_double(sample.known[name])) for name in inputs}
            for parameter in parameters:
                parameter.of(values[parameter.input])[...] += t * direction[parameter.name]
            return values

        if interpreter is None:

            def in_single(t: float) -> float:
                values = {
                    name: array.astype(sample.given[name].dtype)
                    for name, array in moved(t).items()
                    if name in sample.given
                }
                return float(part.plain({**sample.given, **values}, [part.loss])[part.loss])

            return in_single
        nodes = [
            node
            for node in interpreter.needed([part.loss], inputs)
            if STOP_GRADIENT not in node.metadata_props
        ]

        def in_double(t: float) -> float:
            values = {**sample.exact, **moved(t)}
            return float(interpreter.run(nodes, values)[part.loss])

        return in_double
