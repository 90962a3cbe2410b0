"""What the gradients of a step are multiplied by before the update, and what follows from it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graphopt.clipping import ClipNormPer
from graphopt.inspection.facts import OptimizerFacts
from graphopt.inspection.verification.batches import Array, Updated
from graphopt.inspection.verification.runnable import Given
from graphopt.loss_scale import DynamicLossScale, LossScale
from graphopt.parameter import Parameter
from graphopt.reference import ReferenceRMSProp
from graphopt.rmsprop import RMSProp
from graphopt.schedules import FromCaller
from graphopt.states import (
    ACCUMULATION_COUNT,
    LOSS_SCALE,
    LOSS_SCALE_STEPS,
    RANDOM_STEP,
    SKIPPED_STEPS,
)

_UNITS = 8.0  # in the last place, of a few products and a root
_OF_SUMS = 0.25  # how many more a sum of squares is off, times the root of their number


class GradientFactors:
    """The factors, in float64.

    Attributes:
        rule: How the loss scale changes; None where it does not, or nobody says how.
        skips: Whether steps that overflow are skipped.
        clip_norm: What norms are limited to.
        clip_value: What elements are limited to.
        accumulation: How many steps make an update, if not each is one.
        off: By how many units in the last place a factor may be off.
        off_norm: By how many a norm may be.
    """

    def __init__(self, parameters: Sequence[Updated], facts: OptimizerFacts) -> None:
        """Those of an optimizer.

        Raises:
            TypeError: A number has the wrong type.
            ValueError: A number is one that RMSProp does not take.
        """
        scale = _loss_scale(facts)
        self.rule = scale if isinstance(scale, DynamicLossScale) else None
        self.skips = bool(facts.skip_on_overflow)
        self.clip_norm, self.clip_value = facts.clip_norm, facts.clip_value
        self.accumulation = facts.accumulation
        self._fixed = scale if isinstance(scale, float) else None
        groups: dict[int | None, list[Updated]] = {}
        for parameter in parameters:
            groups.setdefault(parameter.group, []).append(parameter)
        per: ClipNormPer = "all"
        if facts.clip_norm_per in ("group", "parameter") and facts.clip_norm is not None:
            per = "group" if facts.clip_norm_per == "group" else "parameter"
        optimizer = RMSProp(
            [{"params": [Parameter(p.name, (1,)) for p in group]} for group in groups.values()],
            # of a sum, the factor is its share of several steps, and no loss scale is left
            loss_scale=scale if facts.accumulation is None else FromCaller(LOSS_SCALE.name),
            skip_on_overflow=self.skips,
            clip_norm=facts.clip_norm,
            clip_norm_per=per,
            clip_value=facts.clip_value,
        )
        self._reference = ReferenceRMSProp(optimizer, {p.name: 0.0 for p in parameters})
        self._enabled_by = [group[0].enabled_by for group in groups.values()]
        unscales = optimizer.unscales_first
        sums = _OF_SUMS * math.sqrt(sum(parameter.size for parameter in parameters))
        self.off_norm = _UNITS + sums
        self.off = 0.0 if not unscales else _UNITS + sums * (facts.clip_norm is not None)

    def scale(self, random: np.random.Generator) -> float:
        """A loss scale for a step, in float32."""
        return self._fixed or float(np.float32(10 ** random.uniform(-1.0, 3.0)))

    def of(
        self, gradients: Mapping[str, Array], given: Given, share: float | None = None
    ) -> tuple[dict[str, float], float]:
        """The factor of each gradient, and the norm of all; NaN where norms are not limited.

        Args:
            gradients: Those of the step, or the sums of several.
            given: What the step is given.
            share: What sums are multiplied by.
        """
        enabled = None
        if given.mask is not None:
            mask = given.mask
            enabled = [by is None or bool(mask[by]) for by in self._enabled_by]
        scale = given.loss_scale if share is None else 1 / share
        self._reference.state[LOSS_SCALE.name] = scale
        factors = self._reference.factors(gradients, enabled, scale)
        norm = self._reference.gradient_norm
        return factors, math.nan if norm is None else norm

    def counted(self, given: Given) -> dict[str, float]:
        """The scalars that the graph carries, after a step."""
        after = dict(given.counters)
        if self.rule is not None:
            after[LOSS_SCALE.name], after[LOSS_SCALE_STEPS.name] = self.rule.after(
                given.loss_scale,
                int(given.counters[LOSS_SCALE_STEPS.name]),
                finite=not given.overflows,
            )
        if RANDOM_STEP.name in after:
            after[RANDOM_STEP.name] += 1
        if self.skips:
            after[SKIPPED_STEPS.name] = given.counters[SKIPPED_STEPS.name] + given.overflows
        if self.accumulation is not None and not given.overflows:
            count = given.counters[ACCUMULATION_COUNT.name]
            after[ACCUMULATION_COUNT.name] = 0.0 if given.is_last else count + 1
        return after


def _loss_scale(facts: OptimizerFacts) -> LossScale:
    scale = facts.loss_scale
    if not isinstance(scale, Mapping):
        return facts.constant_loss_scale
    if scale["schedule"] != "DynamicLossScale":
        return FromCaller(LOSS_SCALE.name)
    arguments: dict[str, Any] = {
        name: float(np.float32(value)) if isinstance(value, float) else value  # as nodes have it
        for name, value in scale.items()
        if name != "schedule"
    }
    if "initial" not in arguments:  # which nodes do not say
        arguments["initial"] = max(float(arguments.get("floor") or 0.0), 1.0)
    return DynamicLossScale(**arguments)
