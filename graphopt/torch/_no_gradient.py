"""Where no gradient flows: `detach`, and what is computed under `no_grad`."""

from typing import Any, cast

import torch
from onnxscript import opset18
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node

from graphopt.marks import STOP_GRADIENT
from graphopt.torch._errors import line_of

_REGION = torch.ops.higher_order.wrap_with_set_grad_enabled
_DETACH = (torch.ops.aten.detach.default, torch.ops.aten.detach_.default)


@torch.library.custom_op("graphopt::stop_gradient", mutates_args=())
def stop_gradient(x: torch.Tensor, reason: str) -> torch.Tensor:
    """The same values, without a gradient."""
    del reason
    return x.clone()


@stop_gradient.register_fake
def _(x: torch.Tensor, reason: str) -> torch.Tensor:
    del reason
    return torch.empty_like(x)


STOP = torch.ops.graphopt.stop_gradient.default


def to_onnx(x: Any, reason: str) -> Any:
    """The node that bears the mark."""
    result: Any = opset18.Identity(x)
    result.producer().metadata_props[STOP_GRADIENT] = reason
    return result


def mark(program: ExportedProgram) -> None:
    """Put `stop_gradient` where the program stops gradients.

    Raises:
        ValueError: What is detached is changed in place.
    """
    _mark_module(program.graph_module, _moving(program))


def _moving(program: ExportedProgram) -> set[str]:
    """The names of the placeholders that may have a gradient."""
    return set(program.graph_signature.inputs_to_parameters)


def _mark_module(module: GraphModule, moving: set[str] | None) -> None:
    without: set[Node] = set()
    for node in list(module.graph.nodes):
        if node.target is _REGION:
            _inline(module, node, without)
    for node in module.graph.nodes:
        if node.op == "get_attr" and isinstance(getattr(module, node.target, None), GraphModule):
            _mark_module(getattr(module, node.target), None)
    depends = _dependent(module.graph, moving)
    for node in list(module.graph.nodes):
        if node.target in _DETACH and node not in without and node in depends:
            _stop(module.graph, node, "detach")
        elif node in without and node in depends:
            outside = [user for user in node.users if user not in without]
            if outside and _is_float(node):
                _stop(module.graph, node, "no_grad", outside)
    module.graph.lint()
    module.recompile()


def _inline(module: GraphModule, call: Node, without: set[Node]) -> None:
    """Write a region out in the graph around it; `without` gets nodes without a gradient."""
    enabled, reference, *operands = cast(tuple[Any, ...], call.args)
    assert isinstance(reference, Node)
    region = getattr(module, str(reference.target))
    placeholders = [node for node in region.graph.nodes if node.op == "placeholder"]
    copies: dict[Node, Node] = dict(zip(placeholders, operands, strict=True))
    results: tuple[Node, ...] = ()
    inner: list[Node] = []
    for node in region.graph.nodes:
        if node.op == "placeholder":
            continue
        if node.op == "output":
            results = torch.fx.map_arg(node.args[0], lambda n: copies[n])
            continue
        with module.graph.inserting_before(call):
            copies[node] = module.graph.node_copy(node, lambda n: copies[n])
        if node.op == "get_attr":
            name = f"{reference.target}_{node.target}"
            copies[node].target = name
            setattr(module, name, getattr(region, str(node.target)))
        inner.append(copies[node])
    if not enabled:
        without.update(node for node in inner if node.target is not _REGION)
    for user in list(call.users):
        result = results[cast(int, user.args[1])]
        name = user.name
        user.replace_all_uses_with(result)
        module.graph.erase_node(user)
        if result in inner and any(use.op == "output" for use in result.users):
            result.name = name
    module.graph.erase_node(call)
    if not reference.users:
        module.graph.erase_node(reference)
    for node in inner:
        if node.target is _REGION:
            _inline(module, node, without)


def _stop(graph: Graph, node: Node, reason: str, users: list[Node] | None = None) -> None:
    """Let all users of a node, or these, read it without a gradient; a detach is replaced."""
    _check_not_changed(node)
    source = node.args[0] if users is None else node
    with graph.inserting_after(node):
        stop = graph.call_function(STOP, (source, reason))
    stop.meta = {key: value for key, value in node.meta.items() if key != "custom"}
    if users is None:
        name = node.name
        node.replace_all_uses_with(stop)
        graph.erase_node(node)
        stop.name = name
        return
    name = node.name
    for user in users:
        user.replace_input_with(node, stop)
    if any(user.op == "output" for user in users):
        node.name, stop.name = f"{name}_inside", name


def _dependent(graph: Graph, moving: set[str] | None) -> set[Node]:
    """The nodes that depend on a parameter; all where it is not known."""
    found: set[Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            if moving is None or node.name in moving:
                found.add(node)
        elif any(operand in found for operand in node.all_input_nodes):
            found.add(node)
    return found


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype.is_floating_point


def _check_not_changed(node: Node) -> None:
    """Refuse that what is detached is changed in place, which would change its source as well."""
    waiting = [node]
    while waiting:
        for user in waiting.pop().users:
            schema = getattr(user.target, "_schema", None)
            first = schema.arguments[0] if schema is not None and schema.arguments else None
            if first is None or first.alias_info is None or not user.args:
                continue
            if first.alias_info.is_write and user.target not in _DETACH:
                where = line_of(user.meta.get("stack_trace"))
                raise ValueError(
                    f"a detached tensor is changed in place{where}, which changes "
                    "the tensor with the gradient too; change a copy of it: "
                    "x.detach().clone()"
                )
            waiting.append(user)
