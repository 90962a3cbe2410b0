"""Operators whose result does not change with a small change of their operands."""

from graphopt.operators.record import ZERO, operator

operator(
    *("And", "Not", "Or", "Xor"),
    *("ArgMax", "ArgMin", "Hardmax", "NonZero", "Shape", "Size"),
    *("Bernoulli", "Ceil", "Floor", "Multinomial", "QuantizeLinear", "Round", "Sign"),
    *("ConstantOfShape", "EyeLike", "RandomNormalLike", "RandomUniformLike"),
    *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"),
    *("IsInf", "IsNaN"),
    gradient=ZERO,
)
