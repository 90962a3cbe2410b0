"""What running an update need not show: where its graph contradicts itself."""

from collections.abc import Iterator

from graphopt._words import shown
from graphopt.inspection.reading.conditions import condition_of
from graphopt.inspection.reading.pattern import Any, Op, match
from graphopt.inspection.reading.read_model import Reading
from graphopt.inspection.reading.recovered import Recovered
from graphopt.inspection.structure.state import state_facts
from graphopt.states import COUNTERS, OF_PARAMETERS, STATISTIC


def contradictions(reading: Reading, nodes: Recovered) -> list[str]:
    """Where metadata and nodes, or the updates of some parameters, do not say the same.

    Args:
        reading: The model.
        nodes: What its nodes say.
    """
    return [
        *reading.merged.differences,
        *(f"'{shown(name)}' is not updated" for name in reading.merged.not_updated),
        *_inconsistencies(nodes),
        *(
            f"an overflow of the gradient of '{shown(name)}' is not looked for"
            for name in nodes.unchecked
        ),
        *_unlike(nodes),
        *_moving_statistics(reading, nodes),
        *_not_recognised(reading, nodes),
    ]


def _inconsistencies(nodes: Recovered) -> Iterator[str]:
    """Parameters that are not updated like the others, so that some states are missing."""
    for trained in nodes.trained:
        name = shown(trained.facts.name)
        found = {state for state, _, _ in trained.update.states()}
        for state in OF_PARAMETERS:
            is_expected = state.is_kept(nodes.optimizer)
            # One that the update does not depend on is known by its name alone.
            there = state in found if state.symbol else state.name in trained.facts.states
            if there != is_expected:
                what = "there is no" if is_expected else "there is"
                yield f"{what} '{state.of(name)}', unlike that of other parameters"
        if trained.update.has("centered") and not trained.update.has("guarded"):
            yield f"nothing keeps elements of '{name}' whose radicand is not positive"


def _unlike(nodes: Recovered) -> Iterator[str]:
    """Parameters whose gradients are not multiplied and limited like those of others."""
    kinds = {trained.scaling.kind for trained in nodes.trained[:1]}
    for trained in nodes.trained:
        if trained.scaling.kind not in kinds:
            name = shown(trained.facts.name)
            yield f"the gradient of '{name}' is not scaled and clipped like those of others"
    if nodes.optimizer.clip_norm_per == "other":
        yield "a norm that limits gradients is not the norm of those gradients"


def _moving_statistics(reading: Reading, nodes: Recovered) -> Iterator[str]:
    """Running statistics that take in a batch that overflows."""
    if not nodes.optimizer.skip_on_overflow:
        return
    kinds = {state.input: state.kind for state in state_facts(reading)}
    for write in reading.carried:
        if kinds[write.input.name] != STATISTIC.name:
            continue
        kept = match(Op("Where", Any("on"), Any("new"), Any("old")), write.new)
        if kept is None or not condition_of(kept.value("on")).finite:
            yield f"'{shown(write.input.name)}' changes also in steps that overflow"


def _not_recognised(reading: Reading, nodes: Recovered) -> Iterator[str]:
    """What is carried beside parameters and their states, and is no statistic."""
    for state in state_facts(reading) if nodes.trained else ():
        is_counted = state.dtype.startswith("float") or state.input in COUNTERS
        if state.kind == "other" and state.output is not None and is_counted:
            yield f"how '{shown(state.input)}' changes was not recognised"
