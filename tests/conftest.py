"""What the head of a test run says."""

import onnxruntime

from graphopt import kernels


def pytest_report_header():
    used = kernels.library() if kernels.names() else "none built, the ONNX functions' bodies run"
    return [f"onnxruntime: {onnxruntime.__version__}", f"graphopt kernels: {used}"]
