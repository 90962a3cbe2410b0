"""The update of a training graph, cut out and run by ONNX Runtime."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import onnx_ir as ir

from graphopt._words import shown, size
from graphopt.inspection.facts import ParameterFacts
from graphopt.inspection.reading import scalars
from graphopt.inspection.reading.dataflow import Value
from graphopt.inspection.reading.read_model import Reading
from graphopt.inspection.reading.recovered import Recovered
from graphopt.inspection.reading.trained import Trained
from graphopt.inspection.reading.writes import Write
from graphopt.inspection.verification.batches import PARAMETER, Array, Updated
from graphopt.inspection.verification.runnable import NotRunError, RunnableUpdate, State

# What is fed where the caller gives learning rates; each input gets another one.
_FED_RATES = (0.01, 0.02, 0.005, 0.03)
_RULES = ("learning_rate", "weight_decay", "grad_centralization")
# Memory for what is fed and what comes out, in bytes.
_MOST_BYTES = 2**33


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
        self._rates = _fed_rates(nodes, self._mask)
        self.fed = {v.name: rate for v, rate in zip(self._rates, cycle(_FED_RATES), strict=False)}
        self.parameters = list(self._updated(() if said is None else said.parameters))
        self._check_size()
        self._cut_out(reading.file.model, self._types(), self._outputs(), providers)

    def run(
        self, state: State, gradients: Mapping[str, Array], mask: Array | None, number: int
    ) -> State:
        """See the class."""
        feeds = {name: np.zeros(_shape(v), v.dtype) for name, v in self._inputs.items()}
        for slot in self._slots:
            slot.of(feeds[slot.input.name])[...] = state[slot.kind][slot.name]
        feeds |= {gradient_of(t).name: gradients[t.facts.name] for t in self._trained}
        feeds |= {v.name: np.full(_shape(v), self.fed[v.name], v.dtype) for v in self._rates}
        if self.step is not None:
            feeds[self.step.name] = np.array(number, np.int64)
        if self._mask is not None and mask is not None:
            feeds[self._mask.name] = mask
        results = self._results(feeds, number)
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

    def _results(self, feeds: Mapping[str, Array], number: int) -> Mapping[str, Array]:
        found = {name: np.asarray(value) for name, value in self._computed(feeds, number).items()}
        if self._counter and found[self._counter].tolist() != number + 1:
            raise NotRunError(
                f"'{shown(self._counter)}' is {found[self._counter].tolist()} after step {number}, "
                f"expected {number + 1}"
            )
        return found

    def _updated(self, described: Sequence[ParameterFacts]) -> Iterator[Updated]:
        """The parameters, with the rules that are claimed."""
        claimed = {parameter.name: parameter for parameter in described}
        for trained in self._trained:
            facts = trained.facts
            said = claimed.get(facts.name, facts)
            rules = {rule: getattr(said, rule) for rule in _RULES}
            states = tuple(state.name for state, _, _ in trained.update.states())
            yield Updated(
                **vars(facts) | rules | {"states": states},
                gradient_dtype=gradient_of(trained).dtype or facts.dtype,
                rate=trained.rate,
                factor=trained.factor,
                enabled_by=said.group if self._masked else _enabled_by(trained),
            )

    def _check_size(self) -> None:
        carried = sum(
            math.prod(_shape(value)) * np.dtype(value.dtype or "float32").itemsize
            for value in self._inputs.values()
        )
        gradients = sum(parameter.size for parameter in self.parameters) * 4
        if 2 * carried + gradients > _MOST_BYTES:
            raise NotRunError(
                f"to run it takes {size(2 * carried + gradients)}, more than the "
                f"{size(_MOST_BYTES)} that are used for this"
            )

    def _types(self) -> dict[str, ir.Value]:
        """What is fed."""
        fed = {name: _type(value) for name, value in self._inputs.items()}
        fed |= {value.name: _type(value) for value in self._rates}
        if self.step is not None:
            fed[self.step.name] = ir.val(self.step.name, ir.DataType.INT64, ())
        if self._mask is not None:
            fed[self._mask.name] = _type(self._mask)
        for trained, parameter in zip(self._trained, self.parameters, strict=True):
            dtype = ir.DataType.from_numpy(np.dtype(parameter.gradient_dtype))
            name = gradient_of(trained).name
            fed[name] = ir.val(name, dtype, parameter.shape)
        return fed

    def _outputs(self) -> list[str]:
        """What is computed."""
        return [slot.output for slot in self._slots] + ([self._counter] if self._counter else [])


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


def _fed_rates(nodes: Recovered, mask: Value | None) -> list[Value]:
    """The inputs that learning rates and weight decays are computed from, but for the step."""
    found: dict[str, Value] = {}
    for trained in nodes.trained:
        for value in (trained.rate, trained.factor):
            for read in [] if value is None else scalars.inputs_read_by(value):
                if read is not nodes.step and read is not mask:
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
