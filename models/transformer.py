"""Small transformers: an encoder that classifies, and a language model."""

import math

import numpy as np
import onnx
import onnx_ir as ir

from models._network import Network

VOCABULARY, LENGTH, SIZE, HEADS, LAYERS, CLASSES = 200, 32, 64, 4, 2, 10
_OPSET = 20  # the first that has Gelu


def build_encoder(batch: int | None = None, seed: int = 0) -> onnx.ModelProto:
    """Embeddings, two layers of attention and feed-forward with layer norm, a mean, a dense layer.

    Args:
        batch: The number of sequences in a batch, or None for a batch of any size.
        seed: Seed of the initial parameters.

    Returns:
        The forward model: ``tokens`` int64 [batch, 32] to ``logits`` float32 [batch, 10].
    """
    net = Network("transformer_encoder", seed, _OPSET)
    n = batch or "batch"
    x = _body(net, n, causal=False)
    x = net.op.ReduceMean(x, [1], keepdims=0)
    return net.finish(net.dense(x, "head", SIZE, CLASSES), "logits", [n, CLASSES])


def build_language_model(batch: int | None = None, seed: int = 0) -> onnx.ModelProto:
    """The same with causal attention, and logits of the next token at each place.

    Args:
        batch: The number of sequences in a batch, or None for a batch of any size.
        seed: Seed of the initial parameters.

    Returns:
        The forward model: ``tokens`` int64 [batch, 32] to ``logits`` float32 [batch, 200, 32];
        the tokens of the vocabulary are axis 1, where cross entropy has the classes.
    """
    net = Network("language_model", seed, _OPSET)
    n = batch or "batch"
    x = net.projection(_body(net, n, causal=True), "head", SIZE, VOCABULARY)
    return net.finish(net.op.Transpose(x, perm=[0, 2, 1]), "logits", [n, VOCABULARY, LENGTH])


def _body(net: Network, n: int | str, *, causal: bool) -> ir.Value:
    op = net.op
    tokens = net.input("tokens", [n, LENGTH], ir.DataType.INT64)
    places = net.normal("places", (1, LENGTH, SIZE), 0.02)
    x = op.Add(net.embedding(tokens, "embedding", VOCABULARY, SIZE), places)
    for index in range(LAYERS):
        name = f"layers.{index}"
        x = op.Add(x, _attention(net, net.layer_norm(x, f"{name}.norm1", SIZE), name, causal))
        y = net.projection(net.layer_norm(x, f"{name}.norm2", SIZE), f"{name}.up", SIZE, 4 * SIZE)
        x = op.Add(x, net.projection(op.Gelu(y), f"{name}.down", 4 * SIZE, SIZE))
    return net.layer_norm(x, "norm", SIZE)


def _attention(net: Network, x: ir.Value, name: str, causal: bool) -> ir.Value:
    op, width = net.op, SIZE // HEADS
    parts = op.node("Split", [net.projection(x, f"{name}.qkv", SIZE, 3 * SIZE)], outputs=3,
                    axis=-1, num_outputs=3)  # fmt: skip
    queries, keys, values = (op.Reshape(part, [0, LENGTH, HEADS, width]) for part in parts)
    scores = op.MatMul(op.Transpose(queries, perm=[0, 2, 1, 3]),
                       op.Transpose(keys, perm=[0, 2, 3, 1]))  # fmt: skip
    scores = op.Div(scores, np.float32(math.sqrt(width)))
    if causal:
        scores = op.Add(scores, np.triu(np.full((LENGTH, LENGTH), -np.inf, np.float32), 1))
    mixed = op.MatMul(op.Softmax(scores, axis=-1), op.Transpose(values, perm=[0, 2, 1, 3]))
    mixed = op.Reshape(op.Transpose(mixed, perm=[0, 2, 1, 3]), [0, LENGTH, SIZE])
    return net.projection(mixed, f"{name}.out", SIZE, SIZE)
