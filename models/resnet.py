"""A small residual network with batch normalization."""

import onnx
import onnx_ir as ir

from models._network import Network

BLOCKS = ((16, 16, 1), (16, 32, 2), (32, 64, 2))
"""Input channels, output channels and stride of each block."""


def build(batch: int | None = None, seed: int = 0, size: int = 32) -> onnx.ModelProto:
    """A 7 x 7 stem with max pooling, three residual blocks, mean pooling, and a dense layer.

    Args:
        batch: The number of images in a batch, or None for a batch of any size.
        seed: Seed of the initial parameters.
        size: Height and width of the images.

    Returns:
        The forward model: ``x`` float32 [batch, 3, size, size] to ``logits`` [batch, 10].
    """
    net = Network("resnet", seed)
    op, n = net.op, batch or "batch"
    x = net.convolution(net.input("x", [n, 3, size, size]), "stem.conv", 3, 16, 7, stride=2)
    x = op.Relu(net.batch_norm(x, "stem.norm", 16))
    x = op.MaxPool(x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for index, (inputs, outputs, stride) in enumerate(BLOCKS):
        x = _block(net, x, f"blocks.{index}", inputs, outputs, stride)
    x = op.Flatten(op.GlobalAveragePool(x))
    return net.finish(net.dense(x, "dense", BLOCKS[-1][1], 10), "logits", [n, 10])


def _block(
    net: Network, x: ir.Value, name: str, inputs: int, outputs: int, stride: int
) -> ir.Value:
    op = net.op
    y = net.convolution(x, f"{name}.conv1", inputs, outputs, 3, stride)
    y = op.Relu(net.batch_norm(y, f"{name}.norm1", outputs))
    y = net.convolution(y, f"{name}.conv2", outputs, outputs, 3)
    y = net.batch_norm(y, f"{name}.norm2", outputs)
    if stride != 1 or inputs != outputs:
        x = net.convolution(x, f"{name}.shortcut.conv", inputs, outputs, 1, stride)
        x = net.batch_norm(x, f"{name}.shortcut.norm", outputs)
    return op.Relu(op.Add(y, x))
