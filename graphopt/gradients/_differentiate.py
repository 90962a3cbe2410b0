"""Reverse-mode differentiation of an ONNX graph, in standard ONNX operators.

The nodes are visited from the loss backwards; at each, the rule of its operator turns the
gradients of its outputs into those of its inputs. Which operators have one, `operators` says.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Set as AbstractSet

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from graphopt.builder import GraphBuilder
from graphopt.gradients._for_cpu import suit_cpu
from graphopt.gradients._for_device import suit_device
from graphopt.gradients._fusions import avoid_fusions, keep_axes
from graphopt.gradients._graph import GradientGraph, initializers_to_inputs, unreached
from graphopt.gradients._random_numbers import compute_random_numbers
from graphopt.gradients._recompute import Memory, recompute
from graphopt.gradients._steep import selected_infinities, steep_values
from graphopt.gradients._sums import summed
from graphopt.graphs import captured
from graphopt.half import fit_kernels
from graphopt.operators import NoGradient, of
from graphopt.operators.backward import Backward
from graphopt.operators.path import Path
from graphopt.operators.rewriting import RunningStatistic
from graphopt.stage import BACKWARD_PREFIX


def differentiate(
    model: ir.Model,
    names: Collection[str],
    loss: ir.Value,
    statistics: Collection[RunningStatistic],
    provider: str = "CPUExecutionProvider",
    memory: Memory = "fast",
    half: ir.DataType | None = None,
    *,
    seeded: bool = False,
) -> GradientGraph:
    """Append the gradients of ``loss`` with respect to the initializers called ``names``.

    Args:
        model: The prepared forward graph with its loss; changed in place.
        names: The trained parameters, which become inputs of the graph.
        loss: A floating-point scalar of the graph.
        statistics: The running statistics of the graph, which become inputs too.
        provider: The execution provider for which formulations are chosen.
        memory: What the backward pass computes again; see `recompute`.
        half: The type of 16 bits in which a part of the graph is computed, if any is; what the
            provider lacks of it is computed in float32.
        seeded: Let random numbers follow from a seed and the step; see `compute_random_numbers`.

    Raises:
        ValueError: No gradient reaches a parameter, or operators have none.
    """
    graph = model.graph
    op = GraphBuilder(graph)
    _name_parts(op)
    avoid_fusions(op, model)
    parameters = {name: graph.initializers[name] for name in names}
    path = Path(graph, parameters.values(), [loss])
    if missing := [name for name, value in parameters.items() if value not in path.values]:
        raise ValueError(unreached(missing))
    path.check_rules()
    steep = steep_values(path.nodes, path.values, parameters.values())
    one = op.constant(np.ones((), (loss.dtype or ir.DataType.FLOAT).numpy()))
    gradients = _backward(op, path, steep, {loss: one}, provider)
    for node in list(graph.all_nodes()):
        if node.op_type in ("Mul", "Div") and not node.domain:
            keep_axes(op, node)
    if missing := [name for name, value in parameters.items() if value not in gradients]:
        raise ValueError(unreached(missing))
    if provider == "CUDAExecutionProvider":
        suit_device(op, model)
    named = _name(op, {name: gradients[value] for name, value in parameters.items()})
    inner = {value.name: value for node in graph for value in node.outputs}
    batch = {s.name: (s, inner[s.batch]) for s in statistics}
    initializers_to_inputs(model, {*names, *batch})
    kept = list(graph.outputs)
    graph.outputs.extend([*named.values(), *(value for _, value in batch.values())])
    graph.sort()
    passes.RemoveUnusedNodesPass()(model)
    graph.outputs[:] = kept
    if seeded and compute_random_numbers(op):
        graph.sort()
    if half is not None:
        fit_kernels(op, model, half, provider)
    results = [loss, *(value for _, value in batch.values())]
    recompute(op, results, gradients, memory, provider)
    if half is not None and memory != "fast":
        fit_kernels(op, model, half, provider)
    if provider == "CPUExecutionProvider":
        suit_cpu(op, model, {*results, *named.values()})
    return GradientGraph(model, parameters, named, batch)


def _name_parts(op: GraphBuilder) -> None:
    """Name the parts of each Split: one without a name has no shape, and may get lost."""
    for node in op.graph.all_nodes():
        if node.op_type == "Split":
            for value in node.outputs:
                value.name = value.name or op.fresh_name("Split")


def _backward(
    op: GraphBuilder,
    path: Path,
    steep: AbstractSet[ir.Value],
    seeds: Mapping[ir.Value, ir.Value],
    provider: str,
) -> dict[ir.Value, ir.Value]:
    """The gradient of every value on the path into which one flows, from those of some."""
    contributions: defaultdict[ir.Value, list[ir.Value]] = defaultdict(list)
    for value, seed in seeds.items():
        contributions[value].append(seed)
    gradients: dict[ir.Value, ir.Value] = {}
    infinite = selected_infinities(path.graph, path.nodes, path.values)

    def gradient(value: ir.Value) -> ir.Value | None:
        if value not in gradients and contributions[value]:
            gradients[value] = _like(summed(op, contributions.pop(value), value), value)
        return gradients.get(value)

    def inner(
        graph: ir.Graph, sources: Iterable[ir.Value], seeds: Mapping[ir.Value, ir.Value]
    ) -> dict[ir.Value, ir.Value]:
        # What lies further from the parameters than the graph is not known here.
        inside = Path(graph, sources, seeds)
        inside.check_rules()
        return _backward(op, inside, inside.values, seeds, provider)

    for node in reversed(path.nodes):
        name = str(node.name or node.outputs[0].name).removeprefix(BACKWARD_PREFIX)
        with op.named(f"{BACKWARD_PREFIX}{name}"):
            incoming = [gradient(value) for value in node.outputs]
            if not any(incoming):
                continue
            read = (*node.inputs, *captured(node))
            needed = [i for i, value in enumerate(read) if value in path.values]
            is_steep = not steep.isdisjoint(node.outputs)
            backward = Backward(
                op,
                node,
                incoming,
                needed,
                provider,
                inner,
                is_steep=is_steep,
                infinite=infinite.get(node, ()),
                trained=path.values,
            )
            outgoing = list(_gradients(backward))
        for index in needed:
            value, part = backward.input(index), outgoing[index] if index < len(outgoing) else None
            if part is None:
                raise backward.error(
                    f"its input '{value.name}' (number {index}) depends on a parameter, but has no "
                    "gradient; make it a constant, or leave the parameters before it out of the "
                    "optimizer"
                )
            if not isinstance(part, NoGradient):
                contributions[value].append(_like(part, value))
    with op.named("backward"):
        for value in list(contributions):
            gradient(value)
    return gradients


def _gradients(backward: Backward) -> Iterator[ir.Value | NoGradient | None]:
    """What the rule of a node gives, each in the shape of its input."""
    operator = of(backward.node)
    rule = operator.gradient
    assert callable(rule)
    result = rule(backward)
    gradients = [result] if isinstance(result, ir.Value) else result or ()
    for index, gradient in enumerate(gradients):
        is_summed = index in backward.summed_inputs
        if operator.is_elementwise and isinstance(gradient, ir.Value) and not is_summed:
            gradient = backward.where_it_counts(gradient)  # noqa: PLW2901
        is_wide = index in operator.broadcasts and not is_summed
        if is_wide and isinstance(gradient, ir.Value):
            yield backward.unbroadcast(gradient, backward.input(index))
        else:
            yield gradient


def _like(gradient: ir.Value, value: ir.Value) -> ir.Value:
    """A gradient has the shape and the dtype of its value."""
    if gradient.dtype is None and value.dtype is not None:
        gradient.dtype = value.dtype
    if gradient.shape is None:
        gradient.shape = value.shape
    return gradient


def _name(op: GraphBuilder, gradients: dict[str, ir.Value]) -> dict[str, ir.Value]:
    """The same, each a value of its own called ``<parameter>_grad``."""
    uses = Counter(gradients.values())
    named = {}
    for name, value in gradients.items():
        if uses[value] > 1 or value.producer() is None or value.is_graph_output():
            value = _like(op.Identity(value), value)  # noqa: PLW2901
        op.release_name(str(value.name))
        value.name = op.fresh_name(f"{name}_grad")
        named[name] = value
    return named
