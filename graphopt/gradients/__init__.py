"""From a forward graph with a loss to a graph that also computes the gradients."""

from graphopt.gradients._batch_normalization import RunningStatistic
from graphopt.gradients._build import GradientGraph, build_gradients
from graphopt.gradients._given import given_gradients
from graphopt.gradients._prepare import convert_opset, prepare

__all__ = [
    "GradientGraph",
    "RunningStatistic",
    "build_gradients",
    "convert_opset",
    "given_gradients",
    "prepare",
]
