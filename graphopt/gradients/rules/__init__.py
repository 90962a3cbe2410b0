"""One rule for each operator of ONNX that has a gradient; look for it by the operator's name.

| file | operators |
|---|---|
| `activation` | Relu, Gelu, HardSwish, ... |
| `arithmetic` | Add, Mul, Pow, Max, Where, ... |
| `batch_normalization` | BatchNormalization |
| `convolution` | Conv, ConvTranspose |
| `cross_entropy` | SoftmaxCrossEntropyLoss, NegativeLogLikelihoodLoss |
| `dropout` | Dropout |
| `indexing` | Gather, Scatter, Slice, Pad, ... |
| `mathematical` | Exp, Log, Sin, Erf, ... |
| `matrix` | MatMul, Gemm, Einsum |
| `normalization` | LayerNormalization, InstanceNormalization, LRN, ... |
| `pooling` | MaxPool, AveragePool, GlobalAveragePool, ... |
| `reduction` | ReduceSum, ReduceMax, CumSum, ... |
| `resize` | Resize |
| `shape` | Reshape, Transpose, Concat, Split, Expand, ... |
| `softmax` | Softmax, LogSoftmax |
| `zero` | operators whose gradient is zero: Sign, Floor, comparisons, ... |
"""

from graphopt.gradients.rules import (
    activation,
    arithmetic,
    batch_normalization,
    convolution,
    cross_entropy,
    dropout,
    indexing,
    mathematical,
    matrix,
    normalization,
    pooling,
    reduction,
    resize,
    shape,
    softmax,
    zero,
)

__all__ = [
    "activation",
    "arithmetic",
    "batch_normalization",
    "convolution",
    "cross_entropy",
    "dropout",
    "indexing",
    "mathematical",
    "matrix",
    "normalization",
    "pooling",
    "reduction",
    "resize",
    "shape",
    "softmax",
    "zero",
]
