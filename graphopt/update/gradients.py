"""The gradients of a step: what is done with each parameter's before its bucket is updated."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.parameter import Parameter
from graphopt.rmsprop import RMSProp, Rule
from graphopt.update import functions
from graphopt.update.accumulate import Accumulator
from graphopt.update.carrying import Carrying
from graphopt.update.gradient_scale import GradientScale
from graphopt.update.layout import Bucket
from graphopt.update.optimizer_arithmetic import Arithmetic
from graphopt.update.packing import Packing


class Gradients:
    """The gradients of all parameters, in the dtype of the arithmetic where they are looked at.

    Args:
        op: Appends the nodes.
        optimizer: What is applied.
        gradients: The gradient of each parameter, by name.
        mask: The bool input that says which groups are updated; None where all are.
        accumulator: Adds gradients up; None where every step is an update.
        arithmetic: Centralizes.
        carrying: Takes them to the dtype of the arithmetic.
        packing: Takes the sums of buckets apart.

    Attributes:
        scale: The scalars that depend on them.
    """

    def __init__(
        self,
        op: GraphBuilder,
        optimizer: RMSProp,
        gradients: Mapping[str, ir.Value],
        mask: ir.Value | None,
        accumulator: Accumulator | None,
        *,
        arithmetic: Arithmetic,
        carrying: Carrying,
        packing: Packing,
    ) -> None:
        """Append the scalars that depend on them, but for norms."""
        self._op = op
        self._optimizer = optimizer
        self._arithmetic, self._carrying, self._packing = arithmetic, carrying, packing
        self._adds_up = accumulator is not None
        found = dict(gradients)
        if optimizer.unscales_first or optimizer.skip_on_overflow:
            for p in optimizer.params:
                found[p.name] = carrying.wide(found[p.name], p.dtype)
        share = None if accumulator is None else accumulator.share
        self._values = found  # in what is looked at: a Cast and back might be left out
        self.scale = GradientScale(op, optimizer, found.values(), mask, share)

    def of(self, parameter: Parameter, rule: Rule) -> ir.Value:
        """What is applied of a gradient, or what is added up first."""
        return self._values[parameter.name] if self._adds_up else self._prepared(parameter, rule)

    def limit_norms(self) -> None:
        """Find the norms of gradients; each is scaled where it has one of its own."""
        self._limit_norms(self._values)

    def applied(
        self,
        buckets: Sequence[Bucket],
        totals: Sequence[ir.Value],
        concat: Callable[[list[ir.Value]], ir.Value],
    ) -> list[ir.Value]:
        """Sums of gradients, after what is done with each parameter's alone.

        Args:
            buckets: The buckets.
            totals: The sum of each.
            concat: Appends what joins flat values.
        """
        pairs = list(zip(buckets, totals, strict=True))
        alone = self._optimizer.clip_norm_per == "parameter"
        of_parameters: dict[str, ir.Value] = {}
        for bucket, total in pairs:
            if alone or bucket.rule.grad_centralization:
                parts = zip(bucket, self._packing.split(total, bucket), strict=True)
                of_parameters |= {parameter.name: part for parameter, part in parts}
        if alone:
            self._limit_norms(of_parameters)
        else:
            self.scale.limit_norms((b.rule.group, b.name, total) for b, total in pairs)
            self._values |= of_parameters
        applied = []
        for bucket, total in pairs:
            if alone or bucket.rule.grad_centralization:
                parts_of = [self._prepared(p, bucket.rule) for p in bucket]
                flat = concat([self._op.Reshape(part, [-1]) for part in parts_of])
                total = self._op.Reshape(flat, np.array(bucket.shape, np.int64))  # noqa: PLW2901
            applied.append(total)
        return applied

    def last_first(self, buckets: Iterable[Bucket]) -> list[ir.Value]:
        """The gradients that the graph computes, those first that it computes last.

        So each is computed as soon as what it reads is there, which then need not be held, even if
        its bucket has gradients that come much later.
        """
        computed = (value for node in self._op.graph for value in node.outputs)
        place = {value: at for at, value in enumerate(computed)}
        values = {self._values[parameter.name] for bucket in buckets for parameter in bucket}
        return sorted(values & place.keys(), key=place.__getitem__, reverse=True)

    def _limit_norms(self, gradients: Mapping[str, ir.Value]) -> None:
        self.scale.limit_norms(
            (rule.group, p.name, gradients[p.name])
            for p, rule in zip(self._optimizer.params, self._optimizer.rules, strict=True)
        )
        for name, gradient in list(gradients.items()):
            if (factor := self.scale.factor_of(name)) is not None:
                self._values[name] = functions.call(self._op, "Scale", gradient, factor)

    def _prepared(self, parameter: Parameter, rule: Rule) -> ir.Value:
        """A gradient, centralized where the rule says so."""
        gradient = self._values[parameter.name]
        if not rule.grad_centralization:
            return gradient
        # The mean is over each row, so this one stage comes before flattening.
        return self._arithmetic.centralized(
            self._op,
            rule,
            self._packing.parameter(parameter.name),
            gradient,
            lambda value: self._carrying.wide(
                self._op.Reshape(value, [parameter.shape[0], -1]), parameter.dtype
            ),
            self.scale.factor(rule.group),
        )
