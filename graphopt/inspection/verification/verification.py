"""Runs the update of a graph, and compares it with RMSProp in NumPy."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import onnx

from graphopt import _checks
from graphopt.inspection.facts import OptimizerFacts, Schedule
from graphopt.inspection.opening.untrusted import opened
from graphopt.inspection.reading import rates
from graphopt.inspection.reading.dataflow import Dataflow, Value
from graphopt.inspection.reading.merged import Merged, merged
from graphopt.inspection.reading.metadata import Described, described
from graphopt.inspection.reading.recovered import Recovered, Trained, recovered
from graphopt.inspection.reading.writes import Write, gradient_buffers, writes
from graphopt.inspection.structure.state import state_facts
from graphopt.inspection.verification.batches import PARAMETER, Array, Batch, Updated, batches
from graphopt.inspection.verification.graph_update import GraphUpdate, NotRunError, State
from graphopt.inspection.verification.oracle import Oracle
from graphopt.inspection.verification.sequence_update import SequenceUpdate
from graphopt.inspection.words import shown

# What is fed where the caller gives learning rates; each input gets another one.
_FED_RATES = (0.01, 0.02, 0.005, 0.03)
_MOST_DIFFERENCES = 4  # of a kind
# Elements whose mean gradient is too large for their mean square, so that the guard keeps them.
_GUARDED_SHARE = 0.1
_GUARDED_MEAN = 4.0
_SMALLEST_MEAN_SQUARE = 1e-12
_LARGEST_PARAMETER = 1e4
_LARGEST_DEVIATION = 1e300  # JSON has no infinity
_LARGEST_HALF = 60_000.0


@dataclass(frozen=True)
class Verification:
    """What running the update has shown.

    Attributes:
        optimizer: What the graph computes, in words, such as "RMSProp (centered, momentum 0.9)".
        verified: Whether it was run and is the same; False also where it could not be run.
        steps: How many steps were compared.
        deviation: The largest difference of an element, as a part of what rounding in float32
            explains: up to 1.0 it is the same.
        differences: What differs, or why it could not be run.
    """

    optimizer: str
    verified: bool
    steps: int = 0
    deviation: float = 0.0
    differences: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Everything, for `json.dumps`."""
        return asdict(self)


def verify(
    model: Any,
    *,
    steps: int = 5,
    seed: int = 0,
    providers: Sequence[str] = ("CPUExecutionProvider",),
) -> Verification:
    """Run the update of a training graph on random gradients, and compare it with RMSProp in NumPy.

    The update is cut out of the graph. Each step starts from random parameters and states of all
    magnitudes, among them elements that the guard of a centered update keeps, and is one of those
    for which the schedules have been made. The oracle is `reference.ReferenceRMSProp` in float64,
    with the hyperparameters in the metadata, or, in a graph without, those that `inspect` finds.
    What a metadata says that is not what the nodes compute is a difference too.

    Args:
        model: As for `inspect`. Its update is executed.
        steps: How many steps to compare.
        seed: Of the random numbers.
        providers: The execution providers to run it on.

    Returns:
        Whether it is the same, and what the graph computes.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: ONNX Runtime is not installed.
        ValueError: The file is no ONNX model, or is damaged; an argument is out of range.

    Example:
        >>> graph = update_graph(RMSProp([Parameter("w", (3, 5))], momentum=0.9))
        >>> found = verify(graph)
        >>> found.optimizer, found.verified
        ('RMSProp (momentum 0.9)', True)
    """
    _checks.steps("steps", steps)
    proto = opened(model)
    flow = Dataflow(proto)
    carried = writes(proto, flow)
    try:
        said = described(proto)
    except ValueError:  # the metadata is damaged; the nodes are what runs
        said = None
    nodes = recovered(flow, carried, said)
    optimizer = merged(said, nodes)
    words = in_words(optimizer.optimizer)
    reason = _why_not(nodes, gradient_buffers(flow))
    if reason is not None or nodes is None:
        return Verification(words, verified=False, differences=(reason or "",))
    told = [
        *_contradictions(optimizer),
        *_inconsistencies(nodes),
        *_not_recognised(carried, nodes),
    ]
    random = np.random.default_rng(seed)
    found = _Compared()
    try:
        claimed = nodes.optimizer if said is None else said.optimizer
        update = _update(proto, flow, carried, nodes, said, providers)
        found = _Comparison(update, claimed, random).run(steps, _horizon(nodes, steps))
    except NotRunError as error:
        found.differences.append(str(error))
    differences = (*_first_of(told), *_first_of(found.differences))
    deviation = min(found.deviation, _LARGEST_DEVIATION)
    return Verification(words, not differences, found.steps, deviation, differences)


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
        f"loss scale {optimizer.loss_scale:g}" if (optimizer.loss_scale or 1) != 1 else "",
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


