"""What goes wrong with a training graph, or may: one function a hazard, in a file by subject."""

from graphopt.inspection.facts import Hazard, worst_first
from graphopt.inspection.hazards import (
    hyperparameters,
    metadata,
    mode,
    parameters,
    rounding,
    schedules,
    state,
    target,
)
from graphopt.inspection.hazards.hazard import Declared, Subject

_SUBJECTS = (metadata, parameters, state, hyperparameters, schedules, target, rounding, mode)

DECLARED = tuple(
    declared
    for subject in _SUBJECTS
    for declared in vars(subject).values()
    if isinstance(declared, Declared)
)
"""All hazards that are looked for."""


def hazards(subject: Subject) -> tuple[Hazard, ...]:
    """All that are found, the worst first."""
    return worst_first(hazard for declared in DECLARED for hazard in declared.found(subject))
