"""Reading what a graph shall run on: a release of ONNX Runtime, or an execution provider."""

from graphopt.inspection.targets.providers import Provider, providers
from graphopt.inspection.targets.releases import RUNTIMES, Target, release


def parse_target(text: str) -> Target | Provider:
    """Read a target such as "onnxruntime==1.19", or "coreml".

    Args:
        text: A package and its version, or an execution provider. Packages are onnxruntime,
            onnxruntime-gpu, onnxruntime-web, onnxruntime-training and onnxruntime-training-cpu.

    Raises:
        TypeError: It is no text.
        ValueError: It is no such package or provider, or a version of which nothing is known.

    Example:
        >>> parse_target("onnxruntime==1.19.2").version, parse_target("CoreML").provider
        ((1, 19, 2), 'CoreMLExecutionProvider')
    """
    if not isinstance(text, str):
        raise TypeError(f"target: got {type(text).__name__}, expected a str")
    found = release(text) or providers().get(text.strip().lower())
    if found is None:
        raise ValueError(
            f"target: got '{text[:60]}', expected a package and its version, such as "
            f"'onnxruntime==1.19', or an execution provider; the packages are "
            f"{', '.join(RUNTIMES)}, the providers {', '.join(providers())}"
        )
    return found
