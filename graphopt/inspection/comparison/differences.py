"""What is different between two training graphs."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.inspection.facts import Inspection
from graphopt.inspection.structure.contents import digest, values

_LEFT_OUT = {"source", "formula", "others"}
_RULES = ("learning_rate", "weight_decay", "grad_centralization")


@dataclass(frozen=True)
class Change:
    """A fact that is another one.

    Attributes:
        part: What it belongs to: "model", "optimizer", "groups", "parameters", "state", "layout",
            "interface", "nodes" (of the forward pass and the loss), "values" (that training begins
            with, and constants), "requirements", "targets" or "hazards".
        where: The group, parameter or the like; "" for the part itself.
        what: The fact; "there" where all of it is in one of the two only.
        before: In the first; None where it is not there.
        after: In the second; None where it is not there.
        distance: Of values: the most that two elements are apart; None where they are no numbers.
    """

    part: str
    where: str
    what: str
    before: Any
    after: Any
    distance: float | None = None


@dataclass(frozen=True)
class Difference:
    """How two graphs differ.

    Attributes:
        changes: What is different, part by part.
        same: The parts that are the same.
    """

    changes: tuple[Change, ...]
    same: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything, for `json.dumps`."""
        return asdict(self)


def diff(before: Inspection, after: Inspection) -> Difference:
    """What changed between two graphs, and what did not.

    Args:
        before: What `graphopt.inspect` found in the first.
        after: What it found in the second.

    Example:
        >>> p = [Parameter("w", (3,))]
        >>> a, b = (inspect(update_graph(RMSProp(p, momentum=m))) for m in (0.0, 0.9))
        >>> change = diff(a, b).changes[0]
        >>> change.part, change.what, change.before, change.after
        ('optimizer', 'momentum', 0.0, 0.9)
    """
    parts, others = _facts(before), _facts(after)
    changes = [c for part, facts in parts.items() for c in _changes(part, facts, others[part])]
    changes += _values(before.contents.tensors, after.contents.tensors)
    changed = {change.part for change in changes}
    return Difference(tuple(changes), tuple(part for part in parts if part not in changed))


def _facts(inspection: Inspection) -> dict[str, dict[str, dict[str, Any]]]:
    """What is compared: by part, by what it is about, by fact."""
    optimizer = {} if inspection.optimizer is None else asdict(inspection.optimizer)
    others = optimizer.get("others", {})
    needed = inspection.requirements
    values = {
        **{f"input {value.name}": value for value in inspection.inputs},
        **{f"output {value.name}": value for value in inspection.outputs},
    }
    return {
        "model": {"": _only(inspection.model, "kind", "nodes")},
        "optimizer": {"": {k: v for k, v in optimizer.items() if k not in _LEFT_OUT} | others},
        "groups": {
            f"group {index}": {"parameters": len(group.parameters)} | _only(group, *_RULES)
            for index, group in enumerate(inspection.groups)
        },
        "parameters": {
            parameter.name: _only(parameter, "shape", "dtype", "group", *_RULES, "states")
            for parameter in inspection.parameters
        },
        "layout": {"": {"name": inspection.layout, "buckets": len(inspection.buckets)}},
        "state": {
            state.input: _only(state, "kind", "shape", "dtype", "initial", "overwritable")
            for state in inspection.state
        },
        "interface": {name: _only(value, "shape", "dtype") for name, value in values.items()},
        "nodes": {name: dict(node) for name, node in inspection.contents.nodes.items()},
        "values": {name: _type(tensor) for name, tensor in inspection.contents.tensors.items()},
        "requirements": {
            "": {"ir_version": needed.ir_version}
            | {f"opset of {_domain(name)}": version for name, version in needed.opsets.items()}
        }
        | {
            f"operator {_domain(domain)}::{name}": {}
            for domain, names in needed.operators.items()
            for name in names
        }
        | {f"function {name}": {} for name in needed.functions},
        "targets": {target.name: _only(target, "runs") for target in inspection.targets},
        "hazards": {
            f"{hazard.kind}: {', '.join(hazard.where)}": _only(hazard, "level")
            for hazard in inspection.hazards
        },
    }


def _only(facts: object, *names: str) -> dict[str, Any]:
    """Some of the facts of a thing, by name."""
    return {name: getattr(facts, name) for name in names}


def _domain(name: str) -> str:
    return name or "ai.onnx"


def _changes(
    part: str, before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]
) -> Iterator[Change]:
    for where in dict.fromkeys((*before, *after)):
        old, new = before.get(where), after.get(where)
        if old is None or new is None:
            yield Change(part, where, "there", old is not None, new is not None)
            continue
        for what in dict.fromkeys((*old, *new)):
            if _differ(old.get(what), new.get(what)):
                yield Change(part, where, what, old.get(what), new.get(what))


def _differ(old: Any, new: Any) -> bool:
    """Whether two facts are different; NaN is itself here."""
    return bool(old != new) and repr(old) != repr(new)


def _type(tensor: Any) -> dict[str, Any]:
    dtype = tensor.dtype.numpy() if isinstance(tensor.dtype, ir.DataType) else tensor.dtype
    return {"shape": tuple(int(size) for size in tensor.shape), "dtype": dtype.name}


def _values(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    """The tensors that are of one type and hold other values, and how far those are apart."""
    for name, old in before.items():
        new = after.get(name)
        if new is None or _type(old) != _type(new):
            continue
        digests = digest(old), digest(new)
        if None not in digests and digests[0] != digests[1]:
            distance = _distance(values(old), values(new))
            told = "values" if distance is None else f"values, at most {distance:.3g} apart"
            old_text, new_text = (f"sha256 {text}" for text in digests)
            yield Change("values", name, told, old_text, new_text, distance)


def _distance(old: Any, new: Any) -> float | None:
    """The largest difference of two arrays; None where they hold no numbers."""
    if old.dtype.kind not in "biufV":
        return None
    with np.errstate(all="ignore"):
        apart = np.abs(old.astype(np.float64) - new.astype(np.float64))
    return float(np.nanmax(apart, initial=0.0))
