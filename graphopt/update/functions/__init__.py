"""The stages of the update as ONNX functions in ONNX text, one concept a file.

All work on float32 tensors, elementwise but for ``Centralize``. The names, the order of the inputs
and the attributes are a contract: a runtime kernel of the same domain and name takes precedence
over the body.
"""

from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Any

import onnx
import onnx_ir as ir
from onnx import helper, parser
from onnx_ir.passes import common as passes

from graphopt.builder import GraphBuilder
from graphopt.versions import IR_VERSION

DOMAIN = "graphopt"
VERSION = 1


def call(op: GraphBuilder, function: str, *operands: ir.Value, **attributes: Any) -> ir.Value:
    """Append a call of a function that has one output."""
    return op.node(function, operands, domain=DOMAIN, **attributes)[0]


def with_stages(
    called: Iterable[onnx.FunctionProto], stages: Iterable[str], opset: int
) -> list[onnx.FunctionProto]:
    """These functions, these stages, and the stages that either calls, by name.

    Args:
        called: Functions for a model of this opset.
        stages: Names of stages.
        opset: The version of the ONNX operators in the model.
    """
    waiting = [*called, *(parse(stage(name), opset) for name in stages)]
    loaded: dict[str, onnx.FunctionProto] = {}
    while waiting:
        function = waiting.pop()
        loaded[function.name] = function
        names = {node.op_type for node in function.node if node.domain == DOMAIN}
        waiting += [parse(stage(name), opset) for name in names - set(loaded)]
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


@cache
def stage(name: str) -> str:
    """The ONNX text of a stage."""
    return files(__name__).joinpath(f"{name}.onnxtxt").read_text(encoding="utf-8")
