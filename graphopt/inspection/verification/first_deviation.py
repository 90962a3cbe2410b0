"""Where a runtime begins to compute something else than the nodes say."""

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir

from graphopt._words import shown
from graphopt.inspection.verification.interpreter import Interpreter, as_double
from graphopt.inspection.verification.rounding import worst
from graphopt.inspection.verification.runnable import NotRunError
from graphopt.inspection.verification.training_part import (
    TrainingPart,
    run,
    session_without_optimizations,
)


def first_deviation(
    part: TrainingPart, exact: Interpreter, known: Mapping[str, Any], wanted: Sequence[str]
) -> str:
    """The first value before others that the runtime computes otherwise, in words.

    An inner value that becomes an output may keep the runtime from the very optimization that is
    wrong. So all become outputs first, and if nothing deviates then, one at a time.

    Args:
        part: What is computed.
        exact: What computes it in float64.
        known: What the graph is fed.
        wanted: The values that deviate.
    """
    nodes = exact.needed(wanted)
    there = {name for node in part.graph.model.graph.node for name in node.output}
    names = [str(v.name) for node in nodes for v in node.outputs if v.name and _is_float(v)]
    names = [name for name in names if name in there]  # and not inside a function
    finder = _Finder(part, exact, nodes, known, names)
    try:
        bad = finder.deviating(names)
        if bad:
            return _told(nodes, bad[0])
        low, high = 0, len(names)  # nothing before low deviates, and something before high
        while high - low > 1:
            middle = (low + high) // 2
            if finder.deviating([names[middle]]):
                high = middle
            else:
                low = middle
        found = names[min(high, len(names) - 1)]
        if finder.deviating([found]):
            return f"{_told(nodes, found)}, where '{shown(names[low])}' is still right"
    except NotRunError:
        pass
    return "which value is the first that deviates was not found"


class _Finder:
    def __init__(
        self,
        part: TrainingPart,
        exact: Interpreter,
        nodes: Sequence[ir.Node],
        known: Mapping[str, Any],
        names: Sequence[str],
    ) -> None:
        self._part, self._exact, self._nodes, self._known = part, exact, nodes, known
        model = ir.to_proto(part.held)
        there = {value.name for value in model.graph.output}
        model.graph.output.extend(
            onnx.ValueInfoProto(name=name) for name in names if name not in there
        )
        self._plain = session_without_optimizations(model)

    def deviating(self, names: Sequence[str]) -> list[str]:
        """Those of some values that deviate, where the runtime has to give them."""
        session = self._part.exposing([*names, *self._part.drawn])
        got = run(session, [*names, *self._part.drawn], self._known)
        given = self._part.given(self._known, got)
        wide = {name: as_double(value) for name, value in given.items()}
        exact = self._exact.run(self._nodes, wide)
        plain = run(self._plain, names, given)
        return [name for name in names if worst(got[name], exact[name], plain[name]) > 1]


def _is_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()


def _told(nodes: Sequence[ir.Node], name: str) -> str:
    node = next(node for node in nodes if any(value.name == name for value in node.outputs))
    reads = ", ".join(f"'{shown(str(v.name))}'" for v in node.inputs if v is not None)
    label = f" '{shown(node.name)}'" if node.name else ""
    return f"the first value that deviates is '{shown(name)}', of {node.op_type}{label} ({reads})"
