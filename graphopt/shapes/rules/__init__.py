"""The shapes that operators give, and the few numbers from which other shapes are computed."""

from graphopt.shapes.rules import (
    constants,
    elementwise,
    indexing,
    layout,
    networks,
    products,
    windows,
)
from graphopt.shapes.values import Rule

RULES: dict[str, Rule] = {
    **constants.RULES,
    **elementwise.RULES,
    **indexing.RULES,
    **layout.RULES,
    **networks.RULES,
    **products.RULES,
    **windows.RULES,
}
