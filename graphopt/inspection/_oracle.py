"""An optimizer like the one that was recognised in a graph, for `graphopt.reference`."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import schedules
from graphopt.builder import GraphBuilder
from graphopt.inspection import _schedules
from graphopt.inspection._dataflow import Value
from graphopt.inspection._merged import Merged
from graphopt.inspection._recovered import Recovered, Trained, without_factor
from graphopt.inspection.facts import Schedule
from graphopt.parameters import Parameter
from graphopt.rmsprop import RMSProp
from graphopt.schedules import LearningRateSchedule
from graphopt.schedules._base import Fixed


def optimizer_of(optimizer: Merged, nodes: Recovered, fed: float) -> RMSProp:
    """The optimizer that was recognised; each parameter is a group of its own.

    Args:
        optimizer: What was recognised.
        nodes: The parameters in the nodes.
        fed: What is fed where the caller gives the learning rate.

    Raises:
        TypeError: A hyperparameter is missing.
        ValueError: A hyperparameter is one that RMSProp does not take.
    """
    facts = optimizer.optimizer
    assert facts is not None
    known = {parameter.name: parameter for parameter in optimizer.parameters}
    chosen = {
        name: value
        for name, value in vars(facts).items()
        if name in inspect.signature(RMSProp).parameters and value is not None
    }
    scale = facts.loss_scale or 1.0
    groups = []
    for trained in nodes.trained:
        parameter = known[trained.facts.name]
        op_type = "Conv" if parameter.grad_centralization else None
        factor_scale = 1.0 if trained.update.has("decoupled") else scale
        groups.append(
            {
                "params": [Parameter(parameter.name, parameter.shape, parameter.dtype, op_type)],
                "lr": _schedule(parameter.learning_rate, trained.rate, nodes, fed),
                "weight_decay": _weight_decay(
                    parameter.weight_decay, trained, nodes, fed, factor_scale
                ),
                "grad_centralization": parameter.grad_centralization,
            }
        )
    if facts.decay is not None:
        # 1 - decay is exact in float32, but of the decay that float32 has.
        chosen["decay"] = float(np.float32(facts.decay))
    return RMSProp(groups, **chosen)


def _weight_decay(
    described: Schedule, trained: Trained, nodes: Recovered, fed: float, scale: float
) -> float | LearningRateSchedule:
    if isinstance(described, Mapping) and not _is_ours(described):
        return Computed(trained.factor, nodes.step, scale, fed)
    made = _schedule(described, trained.factor, nodes, fed)
    if isinstance(described, Mapping) and described.get("schedule") == "FromCaller":
        return without_factor(fed, 1.0)
    return made


def _schedule(
    described: Schedule, value: Value | None, nodes: Recovered, fed: float
) -> float | LearningRateSchedule:
    """A number, a schedule with the arguments that were found, or what the nodes compute."""
    if not isinstance(described, Mapping):
        if described is None:
            raise TypeError("a learning rate is not known")
        return described
    if described.get("schedule") == "FromCaller":
        return fed
    if _is_ours(described):
        return _made(described)
    return Computed(value, nodes.step, 1.0, fed)


def _is_ours(described: Mapping[str, Any]) -> bool:
    """Whether it is a schedule that can be made of its description."""
    kind = described.get("schedule")
    if kind == "SequentialLR":
        return all(isinstance(s, Mapping) and _is_ours(s) for s in described["schedules"])
    return kind == "Fixed" or (kind in _schedules.RECOGNISED and kind not in ("list", "FromCaller"))


def _made(described: Mapping[str, Any]) -> LearningRateSchedule:
    kind = described["schedule"]
    if kind == "Fixed":
        return Fixed(described["constant"])
    if kind == "SequentialLR":
        parts = [_made(part) for part in described["schedules"]]
        return schedules.SequentialLR(parts, list(described["milestones"]))
    arguments = {name: value for name, value in described.items() if name != "schedule"}
    if kind == "NaturalExpDecayLR":
        arguments.setdefault("decay_steps", 1)  # without steps it has no influence
    made: LearningRateSchedule = getattr(schedules, kind)(**arguments)
    return made


@dataclass(frozen=True, eq=False)
class Computed(LearningRateSchedule):
    """What nodes compute of the step, in NumPy."""

    nodes: Value | None
    step: Value | None
    scale: float
    fed: float

    def emit(self, op: GraphBuilder, step: ir.Value) -> ir.Value:
        """Not needed: it is for the oracle."""
        raise NotImplementedError

    def value(self, step: int) -> float:
        """The value at a step.

        Raises:
            ValueError: The nodes are not arithmetic on numbers.
        """
        if self.nodes is None or self.step is None:
            raise ValueError("the learning rate depends on something else than the step")
        result = _schedules.evaluated(self.nodes, self.step, np.array([step], np.int64))
        if result is None:
            raise ValueError("the learning rate is not computed by arithmetic on the step alone")
        return float(result.reshape(-1)[0]) / self.scale
