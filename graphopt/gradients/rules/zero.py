"""Operators whose result does not change with a small change of their operands."""

from graphopt.gradients.backward import ZERO_GRADIENT

ZERO_GRADIENT.update(
    (
        *("And", "Not", "Or", "Xor"),
        *("ArgMax", "ArgMin", "Hardmax", "NonZero", "OneHot", "Shape", "Size", "Unique"),
        *("Bernoulli", "Ceil", "Floor", "Multinomial", "Round", "Sign"),
        *("ConstantOfShape", "EyeLike", "RandomNormalLike", "RandomUniformLike"),
        *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"),
        *("IsInf", "IsNaN"),
    )
)
