"""Marks that whoever makes a forward model leaves in its metadata, and that graphopt heeds."""

FROZEN = "graphopt.frozen"
"""Of an initializer: it is not trained; the value is the reason, such as ``buffer``."""
STOP_GRADIENT = "graphopt.stop_gradient"
"""Of a node: no gradient flows through it; the value is the reason, such as ``detach``."""
UNUSED = "graphopt.unused"
"""Of a model: the parameters of its PyTorch module that it does not read, a list in JSON."""
