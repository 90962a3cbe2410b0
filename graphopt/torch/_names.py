"""The names of a translated model: those of ``state_dict``, and those that the user gives."""

import json
import re
from collections.abc import Mapping, Sequence

import onnx_ir as ir
import torch

from graphopt.marks import FROZEN, TRAINED, UNUSED


def put_names(
    model: ir.Model,
    module: torch.nn.Module,
    input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
    sizes: Mapping[str, str],
) -> None:
    """Name parameters, inputs, outputs and open sizes; mark what is frozen.

    Raises:
        ValueError: There are more or fewer names than inputs or outputs, or one is taken.
    """
    graph = model.graph
    _join_shared(graph, module)
    unused = [
        name
        for name, first in shared_names(module).items()
        if name == first and name not in graph.initializers
    ]
    if unused:
        model.metadata_props[UNUSED] = json.dumps(unused)
    _mark_frozen(graph, module)
    _own_outputs(graph)
    _rename("input_names", graph.inputs, input_names)
    _rename("output_names", graph.outputs, output_names)
    _separate(graph, module, {*(input_names or ()), *(output_names or ())})
    for symbol, name in sizes.items():
        _rename_axis(model, symbol, name)


def shared_names(module: torch.nn.Module) -> dict[str, str]:
    """The first name of each parameter and buffer, by each of its names."""
    first: dict[int, str] = {}
    named = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    order = {name: index for index, name in enumerate(module.state_dict(keep_vars=True))}
    named.sort(key=lambda entry: order.get(entry[0], len(order)))
    return {name: first.setdefault(id(tensor), name) for name, tensor in named}


def _join_shared(graph: ir.Graph, module: torch.nn.Module) -> None:
    """Let all read a shared parameter under its first name, and drop what nothing reads."""
    firsts = shared_names(module)
    for name, value in list(graph.initializers.items()):
        first = firsts.get(name, name)
        if first == name:
            continue
        if first not in graph.initializers:
            graph.initializers.pop(name)
            value.name = first
            graph.initializers[first] = value
            continue
        value.replace_all_uses_with(graph.initializers[first], replace_graph_outputs=True)
        graph.initializers.pop(name)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            graph.initializers.pop(name)


def _mark_frozen(graph: ir.Graph, module: torch.nn.Module) -> None:
    parameters = dict(module.named_parameters(remove_duplicate=False))
    buffers = dict(module.named_buffers(remove_duplicate=False))
    for name, value in graph.initializers.items():
        if name not in parameters:
            value.metadata_props[FROZEN] = "buffer" if name in buffers else "constant"
        elif not parameters[name].requires_grad:
            value.metadata_props[FROZEN] = "requires_grad=False"
        else:
            value.metadata_props[TRAINED] = "parameter"


def _own_outputs(graph: ir.Graph) -> None:
    """Let each output be a value of its own, also where it is an input or another output."""
    seen: set[ir.Value] = set(graph.inputs) | set(graph.initializers.values())
    for index, value in enumerate(graph.outputs):
        if value in seen:
            copy = ir.node("Identity", [value])
            copy.outputs[0].name, copy.outputs[0].type = f"{value.name}_output", value.type
            copy.outputs[0].shape = value.shape
            graph.append(copy)
            graph.outputs[index] = copy.outputs[0]
        seen.add(graph.outputs[index])


def _rename(argument: str, values: Sequence[ir.Value], names: Sequence[str] | None) -> None:
    if names is None:
        return
    if len(names) != len(values):
        own = ", ".join(f"'{value.name}'" for value in values)
        raise ValueError(f"{argument}: got {len(names)} names, expected {len(values)}, for {own}")
    for value, name in zip(values, names, strict=True):
        value.name = name


def _separate(graph: ir.Graph, module: torch.nn.Module, given: set[str]) -> None:
    """No two values have one name: parameters and what the user has named keep theirs."""
    kept = set(graph.initializers)
    taken = kept & given
    if taken:
        name = min(taken)
        kind = "parameter" if name in dict(module.named_parameters()) else "buffer"
        raise ValueError(f"'{name}' is the name of a {kind} of the module; choose another name")
    own = {id(value) for value in (*graph.inputs, *graph.outputs) if value.name in given}
    used = kept | given
    for value in (*graph.inputs, *(v for node in graph.all_nodes() for v in node.outputs)):
        if id(value) in own or value.name is None:
            continue
        if value.name in used:
            value.name = _fresh(value.name, used)
        used.add(value.name)


def _fresh(name: str, used: set[str]) -> str:
    count = 1
    while f"{name}_{count}" in used:
        count += 1
    return f"{name}_{count}"


def _rename_axis(model: ir.Model, old: str, new: str) -> None:
    """Call an open size by another name, also in expressions of it."""
    word = re.compile(rf"(?<!\w){re.escape(old)}(?!\w)")
    graph = model.graph
    for value in (*graph.inputs, *(v for node in graph.all_nodes() for v in node.outputs)):
        if value.shape is None or value.shape.is_static():
            continue
        value.shape = ir.Shape(
            [
                word.sub(new, dim.value) if isinstance(dim, ir.SymbolicDim) and dim.value else dim
                for dim in value.shape
            ]
        )
