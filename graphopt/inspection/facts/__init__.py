"""What an inspection finds: plain values, which become JSON as they are.

Sizes are in bytes, numbers of elements or floating-point operations; an int that is not known,
because a dimension is open or an operator unknown, is None.
"""

from graphopt.inspection.facts.costs import MemoryFacts, StageFacts, TargetFacts
from graphopt.inspection.facts.hazard import LEVELS, Hazard, Level, worst_first
from graphopt.inspection.facts.inspection import VERSION, Contents, Inspection
from graphopt.inspection.facts.optimizer import (
    GroupFacts,
    OptimizerFacts,
    ParameterFacts,
    Schedule,
    Source,
)
from graphopt.inspection.facts.structure import (
    BucketFacts,
    LayerFacts,
    ModelFacts,
    Shape,
    StateFacts,
    ValueFacts,
    static,
)

__all__ = [
    "LEVELS",
    "VERSION",
    "BucketFacts",
    "Contents",
    "GroupFacts",
    "Hazard",
    "Inspection",
    "LayerFacts",
    "Level",
    "MemoryFacts",
    "ModelFacts",
    "OptimizerFacts",
    "ParameterFacts",
    "Schedule",
    "Shape",
    "Source",
    "StageFacts",
    "StateFacts",
    "TargetFacts",
    "ValueFacts",
    "static",
    "worst_first",
]
