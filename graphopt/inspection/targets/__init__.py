"""What runs a model: releases and execution providers of ONNX Runtime, and its training API."""

from graphopt.inspection.targets.chosen import parse_target
from graphopt.inspection.targets.providers import Provider, documented
from graphopt.inspection.targets.releases import Target, exceeds
from graphopt.inspection.targets.support import targets

__all__ = ["Provider", "Target", "documented", "exceeds", "parse_target", "targets"]
