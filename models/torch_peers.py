"""The networks of the zoo in PyTorch, with the same names of parameters."""

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from models import mobilenet_v3, recurrent, resnet, transformer


def peer(name: str, model: onnx.ModelProto) -> nn.Module:
    """The network ``name`` of the zoo as a module in training mode, with the model's parameters."""
    module = _PEERS[name]()
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    expected = module.state_dict()
    if isinstance(module, Recurrent):
        tensors = module.converted(tensors)
    # The model has constants besides, PyTorch a count of batches.
    values = {
        key: torch.tensor(tensors[key]) if key in tensors else expected[key]
        for key in expected
        if key in tensors or key.endswith("num_batches_tracked")
    }
    module.load_state_dict(values)
    return module.train()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": functional.cross_entropy,
    "mse": functional.mse_loss,
    "l1": functional.l1_loss,
    "bce_with_logits": functional.binary_cross_entropy_with_logits,
}
"""The losses by the names that `graphopt.training_graph` has for them."""


class MLP(nn.Module):
    """Peer of `models.mlp`."""

    def __init__(self) -> None:
        super().__init__()
        self.dense1 = nn.Linear(32, 64)
        self.dense2 = nn.Linear(64, 48)
        self.dense3 = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense3(torch.tanh(self.dense2(functional.relu(self.dense1(x)))))


