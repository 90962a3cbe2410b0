"""What happens to gradients before the update, whose scalars are computed once a step.

That is: whether all are finite, their norms, and the factor by which they are multiplied, which
takes the loss scale out and limits a norm.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.clipping import SMALLEST_NORM
from graphopt.loss_scale import input_of
from graphopt.rmsprop import RMSProp
from graphopt.update import functions


class GradientScale:
    """The scalars of a step that depend on its gradients.

    Args:
        op: Appends the nodes.
        optimizer: What is applied.
        gradients: The float32 gradient of each parameter, by name, still with the loss scale.
        mask: The bool input that says which groups are updated.

    Attributes:
        finite: Whether all gradients are, a bool scalar; None where nobody asks.
        norm: The norm of all gradients of the groups that are updated, without the loss scale, a
            float32 scalar; None where nobody asks.
        inverse: One divided by the loss scale; None where the gradients carry it.
    """

    def __init__(
        self,
        op: GraphBuilder,
        optimizer: RMSProp,
        gradients: Mapping[str, ir.Value],
        mask: ir.Value | None,
    ) -> None:
        """Append the nodes."""
        self._op = op
        self._optimizer = optimizer
        self._of_group: dict[int, ir.Value] = {}
        self._of_parameter: dict[str, ir.Value] = {}
        self.finite: ir.Value | None = None
        self.norm: ir.Value | None = None
        self.inverse: ir.Value | None = None
        if optimizer.skip_on_overflow:
            self.finite = functions.all_finite(op, list(gradients.values()))
        self._inverse: ir.Value | None = None
        if optimizer.unscales_first:
            self.inverse = self._inverse = self._inverse_scale()
            if optimizer.clip_norm_per != "parameter":
                self._of_group = dict.fromkeys(range(len(optimizer.groups)), self._inverse)
        if optimizer.clip_norm is not None:
            self._limit_norms(optimizer.clip_norm, gradients, mask)

    @property
    def scalars(self) -> list[ir.Value]:
        """What reads a loss scale that the step may change."""
        return [] if self._inverse is None else [self._inverse]

    def factor(self, group: int) -> ir.Value | None:
        """What multiplies the gradients of a group; None where nothing does, or not all alike."""
        return self._of_group.get(group)

    def factor_of(self, parameter: str) -> ir.Value | None:
        """What the gradient of a parameter is multiplied by, if each has a factor of its own."""
        return self._of_parameter.get(parameter)

    def _inverse_scale(self) -> ir.Value:
        """One divided by the loss scale."""
        scale = self._optimizer.loss_scale
        if isinstance(scale, float):
            return self._op.constant(np.float32(1 / scale), name="inverse_scale")
        return self._op.Reciprocal(input_of(self._op, scale))

    def _limit_norms(
        self, limit: float, gradients: Mapping[str, ir.Value], mask: ir.Value | None
    ) -> None:
        op, optimizer = self._op, self._optimizer
        squares: dict[int, list[ir.Value]] = {}
        for parameter, rule in zip(optimizer.params, optimizer.rules, strict=True):
            square = op.ReduceSumSquare(gradients[parameter.name], keepdims=0)
            square.dtype = ir.DataType.FLOAT
            squares.setdefault(rule.group, []).append(square)
            if optimizer.clip_norm_per == "parameter":
                factor = self._limited(limit, self._norm([square]))
                self._of_parameter[parameter.name] = factor
        of_groups = {group: _sum(op, several) for group, several in squares.items()}
        if mask is not None:
            of_groups = {
                group: op.Where(op.Gather(mask, group, axis=0), square, np.float32(0))
                for group, square in of_groups.items()
            }
        self.norm = self._norm(of_groups.values())
        if optimizer.clip_norm_per == "group":
            for group, square in of_groups.items():
                self._of_group[group] = self._limited(limit, self._norm([square]))
        elif optimizer.clip_norm_per == "all":
            factor = self._limited(limit, self.norm)
            self._of_group = dict.fromkeys(of_groups, factor)

    def _norm(self, squares: Iterable[ir.Value]) -> ir.Value:
        """The root of their sum, without the loss scale."""
        return self._op.Mul(self._op.Sqrt(_sum(self._op, squares)), self._inverse)

    def _limited(self, limit: float, norm: ir.Value) -> ir.Value:
        """What takes the loss scale out, and the norm to this limit at most."""
        op = self._op
        share = op.Div(np.float32(limit), op.Add(norm, np.float32(SMALLEST_NORM)))
        return op.Mul(op.Min(share, np.float32(1)), self._inverse)


def _sum(op: GraphBuilder, values: Iterable[ir.Value]) -> ir.Value:
    several = list(values)
    if len(several) == 1:
        return several[0]
    total = op.Sum(*several)
    total.dtype = ir.DataType.FLOAT
    return total
