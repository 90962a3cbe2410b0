"""Operators that have no gradient rule.

The results of most do not change with a small change of their operands.
"""

from functools import partial

from graphopt.operators.mathematical import function
from graphopt.operators.record import ALL, ZERO, operator

_constant = partial(operator, gradient=ZERO, flops=0)

_constant("ArgMax", "ArgMin", "ConstantOfShape", "EyeLike", "NonZero")
_constant("Shape", "Size", elements=0)
_constant("Bernoulli", "RandomNormalLike", "RandomUniformLike", is_random=True)
operator("Hardmax", gradient=ZERO, flops=1)
operator("Multinomial", gradient=ZERO, is_random=True)
operator("QuantizeLinear", gradient=ZERO, settings=(1,))

_step = partial(function, gradient=ZERO)

_step("Ceil", "Floor", "Round", "Sign")
_step("IsInf", "IsNaN", "Not", is_boolean=True, flops=0)

_comparison = partial(_step, broadcasts=ALL, is_boolean=True)

_comparison("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
_comparison("And", "Or", is_commutative=True, flops=0)
_comparison("Xor", flops=0)

operator("Constant", "Range", "Scatter", "Unique", flops=0)
operator("BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", flops=0)
operator("DequantizeLinear", settings=(1,))
operator("RandomNormal", "RandomUniform", is_random=True, flops=0)
