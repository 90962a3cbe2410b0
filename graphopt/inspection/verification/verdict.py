"""Runs a training graph, and compares it with RMSProp in NumPy and with its own loss."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from graphopt import _checks, _runtime
from graphopt._words import shown
from graphopt.inspection.facts import OptimizerFacts
from graphopt.inspection.reading.dataflow import Value
from graphopt.inspection.reading.read_model import read
from graphopt.inspection.reading.recovered import Recovered
from graphopt.inspection.verification.claims import contradictions
from graphopt.inspection.verification.comparing import Compared
from graphopt.inspection.verification.graph_update import GraphUpdate
from graphopt.inspection.verification.runnable import NotRunError
from graphopt.inspection.verification.sequence_update import SequenceUpdate
from graphopt.inspection.verification.trials import compared
from graphopt.inspection.verification.verified_part import (
    ForwardCheck,
    GradientCheck,
    checked_part,
)
from graphopt.inspection.words import accumulation, average, loss_scale, norms
from graphopt.soundness.errors import naming

_MOST_DIFFERENCES = 4  # of a kind
_LARGEST_DEVIATION = 1e300  # JSON has no infinity


@dataclass(frozen=True)
class Verification:
    """What running a graph has shown.

    Attributes:
        optimizer: What the graph computes, in words, such as "RMSProp (centered, momentum 0.9)".
        verified: Whether the update and a step of the whole graph were run, and nothing that was
            compared differs.
        steps: How many steps were compared.
        deviation: The largest difference of an element, as a part of what rounding in float32
            explains: up to 1.0 it is the same.
        differences: What differs, or why the update or the graph could not be run.
        gradients: How the gradients were compared with differences of the loss; None if not.
        forward: How the values that a session computes were compared with those of the nodes, one
            by one in float64; None if not.
        unchecked: What could not be compared, and why.
    """

    optimizer: str
    verified: bool
    steps: int = 0
    deviation: float = 0.0
    differences: tuple[str, ...] = field(default=())
    gradients: GradientCheck | None = None
    forward: ForwardCheck | None = None
    unchecked: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Everything, for `json.dumps`."""
        return asdict(self)


def verify(
    model: Any,
    *,
    steps: int = 5,
    seed: int = 0,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    feeds: Mapping[str, Any] | None = None,
) -> Verification:
    """Run a training graph, and compare it with RMSProp in NumPy and with its own loss.

    The update is cut out of the graph. Each step starts from random parameters and states of all
    magnitudes, among them elements that the guard of a centered update keeps, and is one of those
    for which the schedules have been made. Where gradients of several steps are added up, it is an
    update or one of the steps before. The oracle is `reference.ReferenceRMSProp` in float64,
    with the hyperparameters in the metadata, or, in a graph without, those that `inspect` finds.
    What a metadata says that is not what the nodes compute is a difference too.

    A graph that computes its gradients from parameters that it holds is then run at random points
    near those, with feeds that are made up: integers in the range of what they look up; masks
    also with rows that are all False or all True. The gradients are compared with differences of
    the loss along random directions, and the loss, outputs and gradients that a session computes
    with those of the nodes, one by one, both in float64; the outputs also with those of the
    forward model that the graph carries. It ends after about half a minute.

    Args:
        model: As for `inspect`. Its update is executed.
        steps: How many steps to compare.
        seed: Of the random numbers.
        providers: The execution providers to run it on.
        feeds: What a step is fed, an array for each input by name; made up by default.

    Returns:
        Whether it is the same, and what the graph computes.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: ONNX Runtime is not installed.
        TypeError: A feed has the wrong dtype.
        ValueError: The file is no ONNX model, or is damaged; an argument is out of range; a feed
            is missing, unknown, of the wrong shape, or holds what a step does not take.

    Example:
        >>> graph = update_graph(RMSProp([Parameter("w", (3, 5))], momentum=0.9))
        >>> found = verify(graph)
        >>> found.optimizer, found.verified
        ('RMSProp (momentum 0.9)', True)
    """
    _checks.steps("steps", steps)
    _runtime.check_available(providers)
    with naming(model):
        return _verified(model, feeds, steps=steps, seed=seed, providers=providers)


