"""The update as ONNX functions in ONNX text, one concept a file.

All are elementwise and work on float32 tensors of any shape. The names, the order of the inputs
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


def load(names: Iterable[str], opset: int) -> list[onnx.FunctionProto]:
    """The functions of these names and those that they call, for a model of this opset."""
    wanted = list(names)
    loaded: dict[str, onnx.FunctionProto] = {}
    while wanted:
        name = wanted.pop()
        if name not in loaded:
            loaded[name] = _parse(name, opset)
            wanted += [node.op_type for node in loaded[name].node if node.domain == DOMAIN]
    return [loaded[name] for name in sorted(loaded)]


@cache
def text(name: str) -> str:
    """The ONNX text of a function."""
    return files(__name__).joinpath(f"{name}.onnxtxt").read_text(encoding="utf-8")


def _parse(name: str, opset: int) -> onnx.FunctionProto:
    function = parser.parse_function(text(name))
    for entry in function.opset_import:
        if not entry.domain:
            entry.version = opset
    return function
