"""The update of a training graph, cut out and run by ONNX Runtime."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import onnx_ir as ir

from graphopt._words import shown, size
from graphopt.inspection.facts import OptimizerFacts, ParameterFacts
from graphopt.inspection.reading import scalars
from graphopt.inspection.reading.dataflow import Value
from graphopt.inspection.reading.read_model import Reading
from graphopt.inspection.reading.recovered import Recovered, accumulates
from graphopt.inspection.reading.trained import Trained
from graphopt.inspection.reading.writes import Write
from graphopt.inspection.verification.batches import PARAMETER, Array, Updated
from graphopt.inspection.verification.runnable import (
    MOST_BYTES,
    Given,
    NotRunError,
    RunnableUpdate,
    State,
)
from graphopt.states import ACCUMULATED, ACCUMULATION_COUNT, AVERAGE

# What is fed where the caller gives learning rates; each input gets another one.
_FED_RATES = (0.01, 0.02, 0.005, 0.03)
_RULES = ("learning_rate", "weight_decay", "grad_centralization")


@dataclass(frozen=True)
class Slot:
    """A parameter or a state of one, and where the graph has it.

    Attributes:
        name: The parameter.
        kind: The kind of state.
        input: The graph's input that holds it.
        output: The value that is its new one.
        offset: Where it begins in them, in elements.
        shape: Its dimensions.
    """

    name: str
    kind: str
    input: Value
    output: str
    offset: int
    shape: tuple[int, ...]

    def of(self, array: Array) -> Array:
        """Its part of the array of an input or output; they share memory."""
        end = self.offset + math.prod(self.shape)
        return array.reshape(-1)[self.offset : end].reshape(self.shape)


class GraphUpdate(RunnableUpdate):
    """The update of the parameters that a graph carries from step to step."""

    def __init__(self, reading: Reading, nodes: Recovered, providers: Sequence[str]) -> None:
        """Prepare it.

        Args:
            reading: The model.
            nodes: What was recognised in it.
            providers: The execution providers.

        Raises:
            NotRunError: It cannot be run.
        """
        carried, said = reading.carried, reading.described
        # Otherwise the nodes say which parameters obey a mask.
        self._masked = said is not None and bool(said.optimizer.group_mask)
        self.step = nodes.step
        self._trained = nodes.trained
        _check_names(nodes)
        self._slots = list(slots(nodes, carried))
        self._inputs = {slot.input.name: slot.input for slot in self._slots}
        self._mask = _mask(nodes.trained)
        if self._mask is not None:
            self.groups = _shape(self._mask)[0]
        elif self._masked:
            raise NotRunError("no input masks groups, as the metadata says")
        self._counter = next((w.output for w in carried if w.input is self.step), None)
        averaged = {slot.name for slot in self._slots if slot.kind == AVERAGE.name}
        self.averages = bool(averaged)
        if self.averages and len(averaged) < len(nodes.trained):
            raise NotRunError("some parameters have an average, and others have none")
        self._scale = fed_scale(nodes.trained)
        self._counters = {
            name: write for name, write in nodes.counters.writes.items() if write.output
        }
        self.sums = accumulates(carried)
        if self.sums:
            self._counters[ACCUMULATION_COUNT.name] = _count_of(nodes)
        self._flag = nodes.accumulating.flag
        self._reports = list(_reported(reading, nodes))
        self._limits = nodes.optimizer if said is None else said.optimizer
        self._rates = _fed_rates(nodes, (self._mask, self._scale))
        self.fed = {v.name: rate for v, rate in zip(self._rates, cycle(_FED_RATES), strict=False)}
        self.parameters = list(self._updated(() if said is None else said.parameters))
        self._check_size()
        self._cut_out(reading.file.model, self._types(), self._outputs(), providers)

    def run(self, state: State, gradients: Mapping[str, Array], given: Given) -> State:
        """See the class."""
        feeds = {name: np.zeros(_shape(v), v.dtype) for name, v in self._inputs.items()}
        for slot in self._slots:
            slot.of(feeds[slot.input.name])[...] = state[slot.kind][slot.name]
        feeds |= {gradient_of(t).name: gradients[t.facts.name] for t in self._trained}
        feeds |= {v.name: np.full(_shape(v), self.fed[v.name], v.dtype) for v in self._rates}
        if self.step is not None:
            feeds[self.step.name] = np.array(given.number, np.int64)
        if self._mask is not None and given.mask is not None:
            feeds[self._mask.name] = given.mask
        if self._scale is not None:
            scale = np.full(_shape(self._scale), given.loss_scale, self._scale.dtype)
            feeds[self._scale.name] = scale
        for name, write in self._counters.items():
            if write.input is not self._scale:
                counted = np.full(
                    _shape(write.input), given.counters.get(name, 0.0), write.input.dtype
                )
                feeds[write.input.name] = counted
        if self._flag is not None:
            feeds[self._flag.name] = np.full(_shape(self._flag), given.is_last)
        results = self._results(feeds, given)
        after: dict[str, dict[str, Array]] = {}
        for slot in self._slots:
            new, old = results[slot.output], feeds[slot.input.name]
            if new.size != old.size:
                raise NotRunError(
                    f"'{shown(slot.output)}' has the shape {list(new.shape)}, and "
                    f"'{shown(slot.input.name)}', whose new value it is, {list(old.shape)}"
                )
            after.setdefault(slot.kind, {})[slot.name] = slot.of(new)
        return after

    def _results(self, feeds: Mapping[str, Array], given: Given) -> Mapping[str, Array]:
        found = {n: np.asarray(value) for n, value in self._computed(feeds, given.number).items()}
        if self._counter and found[self._counter].tolist() != given.number + given.updates:
            raise NotRunError(
                f"'{shown(self._counter)}' is {found[self._counter].tolist()} after step "
                f"{given.number}{given.what}, "
                f"expected {given.number + given.updates}"
            )
        self.reported = {name: found[name] for name in self._reports} | {
            name: found[str(write.output)] for name, write in self._counters.items()
        }
        return found

    def _updated(self, described: Sequence[ParameterFacts]) -> Iterator[Updated]:
        """The parameters, with the rules that are claimed."""
        claimed = {parameter.name: parameter for parameter in described}
        for trained in self._trained:
            facts = trained.facts
            said = claimed.get(facts.name, facts)
            rules = {rule: getattr(said, rule) for rule in (*_RULES, "group")}
            states = tuple(state.name for state, _, _ in trained.update.states())
            yield Updated(
                **vars(facts) | rules | {"states": states},
                gradient_dtype=gradient_of(trained).dtype or facts.dtype,
                rate=trained.rate,
                factor=trained.factor,
                enabled_by=said.group if self._masked else _enabled_by(trained),
                limited_with=_limited_with(self._limits, said),
            )

    def _check_size(self) -> None:
        carried = sum(
            math.prod(_shape(value)) * np.dtype(value.dtype or "float32").itemsize
            for value in self._inputs.values()
        )
        gradients = sum(parameter.size for parameter in self.parameters) * 4
        if 2 * carried + gradients > MOST_BYTES:
            raise NotRunError(
                f"to run it takes {size(2 * carried + gradients)}, more than the "
                f"{size(MOST_BYTES)} that are used for this"
            )

    def _types(self) -> dict[str, ir.Value]:
        """What is fed."""
        fed = {name: _type(value) for name, value in self._inputs.items()}
        fed |= {value.name: _type(value) for value in self._rates}
        if self.step is not None:
            fed[self.step.name] = ir.val(self.step.name, ir.DataType.INT64, ())
        if self._mask is not None:
            fed[self._mask.name] = _type(self._mask)
        if self._scale is not None:
            fed[self._scale.name] = _type(self._scale)
        fed |= {w.input.name: _type(w.input) for w in self._counters.values()}
        if self._flag is not None:
            fed[self._flag.name] = _type(self._flag)
        for trained, parameter in zip(self._trained, self.parameters, strict=True):
            dtype = ir.DataType.from_numpy(np.dtype(parameter.gradient_dtype))
            name = gradient_of(trained).name
            fed[name] = ir.val(name, dtype, parameter.shape)
        return fed

    def _outputs(self) -> list[str]:
        """What is computed."""
        return [
            *(slot.output for slot in self._slots),
            *([self._counter] if self._counter else []),
            *(str(write.output) for write in self._counters.values()),
            *self._reports,
        ]


def _check_names(nodes: Recovered) -> None:
    names = Counter(trained.facts.name for trained in nodes.trained)
    for name, count in names.items():
        if count > 1:
            raise NotRunError(f"'{shown(name)}' is updated {count} times")


def slots(nodes: Recovered, carried: Sequence[Write]) -> Iterator[Slot]:
    """The parameters and their states, one parameter after another.

    Raises:
        NotRunError: What the graph carries does not fit them.
    """
    outputs = {id(write.input): write.output or write.new.name for write in carried}
    offsets: Counter[str] = Counter()
    for trained in nodes.trained:
        bucket, facts = trained.write.input.name, trained.facts
        if not facts.size:
            raise NotRunError(f"the shape of '{shown(facts.name)}' was not recognised")
        values = {PARAMETER: trained.write.input}
        values |= {state.name: old for state, old, _ in trained.update.states()}
        if bucket in nodes.averages.writes:
            values[AVERAGE.name] = nodes.averages.writes[bucket].input
        if (total := trained.update.value("total")) is not None:
            values[ACCUMULATED.name] = total
        for kind, value in values.items():
            if id(value) not in outputs:
                raise NotRunError(
                    f"'{shown(f'{kind}.{facts.name}')}' is not carried from step to step"
                )
            if math.prod(_shape(value)) < offsets[bucket] + facts.size:
                raise NotRunError(
                    f"'{shown(value.name)}' is too small for '{shown(f'{kind}.{facts.name}')}'"
                )
            yield Slot(facts.name, kind, value, outputs[id(value)], offsets[bucket], facts.shape)
        offsets[bucket] += facts.size


def gradient_of(trained: Trained) -> Value:
    """The gradient of a parameter.

    Raises:
        NotRunError: It was not found.
    """
    if trained.gradient is None:
        raise NotRunError(f"the gradient of '{shown(trained.facts.name)}' was not found")
    return trained.gradient


def _count_of(nodes: Recovered) -> Write:
    """The number of steps that are added up."""
    count = nodes.accumulating.count
    if count is None or nodes.accumulating.rule is None:
        raise NotRunError("how many steps make an update was not recognised")
    if any(trained.update.value("total") is None for trained in nodes.trained):
        raise NotRunError("the sums of the gradients of some parameters were not recognised")
    return count


def _mask(trained: Sequence[Trained]) -> Value | None:
    """The input that says which groups are updated."""
    masks = (parameter.update.condition.mask for parameter in trained)
    return next((m for m in masks if m is not None and m.is_input and len(_shape(m)) == 1), None)


def _enabled_by(trained: Trained) -> int | None:
    condition = trained.update.condition
    if condition.others or (condition.mask is not None and condition.entry is None):
        raise NotRunError(
            f"what enables the update of '{shown(trained.facts.name)}' was not recognised"
        )
    return condition.entry


def _reported(reading: Reading, nodes: Recovered) -> Iterator[str]:
    """What a step says of its gradients."""
    outputs = {value.name for value in reading.file.model.graph.outputs}
    skips = nodes.optimizer.skip_on_overflow or accumulates(reading.carried)
    if skips and "updated" in outputs:
        yield "updated"
    if nodes.optimizer.clip_norm is not None and "gradient_norm" in outputs:
        yield "gradient_norm"


def _limited_with(optimizer: OptimizerFacts, parameter: ParameterFacts) -> object:
    """What a parameter has in common with those whose norm limits its gradient."""
    if optimizer.clip_norm is None:
        return None
    return {"group": parameter.group, "parameter": parameter.name}.get(
        optimizer.clip_norm_per or ""
    )


def fed_scale(trained: Sequence[Trained]) -> Value | None:
    """The input that holds the loss scale."""
    scales = (parameter.scaling.loss_scale for parameter in trained)
    return next((scale for scale in scales if isinstance(scale, Value)), None)


def _fed_rates(nodes: Recovered, others: Sequence[Value | None]) -> list[Value]:
    """The inputs that learning rates and weight decays are computed from, but for the step."""
    found: dict[str, Value] = {}
    for trained in nodes.trained:
        for value in (trained.rate, trained.factor):
            for read in [] if value is None else scalars.inputs_read_by(value):
                if read is not nodes.step and all(read is not value for value in others):
                    found[read.name] = read
    return list(found.values())


def _type(value: Value) -> ir.Value:
    if value.declared is None or value.declared.type is None:
        raise NotRunError(f"the type of '{shown(value.name)}' is not known")
    return value.declared


def _shape(value: Value) -> tuple[int, ...]:
    if value.static_shape is None:
        raise NotRunError(f"the shape of '{shown(value.name)}' is not known")
    return value.static_shape
