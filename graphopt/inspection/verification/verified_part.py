"""Whether the gradients of a training graph are those of its loss, and its values its own."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphopt._words import shown
from graphopt.inspection.reading.read_model import Reading
from graphopt.inspection.reading.recovered import Recovered
from graphopt.inspection.verification.declared import declared_graph, misdeclared
from graphopt.inspection.verification.derivatives import Derivatives
from graphopt.inspection.verification.first_deviation import first_deviation
from graphopt.inspection.verification.forward_model import forward_outputs
from graphopt.inspection.verification.interpreter import as_double
from graphopt.inspection.verification.runnable import GraphFailsError, NotRunError
from graphopt.inspection.verification.sample import Sample, Sampler, StepFailsError
from graphopt.inspection.verification.training_part import Trained, TrainingPart
from graphopt.inspection.verification.whole_graph import run_whole

SECONDS = 30.0
"""After so many, no other sample is taken."""

_SAMPLES = 2  # of usual feeds
_DIRECTIONS = 2  # along which a sample is differentiated
_TRIES = 6  # of a direction along which the loss has a kink
_MOST_ALONE = 200  # parameters that are moved one by one
_SAME_FORWARD = 1e-6  # of the largest element, in float64
_SAME_ROUNDED = 1e-3  # where an operator of the forward model has no kernel in float64


@dataclass(frozen=True)
class GradientCheck:
    """How the gradients were compared with differences of the loss.

    Attributes:
        parameters: How many parameters were moved: all that the graph trains, at once.
        directions: Along how many random directions.
        precision: That of the differences: "float64", or "float32" where an operator has no kernel
            in float64.
        deviation: The largest difference, as a part of what is tolerated.
    """

    parameters: int
    directions: int
    precision: str
    deviation: float


@dataclass(frozen=True)
class ForwardCheck:
    """How the values that a session computes were compared with those of the nodes.

    Attributes:
        values: How many: the loss, other outputs, and gradients.
        samples: How many times, each with feeds and parameters of its own.
        precision: That of the nodes: "float64", or "float32" without optimizations.
        deviation: The largest difference, as a part of what rounding explains.
        forward_model: Whether outputs were compared with those of the forward model too.
    """

    values: int
    samples: int
    precision: str
    deviation: float
    forward_model: bool


@dataclass
class Checked:
    """What was found.

    Attributes:
        gradients: How the gradients were compared; None if they were not.
        forward: How values were compared; None if they were not.
        differences: What differs.
        unchecked: What could not be compared, and why.
    """

    gradients: GradientCheck | None = None
    forward: ForwardCheck | None = None
    differences: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)


def checked_part(
    reading: Reading,
    nodes: Recovered,
    *,
    seed: int,
    providers: Sequence[str],
    feeds: Mapping[str, Any] | None,
) -> Checked:
    """Compare the gradients with differences of the loss, and values with those of the nodes.

    Args:
        reading: The model.
        nodes: What was recognised in it.
        seed: Of the random numbers.
        providers: The execution providers.
        feeds: What a step is fed; None to make it up.

    Raises:
        TypeError: A feed has the wrong dtype.
        ValueError: The feeds do not fit the graph.
    """
    found = Checked()
    try:
        _compare(found, reading, nodes, seed, providers, feeds)
    except GraphFailsError as error:
        found.differences.append(str(error))
    except NotRunError as error:
        found.unchecked.append(f"gradients and forward values: {error}")
    return found


def _compare(
    found: Checked,
    reading: Reading,
    nodes: Recovered,
    seed: int,
    providers: Sequence[str],
    feeds: Mapping[str, Any] | None,
) -> None:
    """Compare what there is.

    Raises:
        GraphFailsError: The graph does not run.
        NotRunError: Why something was not compared.
    """
    random = np.random.default_rng(seed + 1)
    claimed = nodes.optimizer if reading.described is None else reading.described.optimizer
    try:
        graph = declared_graph(reading)
        found.differences += misdeclared(graph, reading, claimed, nodes)
        part = TrainingPart(graph, reading, nodes, providers)
    except GraphFailsError:
        raise
    except NotRunError:
        run_whole(reading.file.model, providers, feeds, random)
        raise
    sampler = Sampler(part, seed, feeds, time.monotonic() + SECONDS)
    _Checker(sampler, found, random).check()


class _Checker:
    """Compares sample after sample, until something differs or the time is over."""

    def __init__(self, sampler: Sampler, found: Checked, random: np.random.Generator) -> None:
        self._sampler, self._found, self._random = sampler, found, random
        self._part = sampler.part
        self._directions = self._samples = 0
        self._slopes: list[float] = []
        self._values: list[float] = []
        self._forward_model = False

    def check(self) -> None:
        """Compare what there is."""
        try:
            self._check_samples()
        finally:
            self._summarize()

    def _check_samples(self) -> None:
        usual, *edges = self._sampler.kinds
        for kind in (*[usual] * _SAMPLES, *edges):
            if self._samples and (self._sampler.is_late or self._found.differences):
                break
            sample = self._sample(kind, is_usual=kind == usual)
            if sample is None:
                continue
            self._samples += 1
            self._check_sample(sample, kind, is_first=self._samples == 1)
        if not self._samples:
            raise self._sampler.never_finite()

    def _sample(self, kind: str, *, is_usual: bool) -> Sample | None:
        """A sample with feeds of a kind; why there is none is told."""
        reason = "the loss is not finite"
        try:
            sample = self._sampler.sample(kind)
        except StepFailsError as error:
            if is_usual:
                raise GraphFailsError(str(error)) from None
            sample, reason = None, str(error)
        if sample is None:
            self._found.unchecked.append(f"feeds of the kind '{kind}': {reason}")
        return sample

    def _check_sample(self, sample: Sample, kind: str, *, is_first: bool) -> None:
        if is_first:
            self._compare_forward_model(sample)
        self._compare_values(sample, kind)
        if self._found.differences or self._check_finite(sample, kind):
            return
        for _ in range(_DIRECTIONS):
            if not self._compare_derivative(sample, kind):
                return

    def _compare_forward_model(self, sample: Sample) -> None:
        """The outputs of the forward model are those of the nodes, in float64."""
        names = {parameter.name for parameter in self._part.parameters}
        interpreter = self._sampler.interpreter
        if interpreter is None:
            self._found.unchecked.append("the forward model: it does not run in float64")
            return
        try:
            wanted, is_rounded = forward_outputs(
                self._part.graph, sample.known, names, interpreter.ends, self._part.providers
            )
        except GraphFailsError as error:
            self._found.differences.append(str(error))
            return
        except NotRunError as error:
            self._found.unchecked.append(f"the forward model: {error}")
            return
        self._forward_model = True
        for name, array in wanted.items():
            if name not in sample.exact or np.asarray(array).dtype.kind != "f":
                continue
            off = _relative(sample.exact[name], array)
            if not off <= (_SAME_ROUNDED if is_rounded else _SAME_FORWARD):
                self._found.differences.append(
                    f"'{shown(name)}' is not what the forward model computes: it is off by "
                    f"{off:.3g} of its largest element"
                )

    def _compare_values(self, sample: Sample, kind: str) -> None:
        """A session computes what the nodes say."""
        offs = self._sampler.deviating(sample)
        bad = {name for name, off in offs.items() if off > 1}
        if bad:  # rounding may carry one sample over a kink, but hardly two
            again = self._sampler.sample(kind)
            other = {} if again is None else self._sampler.deviating(again)
            bad &= {name for name, off in other.items() if off > 1}
            offs = {name: off for name, off in offs.items() if name in bad or off <= 1}
        self._values += offs.values()
        if not bad:
            return
        ordered = [name for name in offs if name in bad]
        name = ordered[0]
        place = ""
        if self._sampler.interpreter is not None:
            where = first_deviation(self._part, self._sampler.interpreter, sample.known, [name])
            place = f"; {where}"
        off = _relative(as_double(sample.got[name]), sample.exact[name])
        others = f" (and {len(ordered) - 1} more)" if len(ordered) > 1 else ""
        self._found.differences.append(
            f"with feeds of the kind '{kind}', the runtime computes '{shown(name)}'{others} "
            f"otherwise than the nodes say: it is off by {off:.3g} of its largest element{place}"
        )

    def _check_finite(self, sample: Sample, kind: str) -> bool:
        """Whether a gradient is not finite though the loss is."""
        bad = False
        for parameter in self._part.parameters:
            exact = np.asarray(sample.exact.get(parameter.gradient, sample.got[parameter.gradient]))
            count = int(np.count_nonzero(~np.isfinite(exact)))
            if count:
                bad = True
                what = "NaN" if np.isnan(exact).any() else "infinite"
                loss = float(np.asarray(sample.exact[self._part.loss]))
                self._found.differences.append(
                    f"with feeds of the kind '{kind}', the gradient of '{shown(parameter.name)}' "
                    f"is {what} in {count} of {exact.size} elements, and the loss is {loss:.6g}"
                )
        return bad

    def _compare_derivative(self, sample: Sample, kind: str) -> bool:
        """Whether the gradients are the derivative of the loss, or nothing can be said."""
        parameters = self._part.parameters
        derivatives = Derivatives(self._sampler, sample, self._random)
        different = 0
        for _ in range(_TRIES):
            verdict, off, claimed, value = derivatives.along(parameters)
            if verdict == "same":
                self._directions += 1
                self._slopes.append(off)
                return True
            different += verdict == "different"
            if different == 2:
                self._slopes.append(off)
                self._blame(derivatives, claimed, value)
                return False
        self._found.unchecked.append(
            f"gradients with feeds of the kind '{kind}': the loss has kinks along all "
            f"{_TRIES} directions"
        )
        return False

    def _blame(self, derivatives: Derivatives, claimed: float, value: float) -> None:
        """Name the parameters whose gradients are wrong."""
        found: list[str] = []
        precision = derivatives.precision.name
        for parameter in self._part.parameters[:_MOST_ALONE]:
            if self._sampler.is_late and found:
                break
            told = _wrong(derivatives, parameter)
            if told is not None:
                found.append(
                    f"the gradient of '{shown(parameter.name)}' is not the derivative of the "
                    f"loss: along a random direction it gives {told[0]:.6g}, and differences in "
                    f"{precision} give {told[1]:.6g}"
                )
        if not found:
            found.append(
                "the gradients are not the derivative of the loss: along a random direction of all "
                f"parameters they give {claimed:.6g}, and differences in {precision} give "
                f"{value:.6g}"
            )
        self._found.differences += found

    def _summarize(self) -> None:
        sampler, part = self._sampler, self._part
        precision = "float32" if sampler.interpreter is None else "float64"
        if self._directions or self._slopes:
            self._found.gradients = GradientCheck(
                len(part.parameters), self._directions, precision, max(self._slopes)
            )
        if self._samples:
            count = len(part.outputs) + len(part.gradients) * sampler.differentiates
            self._found.forward = ForwardCheck(
                count,
                self._samples,
                precision,
                max(self._values, default=0.0),
                self._forward_model,
            )


def _wrong(derivatives: Derivatives, parameter: Trained) -> tuple[float, float] | None:
    """What its gradient gives and what is right, if that is clear twice."""
    different = 0
    for _ in range(_TRIES):
        verdict, _, claimed, value = derivatives.along([parameter])
        if verdict == "same":
            return None
        different += verdict == "different"
        if different == 2:
            return claimed, value
    return None


def _relative(got: Any, exact: Any) -> float:
    """The largest difference, as a part of the largest element."""
    if np.shape(got) != np.shape(exact):
        return float("inf")
    usable = np.isfinite(exact)
    if not usable.any():
        return 0.0
    largest = float(np.abs(exact[usable]).max()) or 1.0
    with np.errstate(invalid="ignore"):
        return float(np.abs(got - exact)[usable].max()) / largest