class DigitsCNN(nn.Module):
    """Peer of `graphopt.examples.digits_cnn`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.dense1 = nn.Linear(128, 64)
        self.dense2 = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        return self.dense2(functional.relu(self.dense1(x.flatten(1))))


def _convolution(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    dilation: int = 1,
    bias: bool = False,
) -> nn.Conv2d:
    padding = dilation * (kernel - 1) // 2
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias)


def _normed(convolution: nn.Conv2d, eps: float = 1e-5, momentum: float = 0.1) -> nn.Sequential:
    norm = nn.BatchNorm2d(convolution.out_channels, eps, momentum)
    return nn.Sequential(OrderedDict(conv=convolution, norm=norm))


class ResNetBlock(nn.Module):
    """A residual block."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(inputs, outputs, 3, stride)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = _convolution(outputs, outputs, 3)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = (
            _normed(_convolution(inputs, outputs, 1, stride))
            if stride != 1 or inputs != outputs
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return functional.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nn.Module):
    """Peer of `models.resnet`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _normed(_convolution(3, 16, 7, 2))
        self.blocks = nn.Sequential(*(ResNetBlock(*block) for block in resnet.BLOCKS))
        self.dense = nn.Linear(resnet.BLOCKS[-1][1], 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.stem(x)), 3, 2, 1)
        return self.dense(self.blocks(x).mean((2, 3)))


class MobileNetBlock(nn.Module):
    """An inverted residual block."""

    def __init__(self, block: mobilenet_v3.Block) -> None:
        super().__init__()
        expanded = block.expanded
        norm = {"eps": 1e-3, "momentum": 0.01}
        self.activation = functional.hardswish if block.hard_swish else functional.relu
        self.expand = (
            _normed(_convolution(block.inputs, expanded, 1), **norm)
            if expanded != block.inputs
            else None
        )
        self.depthwise = _normed(
            _convolution(
                expanded,
                expanded,
                block.kernel,
                block.stride,
                groups=expanded,
                dilation=block.dilation,
            ),
            **norm,
        )
        squeezed = max(4, expanded // 4)
        self.squeeze = (
            nn.ModuleDict(
                {
                    "reduce": _convolution(expanded, squeezed, 1, bias=True),
                    "expand": _convolution(squeezed, expanded, 1, bias=True),
                }
            )
            if block.squeeze
            else None
        )
        self.project = _normed(_convolution(expanded, block.outputs, 1), **norm)
        self.residual = block.stride == 1 and block.inputs == block.outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.activation(self.expand(x))
        y = self.activation(self.depthwise(y))
        if self.squeeze is not None:
            gate = functional.relu(self.squeeze["reduce"](y.mean((2, 3), keepdim=True)))
            y = y * functional.hardsigmoid(self.squeeze["expand"](gate))
        y = self.project(y)
        return x + y if self.residual else y


class MobileNetV3(nn.Module):
    """Peer of `models.mobilenet_v3`."""

    def __init__(self) -> None:
        super().__init__()
        norm = {"eps": 1e-3, "momentum": 0.01}
        self.stem = _normed(_convolution(3, 16, 3, 2), **norm)
        self.blocks = nn.Sequential(*(MobileNetBlock(block) for block in mobilenet_v3.BLOCKS))
        self.head = _normed(_convolution(32, 96, 1), **norm)
        self.dense1 = nn.Linear(96, 128)
        self.dense2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(functional.hardswish(self.stem(x)))
        x = functional.hardswish(self.head(x)).mean((2, 3))
        return self.dense2(functional.hardswish(self.dense1(x)))


class TransformerLayer(nn.Module):
    """Attention and feed-forward, each behind a layer norm."""

    def __init__(self, *, causal: bool) -> None:
        super().__init__()
        size = transformer.SIZE
        self.norm1 = nn.LayerNorm(size)
        self.qkv = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size)
        self.norm2 = nn.LayerNorm(size)
        self.up = nn.Linear(size, 4 * size)
        self.down = nn.Linear(4 * size, size)
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))

    def attention(self, x: Tensor) -> Tensor:
        """Multi-head self-attention."""
        batch, length, size = x.shape
        width = size // transformer.HEADS
        queries, keys, values = (
            part.view(batch, length, transformer.HEADS, width).transpose(1, 2)
            for part in self.qkv(x).chunk(3, -1)
        )
        mixed = functional.scaled_dot_product_attention(
            queries, keys, values, is_causal=self.causal
        )
        return self.out(mixed.transpose(1, 2).reshape(batch, length, size))


class Transformer(nn.Module):
    """Peer of `models.transformer`."""

    def __init__(self, *, language_model: bool) -> None:
        super().__init__()
        size = transformer.SIZE
        self.embedding = nn.Embedding(transformer.VOCABULARY, size)
        self.places = nn.Parameter(torch.zeros(1, transformer.LENGTH, size))
        self.layers = nn.Sequential(
            *(TransformerLayer(causal=language_model) for _ in range(transformer.LAYERS))
        )
        self.norm = nn.LayerNorm(size)
        outputs = transformer.VOCABULARY if language_model else transformer.CLASSES
        self.head = nn.Linear(size, outputs)
        self.language_model = language_model

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.layers(self.embedding(tokens) + self.places))
        return self.head(x).transpose(1, 2) if self.language_model else self.head(x.mean(1))


class Recurrent(nn.Module):
    """Peer of `models.recurrent`; ONNX has the gates in another order."""

    def __init__(self, cell: str) -> None:
        super().__init__()
        inputs, hidden = recurrent.INPUTS, recurrent.HIDDEN
        self.cell = nn.LSTM(inputs, hidden) if cell == "LSTM" else nn.GRU(inputs, hidden)
        self.order = (0, 2, 3, 1) if cell == "LSTM" else (1, 0, 2)
        self.dense = nn.Linear(hidden, recurrent.OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.cell(x)[0][-1])

    def converted(self, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The tensors of an ONNX model under PyTorch's names and in its order of gates."""
        bias = np.split(tensors["cell.bias"][0], 2)
        cell = {
            "cell.weight_ih_l0": tensors["cell.weight"][0],
            "cell.weight_hh_l0": tensors["cell.recurrence"][0],
            "cell.bias_ih_l0": bias[0],
            "cell.bias_hh_l0": bias[1],
        }
        gates = len(self.order)
        ordered = {
            key: np.concatenate([np.split(value, gates)[gate] for gate in self.order])
            for key, value in cell.items()
        }
        return {key: value for key, value in tensors.items() if "cell" not in key} | ordered


_PEERS: dict[str, Callable[[], nn.Module]] = {
    **dict.fromkeys(("mlp", "mlp_mse", "mlp_l1", "mlp_bce"), MLP),
    "digits_cnn": DigitsCNN,
    "resnet": ResNet,
    "mobilenet_v3": MobileNetV3,
    "transformer": lambda: Transformer(language_model=False),
    "language_model": lambda: Transformer(language_model=True),
    "lstm": lambda: Recurrent("LSTM"),
    "gru": lambda: Recurrent("GRU"),
}
