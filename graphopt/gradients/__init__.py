"""From a forward graph with a loss to a graph that also computes the gradients."""

from graphopt.gradients._differentiate import differentiate
from graphopt.gradients._fusions import avoid_fusions
from graphopt.gradients._given import given_gradients
from graphopt.gradients._graph import GradientGraph, initializers_to_inputs
from graphopt.gradients._opset import convert_opset
from graphopt.gradients._prepare import prepare
from graphopt.gradients._random_numbers import (
    compute_random_numbers,
    write_functions_that_draw,
)
from graphopt.gradients._recompute import MEMORY, Memory
from graphopt.gradients._sequences import write_tensors
from graphopt.gradients._straight_through import check_rounding, with_straight_through
from graphopt.operators.rewriting import RunningStatistic

__all__ = [
    "MEMORY",
    "GradientGraph",
    "Memory",
    "RunningStatistic",
    "avoid_fusions",
    "check_rounding",
    "compute_random_numbers",
    "convert_opset",
    "differentiate",
    "given_gradients",
    "initializers_to_inputs",
    "prepare",
    "with_straight_through",
    "write_functions_that_draw",
    "write_tensors",
]