def _contradictions(optimizer: Merged) -> list[str]:
    """Where the metadata says something else than the nodes."""
    return [
        *optimizer.differences,
        *(f"'{shown(name)}' is not updated" for name in optimizer.not_updated),
    ]


def _inconsistencies(nodes: Recovered) -> Iterator[str]:
    """Parameters that are not updated like the others, so that some states are missing."""
    optimizer = nodes.optimizer
    expected = {
        "mean_square": True,
        "mean_grad": bool(optimizer.centered),
        "moment": bool(optimizer.momentum),
    }
    for trained in nodes.trained:
        name = shown(trained.facts.name)
        for kind, is_expected in expected.items():
            if (kind in trained.facts.states) != is_expected:
                there = "there is no" if is_expected else "there is"
                yield f"{there} '{kind}.{name}', unlike that of other parameters"
        if trained.update.has("centered") and not trained.update.has("guarded"):
            yield f"nothing keeps elements of '{name}' whose radicand is not positive"


def _not_recognised(carried: Sequence[Write], nodes: Recovered) -> Iterator[str]:
    """What is carried beside parameters and their states, and is no statistic."""
    for state in state_facts(carried, nodes, ()) if nodes.trained else ():
        if state.kind == "other" and state.output is not None and state.dtype.startswith("float"):
            yield f"how '{shown(state.input)}' changes was not recognised"


def _first_of(differences: Sequence[str]) -> Iterator[str]:
    yield from differences[:_MOST_DIFFERENCES]
    if len(differences) > _MOST_DIFFERENCES:
        yield f"and {len(differences) - _MOST_DIFFERENCES} more"


class _Update(Protocol):
    """An update that can be run: `GraphUpdate` or `SequenceUpdate`."""

    parameters: list[Updated]
    step: Value | None
    fed: dict[str, float]

    @property
    def twice_rounded(self) -> bool: ...

    @property
    def groups(self) -> int: ...

    def starts(self, number: int) -> Mapping[str, float]: ...

    def run(
        self, state: State, gradients: Mapping[str, Array], mask: Array | None, number: int
    ) -> State: ...


def _update(
    model: onnx.ModelProto,
    flow: Dataflow,
    carried: Sequence[Write],
    nodes: Recovered,
    said: Described | None,
    providers: Sequence[str],
) -> _Update:
    parameters = () if said is None else said.parameters
    if not nodes.trained:
        claimed = nodes.optimizer if said is None else said.optimizer
        return SequenceUpdate(model, flow, nodes, claimed, parameters, providers)
    described = {trained.facts.name: trained.facts for trained in nodes.trained}
    described |= {parameter.name: parameter for parameter in parameters}
    masked = said is not None and bool(said.optimizer.group_mask)
    return GraphUpdate(model, nodes, carried, described, _FED_RATES, providers, masked=masked)


@dataclass
class _Compared:
    """What comparing has found so far."""

    steps: int = 0
    deviation: float = 0.0
    differences: list[str] = field(default_factory=list)


