"""From a forward graph with a loss to a graph that also computes the gradients."""

from graphopt.gradients._build import GradientGraph, build_gradients
from graphopt.gradients._prepare import prepare

__all__ = ["GradientGraph", "build_gradients", "prepare"]
