"""Hyperparameters with which an update breaks down."""

from collections.abc import Iterator, Mapping

import numpy as np

from graphopt.inspection.hazards.hazard import Finding, Subject, hazard
from graphopt.inspection.reading.recovered import Recovered


@hazard("unstable", "warning")
def unstable(subject: Subject) -> Iterator[Finding]:
    """A decay or momentum is 1 or more."""
    facts = subject.merged.optimizer
    if facts is None or subject.recovered is None:
        return
    for name, value in (("decay", facts.decay), ("momentum", facts.momentum)):
        if value is not None and value >= 1:
            yield Finding(
                [name],
                f"{name} is {value:g}: what it averages never forgets, and grows",
                f"take a {name} below 1",
            )


@hazard("epsilon-too-small", "error", "warning")
def epsilon_too_small(subject: Subject) -> Iterator[Finding]:
    """There is no epsilon, or it is 0 or no normal number in the dtype of the arithmetic."""
    recovered = subject.recovered
    if recovered is None or recovered.optimizer.name != "RMSProp":
        return
    said = subject.merged.optimizer.epsilon if subject.merged.optimizer else None
    epsilon = recovered.optimizer.epsilon if said is None else said
    if epsilon is None:
        return
    for dtype, buckets in _arithmetic(recovered).items():
        smallest = float(np.finfo(dtype).smallest_normal)
        with np.errstate(under="ignore"):
            kept = float(np.dtype(dtype).type(epsilon))
        fix = f"take an epsilon of {smallest:.2g} or more"
        if epsilon == 0:
            why = "there is no epsilon: a gradient of 0 divides by 0"
            fix = "take a larger epsilon, or leave out the tool that took it for 0 and away"
        elif kept == 0:
            why = f"epsilon {epsilon:g} is 0 in {dtype}: a gradient of 0 divides by 0"
        elif kept < smallest:
            why = (
                f"epsilon {epsilon:g} is no normal number in {dtype}, and 0 where the processor "
                "rounds such numbers to 0"
            )
        else:
            continue
        yield Finding(buckets, why, fix, "warning" if kept else "error")


def _arithmetic(recovered: Recovered) -> Mapping[str, list[str]]:
    """The buckets by the dtype in which epsilon is added."""
    found: dict[str, list[str]] = {}
    for bucket, update in recovered.updates.items():
        state = update.value("s")
        dtype = (state.dtype if state is not None else None) or "float32"
        found.setdefault(dtype if dtype in ("float16", "float64") else "float32", []).append(bucket)
    return found or {"float32": ["epsilon"]}
