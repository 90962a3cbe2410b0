"""A small convolutional network for the handwritten digits, as an ONNX forward model."""

from collections.abc import Iterator

import numpy as np
import onnx
import onnx.checker
import onnx.numpy_helper
import onnx.parser

# Shapes are ONNX's and PyTorch's: (out, in, height, width) for Conv, (out, in) for Gemm.
_WEIGHTS = {
    "conv1": (16, 1, 3, 3),
    "conv2": (32, 16, 3, 3),
    "dense1": (64, 128),
    "dense2": (10, 64),
}

# ONNX Runtime 1.19 reads IR versions up to 10 and opsets up to 21.
_GRAPH = """
<ir_version: 8, opset_import: ["" : 17]>
digits_cnn (float[{batch}, 1, 8, 8] x) => (float[{batch}, 10] logits) {{
    conv1 = Conv <pads = [1, 1, 1, 1]> (x, "conv1.weight", "conv1.bias")
    relu1 = Relu (conv1)
    pool1 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (relu1)
    conv2 = Conv <pads = [1, 1, 1, 1]> (pool1, "conv2.weight", "conv2.bias")
    relu2 = Relu (conv2)
    pool2 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (relu2)
    flat = Flatten (pool2)
    dense1 = Gemm <transB = 1> (flat, "dense1.weight", "dense1.bias")
    relu3 = Relu (dense1)
    logits = Gemm <transB = 1> (relu3, "dense2.weight", "dense2.bias")
}}
"""


def build(batch: int | None = None, seed: int = 0) -> onnx.ModelProto:
    """Builds the network with freshly initialised parameters.

    Two convolutions of 3 x 3 with ReLU and max pooling, a hidden dense layer of 64, and a dense
    layer to the logits: 13,706 float32 parameters. Input ``x`` is float32 ``[batch, 1, 8, 8]``,
    output ``logits`` is float32 ``[batch, 10]``.

    Args:
        batch: The number of samples in a batch, or None for a batch of any size.
        seed: Seed of the initial parameters.

    Returns:
        The forward model.

    Example:
        >>> model = build()
        >>> [initializer.name for initializer in model.graph.initializer][:2]
        ['conv1.weight', 'conv1.bias']
    """
    model = onnx.parser.parse_model(_GRAPH.format(batch="batch" if batch is None else batch))
    model.producer_name = "graphopt"
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in _initial_parameters(seed)
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _initial_parameters(seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """He initialisation: normal weights of variance 2 / fan-in, and biases of zero."""
    rng = np.random.default_rng(seed)
    for layer, shape in _WEIGHTS.items():
        fan_in = np.prod(shape[1:])
        weight = rng.normal(scale=np.sqrt(2 / fan_in), size=shape)
        yield f"{layer}.weight", weight.astype(np.float32)
        yield f"{layer}.bias", np.zeros(shape[0], np.float32)
