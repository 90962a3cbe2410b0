"""graphopt turns the RMSProp optimizer into ONNX: training graphs that ONNX Runtime executes."""

from graphopt import inspection, reference, schedules
from graphopt.build import training_graph, update_graph
from graphopt.builder import GraphBuilder
from graphopt.feeds import Feed
from graphopt.graph import TrainingGraph, load
from graphopt.inspection import Inspection, inspect, verify
from graphopt.kernels import register_kernels
from graphopt.on_device import Artifacts, export_on_device
from graphopt.parameter import Parameter, Parameters, parameters
from graphopt.profiling import Profile, profile
from graphopt.requirement import Requirements, requirements
from graphopt.rmsprop import RMSProp
from graphopt.session import Session

__all__ = [
    "Artifacts",
    "Feed",
    "GraphBuilder",
    "Inspection",
    "Parameter",
    "Parameters",
    "Profile",
    "RMSProp",
    "Requirements",
    "Session",
    "TrainingGraph",
    "export_on_device",
    "inspect",
    "inspection",
    "load",
    "parameters",
    "profile",
    "reference",
    "register_kernels",
    "requirements",
    "schedules",
    "training_graph",
    "update_graph",
    "verify",
]
