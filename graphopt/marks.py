"""Marks that whoever makes a forward model leaves in its metadata, and that graphopt heeds."""

FROZEN = "graphopt.frozen"
"""Of an initializer: it is not trained; the value is the reason, such as ``buffer``."""
STOP_GRADIENT = "graphopt.stop_gradient"
"""Of a node: no gradient flows through it; the value is the reason, such as ``detach``."""
