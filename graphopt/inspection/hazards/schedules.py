"""Learning rates, and the steps that are planned."""

from collections.abc import Iterator, Mapping

from graphopt.inspection.facts import Level
from graphopt.inspection.hazards.hazard import Finding, Subject, hazard
from graphopt.inspection.reading.rates import schedule_steps


@hazard("schedule-too-short", "error", "warning", "note")
def schedule_too_short(subject: Subject) -> Iterator[Finding]:
    """A schedule is shorter than the planned `steps`.

    A list ends, and the next step fails; or the rate is 0, or, a note, the same from there on.
    """
    for index, group in enumerate(subject.merged.groups):
        last, schedule = schedule_steps(group.learning_rate), group.learning_rate
        kind = schedule["schedule"] if isinstance(schedule, Mapping) else ""
        if subject.steps is None or kind in ("", "WarmUpLR"):
            continue
        end = group.curve[-1][1] if group.curve else None
        if last is None and end == 0:
            last = next(step for step, rate in group.curve if rate == 0)
        if last is None or last >= subject.steps:
            continue
        planned = f"and {subject.steps} are planned"
        level: Level = "note"
        why = f"the learning rate is the same from step {last} on, {planned}"
        if kind == "list":
            level = "error"
            why = f"there are learning rates for {last} steps, {planned}: the next step fails"
        elif end == 0:
            level = "warning"
            why = f"the learning rate is 0 from step {last} on, {planned}: nothing moves any more"
        fix = "make the schedule as long as the training, or end it with a rate > 0"
        yield Finding([f"group {index}"], why, fix, level)


@hazard("zero-rate", "warning")
def zero_rate(subject: Subject) -> Iterator[Finding]:
    """A group's learning rate is 0 at every step, so that its parameters never move."""
    for index, group in enumerate(subject.merged.groups):
        if group.curve and not any(rate for _, rate in group.curve):
            yield Finding(
                [f"group {index}"],
                "the learning rate is 0 at every step: states move, and nothing else does",
                "take a rate > 0, or leave the parameters out of the optimizer, which freezes them",
            )
