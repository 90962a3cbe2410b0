"""What runs in half precision on an execution provider; everything else is computed in float32.

The lists of the CPU are what ONNX Runtime 1.19 and 1.32 both run, tested by
``tests/half/test_kernels.py``. Those of CUDA are from its table of kernels, without what a training
graph has no use for.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Protocol

import onnx
import onnx_ir as ir

from graphopt import _checks
from graphopt._runtime import CPU, CUDA, provider_names
from graphopt.half.precision import DTYPES, PRECISIONS, Precision

_MOVING = (
    *("Cast", "Concat", "ConstantOfShape", "Flatten", "Gather", "GatherElements", "GatherND"),
    *("Identity", "Reshape", "Shape", "Sign", "Slice", "Split", "Squeeze", "Transpose"),
    "Unsqueeze",
)
_ON_CUDA = (
    *("Add", "Div", "Dropout", "Erf", "Exp", "Expand", "Gelu", "Gemm", "MatMul", "Max", "Min"),
    *("Mul", "Neg", "Pow", "ReduceSum", "Relu", "ScatterElements", "ScatterND", "Sigmoid"),
    *("Size", "Softmax", "Sqrt", "Sub", "Sum", "Tanh", "Tile", "Trilu", "Where", "Compress"),
)
_ON_CUDA_IN_FLOAT16 = (
    *("Abs", "ArgMax", "ArgMin", "AveragePool", "BatchNormalization", "Ceil", "Clip", "Conv"),
    *("ConvTranspose", "Cos", "DepthToSpace", "Einsum", "Elu", "Equal", "Floor"),
    *("GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "HardSigmoid"),
    *("HardSwish", "LeakyRelu", "Less", "LessOrEqual", "Log", "MaxPool", "Mod", "OneHot"),
    *("PRelu", "Pad", "Reciprocal", "ReduceMax", "ReduceMean", "ReduceMin", "Resize", "Round"),
    *("Selu", "Sin", "Softplus", "Softsign", "SpaceToDepth", "ThresholdedRelu", "TopK"),
)
KERNELS = {
    (CPU, DTYPES["float16"]): frozenset((*_MOVING, "Expand")),
    (CPU, DTYPES["bfloat16"]): frozenset(_MOVING),
    (CUDA, DTYPES["float16"]): frozenset((*_MOVING, *_ON_CUDA, *_ON_CUDA_IN_FLOAT16)),
    (CUDA, DTYPES["bfloat16"]): frozenset((*_MOVING, *_ON_CUDA)),
}
"""The operators that run on a provider in a type of 16 bits."""


class HasDtype(Protocol):
    """A `Parameter`."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def dtype(self) -> str:
        """NumPy's name of its element type."""
        ...


def check_precision(precision: Precision | None, provider: str) -> ir.DataType | None:
    """The type of 16 bits that is meant, or None for float32.

    Raises:
        TypeError: ``precision`` is no text.
        ValueError: It is another text, or it is not known what the provider runs in it.
    """
    if precision is None:
        return None
    _checks.one_of("precision", precision, PRECISIONS)
    if (provider, DTYPES[precision]) not in KERNELS:
        raise ValueError(
            f"precision: got '{precision}' with provider='{provider}', of which it is not known "
            f"which operators it runs in {precision}; build the graph for {CUDA} or for {CPU}, "
            "whose graph runs wherever float32 does"
        )
    return DTYPES[precision]


def check_float32(parameters: Iterable[HasDtype], precision: str) -> None:
    """Refuse a model that is not float32 already.

    Raises:
        ValueError: A parameter is of another dtype.
    """
    for parameter in parameters:
        if parameter.dtype != "float32":
            raise ValueError(
                f"precision: got '{precision}', but parameter '{parameter.name}' is "
                f"{parameter.dtype}: it is for models in float32; convert the model, or leave "
                "precision out, and it is computed in its own"
            )


def own_half(graph: ir.Graph, provider: str) -> ir.DataType | None:
    """Bfloat16, if a model computes in it by itself, for a provider of which is known what it runs.

    What the CPU lacks of float16, ONNX Runtime computes in float32 by itself, but not of bfloat16.
    """
    half = DTYPES["bfloat16"]
    values = (value for node in graph for value in node.outputs)
    is_used = any(value.dtype == half for value in values)
    return half if is_used and (provider, half) in KERNELS else None


def lacking(model: onnx.ModelProto, error: str, providers: Sequence[Any]) -> str:
    """What to do where a runtime lacks kernels of a graph that was built for another provider.

    Args:
        model: What it was to run.
        error: What it says.
        providers: The execution providers that it has, as a session takes them.
    """
    if "Could not find an implementation" not in error:
        return ""
    kinds = {value.type.tensor_type.elem_type for value in model.graph.input}
    if onnx.TensorProto.DOUBLE in kinds:
        return ", for it has no kernel of that in float64; convert the model to float32"
    casts = (node for node in model.graph.node if node.op_type == "Cast")
    if not any(a.i == onnx.TensorProto.BFLOAT16 for cast in casts for a in cast.attribute):
        return ""
    (first, *_) = provider_names(providers)
    return (
        "; the graph computes it in bfloat16, for another execution provider: "
        f"build it with provider='{first}'"
    )


def runs(node: ir.Node, half: ir.DataType, provider: str, opset: int) -> bool:
    """Whether a node runs on a provider in a type of 16 bits."""
    if node.domain or node.op_type not in KERNELS[provider, half]:
        return False
    return _is_allowed(node.op_type, f"tensor({half.numpy().name})", opset)


@cache
def _is_allowed(op_type: str, kind: str, opset: int) -> bool:
    """Whether ONNX has an operator for a type, in the version of an opset."""
    schema = onnx.defs.get_schema(op_type, opset)
    result, inputs = schema.outputs[0].type_str, [formal.type_str for formal in schema.inputs]
    formal = result if result in inputs or op_type == "ConstantOfShape" else inputs[0]
    for constraint in schema.type_constraints:
        if constraint.type_param_str == formal:
            return kind in constraint.allowed_type_strs
    return formal == kind
