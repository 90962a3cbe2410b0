"""Where a training step goes: a few steps under ONNX Runtime's own profiler, rolled up.

The profiler times the nodes of the graph that runs, which is not the graph that was given: the
runtime inlines functions, fuses nodes, changes layouts and gives out names of its own. It saves
that graph too. Each of its nodes is traced back to the node that it was made from, and through it
to a stage of the step, and in the update to a bucket.
"""

from graphopt.profiling._profile import profile
from graphopt.profiling.results import (
    BucketTime,
    GroupTime,
    ModuleTime,
    NodeTime,
    OperatorTime,
    Profile,
    StageTime,
)

__all__ = [
    "BucketTime",
    "GroupTime",
    "ModuleTime",
    "NodeTime",
    "OperatorTime",
    "Profile",
    "StageTime",
    "profile",
]
