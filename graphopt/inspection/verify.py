"""Runs the update of a graph, and compares it with RMSProp in NumPy."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from graphopt import _checks, _runtime
from graphopt.inspection import _pattern, _schedules
from graphopt.inspection._carried import Write, gradient_buffers, writes
from graphopt.inspection._dataflow import Dataflow, Value
from graphopt.inspection._merged import Merged, merged
from graphopt.inspection._metadata import described
from graphopt.inspection._open import opened
from graphopt.inspection._oracle import optimizer_of
from graphopt.inspection._pattern import Number, Op, match
from graphopt.inspection._recovered import KINDS, Recovered, Trained, recovered
from graphopt.inspection._update_model import update_model
from graphopt.inspection.facts import OptimizerFacts, Schedule
from graphopt.reference import ReferenceRMSProp

# Each operand of the update is taken to be off by so many units in the last place of float32.
_ULPS = 16
_EPSILON = float(np.finfo(np.float32).eps)
_TINY = 1e-30
# A mean gradient whose square is larger than the mean square: the guard keeps such an element.
_GUARDED, _GUARDED_SHARE = 2.0, 0.1
_FED_RATE = 0.01
_MOST_DIFFERENCES = 5

Array = npt.NDArray[Any]
Arrays = dict[str, Array]


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

    The update is cut out of the graph. It starts from random parameters and states of all
    magnitudes, among them elements that the guard of a centered update keeps. The oracle is
    `reference.ReferenceRMSProp` in float64, with the hyperparameters that `inspect` finds.

    Args:
        model: As for `inspect`.
        steps: How many steps to compare.
        seed: Of the random numbers.
        providers: The execution providers to run it on.

    Returns:
        Whether it is the same, and what the graph computes.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: ONNX Runtime is not installed.
        ValueError: The file is no ONNX model, or is damaged.

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
    nodes = recovered(flow, carried)
    try:
        optimizer = merged(described(proto), nodes)
    except ValueError:  # the metadata is damaged; the nodes are what runs
        optimizer = merged(None, nodes)
    words = in_words(optimizer.optimizer)
    reason = _why_not(optimizer, nodes, gradient_buffers(flow))
    if reason is not None or nodes is None:
        return Verification(words, verified=False, differences=(reason or "",))
    try:
        return _Comparison(proto, optimizer, nodes, carried, seed, providers).run(words, steps)
    except _NotRunError as error:
        return Verification(words, verified=False, differences=(str(error),))


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
        "decoupled weight decay" if optimizer.decoupled_weight_decay else "",
        f"loss scale {optimizer.loss_scale:g}" if (optimizer.loss_scale or 1) != 1 else "",
        *(f"{name} {value:g}" for name, value in optimizer.others.items()),
    ]
    details = ", ".join(filter(None, parts))
    return f"{optimizer.name} ({details})" if details else optimizer.name


def _why_not(
    optimizer: Merged, nodes: Recovered | None, buffers: Mapping[str, Value]
) -> str | None:
    name = optimizer.optimizer.name if optimizer.optimizer else None
    if name in ("AdamW", "SGD"):
        return f"the graph computes {name}, not RMSProp"
    if nodes is None or name is None:
        if buffers:
            return "the graph computes gradients only: its update is in the optimizer model"
        return "no optimizer was recognised in the graph"
    if not nodes.trained:
        return (
            "the graph updates sequences of tensors, which ONNX Runtime's training API feeds; what "
            "it was recognised as was not run"
        )
    return None


class _NotRunError(Exception):
    """Why the update could not be run."""


@dataclass(frozen=True)
class _Slot:
    """A parameter or a state of one, and where the graph has it.

    Attributes:
        name: As `Session.state` calls it.
        input: The graph's input that holds it.
        output: The value that is its new one.
        offset: Where it begins in them, in elements.
        trained: The parameter.
    """

    name: str
    input: Value
    output: str
    offset: int
    trained: Trained

    def of(self, array: Array) -> Array:
        """Its part of the array of an input or output; they share memory."""
        shape = self.trained.facts.shape
        size = math.prod(shape)
        return array.reshape(-1)[self.offset : self.offset + size].reshape(shape)


def _slots(nodes: Recovered, carried: Sequence[Write]) -> list[_Slot]:
    outputs = {id(write.input): write.output or write.new.name for write in carried}
    offsets: Counter[str] = Counter()
    slots = []
    for trained in nodes.trained:
        bucket = trained.write.input.name
        for letter, kind in {"w": "", **KINDS}.items():
            value = trained.update.value(letter)
            if value is None or (letter == "m" and not trained.update.has("m1")):
                continue
            name = f"{kind}.{trained.facts.name}" if kind else trained.facts.name
            if id(value) not in outputs:
                raise _NotRunError(f"'{name}' is not carried from step to step")
            slots.append(_Slot(name, value, outputs[id(value)], offsets[bucket], trained))
        offsets[bucket] += trained.facts.size
    return slots


class _Comparison:
    """The update of a graph, beside the oracle."""

    def __init__(
        self,
        model: onnx.ModelProto,
        optimizer: Merged,
        nodes: Recovered,
        carried: Sequence[Write],
        seed: int,
        providers: Sequence[str],
    ) -> None:
        self._trained = nodes.trained
        self._slots = _slots(nodes, carried)
        self._random = np.random.default_rng(seed)
        self._scale = nodes.optimizer.loss_scale or 1.0
        self._epsilon = nodes.optimizer.epsilon or 0.0
        self._step = nodes.step
        self._mask = _mask(nodes.trained)
        self._rates = _fed_rates(nodes, self._mask)
        try:
            self._optimizer = optimizer_of(optimizer, nodes, _FED_RATE)
        except (TypeError, ValueError) as error:
            raise _NotRunError(f"RMSProp does not take what was recognised: {error}") from None
        self._session = self._started(model, providers)

    def run(self, optimizer: str, steps: int) -> Verification:
        """Compare so many steps, each from a random state."""
        worst = 0.0
        for number in range(steps):
            arrays = self._random_state()
            before = {slot.name: slot.of(arrays[slot.input.name]) for slot in self._slots}
            gradients = self._gradients(before)
            mask = None if self._mask is None else self._random.random(_shape(self._mask)) < 0.7
            enabled = None if mask is None else [bool(mask[_group(t)]) for t in self._trained]
            wanted, tolerated = self._expected(before, gradients, enabled, number)
            arrays = self._next(arrays, gradients, mask, number)
            differences = []
            for slot in self._slots:
                got, want = slot.of(arrays[slot.input.name]), wanted[slot.name]
                part = _largest(got, want, tolerated[slot.name])
                worst = max(worst, part)
                if part > 1:
                    differences.append(_difference(slot, number, got, want))
            if differences:
                return Verification(
                    optimizer, False, number + 1, worst, tuple(differences[:_MOST_DIFFERENCES])
                )
        return Verification(optimizer, True, steps, worst)

    def _expected(
        self, before: Arrays, gradients: Arrays, enabled: Sequence[bool] | None, number: int
    ) -> tuple[Arrays, Arrays]:
        """The state after a step, and how far an element may be off by rounding.

        That is what it moves if each of the operands is off by some units in the last place, added
        up: much, for example, where a mean square and the square of a mean gradient almost cancel.
        """
        wanted = self._oracle_step(before, gradients, enabled, number)
        tolerated = {
            slot.name: _units(slot) * np.abs(wanted[slot.name]) + _TINY for slot in self._slots
        }
        kinds = ("gradient", *dict.fromkeys(_kind(slot) for slot in self._slots))
        for kind, alike in product(kinds, (False, True)):
            if kind == "gradient":
                moved = {name: self._off(g, alike=alike) for name, g in gradients.items()}
                found = self._oracle_step(before, moved, enabled, number)
            else:
                state = before | {
                    slot.name: self._off(before[slot.name], alike=alike)
                    for slot in self._slots
                    if _kind(slot) == kind
                }
                found = self._oracle_step(state, gradients, enabled, number)
            for slot in self._slots:
                with np.errstate(invalid="ignore"):
                    distance = np.abs(found[slot.name] - wanted[slot.name])
                tolerated[slot.name] += np.where(np.isnan(distance), 0.0, distance)
        return wanted, tolerated

    def _off(self, array: Array, *, alike: bool) -> Array:
        """Numbers that are off by some units: all upwards, or each up or down.

        In a sum, such as a mean over a row, one of the two does not cancel.
        """
        wide = array.astype(np.float64)
        signs = 1.0 if alike else self._random.choice([-1.0, 1.0], array.shape)
        return np.asarray(wide + signs * np.abs(wide) * (_ULPS * _EPSILON))

    def _oracle_step(
        self, before: Arrays, gradients: Arrays, enabled: Sequence[bool] | None, number: int
    ) -> Arrays:
        oracle = ReferenceRMSProp(
            self._optimizer, {t.facts.name: before[t.facts.name] for t in self._trained}
        )
        oracle.state |= {name: part.astype(np.float64) for name, part in before.items()}
        oracle.state["global_step"] = number
        try:
            oracle.step(gradients, enabled)
        except (IndexError, ValueError) as error:
            raise _NotRunError(f"step {number}: {error}") from None
        return {slot.name: np.asarray(oracle.state[slot.name]) for slot in self._slots}

    def _started(self, model: onnx.ModelProto, providers: Sequence[str]) -> Any:
        fed = {slot.input.name: _type(slot.input) for slot in self._slots}
        fed |= {value.name: _type(value) for value in self._rates}
        if self._step is not None:
            fed[self._step.name] = helper.make_tensor_type_proto(onnx.TensorProto.INT64, [])
        if self._mask is not None:
            fed[self._mask.name] = _type(self._mask)
        for trained in self._trained:
            kind = helper.np_dtype_to_tensor_dtype(_gradient_dtype(trained))
            fed[_gradient(trained)] = helper.make_tensor_type_proto(kind, trained.facts.shape)
        runtime = _runtime.onnxruntime()
        try:
            cut = update_model(model, fed, [slot.output for slot in self._slots])
            options = _runtime.session_options(runtime)
            return runtime.InferenceSession(cut.SerializeToString(), options, list(providers))
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's
            raise _NotRunError(f"the update does not run by itself: {_line(error)}") from None

    def _random_state(self) -> Arrays:
        """Parameters and states of all magnitudes from epsilon to 1."""
        arrays = {
            slot.input.name: np.zeros(_shape(slot.input), slot.input.dtype) for slot in self._slots
        }
        random = self._random
        low = min(math.log10(max(self._epsilon, 1e-12)), -1.0)
        for trained in self._trained:
            facts = trained.facts
            s = 10 ** random.uniform(low, 0.0, facts.shape)
            high = -math.log10(_number(facts.weight_decay)) if _number(facts.weight_decay) else 0.0
            magnitude = 10 ** random.uniform(-6.0, min(max(high, 0.0), 4.0), facts.shape)
            values = {
                "mean_square": s,
                "mean_grad": np.sqrt(s) * random.uniform(-0.6, 0.6, facts.shape),
                "moment": random.standard_normal(facts.shape) * 0.01,
                "": random.standard_normal(facts.shape) * magnitude,
            }
            if _is_guarded(trained):
                guarded = random.random(facts.shape) < _GUARDED_SHARE
                start = {"mean_square": 1.0, "mean_grad": _GUARDED, "moment": 0.0, "": 0.0}
                values = {k: np.where(guarded, start[k], v) for k, v in values.items()}
            for slot in self._slots:
                if slot.trained is trained:
                    slot.of(arrays[slot.input.name])[...] = values[_kind(slot)]
        return arrays

    def _gradients(self, state: Arrays) -> Arrays:
        """Of the size of the root of the mean square, times the loss scale."""
        gradients = {}
        for trained in self._trained:
            name, shape = trained.facts.name, trained.facts.shape
            root = np.sqrt(np.maximum(state[f"mean_square.{name}"], 0))
            g = root * self._random.standard_normal(shape)
            if _is_guarded(trained):
                # What stays as it is goes on to have a mean gradient that is too large.
                stays = np.abs(state[f"mean_grad.{name}"] - _GUARDED) < 1e-3
                g = np.where(stays, _GUARDED, g)
            with np.errstate(over="ignore"):
                gradients[name] = np.asarray(g * self._scale, _gradient_dtype(trained))
        return gradients

    def _next(self, arrays: Arrays, gradients: Arrays, mask: Array | None, number: int) -> Arrays:
        """One step of the graph."""
        feeds = dict(arrays)
        feeds |= {_gradient(t): gradients[t.facts.name] for t in self._trained}
        feeds |= {v.name: np.full(_shape(v), _FED_RATE, np.float32) for v in self._rates}
        if self._step is not None:
            feeds[self._step.name] = np.array(number, np.int64)
        if self._mask is not None and mask is not None:
            feeds[self._mask.name] = mask
        known = {value.name for value in self._session.get_inputs()}
        outputs = {slot.input.name: slot.output for slot in self._slots}
        try:
            results = self._session.run(
                list(outputs.values()), {k: v for k, v in feeds.items() if k in known}
            )
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's
            raise _NotRunError(f"the update fails in step {number}: {_line(error)}") from None
        return {
            name: np.array(result).reshape(arrays[name].shape)
            for name, result in zip(outputs, results, strict=True)
        }


def _largest(got: Array, want: Array, tolerated: Array) -> float:
    """The largest difference as a part of what is tolerated; NaN and infinity must be in both."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = want.astype(got.dtype)  # a large number is infinite in float16
        parts = np.abs(got.astype(np.float64) - want) / tolerated
    same = (np.isnan(got) & np.isnan(want)) | (got == rounded)
    parts = np.where(same, 0.0, np.where(np.isnan(parts), np.inf, parts))
    return float(parts.max(initial=0.0))


