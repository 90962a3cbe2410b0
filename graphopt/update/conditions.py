"""Whether a step updates something: groups may be off, gradients not finite, sums unfinished."""

import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.update.accumulate import Accumulator
from graphopt.update.gradient_scale import GradientScale


class Conditions:
    """The conditions of a step, each computed once.

    Args:
        op: Appends the nodes.
        mask: The bool input that says which groups are updated; None where all are.
        scale: Says whether all gradients are finite.
        accumulator: Adds gradients up; None where every step is an update.
    """

    def __init__(
        self,
        op: GraphBuilder,
        mask: ir.Value | None,
        scale: GradientScale,
        accumulator: Accumulator | None,
    ) -> None:
        """Append nothing yet."""
        self._op = op
        self._mask = mask
        self._scale = scale
        self._accumulator = accumulator
        self._on: dict[int | None, ir.Value] = {}  # by group
        self._counts: dict[int | None, ir.Value | None] = {}

    @property
    def masks(self) -> bool:
        """Whether what is carried may stay as it is."""
        conditions = (self._mask, self._scale.finite, self._accumulator)
        return any(value is not None for value in conditions)

    def is_on(self, group: int | None) -> ir.Value:
        """Whether what belongs to a group is updated in this step; None: to no group."""
        on = self.counts(group)
        if self._accumulator is None:
            assert on is not None
            return on
        if group not in self._on:
            applies = self._accumulator.applies
            self._on[group] = applies if on is None else self._op.And(on, applies)
        return self._on[group]

    def counts(self, group: int | None) -> ir.Value | None:
        """Whether this step counts for what belongs to a group; None: it always does."""
        if group not in self._counts:
            finite, enabled = self._scale.finite, None
            if self._mask is not None and group is not None:
                enabled = self._op.Gather(self._mask, group, axis=0)
            conditions = [value for value in (enabled, finite) if value is not None]
            both = len(conditions) == 2
            self._counts[group] = (
                self._op.And(*conditions) if both else next(iter(conditions), None)
            )
        return self._counts[group]
