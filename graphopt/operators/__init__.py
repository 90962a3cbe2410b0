"""One record for each ONNX operator; look for it by the operator's name.

| file | operators |
|---|---|
| `activation` | Relu, Gelu, HardSwish, ... |
| `arithmetic` | Add, Mul, Pow, Max, Where, ... |
| `batch_normalization` | BatchNormalization |
| `control_flow` | If, Loop |
| `convolution` | Conv, ConvTranspose, Col2Im |
| `cross_entropy` | SoftmaxCrossEntropyLoss, NegativeLogLikelihoodLoss |
| `cumulative` | CumSum, CumProd, Range |
| `deformable` | DeformConv |
| `dropout` | Dropout |
| `fourier` | DFT, STFT |
| `indexing` | Gather, Slice, Pad, ... |
| `mathematical` | Exp, Log, Sin, Erf, ... |
| `matrix` | MatMul, Gemm, Einsum, Det |
| `normalization` | LayerNormalization, InstanceNormalization, LRN, ... |
| `pooling` | MaxPool, AveragePool, GlobalAveragePool, ... |
| `preprocessing` | those of ai.onnx.ml: Scaler, Normalizer, ... |
| `quantization` | QuantizeLinear, DequantizeLinear, ... |
| `recurrent` | LSTM, GRU, RNN |
| `reduction` | ReduceSum, ReduceMax, ... |
| `regions` | RoiAlign, MaxRoiPool |
| `resize` | Resize |
| `runtime` | those of ONNX Runtime: FusedConv, InPlaceAccumulatorV2, ... |
| `sampling` | GridSample, AffineGrid |
| `scan` | Scan |
| `scatter` | ScatterElements, ScatterND, TensorScatter |
| `shape` | Reshape, Transpose, Concat, Split, Expand, ... |
| `softmax` | Softmax, LogSoftmax |
| `zero` | those without a rule: Sign, Floor, comparisons, ... |
"""

from graphopt.operators import (  # noqa: F401 - each file declares its records
    activation,
    arithmetic,
    batch_normalization,
    control_flow,
    convolution,
    cross_entropy,
    cumulative,
    deformable,
    dropout,
    fourier,
    indexing,
    mathematical,
    matrix,
    normalization,
    pooling,
    preprocessing,
    quantization,
    recurrent,
    reduction,
    regions,
    resize,
    runtime,
    sampling,
    scan,
    scatter,
    shape,
    softmax,
    zero,
)
from graphopt.operators.record import (
    ALL,
    OPERATORS,
    ZERO,
    Moves,
    NoGradient,
    Operator,
    carries_gradient,
    name_of,
    of,
)

__all__ = [
    "ALL",
    "OPERATORS",
    "ZERO",
    "Moves",
    "NoGradient",
    "Operator",
    "carries_gradient",
    "name_of",
    "of",
]
