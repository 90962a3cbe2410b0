"""What releases of ONNX Runtime load: opsets, file formats and operators."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx

from graphopt.inspection.targets.runtime_operators import ADDED_LATER, CPU, CUDA, TRAINING_ONLY
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
_OLDEST, NEWEST = min(_LIMITS), max(_LIMITS)
OF_TRAINING: _Version = (1, 19)
"""The last that has the training API."""
DOMAINS = {"", "ai.onnx"}
RUNTIMES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-web",
    "onnxruntime-training",
    "onnxruntime-training-cpu",
)
_TARGET = re.compile(r"([a-z-]+)==(\d{1,4}(?:\.\d{1,4}){1,2})")
_SHOWN = 5  # operators in a reason


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


def release(text: str) -> Target | None:
    """The version of a package that a text such as "onnxruntime==1.19" says, if it says one.

    Raises:
        ValueError: It is a version of which nothing is known.
    """
    found = _TARGET.fullmatch(text.strip())
    if found is None or found[1] not in RUNTIMES:
        return None
    target = Target(found[1], tuple(map(int, found[2].split("."))))
    if target.version[:2] < _OLDEST:
        raise ValueError(f"target: got {target}, expected version {_text(_OLDEST)} or later")
    if target.trains and target.version[:2] > OF_TRAINING:
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
        name if domain in DOMAINS else f"{domain}::{name}"
        for domain, names in requirements.operators.items()
        for name in names
    ]
    reasons = list(_above(requirements, target.version))
    training = [name for name in needed if name in TRAINING_ONLY]
    if training and not target.trains:
        reasons.append(
            f"{listed(training)}: only builds of ONNX Runtime for training have this operator"
        )
    later = [name for name in needed if name in ADDED_LATER and target.version[:2] <= OF_TRAINING]
    if later:
        reasons.append(f"{listed(later)}: came after ONNX Runtime {_text(OF_TRAINING)}")
    unknown = [name for name in needed if not _is_known(name) and name not in TRAINING_ONLY]
    if unknown:
        reasons.append(f"{listed(unknown)}: ONNX Runtime does not have this operator")
    return reasons


def _above(requirements: Requirements, version: _Version) -> Iterator[str]:
    """Why a version is too old for the file."""
    opset, ir_version = _LIMITS[min(max(version[:2], _OLDEST), NEWEST)]
    needed = _opset(requirements)
    if needed > opset:
        yield f"opset {needed}: ONNX Runtime {_text(version)} knows opset {opset} at most"
    if requirements.ir_version > ir_version:
        yield (
            f"IR version {requirements.ir_version}: ONNX Runtime {_text(version)} knows "
            f"IR version {ir_version} at most"
        )


def first_version(requirements: Requirements) -> Iterator[str]:
    """From which version on a model runs, if not from the oldest that is known."""
    first = next(
        (version for version in _LIMITS if not list(_above(requirements, version))), NEWEST
    )
    if first > _OLDEST:
        yield f"from ONNX Runtime {_text(first)} on"


def _opset(requirements: Requirements) -> int:
    return max((requirements.opsets.get(domain, 0) for domain in DOMAINS), default=0)


def _is_known(name: str) -> bool:
    """Whether any kernel is known, or a definition by other operators."""
    return name in CPU or name in CUDA or ("::" not in name and onnx.defs.has(name))


def listed(names: Iterable[str]) -> str:
    """The first of several operators, and how many more there are."""
    shown = [name[:80] for name in names]
    more = [f"{len(shown) - _SHOWN} more"] if len(shown) > _SHOWN else []
    return ", ".join([*shown[:_SHOWN], *more])


def _text(version: _Version) -> str:
    return ".".join(map(str, version))
