"""Training by several processes on one machine or more, each with a part of the batch.

graphopt computes the gradients and applies them; what adds them up between the processes is MPI,
torch.distributed, or any function that does it. The guide ``docs/distributed.md`` shows how.
"""

from graphopt.distributed._data_parallel import MESSAGE, DataParallel
from graphopt.distributed._mpi import mpi
from graphopt.distributed._split import GradientGraph, gradient_graph, split
from graphopt.distributed._torch import torch_distributed

__all__ = [
    "MESSAGE",
    "DataParallel",
    "GradientGraph",
    "gradient_graph",
    "mpi",
    "split",
    "torch_distributed",
]
