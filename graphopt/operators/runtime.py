"""Operators of ONNX Runtime, which stand in models that it has optimized or that train in it."""

from functools import partial

from graphopt.operators import flops
from graphopt.operators.flops import Outputs
from graphopt.operators.record import operator
from graphopt.shapes.values import NO_DTYPE, Node

operator("SimplifiedLayerNormalization", flops=4)

_runtime = partial(operator, domain="com.microsoft")

_runtime("FusedConv", fused="Conv", weights=(1,))
_runtime("FusedGemm", fused="Gemm", weights=(0, 1))
_runtime("FusedMatMul", fused="MatMul", weights=(0, 1), flops=flops.matmul)
_runtime("BiasGelu", "FastGelu", "Gelu", "QuickGelu", flops=flops.elementwise)
_runtime("BatchNormInternal", flops=7)
_runtime("ReduceSumTraining", flops=flops.reducing())
_runtime("Scale", flops=1)
_runtime("SoftmaxCrossEntropyLossInternal", flops=5)
_runtime("BroadcastGradientArgs", "ConcatTraining", "PassThrough", "SplitTraining", flops=0)
_runtime("View", "YieldOp", flops=0)

_runtime("InPlaceAccumulatorV2", overwrites=True, flops=1)
_runtime("AdamWOptimizer", "InPlaceAccumulator", "SGDOptimizerV2", overwrites=True)


def _conv_grad(node: Node, outputs: Outputs) -> int | None:
    """Each of the two products costs what the convolution does."""
    result = node.input(0).elements
    wanted = [info.dtype != NO_DTYPE for info in outputs]
    products = flops.times(2 * sum(wanted[:2]), result, *node.shape(2)[1:])
    return flops.plus(products, result if len(wanted) > 2 else 0)


operator("AveragePoolGrad", "MaxPoolGrad", flops=1)
_runtime("AveragePoolGrad", "DropoutGrad", "LeakyReluGrad", "MaxPoolGrad", "ReluGrad", flops=1)
_runtime("BatchNormalizationGrad", flops=10)
_runtime("BiasGeluGrad_dX", "FastGeluGrad", "GeluGrad", flops=8)
_runtime("ConvGrad", flops=_conv_grad)
_runtime("DivGrad", "LogSoftmaxGrad", "LogSoftmaxGrad_13", "SoftmaxGrad", "SoftmaxGrad_13", flops=4)
_runtime("GatherElementsGrad", flops=1)
_runtime("GatherGrad", flops=flops.per_element(1, index=2))
_runtime("LayerNormalizationGrad", flops=12)
_runtime("QuickGeluGrad", flops=6)
_runtime("SigmoidGrad", "TanhGrad", flops=3)
_runtime("SliceGrad", "ZeroGradient", flops=0)
_runtime(
    "SoftmaxCrossEntropyLossGrad",
    "SoftmaxCrossEntropyLossInternalGrad",
    flops=flops.per_element(3, index=1),
)