def _difference(slot: _Slot, number: int, got: Array, want: Array) -> str:
    off = np.abs(got.astype(np.float64) - want)
    place = np.unravel_index(int(np.argmax(np.where(np.isnan(off), np.inf, off))), off.shape)
    index = ", ".join(str(int(i)) for i in place)
    return (
        f"step {number}: {slot.name}[{index}] is {float(got[place]):.6g}, expected "
        f"{float(want[place]):.6g}"
    )


def _is_guarded(trained: Trained) -> bool:
    """Whether elements that stay as they are can be tried: their gradient must be what is fed."""
    return trained.update.has("guarded") and not trained.facts.grad_centralization


def _gradient(trained: Trained) -> str:
    if trained.gradient is None:
        raise _NotRunError(f"the gradient of '{trained.facts.name}' was not found")
    return trained.gradient.name


def _gradient_dtype(trained: Trained) -> np.dtype[Any]:
    known = trained.gradient.dtype if trained.gradient is not None else None
    return np.dtype(known or trained.facts.dtype)


def _mask(trained: Sequence[Trained]) -> Value | None:
    """The input that says which groups are updated."""
    for parameter in trained:
        if parameter.update.enabled is not None:
            found = match(
                Op("Gather", _pattern.Any("mask"), _pattern.Any("index")), parameter.update.enabled
            )
            mask = found["mask"] if found is not None else None
            if isinstance(mask, Value) and mask.is_input and len(_shape(mask)) == 1:
                return mask
    return None


