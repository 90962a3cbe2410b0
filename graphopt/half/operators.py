"""Which operators are computed in half precision, and why: the only place that says it.

What is in none of these lists is computed in float32, and so is everything in branches and loops.
"""

from dataclasses import dataclass
from enum import Enum


class In(Enum):
    """In which precision an operator is computed, and its result goes on."""

    HALF = "half"
    """In half precision, always."""
    OPERANDS = "that of its operands"
    """In half precision, unless an operand was computed in float32 to stay so."""
    AND_BACK = "float32, and back"
    """In float32; the result goes on in half precision."""
    FLOAT32 = "float32"
    """In float32; what is computed elementwise from the result, too."""


@dataclass(frozen=True)
class Several:
    """Operators that are computed alike for one reason.

    Attributes:
        computed: In which precision.
        reason: Why.
        names: The operators.
    """

    computed: In
    reason: str
    names: tuple[str, ...]


OPERATORS = (
    Several(
        In.HALF,
        "products of matrices are nearly all of the work, and what has kernels for them adds the "
        "products up in float32",
        ("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"),
    ),
    Several(
        In.OPERANDS,
        "each result comes from few elements, and is about as large as they are",
        (
            *("Abs", "Add", "Ceil", "Celu", "Clip", "Dropout", "Elu", "Floor"),
            *("HardSigmoid", "HardSwish", "LeakyRelu", "Max", "Min", "Mul", "Neg", "PRelu"),
            *("Relu", "Round", "Selu", "Sigmoid", "Sign", "Softsign", "Sub", "Sum", "Tanh"),
            *("ThresholdedRelu", "Where"),
        ),
    ),
    Several(
        In.OPERANDS,
        "elements are moved, repeated or chosen, and stay what they are",
        (
            *("Compress", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather"),
            *("GatherElements", "GatherND", "GlobalMaxPool", "Identity", "MaxPool", "Pad"),
            *("ReduceMax", "ReduceMin", "Reshape", "ReverseSequence", "ScatterElements"),
            *("ScatterND", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "TopK"),
            *("Transpose", "Trilu", "Unsqueeze"),
        ),
    ),
    Several(
        In.OPERANDS,
        "the result is no floating-point number",
        (
            *(
                "ArgMax",
                "ArgMin",
                "Cast",
                "Equal",
                "Greater",
                "GreaterOrEqual",
                "IsInf",
                "IsNaN",
                "Less",
            ),
            *("LessOrEqual", "NonZero", "Shape", "Size"),
        ),
    ),
    Several(
        In.AND_BACK,
        "means, variances and sums over many elements lose digits, and their squares overflow; the "
        "result is about 1",
        (
            *("BatchNormalization", "GroupNormalization", "InstanceNormalization"),
            *("LayerNormalization", "LpNormalization", "LRN", "MeanVarianceNormalization"),
            *("RMSNormalization", "Softmax"),
        ),
    ),
    Several(
        In.AND_BACK,
        "a mean of many elements, which is no larger than they are",
        ("AveragePool", "GlobalAveragePool", "Resize", "Upsample"),
    ),
    Several(
        In.AND_BACK,
        "the formula or its gradient has cubes, exponentials or a division, which overflow; the "
        "result does not where the operands are ordinary (division by a constant is a product)",
        ("Div", "Gelu", "Mish", "Swish"),
    ),
    Several(
        In.FLOAT32,
        "exponentials, logarithms, powers and roots take small differences to large ones",
        (
            *("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cos", "Cosh", "Det", "Exp"),
            *("Log", "LogSoftmax", "Mod", "Pow", "Reciprocal", "Sin", "Sinh", "Softplus"),
            *("Sqrt", "Tan"),
        ),
    ),
    Several(
        In.FLOAT32,
        "1 + erf(x), as it is read, is the difference of two numbers that are nearly equal",
        ("Erf",),
    ),
    Several(
        In.FLOAT32,
        "sums of many elements lose those that are small, and may overflow",
        (
            *("CumProd", "CumSum", "GlobalLpPool", "LpPool", "Mean", "ReduceL1", "ReduceL2"),
            *("ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum"),
            "ReduceSumSquare",
        ),
    ),
    Several(
        In.FLOAT32,
        "losses are sums over the batch, whose gradients are small",
        ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"),
    ),
    Several(
        In.FLOAT32,
        "each of many steps adds to what the last one rounded",
        ("GRU", "If", "LSTM", "Loop", "RNN", "Scan"),
    ),
    Several(
        In.FLOAT32,
        "places in an image need more digits than half precision has",
        ("AffineGrid", "DeformConv", "GridSample", "RoiAlign"),
    ),
)
"""All lists."""

_COMPUTED = {name: several.computed for several in OPERATORS for name in several.names}


def computed(op_type: str, domain: str = "") -> In:
    """In which precision an operator is computed.

    Example:
        >>> computed("MatMul"), computed("Relu"), computed("SomethingNew")
        (<In.HALF: 'half'>, <In.OPERANDS: 'that of its operands'>, <In.FLOAT32: 'float32'>)
    """
    return In.FLOAT32 if domain else _COMPUTED.get(op_type, In.FLOAT32)
