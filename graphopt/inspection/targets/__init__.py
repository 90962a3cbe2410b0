"""What runs a model: releases and execution providers of ONNX Runtime, and its training API."""

from graphopt.inspection.targets.releases import Target, exceeds, parse_target
from graphopt.inspection.targets.support import targets

__all__ = ["Target", "exceeds", "parse_target", "targets"]
