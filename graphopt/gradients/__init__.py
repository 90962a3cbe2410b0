"""From a forward graph with a loss to a graph that also computes the gradients."""

from graphopt.gradients._build import GradientGraph, build_gradients
from graphopt.gradients._prepare import RunningStatistic, prepare

__all__ = ["GradientGraph", "RunningStatistic", "build_gradients", "prepare"]
