"""One record for each ONNX operator: what graphopt knows of it.

A record is declared above its gradient rule, or alone where there is none. A rule turns the
gradients of a node's outputs into those of its inputs, by appending nodes in standard ONNX:

    @operator("Sin", flops=elementwise, shape=elements.joined)
    def sin(b: Backward) -> ir.Value:
        return b.op.Mul(b.dy, b.op.Cos(b.x))

    operator("IsNaN", gradient=ZERO, is_boolean=True, flops=0, shape=elements.compared)

Whoever needs a fact asks `of` for the record.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, IntEnum
from typing import Any

import onnx
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.marks import STOP_GRADIENT
from graphopt.operators._bounds import is_away_from_0
from graphopt.operators.backward import Backward
from graphopt.operators.flops import Count, Outputs, per_element
from graphopt.operators.rewriting import RunningStatistic
from graphopt.shapes import elements
from graphopt.shapes.node import Node, Rule as Shape


class NoGradient(Enum):
    """Why an input that depends on a parameter gets no gradient from a rule."""

    ZERO = "the result does not change with a small change of it"
    ELSEWHERE = "the gradient of another input contains it"
    BY_CONVENTION = "frameworks take it for a constant"


class Moves(IntEnum):
    """What becomes of the elements of the first input, from nothing to something else."""

    SHAPE = 0
    """They are the same in the same order, in another shape, if in any."""
    PRECISION = 1
    """They are the same in the same order, in another dtype."""
    ORDER = 2
    """They are the same, in another order."""
    COPIES = 3
    """They are the same, some of them several times."""
    PART = 4
    """Some of them are left."""
    AT_TIMES = 5
    """Something is computed from them, or nothing at all is done."""
    NOT = 6
    """Something is computed from them."""


Gradients = ir.Value | Iterable[ir.Value | NoGradient | None] | None
Rule = Callable[[Backward], Gradients]
Rewrite = Callable[[GraphBuilder, ir.Node, Collection[str]], Sequence[RunningStatistic] | None]
Steep = Callable[[ir.Node, Collection[ir.Value]], Collection[int]]

ZERO = NoGradient.ZERO
ALL = range(2**31)
"""All inputs, however many there are."""


@dataclass(frozen=True)
class Operator:
    """What is known of an operator.

    Attributes:
        name: Its name; of other domains than ONNX's own, ``domain::Name``.
        gradient: Turns the gradients of the outputs into those of the inputs; `ZERO` where no
            result changes with a small change of an operand; None where there is no rule.
        rewrite: Replaces or changes a node before the graph is differentiated, given the names of
            the trained parameters; returns the running statistics that the node moves, if any.
        infer: Lets a node compute what it does outside training, where that is something else;
            says whether it did not.
        broadcasts: The inputs that may be smaller than the first output, to whose shape they are
            repeated. The gradients that the rule returns for them have that shape.
        steep: The inputs along which the slope may be infinite; or a function that tells it of a
            node, given the values that depend on a parameter.
        pole: The input at whose 0 the slope is infinite, where it is only there.
        selects: Whether it chooses between elements: those that it leaves get a gradient of 0,
            whatever they are.
        flat_at_infinity: Whether the slope may be 0 where, and because, an operand is infinite.
        spreads: Whether each element of a trained operand gets a gradient from what the gradient
            of the result has there.
        moves: What becomes of the elements of the first input.
        elements: Of how many inputs, from the first, the elements go into those of the result;
            None for all. What an operator reads beside is a shape, or axes.
        weights: The inputs that are weights (a bias is none).
        settings: The inputs that are floating-point settings or statistics, no weights.
        starts: The inputs of which a recurrent layer starts: weights, unless they are zeros.
        bias: The input that is added to each channel of the result.
        fused: The operator whose inputs it has, where it is one with others behind it.
        overwrites: Whether it writes over inputs.
        writes_in_step: Whether the result may lie where an input of its shape does: an element is
            written after those that it depends on have been read. Kernels of other elementwise
            operators go over the elements several times.
        is_quick: Whether ONNX Runtime on a CPU takes hardly longer for it, elementwise in float32,
            than one pass over memory: at most half as long again as for Neg.
        is_by_channel: Whether an element of the result depends on one of the first input and on
            values of its channel, where it is the only result.
        is_boolean: Whether the result is true or false.
        is_commutative: Whether two inputs may change places.
        is_random: Whether it draws random numbers.
        flops: Its floating-point operations: for each element of the first input, or a function
            that counts them; None where they are not known.
        shape: Gives the shapes and dtypes of its outputs; None where there is no such rule.
    """

    name: str
    gradient: Rule | NoGradient | None = None
    rewrite: Rewrite | None = None
    infer: Callable[[ir.Node], bool] | None = None
    broadcasts: Collection[int] = ()
    steep: Collection[int] | Steep = ()
    pole: int | None = None
    selects: bool = False
    flat_at_infinity: bool = True
    spreads: bool = False
    moves: Moves = Moves.NOT
    elements: int | None = None
    weights: tuple[int, ...] = ()
    settings: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()
    bias: int | None = None
    fused: str | None = None
    overwrites: bool = False
    writes_in_step: bool = False
    is_quick: bool = False
    is_by_channel: bool = False
    is_boolean: bool = False
    is_commutative: bool = False
    is_random: bool = False
    flops: int | Count | None = None
    shape: Shape | None = None

    def steep_inputs(self, node: ir.Node, values: Collection[ir.Value]) -> Collection[int]:
        """The inputs of a node along which the slope may be infinite.

        There are none where the operand at whose 0 it is infinite never comes near 0.

        Args:
            node: A node of this operator.
            values: Those that depend on a parameter.
        """
        if self.pole is not None and is_away_from_0(node.inputs[self.pole], values):
            return ()
        return self.steep(node, values) if callable(self.steep) else self.steep

    @property
    def is_elementwise(self) -> bool:
        """Whether an element of the result depends on one element of each operand."""
        return self.shape is elements.joined

    def count(self, node: Node, outputs: Outputs) -> int | None:
        """The floating-point operations of a node; None where they are not known.

        Args:
            node: A node of this operator.
            outputs: What is known of its outputs.
        """
        if not self.flops:
            return self.flops
        flops = per_element(self.flops) if isinstance(self.flops, int) else self.flops
        try:
            return flops(node, outputs)
        except (ArithmeticError, IndexError, TypeError, ValueError):  # the node makes no sense
            return None

    @property
    def is_known(self) -> bool:
        """Whether it can be differentiated as it is, or is rewritten so that it can."""
        return self.gradient is not None or self.rewrite is not None


OPERATORS: dict[str, Operator] = {}
"""All records, by name."""
_UNKNOWN = Operator("")


def operator(*names: str, domain: str = "", **facts: Any) -> Callable[[Rule], Rule]:
    """Record facts of operators, and the gradient rule that it decorates, if it decorates one.

    The rule returns or yields a gradient for each input, in their order, or returns that of the
    first input alone. Gradients of inputs that are broadcast have the shape of the first output;
    they are summed for the rule. It need not leave out what nobody asked for: nodes that nothing
    reads are removed. `Backward.needs` tells where that would be costly or could fail. None for
    what was asked for is an error; a `NoGradient` says why there is none.

    Args:
        names: One record is made under each of these.
        domain: That of the operators, if it is not ONNX's own.
        facts: The fields of `Operator`.
    """
    prefix = f"{domain}::" if domain else ""
    for name in (f"{prefix}{name}" for name in names):
        assert name not in OPERATORS, name
        OPERATORS[name] = Operator(name, **facts)

    def register(rule: Rule) -> Rule:
        for name in names:
            OPERATORS[name] = replace(OPERATORS[name], gradient=rule)
        return rule

    return register


def of(operator: str | ir.Node | onnx.NodeProto) -> Operator:
    """The record of an operator, or of a node's; one without a name where nothing is known."""
    return OPERATORS.get(operator if isinstance(operator, str) else name_of(operator), _UNKNOWN)


def carries_gradient(node: ir.Node) -> bool:
    """Whether a gradient may flow through a node: no mark stops it, and its result may change."""
    return of(node).gradient is not ZERO and STOP_GRADIENT not in node.metadata_props


def name_of(node: ir.Node | onnx.NodeProto) -> str:
    """The name under which the operator of a node is recorded."""
    if node.domain in ("", "ai.onnx"):
        return node.op_type
    return f"{node.domain}::{node.op_type}"
