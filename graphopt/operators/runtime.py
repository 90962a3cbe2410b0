"""Operators of ONNX Runtime, which stand in models that it has optimized or that train in it."""

from functools import partial

from graphopt.operators.record import operator

_runtime = partial(operator, domain="com.microsoft")

_runtime("FusedConv", fused="Conv", weights=(1,))
_runtime("FusedGemm", fused="Gemm", weights=(0, 1))
_runtime("FusedMatMul", fused="MatMul", weights=(0, 1))
_runtime("AdamWOptimizer", "SGDOptimizerV2", overwrites=True)
_runtime("InPlaceAccumulator", "InPlaceAccumulatorV2", overwrites=True)