def _verified(
    model: Any,
    feeds: Mapping[str, Any] | None,
    *,
    steps: int,
    seed: int,
    providers: Sequence[str],
) -> Verification:
    """What `verify` returns."""
    reading = read(model)
    nodes, said, optimizer = reading.recovered, reading.described, reading.merged
    words = in_words(optimizer.optimizer)
    reason = _why_not(nodes, reading.buffers)
    if reason is not None or nodes is None:
        return Verification(words, verified=False, differences=(reason or "",))
    found = Compared()
    try:
        update = (GraphUpdate if nodes.trained else SequenceUpdate)(reading, nodes, providers)
        claimed = nodes.optimizer if said is None else said.optimizer
        found = compared(update, claimed, nodes, steps=steps, seed=seed)
    except NotRunError as error:
        found.differences.append(str(error))
    told = contradictions(reading, nodes)
    part = checked_part(reading, nodes, seed=seed, providers=providers, feeds=feeds)
    differences = (*_first_of(told), *_first_of(found.differences), *_first_of(part.differences))
    deviation = min(found.deviation, _LARGEST_DEVIATION)
    return Verification(
        words,
        not differences,
        found.steps,
        deviation,
        differences,
        part.gradients,
        part.forward,
        (*found.unchecked, *part.unchecked),
    )


def in_words(optimizer: OptimizerFacts | None) -> str:
    """An optimizer with what it is made of.

    Example:
        >>> in_words(OptimizerFacts("RMSProp", "graph", momentum=0.9, centered=True))
        'RMSProp (centered, momentum 0.9)'
    """
    if optimizer is None:
        return "no optimizer"
    parts = [
        "centered" if optimizer.centered else "",
        f"momentum {optimizer.momentum:g}" if optimizer.momentum else "",
        "nesterov" if optimizer.nesterov else "",
        "epsilon outside the root" if optimizer.epsilon_inside_root is False else "",
        "learning rate outside the moment"
        if optimizer.momentum and optimizer.learning_rate_inside_moment is False
        else "",
        "decoupled weight decay" if optimizer.decoupled_weight_decay else "",
        f"loss scale {loss_scale(optimizer.loss_scale)}"
        if optimizer.loss_scale not in (None, 1)
        else "",
        "skips steps that overflow" if optimizer.skip_on_overflow else "",
        f"clips the norm of {norms(optimizer.clip_norm_per)} to {optimizer.clip_norm:g}"
        if optimizer.clip_norm is not None
        else "",
        f"averages parameters, {average(optimizer.average)}" if optimizer.average else "",
        f"clips gradients to {optimizer.clip_value:g}" if optimizer.clip_value is not None else "",
        accumulation(optimizer.accumulation),
        *(f"{name} {value:g}" for name, value in optimizer.others.items()),
    ]
    details = ", ".join(filter(None, parts))
    return f"{shown(optimizer.name)} ({details})" if details else shown(optimizer.name)


def _why_not(nodes: Recovered | None, buffers: Mapping[str, Value]) -> str | None:
    name = nodes.optimizer.name if nodes is not None else None
    if name is not None and name != "RMSProp":
        return f"the graph computes {name}, not RMSProp"
    if nodes is None:
        if buffers:
            return "the graph computes gradients only: its update is in the optimizer model"
        return "no optimizer was recognised in the graph"
    return None


def _first_of(differences: Sequence[str]) -> Iterator[str]:
    yield from differences[:_MOST_DIFFERENCES]
    if len(differences) > _MOST_DIFFERENCES:
        yield f"and {len(differences) - _MOST_DIFFERENCES} more"
