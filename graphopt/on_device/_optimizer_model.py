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

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.graph import finished
from graphopt.manifest import Manifest
from graphopt.on_device._fitting import check_inputs, momentums, rules_of_shapes
from graphopt.on_device._native_update import Deltas, Inputs, NativeUpdate, new_graph
from graphopt.on_device._writer import MICROSOFT
from graphopt.rmsprop import RMSProp
from graphopt.versions import IR_VERSION


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
        optimizer: What to apply, to float32 parameters. A learning rate must be a number; a weight
            decay may be a schedule.

    Raises:
        ValueError: A learning rate is a schedule or a list, or has no ratio to the first; the
            optimizer is centered with momentum; two parameters of one shape are updated in
            different ways; a schedule of weight decay needs an input of its own.

    Example:
        >>> model = optimizer_model(RMSProp([Parameter("w", (3,))], learning_rate=0.01))
        >>> [value.name for value in model.graph.input][:3]
        ['learning_rate', 'step', 'params']
    """
    kept = momentums(optimizer)
    rules = rules_of_shapes(optimizer)
    op = GraphBuilder(new_graph("optimizer"))
    inputs = Inputs(op)
    update = NativeUpdate(op, optimizer, inputs, kept, rules)
    deltas = update.append()
    check_inputs(op.graph)
    outputs = {"updated": (_write(op, inputs, deltas), []), "marker": (_mark(op, inputs.step), [1])}
    for name, (value, shape) in outputs.items():
        op.output(value, name)
        value.dtype, value.shape = ir.DataType.BOOL, ir.Shape(shape)
    model = ir.Model(op.graph, ir_version=IR_VERSION)
    manifest = replace(Manifest.of(optimizer), momentums=kept)
    return finished(model, update.variants.values(), manifest)


def _write(op: GraphBuilder, inputs: Inputs, deltas: Sequence[Deltas]) -> ir.Value:
    """Write all sequences in place, one after another; True once that has been done."""
    made = [op.SequenceConstruct(*values) for _, _, values in deltas]
    body = GraphBuilder(new_graph("write"))
    done: ir.Value | None = None
    for (sequence, rate, _), value in zip(deltas, made, strict=True):
        # The operator returns whether it has written. That is the signal for the next one.
        (done,) = body.node(
            "SGDOptimizerV2",
            [
                op.constant(np.float32(rate), name="rate"),
                inputs.sequences[sequence],
                value,
                *([] if done is None else [done]),
            ],
            domain=MICROSOFT,
        )
    assert done is not None
    _return(body, done)
    rest = GraphBuilder(new_graph("rest"))
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
    return op.node("AdamWOptimizer", [zero, step, own, own, own, own], domain=MICROSOFT)[0]
