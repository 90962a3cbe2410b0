"""What the environment has in which the tests run; ``make test`` runs them in two."""

import importlib
import importlib.util
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from graphopt import _runtime, kernels

_native = importlib.import_module("onnxruntime.capi._pybind_state")

HAS_TRAINING_PACKAGE = hasattr(_native, "GradientGraphBuilder")
PROVIDERS = _runtime.onnxruntime().get_available_providers()
OTHER_PYTHON = os.environ.get("GRAPHOPT_OTHER_PYTHON")

needs_training_package = pytest.mark.skipif(
    not HAS_TRAINING_PACKAGE,
    reason="NOT RUN: needs onnxruntime-training; make test runs it in .venv-training",
)
HAS_FLOWER = importlib.util.find_spec("flwr") is not None
needs_flower = pytest.mark.skipif(
    not HAS_FLOWER,
    reason="NOT RUN: needs Flower; make exhaustive runs it in .venv-flower",
)
needs_cuda = pytest.mark.skipif(
    "CUDAExecutionProvider" not in PROVIDERS,
    reason="NOT RUN: this ONNX Runtime has no CUDA execution provider",
)
needs_kernels = pytest.mark.skipif(
    not kernels.names(),
    reason="NOT RUN: graphopt was installed without a C compiler, so that there are no kernels",
)
needs_other_runtime = pytest.mark.skipif(
    OTHER_PYTHON is None or not Path(OTHER_PYTHON).exists(),
    reason="NOT RUN: GRAPHOPT_OTHER_PYTHON names no Python with another ONNX Runtime; "
    "make test sets it",
)


def typical(cases: Mapping[str, Any] | Iterable[str], *names: str) -> list[Any]:
    """The cases of a table as parameters: each runtime runs these, and today's all others too.

    For what is made of the same operators in all cases, of which these have each.

    Args:
        cases: By their names, or the names alone, which then are the parameters.
        names: Those that each runtime runs.
    """
    table = cases if isinstance(cases, Mapping) else {name: name for name in cases}
    assert table.keys() >= set(names)
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else [case]),
            id=name,
            marks=() if name in names else pytest.mark.any_runtime,
        )
        for name, case in table.items()
    ]


both_gradients = pytest.mark.parametrize(
    "portable",
    [True, pytest.param(False, marks=needs_training_package)],
    ids=["portable", "onnxruntime-training"],
)
"""The test runs with graphopt's own gradients and with those of onnxruntime-training."""
