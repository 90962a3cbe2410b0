"""graphopt turns the RMSProp optimizer into ONNX: training graphs that ONNX Runtime executes.

Here are the verbs and what users construct. What the verbs return stands where it is made:
`graph.TrainingGraph`, `feeds.Feed`, `requirement.Requirements`, `on_device.Artifacts`,
`profiling.Profile` and `inspection.Inspection`.
"""

from typing import TYPE_CHECKING

from graphopt import conversion, distributed, inspection, reference, schedules, torch, versions
from graphopt._slips import no_attribute
from graphopt.accumulation import Accumulation
from graphopt.average import ParameterAverage
from graphopt.build import training_graph, update_graph
from graphopt.builder import GraphBuilder
from graphopt.checkpoint_average import average_checkpoints
from graphopt.checkpoint_folder import Checkpoints
from graphopt.distributed import DataParallel, gradient_graph
from graphopt.graph import load
from graphopt.inspection import inspect, verify
from graphopt.kernels import register_kernels
from graphopt.loss_scale import DynamicLossScale
from graphopt.master_weights import with_master_weights
from graphopt.on_device import export_on_device
from graphopt.parameter import Parameter, Parameters, parameters
from graphopt.profiling import profile
from graphopt.requirement import requirements
from graphopt.rmsprop import RMSProp
from graphopt.session import Session

__version__ = versions.GRAPHOPT

__all__ = [
    "Accumulation",
    "Checkpoints",
    "DataParallel",
    "DynamicLossScale",
    "GraphBuilder",
    "Parameter",
    "ParameterAverage",
    "Parameters",
    "RMSProp",
    "Session",
    "__version__",
    "average_checkpoints",
    "conversion",
    "distributed",
    "export_on_device",
    "gradient_graph",
    "inspect",
    "inspection",
    "load",
    "parameters",
    "profile",
    "reference",
    "register_kernels",
    "requirements",
    "schedules",
    "torch",
    "training_graph",
    "update_graph",
    "verify",
    "with_master_weights",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Say what is meant by a name that is nearly one of these."""
        if name in _OTHER_OPTIMIZERS:
            raise AttributeError(f"graphopt has no optimizer but RMSProp, got '{name}'")
        raise no_attribute("graphopt", name, __all__)


_OTHER_OPTIMIZERS = {"Adam", "AdamW", "SGD", "Adagrad", "Adadelta", "Lion", "Momentum", "LAMB"}
