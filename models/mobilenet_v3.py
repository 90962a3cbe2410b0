"""A small network in the style of MobileNetV3.

Depthwise convolutions, squeeze-and-excitation, hard-swish.
"""

from typing import NamedTuple

import onnx
import onnx_ir as ir

from models._network import Network


class Block(NamedTuple):
    """An inverted residual block."""

    inputs: int
    expanded: int
    outputs: int
    kernel: int
    stride: int
    squeeze: bool
    hard_swish: bool
    dilation: int = 1


BLOCKS = (
    Block(16, 16, 16, 3, 2, squeeze=True, hard_swish=False),
    Block(16, 48, 24, 3, 2, squeeze=False, hard_swish=False),
    Block(24, 72, 24, 3, 1, squeeze=False, hard_swish=False),
    Block(24, 72, 32, 5, 2, squeeze=True, hard_swish=True),
    Block(32, 96, 32, 5, 1, squeeze=True, hard_swish=True),
    Block(32, 96, 32, 3, 1, squeeze=True, hard_swish=True, dilation=2),
)


def build(batch: int | None = None, seed: int = 0, size: int = 64) -> onnx.ModelProto:
    """A 3 x 3 stem, six inverted residual blocks, mean pooling, and two dense layers.

    Args:
        batch: The number of images in a batch, or None for a batch of any size.
        seed: Seed of the initial parameters.
        size: Height and width of the images.

    Returns:
        The forward model: ``x`` float32 [batch, 3, size, size] to ``logits`` [batch, 10].
    """
    net = Network("mobilenet_v3", seed)
    op, n = net.op, batch or "batch"
    x = net.convolution(net.input("x", [n, 3, size, size]), "stem.conv", 3, 16, 3, stride=2)
    x = op.HardSwish(_norm(net, x, "stem.norm", 16))
    for index, block in enumerate(BLOCKS):
        x = _block(net, x, f"blocks.{index}", block)
    x = net.convolution(x, "head.conv", 32, 96, 1)
    x = op.HardSwish(_norm(net, x, "head.norm", 96))
    x = op.Flatten(op.GlobalAveragePool(x))
    x = op.HardSwish(net.dense(x, "dense1", 96, 128))
    return net.finish(net.dense(x, "dense2", 128, 10), "logits", [n, 10])


def _norm(net: Network, x: ir.Value, name: str, channels: int) -> ir.Value:
    return net.batch_norm(x, name, channels, epsilon=1e-3, momentum=0.99)


def _block(net: Network, x: ir.Value, name: str, block: Block) -> ir.Value:
    op, expanded = net.op, block.expanded
    activation = op.HardSwish if block.hard_swish else op.Relu
    y = x
    if expanded != block.inputs:
        y = net.convolution(y, f"{name}.expand.conv", block.inputs, expanded, 1)
        y = activation(_norm(net, y, f"{name}.expand.norm", expanded))
    y = net.convolution(
        y,
        f"{name}.depthwise.conv",
        expanded,
        expanded,
        block.kernel,
        block.stride,
        groups=expanded,
        dilation=block.dilation,
    )
    y = activation(_norm(net, y, f"{name}.depthwise.norm", expanded))
    if block.squeeze:
        squeezed = max(4, expanded // 4)
        gate = op.GlobalAveragePool(y)
        gate = op.Relu(
            net.convolution(gate, f"{name}.squeeze.reduce", expanded, squeezed, 1, bias=True)
        )
        gate = net.convolution(gate, f"{name}.squeeze.expand", squeezed, expanded, 1, bias=True)
        y = op.Mul(y, op.HardSigmoid(gate, alpha=1 / 6, beta=0.5))
    y = net.convolution(y, f"{name}.project.conv", expanded, block.outputs, 1)
    y = _norm(net, y, f"{name}.project.norm", block.outputs)
    return op.Add(x, y) if block.stride == 1 and block.inputs == block.outputs else y
