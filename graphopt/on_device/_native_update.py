"""The update of tensors that stand in sequences, in an order that nobody knows.

Groups of tensors are updated in one piece. What comes out is what is taken from the tensors, not
the tensors themselves, because the operator that writes them subtracts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.on_device._writer import MICROSOFT
from graphopt.on_device.tensor_names import MOMENTUMS, OPTIMIZER_INPUTS
from graphopt.parameter import Parameter
from graphopt.rmsprop import RMSProp, Rule
from graphopt.states import MEAN_SQUARE
from graphopt.update import functions
from graphopt.update.core import Variant, variant
from graphopt.update.gate import Gate
from graphopt.update.optimizer_arithmetic import Arithmetic
from graphopt.versions import MIN_OPSET

# Elements and tensors that are updated in one piece, on average and at most; see `update.layout`.
_PIECE = 128 * 1024
_MAX_TENSORS = 64
_LARGEST = np.finfo(np.float32).max

# Copies of the tensors that belong to one parameter, by the name of the sequence.
_Tensor = Mapping[str, ir.Value]


def new_graph(name: str) -> ir.Graph:
    """An empty graph, for the model or for a branch of it."""
    return ir.Graph([], [], nodes=[], opset_imports={"": MIN_OPSET, MICROSOFT: 1}, name=name)


Deltas = tuple[str, float, Sequence[ir.Value]]
"""A sequence, and what is taken from its tensors so many times."""


class Inputs:
    """What ONNX Runtime feeds."""

    def __init__(self, op: GraphBuilder) -> None:
        """Add the inputs to a graph."""
        rate, step, *sequences = OPTIMIZER_INPUTS
        self.rate = op.input(rate, np.float32, [1])
        self.step = op.input(step, np.int64, [1])
        kind = ir.SequenceType(ir.TensorType(ir.DataType.FLOAT))
        self.sequences = {name: ir.val(op.fresh_name(name), type=kind) for name in sequences}
        op.graph.inputs.extend(self.sequences.values())


class NativeUpdate:
    """Computes what is taken from all tensors of the sequences."""

    def __init__(
        self,
        op: GraphBuilder,
        optimizer: RMSProp,
        inputs: Inputs,
        kept: Mapping[str, str],
        rules: Mapping[tuple[int, ...], Rule],
    ) -> None:
        self.op = op
        self.optimizer = optimizer
        self.inputs = inputs
        self.rules = rules
        self.distinct = tuple(dict.fromkeys(rules.values()))
        self.arithmetic = Arithmetic(op, optimizer, lambda: self._global_step)
        self.state_inputs = {kind: MOMENTUMS[name] for kind, name in kept.items()}
        # A parameter that is not decayed by itself changes by its step alone.
        decays = any(rule.decays for rule in self.distinct)
        self.decoupled = optimizer.decoupled_weight_decay and decays
        self.written = ("params", *self.state_inputs.values())
        self.read = ("gradients", *self.written[0 if decays else 1 :])
        self.variants = {rule: self._variant(rule) for rule in self.distinct}
        self._rates: dict[float, ir.Value] = {}

    def append(self) -> list[Deltas]:
        """The deltas of each sequence that is written, parameters first."""
        made: dict[str, list[ir.Value]] = {sequence: [] for sequence in self.written}
        count, size = len(self.optimizer.params), _tensors_together(self.optimizer.params)
        gate = Gate(self.op)
        for number, start in enumerate(range(0, count, size)):
            with self.op.named(f"group{number}"):
                indices = self._indices(gate, range(start, min(start + size, count)))
                tensors = [self._read(index) for index in indices]
                deltas = self._deltas(tensors)
                gate.wait_for(deltas["params"][-1])
            for sequence, values in deltas.items():
                made[sequence] += values
        rates = {"params": 1.0 if self.decoupled else -1.0}
        return [(name, rates.get(name, 1.0), values) for name, values in made.items()]

    def _indices(self, gate: Gate, indices: range) -> Sequence[ir.Value | int]:
        """Where a group of tensors stands in the sequences.

        One group is read after the other. That keeps the number of nodes that are ready at once
        small, in which ONNX Runtime 1.19 takes quadratic time to load a graph.
        """
        if indices.start == 0:
            return indices
        passed = self.op.Add(gate.shape, np.array(indices) + 1)  # the gate is -1
        lengths = [1] * len(indices)
        return self.op.node("Split", [passed, lengths], outputs=len(indices), axis=0)

    def _read(self, index: ir.Value | int) -> _Tensor:
        """Copies of what the sequences hold at an index."""
        read = {}
        for sequence in self.read:
            value = self.op.SequenceAt(self.inputs.sequences[sequence], index)
            value.dtype = ir.DataType.FLOAT
            read[sequence] = value
        return read

    def _deltas(self, tensors: Sequence[_Tensor]) -> dict[str, list[ir.Value]]:
        """The deltas of a group of tensors, by sequence."""
        if len(self.distinct) == 1:
            return self._apply(self.op, self.distinct[0], tensors)
        choices = self._choices([tensor["gradients"] for tensor in tensors])
        rows = [
            self._choose(self.op, choice, self.distinct, tensor)
            for choice, tensor in zip(choices, tensors, strict=True)
        ]
        columns = map(list, zip(*rows, strict=True))
        return dict(zip(self.written, columns, strict=True))

    def _choices(self, gradients: Sequence[ir.Value]) -> Sequence[ir.Value]:
        """Which rule each tensor has, an index, from its shape."""
        op, rank, size = self.op, max(map(len, self.rules)), len(gradients)
        known = np.array([shape + (0,) * (rank - len(shape)) for shape in self.rules])[None]
        filled = [op.Concat(op.Shape(g), np.zeros(rank, np.int64), axis=0) for g in gradients]
        shapes = op.Concat(*(op.Slice(shape, [0], [rank]) for shape in filled), axis=0)
        same = op.Equal(op.Reshape(shapes, [-1, 1, rank]), known)
        match = op.ReduceMin(op.Cast(same, to=ir.DataType.INT64), axes=[2], keepdims=0)
        numbers = np.array([1 + self.distinct.index(rule) for rule in self.rules.values()])
        number = op.ReduceSum(op.Mul(match, numbers), [1], keepdims=0)
        # An unknown shape has number 0, which is out of bounds here: the step fails.
        table = np.arange(len(self.distinct))
        choice = op.Gather(table, op.Sub(number, 1 + len(table)), axis=0)
        return op.node("Split", [choice, [1] * size], outputs=size, axis=0)

    def _choose(
        self, op: GraphBuilder, choice: ir.Value, rules: Sequence[Rule], tensor: _Tensor
    ) -> Sequence[ir.Value]:
        """The deltas of a tensor that has one of these rules."""
        first, *others = rules
        if not others:
            return [value for (value,) in self._apply(op, first, [tensor]).values()]
        branches = []
        for name, rest in (("chosen", [first]), ("other", others)):
            inner = GraphBuilder(new_graph(self.op.fresh_name(name)))
            made = self._choose(inner, choice, rest, tensor)
            inner.graph.outputs.extend(made)
            for node in inner.graph:
                for value in node.outputs:
                    value.name = self.op.fresh_name(str(value.name))
            branches.append(inner.graph)
        then, otherwise = branches
        condition = op.Equal(choice, self.op.constant([self.distinct.index(first)]))
        return op.node(
            "If", [condition], outputs=len(made), then_branch=then, else_branch=otherwise
        )

    def _apply(
        self, op: GraphBuilder, rule: Rule, tensors: Sequence[_Tensor]
    ) -> dict[str, list[ir.Value]]:
        """The deltas of tensors that have one rule, by sequence; they are computed in one piece."""
        made = self.variants[rule]
        decays_here = self.arithmetic.adds_decay(rule) and not rule.grad_centralization
        joined = [
            *(["params"] if self.decoupled or decays_here else []),
            *self.state_inputs.values(),
        ]
        old = {
            sequence: self._join(op, [self._flat(op, tensor[sequence]) for tensor in tensors])
            for sequence in joined
        }
        gradients = [self._gradient(op, rule, tensor) for tensor in tensors]
        sizes = [op.Shape(gradient) for gradient in gradients]
        g = self._join(op, gradients)
        if decays_here:
            factor = self.arithmetic.decay_factor(rule)
            g = functions.call(op, "WeightDecay", old["params"], g, factor)
        # Of a parameter that is 0 the step remains, as 0 - step. Adding it to the real one gives
        # x - step to the bit, and that need not be read.
        w = old["params"] if self.decoupled else self.op.constant(np.float32(0), name="zero")
        states = {kind: old[name] for kind, name in self.state_inputs.items()}
        scalars = [self._rate(rule)]
        if made.weight_decay:
            scalars.append(self.arithmetic.decay_factor(rule))
        started = [self._started(op, kind, value) for kind, value in states.items()]
        new_w, *new = self.arithmetic.update(op, made, [w, g, *started], scalars)
        deltas = [
            self._difference(op, w, new_w) if self.decoupled else new_w,
            *(self._difference(op, states[kind], v) for kind, v in zip(states, new, strict=True)),
        ]
        shapes = [op.Shape(tensor["gradients"]) for tensor in tensors]
        return {
            sequence: self._split(op, delta, sizes, shapes)
            for sequence, delta in zip(self.written, deltas, strict=True)
        }

    def _flat(self, op: GraphBuilder, value: ir.Value) -> ir.Value:
        """With one axis: ONNX Runtime takes ten times as long for a scalar and a [64, 32, 1, 1]."""
        flat = op.Reshape(value, self.op.constant([-1]))
        flat.dtype = ir.DataType.FLOAT
        return flat

    def _join(self, op: GraphBuilder, values: Sequence[ir.Value]) -> ir.Value:
        """1-D tensors one after another."""
        return values[0] if len(values) == 1 else op.Concat(*values, axis=0)

    def _split(
        self,
        op: GraphBuilder,
        value: ir.Value,
        sizes: Sequence[ir.Value],
        shapes: Sequence[ir.Value],
    ) -> list[ir.Value]:
        """The tensors of which a 1-D one is made, in their own shapes."""
        parts: Sequence[ir.Value] = [value]
        if len(sizes) > 1:
            lengths = op.Concat(*sizes, axis=0)
            parts = op.node("Split", [value, lengths], outputs=len(sizes), axis=0)
        split = [op.Reshape(part, shape) for part, shape in zip(parts, shapes, strict=True)]
        for part in split:
            part.dtype = ir.DataType.FLOAT
        return split

    def _variant(self, rule: Rule) -> Variant:
        """The function of the update; weight decay that is added to the gradient is so before."""
        made = variant(self.optimizer, rule)
        return made if self.decoupled else replace(made, weight_decay="")

    def _gradient(self, op: GraphBuilder, rule: Rule, tensor: _Tensor) -> ir.Value:
        """The gradient, 1-D; centralized, where that is asked for, after weight decay."""
        gradient = tensor["gradients"]
        if rule.grad_centralization:
            rows = self.op.constant([0, -1])
            gradient = self.arithmetic.centralized(
                op, rule, tensor.get("params"), gradient, lambda value: op.Reshape(value, rows)
            )
        return self._flat(op, gradient)

    def _difference(self, op: GraphBuilder, old: ir.Value, new: ir.Value) -> ir.Value:
        """What to take from the old value to get the new one.

        What is infinite stays so or becomes NaN. Infinity minus itself would be NaN; the largest
        finite number in its place gives what leaves it as it is.
        """
        bounds = [self.op.constant(np.float32(bound)) for bound in (-_LARGEST, _LARGEST)]
        return op.Sub(op.Clip(old, *bounds), new)

    def _started(self, op: GraphBuilder, kind: str, value: ir.Value) -> ir.Value:
        """A state, which before the first step is zero, as it starts."""
        if kind != MEAN_SQUARE.name or self.optimizer.initial_mean_square == 0:
            return value
        return op.Add(value, self._initial_mean_square)

    @cached_property
    def _initial_mean_square(self) -> ir.Value:
        """What the mean square starts at in the first step, 0 in all others."""
        op, value = self.op, np.float32(self.optimizer.initial_mean_square)
        first = op.Cast(op.Equal(self.inputs.step, 1), to=ir.DataType.FLOAT)
        return self._scalar(op.Mul(first, value))

    @cached_property
    def _global_step(self) -> ir.Value:
        """The step as schedules count it, from 0."""
        return self._scalar(self.op.Sub(self.inputs.step, 1))

    def _scalar(self, value: ir.Value) -> ir.Value:
        scalar = self.op.Reshape(value, np.zeros(0, np.int64))
        scalar.shape = ir.Shape([])
        return scalar

    def _rate(self, rule: Rule) -> ir.Value:
        """The learning rate of a rule: a multiple of the one that the application sets."""
        ratio = rule.learning_rate.value(0)
        if ratio not in self._rates:
            rate = self.inputs.rate if ratio == 1 else self.op.Mul(self.inputs.rate, ratio)
            self._rates[ratio] = self._scalar(rate)
        return self._rates[ratio]


def _tensors_together(params: Sequence[Parameter]) -> int:
    """How many tensors are updated in one piece, so that it is in the processor's cache on average.

    Which ones these are nobody knows.
    """
    average = sum(parameter.size for parameter in params) / len(params)
    return int(min(max(_PIECE / average, 1), _MAX_TENSORS))