def _group(trained: Trained) -> int:
    enabled = trained.update.enabled
    found = (
        None
        if enabled is None
        else match(Op("Gather", _pattern.Any("mask"), Number("index")), enabled)
    )
    if found is None or not isinstance(found["index"], float):
        raise _NotRunError(f"what enables the update of '{trained.facts.name}' was not recognised")
    return int(found["index"])


def _fed_rates(nodes: Recovered, mask: Value | None) -> list[Value]:
    """The inputs that learning rates and weight decays are computed from, but for the step."""
    found: dict[str, Value] = {}
    for trained in nodes.trained:
        for value in (trained.rate, trained.factor):
            for read in [] if value is None else _schedules.inputs_of(value):
                if read is not nodes.step and read is not mask:
                    found[read.name] = read
    return list(found.values())


def _kind(slot: _Slot) -> str:
    """The kind of a state; "" of a parameter."""
    return slot.name.removesuffix(slot.trained.facts.name).removesuffix(".")


def _units(slot: _Slot) -> float:
    """The rounding of the result itself, relative to it."""
    return 4 * float(np.finfo(slot.input.dtype or "float32").eps)


def _number(schedule: Schedule) -> float:
    return schedule if isinstance(schedule, float | int) else 0.0


def _type(value: Value) -> onnx.TypeProto:
    if value.type is None:
        raise _NotRunError(f"the type of '{value.name}' is not known")
    return value.type


def _shape(value: Value) -> tuple[int, ...]:
    shape = value.shape
    if shape is None or not all(isinstance(size, int) for size in shape):
        raise _NotRunError(f"the shape of '{value.name}' is not known")
    return tuple(size for size in shape if isinstance(size, int))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
