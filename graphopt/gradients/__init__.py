"""From a forward graph with a loss to a graph that also computes the gradients."""

from graphopt.gradients._batch_normalization import RunningStatistic
from graphopt.gradients._build import GradientGraph, build_gradients
from graphopt.gradients._prepare import prepare

__all__ = ["GradientGraph", "RunningStatistic", "build_gradients", "prepare"]
