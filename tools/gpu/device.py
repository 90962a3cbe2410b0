"""What there is: the GPU, the runtime, and the kernels."""

from collections.abc import Iterator
from typing import Any

import onnxruntime

from graphopt import kernels
from tools.gpu.records import print_records


def measure() -> Iterator[dict[str, Any]]:
    """First what graphopt needs, then what PyTorch sees."""
    yield {
        "onnxruntime": onnxruntime.__version__,
        "providers": onnxruntime.get_available_providers(),
        "kernels": str(kernels.library()),
        "has_cuda": kernels.has_cuda(),
    }
    import torch

    yield {"torch": torch.__version__, "gpu": torch.cuda.get_device_name()}


if __name__ == "__main__":
    print_records(measure())
