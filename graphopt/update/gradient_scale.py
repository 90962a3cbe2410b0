"""What happens to gradients before the update, whose scalars are computed once a step.

That is: whether all are finite, their norms, and the factor by which they are multiplied, which
takes the loss scale out and limits a norm.
"""

from collections.abc import Iterable

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
        gradients: The float32 gradients of the step, still with the loss scale.
        mask: The bool input that says which groups are updated.
        share: What the sum of gradients of several steps is multiplied by; None where the
            gradients of this step alone are applied.

    Attributes:
        finite: Whether all gradients are, a bool scalar; None where nobody asks.
        norm: The norm of all gradients of the groups that are updated, without the loss scale, a
            float32 scalar; None where nobody asks.
        unscales: What takes the loss scale out of the gradients of the step, a float32 scalar.
    """

    def __init__(
        self,
        op: GraphBuilder,
        optimizer: RMSProp,
        gradients: Iterable[ir.Value],
        mask: ir.Value | None,
        share: ir.Value | None,
    ) -> None:
        """Append the nodes, but for norms."""
        self._op = op
        self._optimizer = optimizer
        self._mask = mask
        self._adds_up = share is not None
        self._of_group: dict[int, ir.Value] = {}
        self._of_parameter: dict[str, ir.Value] = {}
        self.finite: ir.Value | None = None
        self.norm: ir.Value | None = None
        if optimizer.skip_on_overflow:
            self.finite = functions.all_finite(op, list(gradients))
        if optimizer.unscales_first:
            self.unscales = self._inverse_scale()
            self._share = self.unscales if share is None else share
            if optimizer.clip_norm_per != "parameter":
                self._of_group = dict.fromkeys(range(len(optimizer.groups)), self._share)

    @property
    def scalars(self) -> list[ir.Value]:
        """What reads a loss scale that the step may change."""
        is_constant = isinstance(self._optimizer.loss_scale, float)
        return [] if is_constant else [self.unscales]

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
            return self._op.constant(self._op.number(1 / scale), name="inverse_scale")
        held = input_of(self._op, scale)
        if self._op.real != ir.DataType.FLOAT:
            held = self._op.Cast(held, to=self._op.real)
        return self._op.Reciprocal(held)

    def limit_norms(self, gradients: Iterable[tuple[int, str, ir.Value]]) -> None:
        """Find the factors that limit norms, where the optimizer limits them.

        Args:
            gradients: Each with its group and its parameter, or with several of one group.
        """
        op, optimizer, limit = self._op, self._optimizer, self._optimizer.clip_norm
        if limit is None:
            return
        squares: dict[int, list[ir.Value]] = {}
        for group, name, gradient in gradients:
            square = op.ReduceSumSquare(gradient, keepdims=0)
            square.dtype = op.real
            squares.setdefault(group, []).append(square)
            if optimizer.clip_norm_per == "parameter":
                self._of_parameter[name] = self._limited(limit, self._norm([square]))
        of_groups = {group: _sum(op, several) for group, several in squares.items()}
        if self._mask is not None:
            of_groups = {
                group: op.Where(op.Gather(self._mask, group, axis=0), square, op.number(0))
                for group, square in of_groups.items()
            }
        self.norm = self._norm(of_groups.values())
        if self.finite is not None and not self._adds_up:
            # The squares overflow before the gradients do: a smaller loss scale helps against both.
            self.finite = op.And(self.finite, op.Not(op.IsInf(self.norm)))
        if optimizer.clip_norm_per == "group":
            for group, square in of_groups.items():
                self._of_group[group] = self._limited(limit, self._norm([square]))
        elif optimizer.clip_norm_per == "all":
            self._of_group = dict.fromkeys(of_groups, self._limited(limit, self.norm))

    def _norm(self, squares: Iterable[ir.Value]) -> ir.Value:
        """The root of their sum, without the loss scale, or as the share of several steps."""
        return self._op.Mul(self._op.Sqrt(_sum(self._op, squares)), self._share)

    def _limited(self, limit: float, norm: ir.Value) -> ir.Value:
        """What does that too, and takes the norm to this limit at most."""
        op = self._op
        share = op.Div(op.number(limit), op.Add(norm, op.number(SMALLEST_NORM)))
        return op.Mul(op.Min(share, op.number(1)), self._share)


def _sum(op: GraphBuilder, values: Iterable[ir.Value]) -> ir.Value:
    several = list(values)
    if len(several) == 1:
        return several[0]
    total = op.Sum(*several)
    total.dtype = op.real
    return total
