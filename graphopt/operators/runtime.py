"""Operators of ONNX Runtime, which stand in models that it has optimized or that train in it."""

from functools import partial

from graphopt.operators import flops
from graphopt.operators.flops import Outputs
from graphopt.operators.record import operator
from graphopt.shapes import elements, indexing, layout, networks, products, windows
from graphopt.shapes.node import Node
from graphopt.shapes.values import NO_DTYPE

operator("SimplifiedLayerNormalization", flops=4, shape=networks.layer_normalization)

_runtime = partial(operator, domain="com.microsoft")
_like_first = partial(_runtime, shape=elements.same)

_runtime("FusedConv", fused="Conv", weights=(1,))
_runtime("FusedGemm", fused="Gemm", weights=(0, 1))
_runtime("FusedMatMul", fused="MatMul", weights=(0, 1), flops=flops.matmul, shape=products.matmul)
_runtime("BiasGelu", "FastGelu", "Gelu", "QuickGelu", flops=flops.elementwise, shape=elements.same)
_runtime("BatchNormInternal", flops=7, shape=networks.batch_normalization)
_runtime("ReduceSumTraining", flops=flops.reducing(), shape=products.reduce)
_runtime("Scale", flops=1, shape=elements.same)
_runtime("SoftmaxCrossEntropyLossInternal", flops=5, shape=networks.cross_entropy)
_runtime("ConcatTraining", flops=0, shape=layout.concat)
_runtime("SplitTraining", flops=0, shape=layout.split)
_runtime("BroadcastGradientArgs", "PassThrough", "View", "YieldOp", flops=0)

_runtime("InPlaceAccumulatorV2", overwrites=True, flops=1, shape=networks.accumulate)
_runtime("AdamWOptimizer", "InPlaceAccumulator", "SGDOptimizerV2", overwrites=True)


def _conv_grad(node: Node, outputs: Outputs) -> int | None:
    """Each of the two products costs what the convolution does."""
    result = node.input(0).elements
    wanted = [info.dtype != NO_DTYPE for info in outputs]
    products = flops.times(2 * sum(wanted[:2]), result, *node.shape(2)[1:])
    return flops.plus(products, result if len(wanted) > 2 else 0)


operator("AveragePoolGrad", "MaxPoolGrad", flops=1)
_runtime("AveragePoolGrad", "MaxPoolGrad", flops=1)
_like_first("DropoutGrad", "LeakyReluGrad", "ReluGrad", flops=1)
_runtime("BatchNormalizationGrad", flops=10, shape=elements.like(1, 2, 2))
_like_first("BiasGeluGrad_dX", "FastGeluGrad", "GeluGrad", flops=8)
_runtime("ConvGrad", flops=_conv_grad, shape=windows.conv_grad)
_runtime("DivGrad", flops=4, shape=elements.like(1, 2))
_like_first("LogSoftmaxGrad", "LogSoftmaxGrad_13", "SoftmaxGrad", "SoftmaxGrad_13", flops=4)
_runtime("GatherElementsGrad", flops=1, shape=indexing.of_shape_input(1, 0))
_runtime("GatherGrad", flops=flops.per_element(1, index=2), shape=indexing.of_shape_input(0, 2))
_runtime("LayerNormalizationGrad", flops=12, shape=elements.like(1, 2, 2))
_like_first("QuickGeluGrad", flops=6)
_like_first("SigmoidGrad", "TanhGrad", flops=3)
_runtime("SliceGrad", flops=0, shape=indexing.of_shape_input(1, 0))
_like_first("ZeroGradient", flops=0)
_runtime(
    "SoftmaxCrossEntropyLossGrad",
    "SoftmaxCrossEntropyLossInternalGrad",
    flops=flops.per_element(3, index=1),
    shape=elements.like(1),
)
