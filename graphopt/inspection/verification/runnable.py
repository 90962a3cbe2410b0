"""What can be run: an update that is cut out of its graph."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import onnx_ir as ir

from graphopt import _runtime
from graphopt._words import shown
from graphopt.inspection.reading.dataflow import Value
from graphopt.inspection.verification.batches import Array, Updated
from graphopt.inspection.verification.update_model import update_model

MOST_BYTES = 2**33
"""Memory for what is fed and what comes out."""

_FATAL = 4  # ONNX Runtime's level of severity

State = Mapping[str, Mapping[str, Array]]
"""The arrays of parameters and states: by kind, then by parameter."""


@dataclass(frozen=True)
class Given:
    """What a step is given beside parameters, states and gradients.

    Attributes:
        number: The number of updates before it.
        mask: Which groups are updated.
        loss_scale: What its gradients are to be divided by.
        counters: The scalars that the graph carries, by the name of the state.
        overflows: Whether a gradient is infinite or NaN, so that the step is to be skipped.
        is_last: Whether it is the last of the steps whose gradients are added up.
    """

    number: int
    mask: Array | None = None
    loss_scale: float = 1.0
    counters: Mapping[str, float] = field(default_factory=dict)
    overflows: bool = False
    is_last: bool = True

    @property
    def updates(self) -> bool:
        """Whether it is to be an update."""
        return self.is_last and not self.overflows

    @property
    def what(self) -> str:
        """What sets it apart, in words behind its number."""
        if self.overflows:
            return ", which overflows"
        return "" if self.is_last else ", which only adds its gradients up"


class NotRunError(Exception):
    """Why something could not be run, or compared."""


class GraphFailsError(NotRunError):
    """Why the graph itself does not run, so that it is not what it says."""


class RunnableUpdate(ABC):
    """An update that ONNX Runtime computes by itself.

    Attributes:
        parameters: The parameters.
        step: What counts the steps.
        fed: What is fed for learning rates, by input.
        groups: How many groups the mask has; 0 without a mask.
        averages: Whether each parameter has an average, a state of that kind.
        sums: Whether each has a sum of its gradients, a state of that kind.
        twice_rounded: A new value is computed as the old one less a difference.
        reported: What the last step gave beside parameters and states, by name: what it reports,
            and the scalars that the graph carries.
    """

    parameters: Sequence[Updated]
    step: Value | None
    fed: Mapping[str, float]
    groups = 0
    averages = False
    sums = False
    twice_rounded = False
    reported: Mapping[str, Array] = MappingProxyType({})

    @abstractmethod
    def run(self, state: State, gradients: Mapping[str, Array], given: Given) -> State:
        """One step.

        Raises:
            NotRunError: It fails.
        """

    def starts(self, number: int) -> Mapping[str, float]:  # noqa: ARG002
        """The kinds of states that only have one value at a step."""
        return {}

    def _cut_out(
        self,
        model: ir.Model,
        fed: Mapping[str, ir.Value],
        wanted: Sequence[str],
        providers: Sequence[str],
    ) -> None:
        """Cut out what computes some values of a model from others.

        Raises:
            NotRunError: ONNX Runtime does not run that.
        """
        runtime = _runtime.onnxruntime()
        options = _runtime.session_options(runtime)
        options.log_severity_level = _FATAL  # what goes wrong is said in the result
        self._wanted = list(dict.fromkeys(wanted))
        try:
            cut = update_model(model, fed, self._wanted)
            data = cut.SerializeToString()
            self._session = runtime.InferenceSession(data, options, list(providers))
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's
            raise NotRunError(f"the update does not run by itself: {in_a_line(error)}") from None
        self._known = {value.name for value in self._session.get_inputs()}

    def _computed(self, feeds: Mapping[str, Any], number: int) -> dict[str, Any]:
        """The values that are wanted, by name.

        Raises:
            NotRunError: A step fails.
        """
        known = {name: fed for name, fed in feeds.items() if name in self._known}
        try:
            results = self._session.run(self._wanted, known)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's
            raise NotRunError(f"the update fails in step {number}: {in_a_line(error)}") from None
        return dict(zip(self._wanted, results, strict=True))


def in_a_line(error: Exception) -> str:
    """What an error says, short enough for one line."""
    return shown(" ".join(str(error).split()), 300)
