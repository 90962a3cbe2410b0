"""Operators whose result does not change with a small change of their operands."""

from functools import partial

from graphopt.operators.mathematical import function
from graphopt.operators.record import ALL, ZERO, operator

_constant = partial(operator, gradient=ZERO)

_constant("ArgMax", "ArgMin", "ConstantOfShape", "EyeLike", "Hardmax", "NonZero")
_constant("Shape", "Size", elements=0)
_constant("QuantizeLinear", settings=(1,))
_constant("Bernoulli", "Multinomial", "RandomNormalLike", "RandomUniformLike", is_random=True)
function("Ceil", "Floor", "Round", "Sign", gradient=ZERO)
function("IsInf", "IsNaN", "Not", gradient=ZERO, is_boolean=True)

_comparison = partial(function, gradient=ZERO, broadcasts=ALL, is_boolean=True)

_comparison("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "Xor")
_comparison("And", "Or", is_commutative=True)

operator("Constant")
operator("DequantizeLinear", settings=(1,))
operator("RandomNormal", "RandomUniform", is_random=True)
