"""Operators that have no gradient rule.

The results of most do not change with a small change of their operands.
"""

from functools import partial

from graphopt.operators.mathematical import function
from graphopt.operators.record import ALL, ZERO, operator
from graphopt.shapes import elements, filling, products

_constant = partial(operator, gradient=ZERO, flops=0)

_constant("ArgMax", "ArgMin", shape=products.arg)
_constant("ConstantOfShape", shape=filling.constant_of_shape)
_constant("EyeLike", shape=filling.of_dtype)
_constant("NonZero")
_constant("Shape", elements=0, shape=filling.shape)
_constant("Size", elements=0, shape=filling.size)
_constant(
    *("Bernoulli", "RandomNormalLike", "RandomUniformLike"), is_random=True, shape=filling.of_dtype
)
operator("Hardmax", gradient=ZERO, flops=1, shape=elements.same)
operator("Multinomial", gradient=ZERO, is_random=True)

_step = partial(function, gradient=ZERO)

_step("Ceil", "Floor", "Round", "Sign")
_step("IsInf", "IsNaN", "Not", is_boolean=True, flops=0, shape=elements.compared)

_comparison = partial(_step, broadcasts=ALL, is_boolean=True, shape=elements.compared)

_comparison("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
_comparison("And", "Or", is_commutative=True, flops=0)
_comparison("Xor", flops=0)

operator("Constant", flops=0, shape=filling.constant)
operator("Scatter", flops=0, shape=elements.same)
operator("Unique", flops=0)
operator(
    *("BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"),
    flops=0,
    shape=elements.joined,
)
operator("RotaryEmbedding", settings=(1, 2), flops=3, shape=elements.same)
operator("RandomNormal", "RandomUniform", is_random=True, flops=0, shape=filling.random)
