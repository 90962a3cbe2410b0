"""Recurrent networks: an LSTM or a GRU, and a dense layer on its last state."""

import math

import onnx

from models._network import Network

LENGTH, INPUTS, HIDDEN, OUTPUTS = 12, 16, 32, 5
_GATES = {"LSTM": 4, "GRU": 3}


def build(batch: int | None = None, seed: int = 0, cell: str = "LSTM") -> onnx.ModelProto:
    """One recurrent layer of 32 over 12 steps, and a dense layer.

    Args:
        batch: The number of sequences in a batch, or None for a batch of any size.
        seed: Seed of the initial parameters.
        cell: "LSTM" or "GRU".

    Returns:
        The forward model: ``x`` float32 [12, batch, 16] to ``logits`` float32 [batch, 5].
    """
    net = Network(cell.lower(), seed)
    op, n = net.op, batch or "batch"
    x = net.input("x", [LENGTH, n, INPUTS])
    rows, bound = _GATES[cell] * HIDDEN, 1 / math.sqrt(HIDDEN)
    weights = (
        net.uniform("cell.weight", (1, rows, INPUTS), bound),
        net.uniform("cell.recurrence", (1, rows, HIDDEN), bound),
        net.uniform("cell.bias", (1, 2 * rows), bound),
    )
    # PyTorch's GRU resets after the product with the recurrent weights.
    outputs = op.node(
        cell,
        [x, *weights],
        outputs=2,
        hidden_size=HIDDEN,
        linear_before_reset=1 if cell == "GRU" else None,
    )
    last = op.Squeeze(outputs[1], [0])
    return net.finish(net.dense(last, "dense", HIDDEN, OUTPUTS), "logits", [n, OUTPUTS])
