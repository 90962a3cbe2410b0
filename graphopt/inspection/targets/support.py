"""Which execution providers, and whether the training API, run a model."""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import onnx
import onnx_ir as ir

from graphopt.graphs import functions
from graphopt.inspection.facts import TargetFacts
from graphopt.inspection.targets.releases import (
    DOMAINS,
    NEWEST,
    OF_TRAINING,
    Target,
    exceeds,
    first_version,
    listed,
)
from graphopt.inspection.targets.runtime_operators import CPU, CUDA, Kernels
from graphopt.inspection.targets.training_api import misfits
from graphopt.operators import name_of
from graphopt.requirement import Requirements

_DEEPEST = 100  # functions within each other


def targets(model: ir.Model, requirements: Requirements) -> tuple[TargetFacts, ...]:
    """Whether ONNX Runtime runs a model: on the CPU, on CUDA, and as a model of on-device training.

    What is known comes from the version of the file format, the opset and the operators. An
    operator may still lack a kernel for the element type that it is used with.

    Args:
        model: The model.
        requirements: What it needs.
    """
    versions = _Versions(model)
    counts = _count(model)
    return (
        _cpu(requirements, counts, versions),
        _cuda(requirements, counts, versions),
        _on_device(model, requirements),
    )


def _cpu(
    requirements: Requirements, counts: Mapping[str, int], versions: "_Versions"
) -> TargetFacts:
    name = "ONNX Runtime (CPU)"
    reasons = exceeds(requirements, Target("onnxruntime", NEWEST))
    if not reasons:
        missing = [each for each in counts if not versions.has(CPU, each)]
        reasons = _without_kernel(missing, "the CPU")
    return TargetFacts(name, not reasons, tuple(reasons or first_version(requirements)))


def _cuda(
    requirements: Requirements, counts: Mapping[str, int], versions: "_Versions"
) -> TargetFacts:
    name = "ONNX Runtime (CUDA)"
    reasons = exceeds(requirements, Target("onnxruntime-gpu", NEWEST))
    if reasons:
        return TargetFacts(name, False, tuple(reasons))
    elsewhere = [each for each in counts if not versions.has(CUDA, each)]
    missing = [each for each in elsewhere if not versions.has(CPU, each)]
    if missing:
        return TargetFacts(name, False, tuple(_without_kernel(missing, "CUDA or the CPU")))
    reasons = list(first_version(requirements))
    if elsewhere:
        number = sum(counts[each] for each in elsewhere)
        nodes = "1 node runs" if number == 1 else f"{number} nodes run"
        reasons.append(
            f"{nodes} on the CPU, with copies to it and back, because CUDA has no kernel for "
            f"{listed(elsewhere)}"
        )
    return TargetFacts(name, True, tuple(reasons))


def _on_device(model: ir.Model, requirements: Requirements) -> TargetFacts:
    reasons = [
        *misfits(model.graph),
        *exceeds(requirements, Target("onnxruntime-training", OF_TRAINING)),
    ]
    return TargetFacts("on-device training API", not reasons, tuple(reasons))


def _without_kernel(names: list[str], where: str) -> list[str]:
    return [f"{listed(names)}: ONNX Runtime has no kernel for {where}"] if names else []


class _Versions:
    """The versions of the operators of a model."""

    def __init__(self, model: ir.Model) -> None:
        self._opset = max(
            (opset for domain, opset in model.opset_imports.items() if domain in DOMAINS), default=1
        )

    def has(self, kernels: Kernels, name: str) -> bool:
        """Whether there is a kernel for an operator, or a definition by others.

        ONNX Runtime takes a kernel without a last version for the very version that it is for:
        the operator may have changed since.
        """
        if name == "Constant":
            return True
        found = kernels.get(name)
        if "::" in name:
            return found is not None
        schema: Any = None
        with suppress(onnx.defs.SchemaError):
            schema = onnx.defs.get_schema(name, self._opset)
        if schema is not None and (schema.has_function or schema.has_context_dependent_function):
            return True
        is_newer = self._opset > onnx.defs.onnx_opset_version()
        if schema is None or is_newer:
            return found is not None and is_newer
        since = schema.since_version
        return any(
            start == since or (end is not None and start <= since <= end)
            for start, end in found or ()
        )


def _count(model: ir.Model) -> Counter[str]:
    """How often each operator occurs, with functions written out."""
    bodies = functions(model)
    counted: dict[tuple[str, str], Counter[str]] = {}

    def count(graph: ir.Graph | ir.Function, inside: int) -> Counter[str]:
        counts: Counter[str] = Counter()
        for node in graph.all_nodes():
            key = node.domain, node.op_type
            if key not in bodies:
                counts[name_of(node)] += 1
            elif inside < _DEEPEST:
                if key not in counted:
                    counted[key] = Counter()  # for one that calls itself
                    counted[key] = count(bodies[key], inside + 1)
                counts.update(counted[key])
        return counts

    return count(model.graph, 0)
