"""The stages of the update as ONNX functions in ONNX text, one concept a file.

All work on float32 tensors, elementwise but for ``Centralize``. The names, the order of the inputs
and the attributes are a contract: a runtime kernel of the same domain and name takes precedence
over the body.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, parser
from onnx_ir.passes import common as passes

from graphopt.builder import GraphBuilder
from graphopt.local_functions import DOMAIN, VERSION
from graphopt.versions import IR_VERSION

HEADER = '<domain: "graphopt", opset_import: ["" : 17, "graphopt" : 1]>'
"""What the ONNX text of a function begins with."""

MOST_TOGETHER = 1024
"""For how many parameters, or running statistics, a node may be; the kernels take no more."""

FLOAT64 = "Float64"
"""What the name of a function ends with that computes in float64."""

FLOAT16 = "Float16"
"""What it ends with where it takes parameters that are float16."""

_IN_FLOAT64 = (
    (r"value_float: float = @(\w+)", r"value: tensor = @\1"),
    (r"value_float: float = ([\d.]+)", r"value: tensor = double {\1}"),
    (r": float = @", ": tensor = @"),
    (r"graphopt\.(?!Mask\b)(\w+)", rf"graphopt.\1{FLOAT64}"),
    (r"\bfloat\[", "double["),
    (r"to: int = 1>", "to: int = 11>"),
)

_READY, _FOREACH, _ALL_FINITE = "Ready", "Foreach", "AllFinite"


def call(op: GraphBuilder, function: str, *operands: ir.Value, **given: float) -> ir.Value:
    """Append a call of a function that has one output."""
    name = of_type(function, op.real)
    return op.node(name, operands, domain=DOMAIN, **attributes(op, given))[0]


def of_type(function: str, real: ir.DataType) -> str:
    """The name of a function that computes in a type: float32, or float64."""
    return f"{function}{FLOAT64}" if real == ir.DataType.DOUBLE else function


def attributes(op: GraphBuilder, given: Mapping[str, float]) -> dict[str, Any]:
    """Hyperparameters as attributes: in float64 they are tensors, as attributes are float32."""
    if op.real != ir.DataType.DOUBLE:
        return dict(given)
    return {name: ir.tensor(np.array(value, np.float64)) for name, value in given.items()}


def in_float64(text: str) -> str:
    """The ONNX text of a function that computes in float64."""
    signature = re.sub(r"^(\w+)(?= [<(])", rf"\1{FLOAT64}", text, count=1, flags=re.MULTILINE)
    for pattern, replacement in _IN_FLOAT64:
        signature = re.sub(pattern, replacement, signature)
    return signature


def with_stages(
    called: Iterable[onnx.FunctionProto], stages: Iterable[str], opset: int
) -> list[onnx.FunctionProto]:
    """These functions, these stages, and the stages that either calls, by name.

    Args:
        called: Functions for a model of this opset.
        stages: Names of stages.
        opset: The version of the ONNX operators in the model.
    """
    called = list(called)
    waiting = [*called, *(parse(stage(name), opset) for name in stages)]
    given = {function.name for function in called}
    loaded: dict[str, onnx.FunctionProto] = {}
    while waiting:
        function = waiting.pop()
        loaded[function.name] = function
        names = {node.op_type for node in function.node if node.domain == DOMAIN}
        waiting += [parse(stage(name), opset) for name in names - set(loaded) - given]
    return [loaded[name] for name in sorted(loaded)]


@cache
def load_chunked(text: str, row: str, opset: int) -> onnx.FunctionProto:
    """A function that calls another one in the body of a Scan, with the body written out.

    ONNX Runtime does not find functions that are called in a subgraph of a function. The function
    is shared, and nobody changes it.

    Args:
        text: The function as ONNX text.
        row: The function that it calls, as ONNX text.
        opset: The version of the ONNX operators in the model.
    """
    function = onnx.FunctionProto()
    function.CopyFrom(parse(text, opset))
    (body,) = (a.g for node in function.node for a in node.attribute if a.HasField("g"))
    outer = [name for name in function.input if any(name in node.input for node in body.node)]
    graph = onnx.GraphProto()
    graph.CopyFrom(body)
    graph.input.extend(onnx.ValueInfoProto(name=name) for name in outer)
    model = helper.make_model(
        graph,
        functions=with_stages([parse(row, opset)], [], opset),
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)],
        ir_version=IR_VERSION,
    )
    inlined = ir.from_proto(model)
    passes.InlinePass()(inlined)
    del inlined.graph.inputs[len(body.input) :]
    body.CopyFrom(ir.to_proto(inlined).graph)
    return function


@cache
def parse(text: str, opset: int) -> onnx.FunctionProto:
    """A function, for a model of this opset; it is shared, and nobody changes it."""
    function = parser.parse_function(text)
    for entry in function.opset_import:
        if not entry.domain:
            entry.version = opset
    return function


def ready(op: GraphBuilder, values: Sequence[ir.Value]) -> ir.Value:
    """A bool scalar that is True once all values are there, on the device that computes them."""
    return op.node(f"{_READY}{len(values)}", values, domain=DOMAIN)[0]


def is_ready(name: str) -> bool:
    """Whether this is the name of a function that `ready` calls."""
    return re.fullmatch(rf"{_READY}[1-9]\d*", name) is not None


def all_finite(op: GraphBuilder, values: Sequence[ir.Value]) -> ir.Value:
    """Whether no element is infinite or NaN, a bool scalar.

    Args:
        op: Appends the nodes.
        values: Float32 tensors, one at least.
    """
    parts = [values[i : i + MOST_TOGETHER] for i in range(0, len(values), MOST_TOGETHER)]
    (finite, *others) = (call(op, f"{_ALL_FINITE}{len(part)}", *part) for part in parts)
    for other in others:
        finite = op.And(finite, other)
    return finite


def is_all_finite(name: str) -> bool:
    """Whether this is the name of a function that `all_finite` calls."""
    return re.fullmatch(rf"{_ALL_FINITE}[1-9]\d*({FLOAT64})?", name) is not None


def moved_averages(
    op: GraphBuilder,
    averages: Sequence[ir.Value],
    values: Sequence[ir.Value],
    gate: ir.Value,
    decay: float,
) -> tuple[ir.Value, ...]:
    """New moving averages, all computed by one node.

    Args:
        op: Appends the node.
        averages: The old ones, float32.
        values: What each moves to, of the same shape.
        gate: A bool scalar that they wait for.
        decay: How much of the old ones is kept.
    """
    name = f"{_FOREACH}{len(averages)}MovingAverage"
    operands = [*averages, *values, gate]
    given = attributes(op, {"decay": decay})
    outputs = len(averages)
    return op.node(of_type(name, op.real), operands, domain=DOMAIN, outputs=outputs, **given)


@cache
def stage(name: str) -> str:
    """The ONNX text of a stage."""
    own = files(__name__).joinpath(f"{name}.onnxtxt")
    if name.endswith(FLOAT64) and not own.is_file():
        return in_float64(stage(name.removesuffix(FLOAT64)))
    if match := re.fullmatch(rf"{_READY}(\d+)", name):
        return _ready(name, int(match[1]))
    if match := re.fullmatch(rf"{_ALL_FINITE}(\d+)", name):
        return _all_finite(name, int(match[1]))
    if match := re.fullmatch(rf"{_FOREACH}(\d+)MovingAverage", name):
        return _moved_averages(name, int(match[1]))
    return own.read_text(encoding="utf-8")


def _ready(name: str, count: int) -> str:
    """That sizes are not negative is found out when the values are there."""
    values, sizes = _numbered("value", count), _numbered("size", count)
    lines = [f"{size} = Size ({value})" for value, size in zip(values, sizes, strict=True)]
    lines += [f"least = Min ({', '.join(sizes)})", "zero = Constant <value_int: int = 0> ()"]
    lines += ["is_negative = Less (least, zero)", "ready = Not (is_negative)"]
    return _function(f"{name} ({', '.join(values)}) => (ready)", lines)


def _all_finite(name: str, count: int) -> str:
    """Zero times a number is zero, where that is finite, and otherwise NaN, as is every sum of it.

    IsInf and IsNaN say the same in more passes over the memory.
    """
    values, zeros, sums = (_numbered(kind, count) for kind in ("value", "zeros", "sum"))
    lines = ["zero = Constant <value_float: float = 0.0> ()"]
    for value, zeros_of, sum_of in zip(values, zeros, sums, strict=True):
        lines.append(f"{zeros_of} = Mul ({value}, zero)")
        lines.append(f"{sum_of} = ReduceSum <keepdims: int = 0> ({zeros_of})")
    lines += [f"total = Sum ({', '.join(sums)})", "is_nan = IsNaN (total)", "finite = Not (is_nan)"]
    return _function(f"{name} ({', '.join(values)}) => (finite)", lines)


def _moved_averages(name: str, count: int) -> str:
    averages, values = _numbered("average", count), _numbered("value", count)
    moved, held = _numbered("moved", count), _numbered("held", count)
    lines = []
    for index in range(count):
        operands = f"{averages[index]}, {held[index]}"
        lines.append(f"{held[index]} = Where (gate, {values[index]}, {values[index]})")
        lines.append(
            f"{moved[index]} = graphopt.MovingAverage <decay: float = @decay> ({operands})"
        )
    inputs = ", ".join([*averages, *values, "gate"])
    return _function(f"{name} <decay> ({inputs}) => ({', '.join(moved)})", lines)


def _numbered(name: str, count: int) -> list[str]:
    return [f"{name}_{index}" for index in range(count)]


def _function(signature: str, lines: Iterable[str]) -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return f"{HEADER}\n{signature}\n{{\n{body}\n}}\n"
