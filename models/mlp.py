"""A multilayer perceptron."""

import onnx

from models._network import Network


def build(batch: int | None = None, seed: int = 0, outputs: int = 10) -> onnx.ModelProto:
    """Dense layers of 32, 64, 48 and ``outputs``, with ReLU and tanh between them.

    Args:
        batch: The number of samples in a batch, or None for a batch of any size.
        seed: Seed of the initial parameters.
        outputs: The size of the output.

    Returns:
        The forward model: ``x`` float32 [batch, 32] to ``logits`` float32 [batch, outputs].
    """
    net = Network("mlp", seed)
    n = batch or "batch"
    hidden = net.op.Relu(net.dense(net.input("x", [n, 32]), "dense1", 32, 64))
    hidden = net.op.Tanh(net.dense(hidden, "dense2", 64, 48))
    return net.finish(net.dense(hidden, "dense3", 48, outputs), "logits", [n, outputs])