class _Comparison:
    """The update of a graph, beside the oracle."""

    def __init__(
        self, update: _Update, optimizer: OptimizerFacts, random: np.random.Generator
    ) -> None:
        self._update = update
        self._optimizer = optimizer
        self._random = random
        self._batches = batches(update.parameters)
        try:
            self._oracles = [
                Oracle(
                    optimizer,
                    batch.rule,
                    update.step,
                    update.fed,
                    twice_rounded=update.twice_rounded,
                )
                for batch in self._batches
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise NotRunError(f"RMSProp does not take what was recognised: {error}") from None

    def run(self, steps: int, horizon: int) -> _Compared:
        """Compare so many steps, each from a random state, until one differs."""
        found = _Compared()
        for number in _numbers(self._random, steps, horizon):
            self._compare(number, found)
            found.steps += 1
            if found.differences:
                break
        return found

    def _compare(self, number: int, found: _Compared) -> None:
        before = [self._state(batch, number) for batch in self._batches]
        gradients = [
            self._gradient(batch, state) for batch, state in zip(self._batches, before, strict=True)
        ]
        groups = self._update.groups
        mask = self._random.random(groups) < 0.7 if groups else None
        after = self._update.run(
            _spread_states(self._batches, before),
            {
                p.name: g
                for b, a in zip(self._batches, gradients, strict=True)
                for p, g in b.spread(a)
            },
            mask,
            number,
        )
        for batch, oracle, state, gradient in zip(
            self._batches, self._oracles, before, gradients, strict=True
        ):
            if _is_kept(batch.rule, mask):
                exactly = {kind: np.zeros(batch.shape) for kind in state}
                _compare_batch(batch, after, state, exactly, number, found)
            else:
                expected = _expected(oracle, state, gradient, number)
                _compare_batch(batch, after, *expected, number, found)

    def _state(self, batch: Batch, number: int) -> dict[str, Array]:
        """Parameters and states of all magnitudes from epsilon to 1."""
        random, shape, rule = self._random, batch.shape, batch.rule
        epsilon = self._optimizer.epsilon or 0.0
        low = min(math.log10(max(epsilon, _SMALLEST_MEAN_SQUARE)), -1.0)
        largest = _LARGEST_PARAMETER
        if isinstance(rule.weight_decay, int | float):
            largest = min(1 / max(rule.weight_decay, 1e-30), largest) if rule.weight_decay else 1.0
        magnitude = 10 ** random.uniform(-6.0, max(math.log10(largest), 0.0), shape)
        s = 10 ** random.uniform(low, 0.0, shape)
        values = {
            PARAMETER: random.standard_normal(shape) * magnitude,
            "mean_square": s,
            "mean_grad": np.sqrt(s) * random.uniform(-0.6, 0.6, shape),
            "moment": random.standard_normal(shape) * 0.01,
        }
        decay = self._optimizer.decay or 0.0
        if "mean_grad" in batch.values and decay > 1e-3:
            guarded = random.random(shape) < _GUARDED_SHARE
            mean = _GUARDED_MEAN * math.sqrt(1 + epsilon) / decay
            values["mean_grad"] = np.where(guarded, mean, values["mean_grad"])
            values["mean_square"] = np.where(guarded, 1.0, s)
        for kind, start in self._update.starts(number).items():
            values[kind] = np.full(shape, start)
        dtypes = {PARAMETER: rule.dtype}
        return {k: _rounded(values[k], dtypes.get(k, "float32")) for k in batch.values}

    def _gradient(self, batch: Batch, state: Mapping[str, Array]) -> Array:
        """Of the size of the root of the mean square, times the loss scale."""
        root = np.sqrt(np.maximum(state["mean_square"], 0))
        scale = self._optimizer.loss_scale or 1.0
        gradient = root * self._random.standard_normal(batch.shape) * scale
        return _rounded(gradient, batch.rule.gradient_dtype)


def _rounded(array: Array, dtype: str) -> Array:
    if dtype == "float16":
        array = np.clip(array, -_LARGEST_HALF, _LARGEST_HALF)
    return array.astype(dtype)


def _spread_states(parts: Sequence[Batch], states: Sequence[Mapping[str, Array]]) -> State:
    found: dict[str, dict[str, Array]] = {}
    for batch, state in zip(parts, states, strict=True):
        for kind, array in state.items():
            found.setdefault(kind, {}).update((p.name, part) for p, part in batch.spread(array))
    return found


def _is_kept(rule: Updated, mask: Array | None) -> bool:
    """Whether a mask says that parameters stay as they are."""
    if rule.enabled_by is None or mask is None:
        return False
    if not -len(mask) <= rule.enabled_by < len(mask):
        raise NotRunError(f"the mask has {len(mask)} groups, and no group {rule.enabled_by}")
    return not mask[rule.enabled_by]


def _expected(
    oracle: Oracle, state: Mapping[str, Array], gradient: Array, number: int
) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
    try:
        return oracle.expected(state, gradient, number)
    except (ArithmeticError, IndexError, ValueError) as error:
        raise NotRunError(f"step {number}: {error}") from None


def _compare_batch(
    batch: Batch,
    after: State,
    wanted: Mapping[str, Array],
    tolerated: Mapping[str, Array],
    number: int,
    found: _Compared,
) -> None:
    differ: set[tuple[str, str]] = set()
    for parameter, part, rows in batch.pieces():
        for kind in batch.values:
            got = after[kind][parameter.name].reshape(-1)[part]
            want = wanted[kind][rows].reshape(-1)
            parts = _parts(got, want, tolerated[kind][rows].reshape(-1))
            worst = int(np.argmax(parts))
            found.deviation = max(found.deviation, float(parts[worst]))
            if parts[worst] > 1 and (kind, parameter.name) not in differ:
                differ.add((kind, parameter.name))
                found.differences.append(
                    f"step {number}: {_element(parameter, kind, part.start + worst)} is "
                    f"{got[worst]:.6g}, expected {want[worst]:.6g}"
                )


def _parts(got: Array, want: Array, tolerated: Array) -> Array:
    """Differences as a part of what is tolerated; NaN and infinity must be in both."""
    with np.errstate(all="ignore"):
        rounded = want.astype(got.dtype)  # a large number is infinite in float16
        parts = np.abs(got.astype(np.float64) - want) / tolerated
    same = (np.isnan(got) & np.isnan(want)) | (got == rounded) | np.isinf(tolerated)
    return np.where(same, 0.0, np.where(np.isnan(parts), np.inf, parts))


def _element(parameter: Updated, kind: str, place: int) -> str:
    name = shown(f"{kind}.{parameter.name}" if kind else parameter.name)
    index = ", ".join(str(int(i)) for i in np.unravel_index(place, parameter.shape or (1,)))
    return f"{name}[{index}]" if parameter.shape else name


def _numbers(random: np.random.Generator, steps: int, horizon: int) -> list[int]:
    """The steps to compare: the first, and others before the horizon."""
    if horizon <= steps:
        return [number % horizon for number in range(steps)]
    return [0, *sorted(random.integers(1, horizon, steps - 1).tolist())]


def _horizon(nodes: Recovered, steps: int) -> int:
    """How many steps there are that are worth a try; lists have no more."""
    ends, lengths = [steps], []
    for schedule, value in _scheduled(nodes.trained):
        kind = schedule["schedule"]
        if kind == "list":
            lengths.append(int(schedule["length"]))
        if kind in rates.RECOGNISED:
            ends += [number + 1 for number, _ in rates.curve(value, nodes.step, None)[-1:]]
    return min([max(ends), *lengths])


def _scheduled(
    trained: Sequence[Trained],
) -> Iterable[tuple[Mapping[str, Any], Value]]:
    """The learning rates and weight decays that are no numbers, each once."""
    found = {}
    for parameter in trained:
        facts = parameter.facts
        pairs: tuple[tuple[Schedule, Value | None], ...] = (
            (facts.learning_rate, parameter.rate),
            (facts.weight_decay, parameter.factor),
        )
        for schedule, value in pairs:
            if isinstance(schedule, Mapping) and value is not None:
                found[id(value)] = (schedule, value)
    return found.values()
