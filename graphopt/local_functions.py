"""Functions that a graph has of its own, and the domain of all functions of graphopt."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir

from graphopt.builder import GraphBuilder

DOMAIN = "graphopt"
VERSION = 1

_KEY = "graphopt.local_functions"
_NAMES = "graphopt.names_of_bodies"


def add_local_function(graph: ir.Graph, function: onnx.FunctionProto) -> None:
    """Let the model that is made of a graph have this function, once."""
    graph.opset_imports.setdefault(function.domain, VERSION)
    _functions(graph)[function.domain, function.name] = function


def local_functions(graph: ir.Graph) -> Iterable[onnx.FunctionProto]:
    """The functions that were added to a graph."""
    return _functions(graph).values()


def take_bodies(graph: ir.Graph) -> dict[str, onnx.FunctionProto]:
    """The functions that `add_body` has added to a graph, by name; it has them no more."""
    functions = _functions(graph)
    graph.meta.pop(_NAMES, None)
    keys = [key for key in functions if key[0] == DOMAIN]
    return {name: functions.pop((domain, name)) for domain, name in keys}


def may_run_as_kernel(op: GraphBuilder, *values: ir.Value) -> bool:
    """Whether a function of these values may: of float32, and not called in a graph in a node."""
    return {value.dtype for value in values} == {ir.DataType.FLOAT} and not op.is_inside


def add_body(
    op: GraphBuilder,
    name: str,
    operands: Sequence[ir.Value],
    emit: Callable[..., ir.Value | Sequence[ir.Value]],
    of: Hashable,
    attributes: Iterable[str] = (),
) -> str:
    """Let the model have a function of the domain `DOMAIN`, whose body is for these operands.

    Args:
        op: Appends to a graph that is in no node.
        name: What it is called; a number follows, so that each body has another name.
        operands: Their dtypes and shapes are those of the body's inputs.
        emit: Appends the body: ``emit(op, *inputs)`` returns its results.
        of: All that a body of this name depends on. Where it is the same, so is the function, and
            its body is not made again.
        attributes: The names of those that calls have, which the body does not read: a kernel of
            that name reads them, which is for all operands.

    Returns:
        The name, with its number.
    """
    names: dict[Hashable, str] = op.graph.meta.setdefault(_NAMES, {})
    if (name, of) in names:
        return names[name, of]
    inputs = [ir.val(f"input_{n}", v.dtype, v.shape) for n, v in enumerate(operands)]
    body = ir.Graph(inputs, [], nodes=[], opset_imports={"": op.opset}, name=name)
    results = emit(GraphBuilder(body), *inputs)
    body.outputs.extend([results] if isinstance(results, ir.Value) else results)
    _write_constants(body)
    function = ir.serde.serialize_function(ir.Function(DOMAIN, "", graph=body, attributes=()))
    del function.value_info[:], function.metadata_props[:]  # not all versions know them
    function.attribute.extend(attributes)
    function.name = name + str(_number(op.graph, name, function))
    add_local_function(op.graph, function)
    names[name, of] = function.name
    return function.name


def call_body(
    op: GraphBuilder,
    name: str,
    operands: Sequence[ir.Value],
    emit: Callable[..., ir.Value | Sequence[ir.Value]],
    of: Hashable,
    outputs: int = 1,
    **attributes: Any,
) -> tuple[ir.Value, ...]:
    """The float32 results of a function, which `add_body` adds, with these attributes."""
    name = add_body(op, name, operands, emit, of, attributes)
    results = op.node(name, operands, domain=DOMAIN, outputs=outputs, **attributes)
    for value in results:
        value.dtype = ir.DataType.FLOAT
    return results


def become_call(
    op: GraphBuilder,
    node: ir.Node,
    name: str,
    operands: Sequence[ir.Value],
    attributes: Mapping[str, ir.Attr] | None = None,
) -> None:
    """Let a node call a function of the domain `DOMAIN`; others know its results."""
    node.op_type, node.domain = name, DOMAIN
    op.graph.opset_imports[DOMAIN] = VERSION
    node.attributes.clear()
    node.attributes.update(attributes or {})
    node.resize_inputs(len(operands))
    for index, value in enumerate(operands):
        node.replace_input_with(index, value)


def _functions(graph: ir.Graph) -> dict[tuple[str, str], onnx.FunctionProto]:
    functions: dict[tuple[str, str], onnx.FunctionProto] = graph.meta.setdefault(_KEY, {})
    return functions


def _write_constants(body: ir.Graph) -> None:
    """A function has no initializers: they become nodes."""
    first = next(iter(body), None)
    for value in list(body.initializers.values()):
        assert value.const_value is not None
        node = ir.node("Constant", [], {"value": ir.AttrTensor("value", value.const_value)})
        node.outputs[0].name = value.name
        body.initializers.pop(str(value.name))
        ir.convenience.replace_all_uses_with(value, node.outputs[0])
        if first is None:
            body.append(node)
        else:
            body.insert_before(first, node)


def _number(graph: ir.Graph, name: str, function: onnx.FunctionProto) -> int:
    """That of the function with this body, or the next one."""
    numbers = {one.name.removeprefix(name): one for one in local_functions(graph)}
    others = {int(number): one for number, one in numbers.items() if number.isdecimal()}
    for number, other in others.items():
        function.name = other.name
        if other == function:
            return number
    return max(others, default=0) + 1
