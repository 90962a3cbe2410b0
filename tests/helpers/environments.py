"""What the environment has in which the tests run; ``make test`` runs them in two."""

import importlib
import os
from pathlib import Path

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

both_gradients = pytest.mark.parametrize(
    "portable",
    [True, pytest.param(False, marks=needs_training_package)],
    ids=["portable", "onnxruntime-training"],
)
"""The test runs with graphopt's own gradients and with those of onnxruntime-training."""
