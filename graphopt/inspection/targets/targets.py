"""What runs a model: versions and execution providers of ONNX Runtime."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from graphopt._subgraphs import subgraphs
from graphopt.inspection.costs.shape_values import operator, static_size
from graphopt.inspection.facts import TargetFacts
from graphopt.inspection.targets.runtime_operators import (
    ADDED_LATER,
    CPU,
    CUDA,
    TRAINING_ONLY,
    Kernels,
)
from graphopt.on_device.names import GRADIENT_BUFFER, RESET
from graphopt.requirement import Requirements

_Version = tuple[int, ...]

# The highest opset and version of the file format that each version loads; measured.
_LIMITS: dict[_Version, tuple[int, int]] = {
    (1, 15): (19, 9),
    (1, 16): (19, 9),
    (1, 17): (20, 9),
    (1, 18): (21, 10),
    (1, 19): (21, 10),
    (1, 20): (21, 10),
    (1, 21): (22, 10),
    (1, 22): (22, 10),
    (1, 23): (23, 11),
    (1, 24): (25, 13),
    (1, 25): (26, 13),
    (1, 26): (26, 13),
    (1, 27): (26, 13),
    (1, 28): (26, 13),
    (1, 29): (26, 13),
    (1, 30): (26, 13),
    (1, 31): (26, 13),
    (1, 32): (28, 14),
}
_OLDEST, _NEWEST = min(_LIMITS), max(_LIMITS)
_OF_TRAINING: _Version = (1, 19)  # the last that has the training API
_DOMAINS = {"", "ai.onnx"}
_RUNTIMES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-web",
    "onnxruntime-training",
    "onnxruntime-training-cpu",
)
_TARGET = re.compile(r"([a-z-]+)==(\d{1,4}(?:\.\d{1,4}){1,2})")
_DEEPEST = 100  # functions and loops within each other
_SHOWN = 5  # operators in a reason

_OPTIMIZERS = {
    "com.microsoft::AdamWOptimizer": (
        "learning_rate",
        "step",
        "params",
        "gradients",
        "first_order_moments",
        "second_order_moments",
    ),
    "com.microsoft::SGDOptimizerV2": (
        "learning_rate",
        "step",
        "params",
        "gradients",
        "first_order_moments",
    ),
}
_NO_TRAINING_MODEL = (
    f"a training model has the inputs '{RESET}' and '<parameter>{GRADIENT_BUFFER}', this one has "
    "not; use graphopt.export_on_device"
)
_NO_OPTIMIZER_MODEL = (
    "an optimizer model has one node AdamWOptimizer or SGDOptimizerV2 in its main graph, this one "
    "has {}; use graphopt.export_on_device(..., optimizer_model=True)"
)


@dataclass(frozen=True)
class Target:
    """A version of ONNX Runtime.

    Attributes:
        runtime: The name of the package, such as "onnxruntime".
        version: The version.
    """

    runtime: str
    version: _Version

    @property
    def trains(self) -> bool:
        """Whether it has the operators of builds for training."""
        return self.runtime.startswith("onnxruntime-training")

    def __str__(self) -> str:
        """As it is written for pip."""
        return f"{self.runtime}=={'.'.join(map(str, self.version))}"


def parse_target(text: str) -> Target:
    """Read a target such as "onnxruntime==1.19".

    Args:
        text: A package and its version. Packages are onnxruntime, onnxruntime-gpu, onnxruntime-web,
            onnxruntime-training and onnxruntime-training-cpu.

    Raises:
        TypeError: It is no text.
        ValueError: It is no such package, or a version of which nothing is known.

    Example:
        >>> parse_target("onnxruntime==1.19.2").version
        (1, 19, 2)
    """
    if not isinstance(text, str):
        raise TypeError(f"target: got {type(text).__name__}, expected a str")
    found = _TARGET.fullmatch(text.strip())
    if found is None or found[1] not in _RUNTIMES:
        raise ValueError(
            f"target: got '{text[:60]}', expected a package and its version, such as "
            f"'onnxruntime==1.19'; the packages are {', '.join(_RUNTIMES)}"
        )
    target = Target(found[1], tuple(map(int, found[2].split("."))))
    if target.version[:2] < _OLDEST:
        raise ValueError(f"target: got {target}, expected version {_text(_OLDEST)} or later")
    if target.trains and target.version[:2] > _OF_TRAINING:
        raise ValueError(f"target: got {target}, but its last version is 1.19.2")
    return target


def exceeds(requirements: Requirements, target: Target | None) -> list[str]:
    """What a model needs that a version of ONNX Runtime does not have.

    Args:
        requirements: What the model needs.
        target: The version; None for one that has everything.

    Returns:
        Reasons, as sentences without a period; none if it runs.
    """
    if target is None:
        return []
    needed = [
        name if domain in _DOMAINS else f"{domain}::{name}"
        for domain, names in requirements.operators.items()
        for name in names
    ]
    reasons = list(_above(requirements, target.version))
    training = [name for name in needed if name in TRAINING_ONLY]
    if training and not target.trains:
        reasons.append(
            f"{_listed(training)}: only builds of ONNX Runtime for training have this operator"
        )
    later = [name for name in needed if name in ADDED_LATER and target.version[:2] <= _OF_TRAINING]
    if later:
        reasons.append(f"{_listed(later)}: came after ONNX Runtime {_text(_OF_TRAINING)}")
    unknown = [name for name in needed if not _is_known(name) and name not in TRAINING_ONLY]
    if unknown:
        reasons.append(f"{_listed(unknown)}: ONNX Runtime does not have this operator")
    return reasons


def targets(model: onnx.ModelProto, requirements: Requirements) -> tuple[TargetFacts, ...]:
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
    reasons = exceeds(requirements, Target("onnxruntime", _NEWEST))
    if not reasons:
        missing = [each for each in counts if not versions.has(CPU, each)]
        reasons = _without_kernel(missing, "the CPU")
    return TargetFacts(name, not reasons, tuple(reasons or _first_version(requirements)))


def _cuda(
    requirements: Requirements, counts: Mapping[str, int], versions: "_Versions"
) -> TargetFacts:
    name = "ONNX Runtime (CUDA)"
    reasons = exceeds(requirements, Target("onnxruntime-gpu", _NEWEST))
    if reasons:
        return TargetFacts(name, False, tuple(reasons))
    elsewhere = [each for each in counts if not versions.has(CUDA, each)]
    missing = [each for each in elsewhere if not versions.has(CPU, each)]
    if missing:
        return TargetFacts(name, False, tuple(_without_kernel(missing, "CUDA or the CPU")))
    reasons = list(_first_version(requirements))
    if elsewhere:
        number = sum(counts[each] for each in elsewhere)
        nodes = "1 node runs" if number == 1 else f"{number} nodes run"
        reasons.append(
            f"{nodes} on the CPU, with copies to it and back, because CUDA has no kernel for "
            f"{_listed(elsewhere)}"
        )
    return TargetFacts(name, True, tuple(reasons))


def _on_device(model: onnx.ModelProto, requirements: Requirements) -> TargetFacts:
    reasons = [
        *_interface(model.graph),
        *exceeds(requirements, Target("onnxruntime-training", _OF_TRAINING)),
    ]
    return TargetFacts("on-device training API", not reasons, tuple(reasons))


def _interface(graph: onnx.GraphProto) -> list[str]:
    """Why the inputs and outputs are not those of on-device training."""
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in stored]
    optimizers = [name for name in map(operator, graph.node) if name in _OPTIMIZERS]
    is_optimizer = {"params", "gradients"} <= set(inputs)
    if is_optimizer or (optimizers and RESET not in inputs):
        return _optimizer_interface(inputs, optimizers)
    buffers = [value for value in inputs if value.endswith(GRADIENT_BUFFER)]
    if RESET not in inputs and not buffers:
        return [_NO_TRAINING_MODEL]
    reasons = []
    if RESET not in inputs:
        reasons.append(f"it lacks the input '{RESET}'")
    if not buffers:
        reasons.append(f"no parameter has an input '<parameter>{GRADIENT_BUFFER}'")
    reasons += [
        f"the input '{value}' belongs to no input '{value.removesuffix(GRADIENT_BUFFER)}'"
        for value in buffers
        if value.removesuffix(GRADIENT_BUFFER) not in inputs
    ][:_SHOWN]
    if not graph.output or not _may_be_scalar(graph.output[0]):
        reasons.append("its first output must be the loss, a single number")
    return reasons


def _optimizer_interface(inputs: list[str], optimizers: list[str]) -> list[str]:
    """Why a model is no optimizer model."""
    if len(optimizers) != 1:
        return [_NO_OPTIMIZER_MODEL.format(len(optimizers))]
    expected = _OPTIMIZERS[optimizers[0]]
    if tuple(inputs) == expected:
        return []
    kind = optimizers[0].rpartition(":")[2]
    return [f"its inputs are {_listed(inputs)}, expected for {kind}: {', '.join(expected)}"]


def _may_be_scalar(value: onnx.ValueInfoProto) -> bool:
    if not value.type.HasField("tensor_type"):
        return False
    if not value.type.tensor_type.HasField("shape"):
        return True
    return all(static_size(dim) in (1, None) for dim in value.type.tensor_type.shape.dim)


def _above(requirements: Requirements, version: _Version) -> Iterator[str]:
    """Why a version is too old for the file."""
    opset, ir_version = _LIMITS[min(max(version[:2], _OLDEST), _NEWEST)]
    needed = _opset(requirements)
    if needed > opset:
        yield f"opset {needed}: ONNX Runtime {_text(version)} knows opset {opset} at most"
    if requirements.ir_version > ir_version:
        yield (
            f"IR version {requirements.ir_version}: ONNX Runtime {_text(version)} knows "
            f"IR version {ir_version} at most"
        )


def _first_version(requirements: Requirements) -> Iterator[str]:
    """From which version on a model runs, if not from the oldest that is known."""
    first = next(
        (version for version in _LIMITS if not list(_above(requirements, version))), _NEWEST
    )
    if first > _OLDEST:
        yield f"from ONNX Runtime {_text(first)} on"


def _opset(requirements: Requirements) -> int:
    return max((requirements.opsets.get(domain, 0) for domain in _DOMAINS), default=0)


def _is_known(name: str) -> bool:
    """Whether any kernel is known, or a definition by other operators."""
    return name in CPU or name in CUDA or ("::" not in name and onnx.defs.has(name))


def _without_kernel(names: list[str], where: str) -> list[str]:
    return [f"{_listed(names)}: ONNX Runtime has no kernel for {where}"] if names else []


def _listed(names: Iterable[str]) -> str:
    shown = [name[:80] for name in names]
    more = [f"{len(shown) - _SHOWN} more"] if len(shown) > _SHOWN else []
    return ", ".join([*shown[:_SHOWN], *more])


def _text(version: _Version) -> str:
    return ".".join(map(str, version))


class _Versions:
    """The versions of the operators of a model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._opset = max(
            (entry.version for entry in model.opset_import if entry.domain in _DOMAINS), default=1
        )

    def has(self, kernels: Kernels, name: str) -> bool:
        """Whether there is a kernel for an operator, or a definition by others.

        ONNX Runtime takes a kernel without a last version for the very version that it is for:
        the operator may have changed since.
        """
        if name == "Constant":
            return True
        found = kernels.get(name)
        if "::" in name or self._opset > onnx.defs.onnx_opset_version():
            return found is not None or self._is_function(name)
        try:
            since = onnx.defs.get_schema(name, self._opset).since_version
        except onnx.defs.SchemaError:
            return False
        fits = any(
            start == since or (end is not None and start <= since <= end)
            for start, end in found or ()
        )
        return fits or self._is_function(name)

    def _is_function(self, name: str) -> bool:
        """Whether ONNX defines an operator by others."""
        if "::" in name:
            return False
        try:
            schema: Any = onnx.defs.get_schema(name, self._opset)
        except onnx.defs.SchemaError:
            return False
        return bool(schema.has_function or schema.has_context_dependent_function)


def _count(model: onnx.ModelProto) -> Counter[str]:
    """How often each operator occurs, with functions written out."""
    bodies = {(function.domain, function.name): function for function in model.functions}
    counted: dict[tuple[str, str], Counter[str]] = {}

    def count(nodes: Iterable[onnx.NodeProto], inside: int) -> Counter[str]:
        counts: Counter[str] = Counter()
        for node in nodes:
            key = node.domain, node.op_type
            if key not in bodies:
                counts[operator(node)] += 1
            elif inside < _DEEPEST:
                if key not in counted:
                    counted[key] = Counter()  # for one that calls itself
                    counted[key] = count(bodies[key].node, inside + 1)
                counts.update(counted[key])
            for graph in subgraphs(node):
                counts.update(count(graph.node, inside + 1))
        return counts

    return count(model.graph.node, 0)
