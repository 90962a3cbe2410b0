"""The stages of the update as ONNX functions in ONNX text, one concept a file.

All work on float32 tensors, elementwise but for ``Centralize``. The names, the order of the inputs
and the attributes are a contract: a runtime kernel of the same domain and name takes precedence
over the body.
"""

from collections.abc import Iterable
from functools import cache
from importlib.resources import files

import onnx
from onnx import parser

DOMAIN = "graphopt"
VERSION = 1


def load(texts: Iterable[str], opset: int) -> list[onnx.FunctionProto]:
    """These functions and the stages that they call, for a model of this opset.

    Args:
        texts: Functions as ONNX text.
        opset: The version of the ONNX operators in the model.
    """
    waiting = [_parse(text, opset) for text in texts]
    loaded: dict[str, onnx.FunctionProto] = {}
    while waiting:
        function = waiting.pop()
        loaded[function.name] = function
        called = {node.op_type for node in function.node if node.domain == DOMAIN}
        waiting += [_parse(stage(name), opset) for name in called - set(loaded)]
    return [loaded[name] for name in sorted(loaded)]


@cache
def stage(name: str) -> str:
    """The ONNX text of a stage."""
    return files(__name__).joinpath(f"{name}.onnxtxt").read_text(encoding="utf-8")


def _parse(text: str, opset: int) -> onnx.FunctionProto:
    function = parser.parse_function(text)
    for entry in function.opset_import:
        if not entry.domain:
            entry.version = opset
    return function
