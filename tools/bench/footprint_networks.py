"""Networks of real kinds and sizes, whose memory and time are measured beside PyTorch's."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tools.field.networks import Called, without_dropout

CLASSES = 100
_TOKENS, _VOCABULARY, _WIDTH = 64, 1000, 256


@dataclass(frozen=True)
class Sized:
    """A network, and a batch for it.

    Attributes:
        make: Gives the module, which maps its input to logits [N, C] or [N, C, ...].
        batch: Gives its input.
    """

    make: Callable[[], nn.Module]
    batch: Callable[[], torch.Tensor]


class _UNet(nn.Module):
    """Three scales, transposed convolutions, and what skips them."""

    def __init__(self, width: int = 32, levels: int = 3) -> None:
        super().__init__()
        widths = [width << level for level in range(levels + 1)]
        self.down = nn.ModuleList(
            _twice(before, after) for before, after in zip([3, *widths], widths, strict=False)
        )
        self.widen = nn.ModuleList(
            nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in reversed(widths[:-1])
        )
        self.up = nn.ModuleList(_twice(2 * w, w) for w in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, CLASSES // 10, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits of each pixel."""
        skipped = []
        for block in self.down:
            x = block(x)
            skipped.append(x)
            x = functional.max_pool2d(x, 2)
        x = skipped.pop()
        for widen, block in zip(self.widen, self.up, strict=True):
            x = block(torch.cat([skipped.pop(), widen(x)], 1))
        logits: torch.Tensor = self.head(x)
        return logits


class _Recurrent(nn.Module):
    """An LSTM over a sequence, and a layer on its last output."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(_WIDTH, _WIDTH, batch_first=True)
        self.head = nn.Linear(_WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits of each sequence."""
        outputs, _ = self.lstm(x)
        logits: torch.Tensor = self.head(outputs[:, -1])
        return logits


def _twice(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs in (before, after):
        layers += [nn.Conv2d(inputs, after, 3, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _vision(name: str, **settings: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from torchvision import models

        network: nn.Module = models.get_model(name, num_classes=CLASSES, **settings)
        return network

    return make


def _timm(name: str, **settings: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        network: nn.Module = timm.create_model(name, num_classes=CLASSES, **settings)
        return network

    return make


def _transformer(name: str, task: str, **settings: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers as hf

        config = getattr(hf, f"{name}Config")(
            vocab_size=_VOCABULARY,
            hidden_size=_WIDTH,
            num_hidden_layers=4,
            num_attention_heads=8,
            intermediate_size=4 * _WIDTH,
            max_position_embeddings=128,
            attn_implementation="eager",
            **settings,
        )
        return Called(getattr(hf, f"{name}For{task}")(config), "input_ids")

    return make


def _images(batch: int, size: int) -> Callable[[], torch.Tensor]:
    return lambda: torch.randn(batch, 3, size, size)


def _tokens(batch: int) -> Callable[[], torch.Tensor]:
    return lambda: torch.randint(3, _VOCABULARY, (batch, _TOKENS))


NETWORKS = {
    "resnet18": Sized(_vision("resnet18"), _images(8, 112)),
    "resnet50": Sized(_vision("resnet50"), _images(8, 112)),
    "vit_tiny": Sized(_timm("vit_tiny_patch16_224", img_size=112), _images(8, 112)),
    "bert": Sized(
        _transformer("Bert", "MaskedLM"),
        _tokens(16),
    ),
    "llama": Sized(
        _transformer("Llama", "CausalLM", num_key_value_heads=4, use_cache=False),
        _tokens(16),
    ),
    "convnext_atto": Sized(_timm("convnext_atto"), _images(8, 112)),
    "mobilenet_v3_large": Sized(_vision("mobilenet_v3_large"), _images(8, 112)),
    "efficientnet_b0": Sized(_vision("efficientnet_b0"), _images(8, 112)),
    "unet": Sized(_UNet, _images(4, 96)),
    "lstm_256": Sized(_Recurrent, lambda: torch.randn(32, 64, _WIDTH)),
}
"""By name."""


def made(name: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A network that draws nothing, in training mode, an input and labels; the same each time."""
    torch.manual_seed(0)
    network = NETWORKS[name]
    module, x = without_dropout(network.make()).train(), network.batch()
    with torch.no_grad():
        shape = module.eval()(x).shape
    return module.train(), x, torch.randint(0, shape[1], (shape[0], *shape[2:]))
