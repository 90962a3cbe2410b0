"""The update as the optimizer model of ONNX Runtime's on-device training API.

``OptimizerStep`` feeds it sequences with one tensor a parameter, and the model writes parameters
and states in place. Four things are particular to it:

- The order of the tensors is that of a hash table, another one in each process, and there are no
  names. So all tensors are updated alike, by a graph that knows no shapes; or, where parameters are
  to be updated in different ways, a tensor is known by its shape.
- To ONNX Runtime an optimizer is a main graph with exactly one ``AdamWOptimizer`` or
  ``SGDOptimizerV2`` node; AdamW's has two states. So one that updates a tensor of its own, a 0,
  stands there, and what really writes stands in the branch of an If, where nobody counts.
- ``SGDOptimizerV2`` is the operator that writes the tensors of a sequence: ``x -= rate * delta``.
  The parameters take their step from it as it is. A state takes ``old - new``.
- The states start at zero, and no graph says otherwise. What the mean square starts at is added to
  it in the first step.

Nothing is written before everything has been read, and nothing if the step fails: the If needs all
deltas, and the deltas need all that is read. In it the parameters come first, and
``SGDOptimizerV2`` refuses tensors of another number or of other shapes before it writes any. The
states have the number and the shapes of the parameters.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper
from onnx_ir.passes import common as passes

from graphopt import _checks
from graphopt.builder import GraphBuilder
from graphopt.gradients import MIN_OPSET
from graphopt.graph import describe
from graphopt.parameter import Parameter
from graphopt.requirement import METADATA_KEY, requirements
from graphopt.rmsprop import RMSProp, Rule
from graphopt.schedules import LearningRateSchedule
from graphopt.schedules.base import Fixed, local_functions
from graphopt.schedules.parse import emit as emit_schedule
from graphopt.update import core, functions
from graphopt.update.core import Variant, variant
from graphopt.update.gate import Gate

MOMENTUMS_KEY = "graphopt.momentums"

_IR_VERSION = 8
_MICROSOFT = "com.microsoft"
# What ONNX Runtime calls them, and checks: the inputs of its AdamW, and the states in checkpoints.
_SEQUENCES = ("params", "gradients", "first_order_moments", "second_order_moments")
_MOMENTUM_INPUTS = {"momentum0": "first_order_moments", "momentum1": "second_order_moments"}
# Elements and tensors that are updated in one piece, on average and at most; see `update.layout`.
_PIECE = 128 * 1024
_MAX_TENSORS = 64
_LARGEST = np.finfo(np.float32).max
_OTHERWISE = "or leave out optimizer_model=True: the update then is inside the training model"


def momentums(optimizer: RMSProp) -> dict[str, str]:
    """Which of ONNX Runtime's two states of a parameter holds which kind of ours.

    Args:
        optimizer: Whose states.

    Returns:
        "momentum0" and "momentum1", as ONNX Runtime's checkpoints call the first and second order
        moments, by kind: "mean_square", and "mean_grad" or "moment" if there is one. The mean
        square is the second order moment, as in AdamW.

    Raises:
        ValueError: There are three kinds.

    Example:
        >>> momentums(RMSProp([Parameter("w", (3,))], momentum=0.9))
        {'mean_square': 'momentum1', 'moment': 'momentum0'}
    """
    if len(optimizer.states) > len(_MOMENTUM_INPUTS):
        raise ValueError(
            f"optimizer: got centered=True with momentum={optimizer.momentum}, which keeps three "
            "states of a parameter, and ONNX Runtime's optimizer has two; leave out one of them, "
            f"{_OTHERWISE}"
        )
    return {
        kind: "momentum1" if kind == "mean_square" else "momentum0" for kind in optimizer.states
    }


def optimizer_model(optimizer: RMSProp) -> onnx.ModelProto:
    """The model that ONNX Runtime's ``Optimizer`` runs as ``OptimizerStep``.

    Its inputs are ``learning_rate`` (float32 [1]), ``step`` (int64 [1], 1 in the first step) and
    the sequences ``params``, ``gradients``, ``first_order_moments`` and ``second_order_moments``
    (float32), which hold the parameters of the optimizer in any order. Its outputs are two bools,
    of which the first says that the step was taken. Parameters and states are written in place.

    ``learning_rate`` is what the application sets, itself or with a scheduler, and stands for the
    rate of the first group, which is the optimizer's unless it has one of its own. The rates of
    all other groups keep their ratio to that. ONNX Runtime's own default is 0.001.

    ONNX Runtime does not say which tensor belongs to which parameter. Parameters that are updated
    in different ways, with another rate, weight decay or grad_centralization, must differ in
    shape.

    A state takes ``old - (old - new)`` for ``new``: in float32 that is off by a part in 2**24 of
    the larger of the two at most, and exact where the mean square shrinks to no less than half.

    Args:
        optimizer: What to apply. A learning rate must be a number; a weight decay may be a
            schedule.

    Raises:
        ValueError: A learning rate is a schedule or a list, or has no ratio to the first; the
            optimizer is centered with momentum; a parameter is float16; two parameters of one shape
            are updated in different ways; a schedule of weight decay needs an input of its own.

    Example:
        >>> model = optimizer_model(RMSProp([Parameter("w", (3,))], learning_rate=0.01))
        >>> [value.name for value in model.graph.input][:3]
        ['learning_rate', 'step', 'params']
    """
    kept = momentums(optimizer)
    _check_dtypes(optimizer.params)
    ways = _ways_of_shapes(optimizer)
    op = GraphBuilder(_new_graph("optimizer"))
    inputs = _Inputs(op)
    update = _Update(op, optimizer, inputs, kept, ways)
    deltas = update.append()
    _check_inputs(op.graph)
    outputs = {"updated": (_write(op, inputs, deltas), []), "marker": (_mark(op, inputs.step), [1])}
    for name, (value, shape) in outputs.items():
        op.output(value, name)
        value.dtype, value.shape = ir.DataType.BOOL, ir.Shape(shape)
    return _finish(op.graph, optimizer, update.variants.values(), kept)


@dataclass(frozen=True)
class _Way:
    """How a parameter is updated, whatever its name and group."""

    ratio: float
    weight_decay: LearningRateSchedule
    grad_centralization: bool


# Copies of the tensors that belong to one parameter, by the name of the sequence.
_Tensor = Mapping[str, ir.Value]


@dataclass(frozen=True)
class _Deltas:
    """What is taken from the tensors of a sequence, ``rate`` times."""

    sequence: str
    rate: float
    values: Sequence[ir.Value]


class _Inputs:
    """What ONNX Runtime feeds."""

    def __init__(self, op: GraphBuilder) -> None:
        self.rate = op.input("learning_rate", np.float32, [1])
        self.step = op.input("step", np.int64, [1])
        kind = ir.SequenceType(ir.TensorType(ir.DataType.FLOAT))
        self.sequences = {name: ir.val(op.fresh_name(name), type=kind) for name in _SEQUENCES}
        op.graph.inputs.extend(self.sequences.values())


class _Update:
    """Computes what is taken from all tensors of the sequences."""

    def __init__(
        self,
        op: GraphBuilder,
        optimizer: RMSProp,
        inputs: _Inputs,
        kept: Mapping[str, str],
        ways: Mapping[tuple[int, ...], _Way],
    ) -> None:
        self.op = op
        self.optimizer = optimizer
        self.inputs = inputs
        self.ways = ways
        self.distinct = tuple(dict.fromkeys(ways.values()))
        self.state_inputs = {kind: _MOMENTUM_INPUTS[name] for kind, name in kept.items()}
        # A parameter that is not decayed by itself changes by its step alone.
        decays = any(rule.decays for rule in optimizer.rules)
        self.decoupled = optimizer.decoupled_weight_decay and decays
        self.written = ("params", *self.state_inputs.values())
        self.read = ("gradients", *self.written[0 if decays else 1 :])
        self.variants = {way: self._variant(way) for way in self.distinct}
        self._scalars: dict[object, ir.Value] = {}

    def append(self) -> list[_Deltas]:
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
        return [_Deltas(name, rates.get(name, 1.0), values) for name, values in made.items()]

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
        """Which way each tensor goes, an index, from its shape."""
        op, rank, size = self.op, max(map(len, self.ways)), len(gradients)
        known = np.array([shape + (0,) * (rank - len(shape)) for shape in self.ways])[None]
        filled = [op.Concat(op.Shape(g), np.zeros(rank, np.int64), axis=0) for g in gradients]
        shapes = op.Concat(*(op.Slice(shape, [0], [rank]) for shape in filled), axis=0)
        same = op.Equal(op.Reshape(shapes, [-1, 1, rank]), known)
        match = op.ReduceMin(op.Cast(same, to=ir.DataType.INT64), axes=[2], keepdims=0)
        numbers = np.array([1 + self.distinct.index(way) for way in self.ways.values()])
        number = op.ReduceSum(op.Mul(match, numbers), [1], keepdims=0)
        # An unknown shape has number 0, which is out of bounds here: the step fails.
        table = np.arange(len(self.distinct))
        choice = op.Gather(table, op.Sub(number, 1 + len(table)), axis=0)
        return op.node("Split", [choice, [1] * size], outputs=size, axis=0)

    def _choose(
        self, op: GraphBuilder, choice: ir.Value, ways: Sequence[_Way], tensor: _Tensor
    ) -> Sequence[ir.Value]:
        """The deltas of a tensor that goes one of these ways."""
        first, *others = ways
        if not others:
            return [value for (value,) in self._apply(op, first, [tensor]).values()]
        branches = []
        for name, rest in (("chosen", [first]), ("other", others)):
            inner = GraphBuilder(_new_graph(self.op.fresh_name(name)))
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
        self, op: GraphBuilder, way: _Way, tensors: Sequence[_Tensor]
    ) -> dict[str, list[ir.Value]]:
        """The deltas of tensors that go one way, by sequence; they are computed in one piece."""
        optimizer, made = self.optimizer, self.variants[way]
        decays_here = self._adds_decay(way) and not way.grad_centralization
        joined = [
            *(["params"] if self.decoupled or decays_here else []),
            *self.state_inputs.values(),
        ]
        old = {
            sequence: self._join(op, [self._flat(op, tensor[sequence]) for tensor in tensors])
            for sequence in joined
        }
        gradients = [self._gradient(op, way, tensor) for tensor in tensors]
        sizes = [op.Shape(gradient) for gradient in gradients]
        g = self._join(op, gradients)
        if decays_here:
            g = _call(op, "WeightDecay", old["params"], g, self._decay(way))
        # Of a parameter that is 0 the step remains, as 0 - step. Adding it to the real one gives
        # x - step to the bit, and that need not be read.
        w = old["params"] if self.decoupled else self.op.constant(np.float32(0), name="zero")
        states = {kind: old[name] for kind, name in self.state_inputs.items()}
        scalars = [self._rate(way.ratio), *([self._decay(way)] if made.weight_decay else [])]
        new_w, *new = op.node(
            made.name,
            [w, g, *(self._started(op, kind, value) for kind, value in states.items()), *scalars],
            domain=functions.DOMAIN,
            outputs=1 + len(states),
            **{name: getattr(optimizer, name) for name in made.attributes},
        )
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

    def _adds_decay(self, way: _Way) -> bool:
        return way.weight_decay != Fixed(0.0) and not self.decoupled

    def _variant(self, way: _Way) -> Variant:
        """The function of the update; weight decay that is added to the gradient is so before."""
        rule = Rule(0, Fixed(0.0), way.weight_decay, way.grad_centralization)
        made = variant(self.optimizer, rule)
        return made if self.decoupled else replace(made, weight_decay="")

    def _gradient(self, op: GraphBuilder, way: _Way, tensor: _Tensor) -> ir.Value:
        """The gradient, 1-D; centralized, where that is asked for, after weight decay."""
        if not way.grad_centralization:
            return self._flat(op, tensor["gradients"])
        rows = self.op.constant([0, -1])
        g = op.Reshape(tensor["gradients"], rows)
        if self._adds_decay(way):
            g = _call(op, "WeightDecay", op.Reshape(tensor["params"], rows), g, self._decay(way))
        return self._flat(op, _call(op, "Centralize", g))

    def _difference(self, op: GraphBuilder, old: ir.Value, new: ir.Value) -> ir.Value:
        """What to take from the old value to get the new one.

        What is infinite stays so or becomes NaN. Infinity minus itself would be NaN; the largest
        finite number in its place gives what leaves it as it is.
        """
        bounds = [self.op.constant(np.float32(bound)) for bound in (-_LARGEST, _LARGEST)]
        return op.Sub(op.Clip(old, *bounds), new)

    def _started(self, op: GraphBuilder, kind: str, value: ir.Value) -> ir.Value:
        """A state, which before the first step is zero, as it starts."""
        if kind != "mean_square" or self.optimizer.initial_mean_square == 0:
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

    def _rate(self, ratio: float) -> ir.Value:
        """The learning rate of a group."""
        if ratio not in self._scalars:
            rate = self.inputs.rate if ratio == 1 else self.op.Mul(self.inputs.rate, ratio)
            self._scalars[ratio] = self._scalar(rate)
        return self._scalars[ratio]

    def _decay(self, way: _Way) -> ir.Value:
        """What multiplies the parameter; it carries the loss scale where the gradient does."""
        schedule = way.weight_decay
        scale = 1.0 if self.decoupled else self.optimizer.loss_scale
        if isinstance(schedule, Fixed):
            return self.op.constant(np.float32(schedule.constant * scale), name="weight_decay")
        if schedule not in self._scalars:
            factor = emit_schedule(schedule, self.op, self._global_step)
            self._scalars[schedule] = factor if scale == 1 else self.op.Mul(factor, scale)
        return self._scalars[schedule]


def _tensors_together(params: Sequence[Parameter]) -> int:
    """How many tensors are updated in one piece, so that it is in the processor's cache on average.

    Which ones these are nobody knows.
    """
    average = sum(parameter.size for parameter in params) / len(params)
    return int(min(max(_PIECE / average, 1), _MAX_TENSORS))


def _call(op: GraphBuilder, function: str, *operands: ir.Value) -> ir.Value:
    (value,) = op.node(function, operands, domain=functions.DOMAIN)
    value.dtype = ir.DataType.FLOAT
    return value


def _new_graph(name: str) -> ir.Graph:
    return ir.Graph([], [], nodes=[], opset_imports={"": MIN_OPSET, _MICROSOFT: 1}, name=name)


def _write(op: GraphBuilder, inputs: _Inputs, deltas: Sequence[_Deltas]) -> ir.Value:
    """Write all sequences in place, one after another; True once that has been done."""
    made = [op.SequenceConstruct(*delta.values) for delta in deltas]
    body = GraphBuilder(_new_graph("write"))
    done: ir.Value | None = None
    for delta, value in zip(deltas, made, strict=True):
        # The operator returns whether it has written. That is the signal for the next one.
        (done,) = body.node(
            "SGDOptimizerV2",
            [
                op.constant(np.float32(delta.rate), name="rate"),
                inputs.sequences[delta.sequence],
                value,
                *([] if done is None else [done]),
            ],
            domain=_MICROSOFT,
        )
    assert done is not None
    _return(body, done)
    rest = GraphBuilder(_new_graph("rest"))
    _return(rest, rest.Constant(value=ir.tensor(np.array(False))))
    # Always true. That it is computed keeps the branch from becoming part of the main graph.
    condition = op.Greater(inputs.step, 0)
    return op.If(condition, then_branch=body.graph, else_branch=rest.graph)


def _return(op: GraphBuilder, value: ir.Value) -> None:
    value.dtype, value.shape = ir.DataType.BOOL, ir.Shape([])
    op.output(value, f"{op.graph.name}.done")


def _mark(op: GraphBuilder, step: ir.Value) -> ir.Value:
    """The node by which ONNX Runtime knows an optimizer; it updates a 0 of its own by 0."""
    zero = op.constant(np.zeros(1, np.float32), name="zero")
    own = op.SequenceConstruct(zero)
    return op.node("AdamWOptimizer", [zero, step, own, own, own, own], domain=_MICROSOFT)[0]


def _finish(
    graph: ir.Graph, optimizer: RMSProp, variants: Iterable[Variant], kept: Mapping[str, str]
) -> onnx.ModelProto:
    """The model with its functions, and with what it says about itself."""
    graph.opset_imports[functions.DOMAIN] = functions.VERSION
    model = ir.Model(graph, ir_version=_IR_VERSION, producer_name="graphopt")
    passes.RemoveUnusedOpsetsPass()(model)
    proto = ir.to_proto(model)
    called = {node.op_type for node in graph.all_nodes() if node.domain == functions.DOMAIN}
    variants = tuple(variants)
    stages = called - {made.name for made in variants}
    proto.functions.extend(core.load(variants, stages, MIN_OPSET))
    proto.functions.extend(local_functions(graph))
    metadata = describe(optimizer) | {
        MOMENTUMS_KEY: json.dumps(kept),
        METADATA_KEY: requirements(proto).to_json(),
    }
    helper.set_model_props(proto, metadata)
    return proto


def _check_dtypes(params: Iterable[Parameter]) -> None:
    for parameter in params:
        if parameter.dtype != "float32":
            raise ValueError(
                f"parameter '{parameter.name}' is {parameter.dtype}, and ONNX Runtime's optimizer "
                f"writes float32 alone; convert the model to float32, {_OTHERWISE}"
            )


def _check_inputs(graph: ir.Graph) -> None:
    """Refuse a schedule that has added an input."""
    for value in graph.inputs[2 + len(_SEQUENCES) :]:
        raise ValueError(
            f"weight_decay: got a schedule that needs the input '{value.name}', which ONNX "
            f"Runtime's optimizer does not feed; use one that counts steps, {_OTHERWISE}"
        )


def _ways_of_shapes(optimizer: RMSProp) -> dict[tuple[int, ...], _Way]:
    """How a tensor of each shape is updated."""
    ratios = _ratios(optimizer)
    ways: dict[tuple[int, ...], tuple[_Way, Parameter]] = {}
    for parameter, rule in zip(optimizer.params, optimizer.rules, strict=True):
        way = _Way(ratios[rule.group], rule.weight_decay, rule.grad_centralization)
        here, other = ways.setdefault(parameter.shape, (way, parameter))
        if here != way:
            different = ", ".join(
                name for name, value in vars(way).items() if value != vars(here)[name]
            )
            raise ValueError(
                f"parameters '{other.name}' and '{parameter.name}' both have the shape "
                f"{list(parameter.shape)}, but different rules ({different}), and ONNX Runtime's "
                "optimizer tells parameters apart by their shapes alone; give them one rule, "
                f"{_OTHERWISE}"
            )
    return {shape: way for shape, (way, _) in ways.items()}


def _ratios(optimizer: RMSProp) -> list[float]:
    """The learning rate of each group as a multiple of that of the first."""
    rates = []
    for index, group in enumerate(optimizer.groups):
        if not isinstance(group.learning_rate, Fixed):
            kind = dict(group.learning_rate.describe())["schedule"]
            raise ValueError(
                f"the learning rate of group {index}: got {kind}, expected a number: here the "
                "application sets the rate in each step, for example with ONNX Runtime's "
                f"LinearLRScheduler; give a number, {_OTHERWISE}"
            )
        rates.append(group.learning_rate.constant)
    return [_ratio(index, rate, rates[0]) for index, rate in enumerate(rates)]


def _ratio(index: int, rate: float, first: float) -> float:
    if rate == first:
        return 1.0
    if first == 0:
        raise ValueError(
            f"the learning rate of group {index}: got {rate}, which is no multiple of 0.0, the "
            f"rate of the first group, in whose place the application sets one; give that a rate "
            f"> 0, {_OTHERWISE}"
        )
    return _checks.in_float32(f"the learning rate of group {index} over the first", rate / first)
