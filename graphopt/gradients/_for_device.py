"""Formulations that a GPU runs faster, in place of nodes that mean the same.

One operator of ONNX is one kernel there or several, and what its inputs say on the CPU has to be
computed there first.
"""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.gradients._padded import padded
from graphopt.operators.rewriting import reduced


def suit_device(op: GraphBuilder, model: ir.Model) -> None:
    """Rewrite nodes of the graph for a provider that is not the CPU.

    Args:
        op: Appends to the graph.
        model: The training graph; changed in place.
    """
    for node in list(model.graph):
        if node.domain:
            continue
        with op.before(node):
            if node.op_type in ("ReduceSum", "ReduceMean"):
                _reduce_run_by_run(op, node)
            elif node.op_type == "Reshape":
                _leave_one_size_open(op, node)
            elif node.op_type == "Pad":
                _put_zeros_beside(op, node)


def _reduce_run_by_run(op: GraphBuilder, node: ir.Node) -> None:
    """Reduce axes that lie apart one run after the other, the last one first.

    ONNX Runtime has a kernel of its own for runs at either end; all else is six times as slow.
    """
    axes = _axes(node)
    if axes is None or min(axes, default=-1) < 0:
        return
    runs = list(_runs(sorted(axes)))
    if len(runs) < 2:
        return
    keepdims = bool(node.attributes.get_int("keepdims", 1))
    value = node.inputs[0]
    first, *others = runs
    assert value is not None
    for run in reversed(others):
        value = reduced(op, node.op_type, value, run, keepdims=keepdims)
    node.replace_input_with(0, value)
    if "axes" in node.attributes:
        node.attributes["axes"] = ir.AttrInt64s("axes", first)
    else:
        node.replace_input_with(1, op.constant(np.array(first, np.int64)))


def _axes(node: ir.Node) -> list[int] | None:
    """The axes, where the node tells them."""
    if "axes" in node.attributes:
        return list(node.attributes.get_ints("axes"))
    given = node.inputs[1] if len(node.inputs) > 1 else None
    tensor = None if given is None else ir.convenience.get_const_tensor(given)
    return None if tensor is None else [int(axis) for axis in tensor.numpy()]


def _runs(axes: list[int]) -> Iterator[list[int]]:
    """Axes that follow on each other."""
    start = 0
    for end in range(1, len(axes) + 1):
        if end == len(axes) or axes[end] != axes[end - 1] + 1:
            yield axes[start:end]
            start = end


def _leave_one_size_open(op: GraphBuilder, node: ir.Node) -> None:
    """Let Reshape find the only size that is not known before the graph runs.

    Where all others are, the size follows from them, and nothing waits for it.
    """
    given = node.inputs[1]
    concat = None if given is None else given.producer()
    if concat is None or concat.op_type != "Concat" or concat.domain:
        return
    sizes: list[int] = []
    unknown = 0
    for part in concat.inputs:
        tensor = None if part is None else ir.convenience.get_const_tensor(part)
        if tensor is not None:
            sizes += [int(size) for size in tensor.numpy().reshape(-1)]
        elif part is not None and part.shape is not None and list(part.shape) == [1]:
            sizes.append(-1)
            unknown += 1
        else:
            return
    if unknown == 1 and sizes.count(-1) == 1 and 0 not in sizes:
        node.replace_input_with(1, op.constant(np.array(sizes, np.int64), name="shape"))


def _put_zeros_beside(op: GraphBuilder, node: ir.Node) -> None:
    """Concatenate with zeros what gets them along one axis: Pad is as slow as thirty of these."""
    found = padded(node)
    dtype = None if found is None else found.value.dtype or node.outputs[0].dtype
    if found is None or dtype is None:
        return
    axis, shape = found.axis, op.Shape(found.value)
    front = op.Slice(shape, [0], [axis])
    behind = op.Slice(shape, [axis + 1], [np.iinfo(np.int64).max])
    parts = [found.value]
    for width, place in ((found.before, 0), (found.after, 2)):
        if width:
            sizes = op.Concat(front, [width], behind, axis=0)
            parts.insert(place, op.Expand(np.zeros((), dtype.numpy()), sizes))
    node.op_type = "Concat"  # itself: others know its result as the gradient of a parameter
    node.attributes.clear()
    node.attributes["axis"] = ir.AttrInt64("axis", axis)
    node.resize_inputs(len(parts))
    for index, part in enumerate(parts):
        node.replace_input_with(index, part)
