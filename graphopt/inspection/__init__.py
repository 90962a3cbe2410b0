"""Looks into training graphs and checkpoints, without running them.

`inspect` reads the optimizer, its parameters, state, costs and hazards; `verify` runs the update
and compares it with NumPy; `diff` says what is different between two graphs; `inspect_checkpoint`
and `diff_checkpoints` look at the state that training has reached.
"""

from graphopt.inspection._inspect import inspect
from graphopt.inspection.checkpoints import diff_checkpoints, inspect_checkpoint
from graphopt.inspection.comparison.differences import diff
from graphopt.inspection.facts import Hazard, Inspection
from graphopt.inspection.verification.verdict import Verification, verify

compare_checkpoints = diff_checkpoints  # its older name

__all__ = [
    "Hazard",
    "Inspection",
    "Verification",
    "diff",
    "diff_checkpoints",
    "inspect",
    "inspect_checkpoint",
    "verify",
]
