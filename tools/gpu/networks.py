"""The networks whose steps are measured, as PyTorch has them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GRAPHS = Path(__file__).parents[2] / "build" / "gpu"
"""Where ``python -m tools.gpu.export`` leaves the forward models, without their weights."""

CLASSES = 1000
_VOCABULARY, _LENGTH = 30522, 128


@dataclass(frozen=True)
class Network:
    """A network that classifies.

    Attributes:
        make: Gives the module, which maps its input to logits [N, 1000].
        inputs: Gives the input of a batch of some size.
        batch: The size of the batch.
    """

    make: Callable[[], Any]
    inputs: Callable[[int], Any]
    batch: int


def _resnet50() -> Any:
    import torchvision

    return torchvision.models.resnet50(num_classes=CLASSES)


def _vit() -> Any:
    import torchvision

    return torchvision.models.vit_b_16(num_classes=CLASSES)


def _bert() -> Any:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    class Bert(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = BertConfig(
                num_labels=CLASSES,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
            self.network = BertForSequenceClassification(config)

        def forward(self, tokens: torch.Tensor) -> Any:
            return self.network(input_ids=tokens).logits

    return Bert()


def _images(batch: int) -> Any:
    import torch

    return torch.randn(batch, 3, 224, 224)


def _tokens(batch: int) -> Any:
    import torch

    return torch.randint(0, _VOCABULARY, (batch, _LENGTH))


NETWORKS = {
    "resnet50": Network(_resnet50, _images, 32),
    "vit_b_16": Network(_vit, _images, 32),
    "bert_base": Network(_bert, _tokens, 32),
}
"""Networks by name: 25.6 M, 86.6 M and 110 M parameters."""
