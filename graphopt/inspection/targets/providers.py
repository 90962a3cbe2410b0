"""What other execution providers of ONNX Runtime take of a graph, by what their documents say.

Nothing of it was measured: a provider may refuse a node for reasons that no document tells. Each
has a file in ``documented/`` with its operators, where that is said, and what is said beside.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import onnx_ir as ir

from graphopt.inspection.facts import TargetFacts
from graphopt.inspection.targets.releases import DOMAINS, listed
from graphopt.operators import name_of
from graphopt.shapes.engine import Scope, Shapes
from graphopt.stage import STAGES, Stage

_FREE = ("Constant",)  # which no provider has to run
_READ_AS = {"CastLike": "Cast"}  # ONNX Runtime has no kernel of it, and makes the other of it
_MOST = 6  # operators in a reason


@dataclass(frozen=True)
class Provider:
    """An execution provider.

    Attributes:
        key: What it is called as a target.
        name: What it is called.
        provider: What ONNX Runtime calls it.
        source: Where its operators are said.
        dated: Of which version that is.
        operators: By name, what must be true of a node: the inputs that must be ``constant``
            (``unless`` attributes have these values), the ``rank`` and the ``dtypes`` of its first
            input, attributes that may ``only`` have these values, whether it works along the
            ``last_axis`` alone.
        opset: The last that it takes; None where nothing is said.
        fixed_shapes: Whether it takes no open dimension.
        most_elsewhere: With more nodes that it does not take, it takes none; None: that is not so.
        notes: What is said besides.
    """

    key: str
    name: str
    provider: str
    source: str
    dated: str
    operators: Mapping[str, Mapping[str, Any]]
    opset: int | None = None
    fixed_shapes: bool = False
    most_elsewhere: int | None = None
    notes: Sequence[str] = ()


@dataclass
class Placement:
    """Where the nodes of a stage run.

    Attributes:
        nodes: How many there are, those in functions counted one by one.
        elsewhere: Those that run on the CPU: how many of each operator, with the reason.
    """

    nodes: int = 0
    elsewhere: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def taken(self) -> int:
        """How many the provider takes."""
        return self.nodes - sum(self.elsewhere.values())


@cache
def providers() -> Mapping[str, Provider]:
    """All that are known, by their keys."""
    found = {}
    folder = files(__package__).joinpath("documented")
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        key = path.name.removesuffix(".json")
        found[key] = Provider(key, **json.loads(path.read_text(encoding="utf-8")))
    return found


def placed(provider: Provider, stages: Sequence[Stage], shapes: Shapes) -> dict[Stage, Placement]:
    """Which nodes of each stage a provider takes.

    Args:
        provider: The provider.
        stages: The stage of each node of the graph.
        shapes: What is known of its values; open dimensions are symbols.
    """
    found = {stage: Placement() for stage in STAGES}
    opset = max((shapes.model.opset_imports.get(domain, 0) for domain in DOMAINS), default=0)
    above = provider.opset is not None and opset > provider.opset
    for node, stage in zip(shapes.model.graph, stages, strict=True):
        for inner, scope in _written_out(node, shapes.scope, shapes):
            if name_of(inner) in _FREE:
                continue
            why = f"opset {opset}" if above else _why_not(provider, inner, scope)
            found[stage].nodes += 1
            if why is not None:
                found[stage].elsewhere[name_of(inner), why] += 1
    most = provider.most_elsewhere
    if most is not None and sum(p.nodes - p.taken for p in found.values()) > most:
        for placement in found.values():
            placement.elsewhere["all other nodes", f"more than {most} others"] += placement.taken
    return found


def documented(provider: Provider, stages: Sequence[Stage], shapes: Shapes) -> TargetFacts:
    """What a provider takes of a graph, stage by stage, and what falls back to the CPU."""
    reasons = ["from its documents, not measured"]
    found = placed(provider, stages, shapes)
    for stage, placement in found.items():
        if placement.nodes:
            reasons.append(_in_words(stage, placement))
    reasons += [*provider.notes, f"as said by {provider.source} ({provider.dated})"]
    takes_any = any(placement.taken for placement in found.values())
    return TargetFacts(f"{provider.name}, by its documents", takes_any, tuple(reasons))


def _in_words(stage: str, placement: Placement) -> str:
    text = f"{stage}: {placement.taken} of {placement.nodes} nodes"
    grouped: dict[str, list[str]] = {}
    for (name, why), count in placement.elsewhere.most_common():
        if count:
            grouped.setdefault(why, []).append(name if count == 1 else f"{name} ({count})")
    others = (f"{listed(names)}{f', {why}' if why else ''}" for why, names in grouped.items())
    shown = "; ".join(list(others)[:_MOST])
    return f"{text}, on the CPU {shown}" if shown else text


def _written_out(node: ir.Node, scope: Scope, shapes: Shapes) -> Iterator[tuple[ir.Node, Scope]]:
    """A node, or those of the function that it calls."""
    inside = [body for body in shapes.bodies(node, scope) if body.kind == "function"]
    if not inside:
        yield node, scope
    for body in inside:
        for inner in body.graph:
            yield from _written_out(inner, body.scope, shapes)


def _why_not(provider: Provider, node: ir.Node, scope: Scope) -> str | None:
    """Why a node falls back to the CPU: "" if its operator is not listed; None if it does not."""
    name = name_of(node)
    rule = provider.operators.get(name, provider.operators.get(_READ_AS.get(name, "")))
    if rule is None:
        return ""
    inputs = [None if value is None else scope.of(value) for value in node.inputs]
    first = next((info for info in inputs if info is not None), None)
    if provider.fixed_shapes and any(
        info is not None and not all(isinstance(dim, int) for dim in info.shape or ())
        for info in inputs
    ):
        return "with open dimensions"
    shape = None if first is None else first.shape
    if "rank" in rule and shape is not None and len(shape) not in rule["rank"]:
        return f"of rank {len(shape)}"
    dtype = None if first is None or not first.dtype else first.dtype.numpy().name
    if "dtypes" in rule and dtype is not None and dtype not in rule["dtypes"]:
        return f"in {dtype}"
    for attribute, value in rule.get("only", {}).items():
        if _attribute(node, attribute, value) != value:
            return f"with another {attribute}"
    axis = _attribute(node, "axis", -1)
    if rule.get("last_axis") and shape is not None and axis not in (-1, len(shape) - 1):
        return "along another axis than the last"
    unless = rule.get("unless", {})
    if unless and all(_attribute(node, name, 0) == value for name, value in unless.items()):
        return None
    return _not_constant(node, rule.get("constant", ()))


def _not_constant(node: ir.Node, places: Sequence[int]) -> str | None:
    for at in places:
        value = node.inputs[at] if at < len(node.inputs) else None
        if value is not None and not _is_constant(value):
            return f"whose input {at} is no constant"
    return None


def _attribute(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    known = attribute is not None and attribute.type == ir.AttributeType.INT
    return attribute.as_int() if known and attribute is not None else default


def _is_constant(value: ir.Value) -> bool:
    return not value.is_graph_input() and ir.convenience.get_const_tensor(value) is not None
