"""All networks of this folder, with batches to train them on."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx

from graphopt.examples import digits_cnn
from models import mlp, mobilenet_v3, recurrent, resnet, transformer


@dataclass(frozen=True)
class ZooModel:
    """A network and its data.

    Attributes:
        build: Makes the forward model; takes ``batch`` (None: dynamic) and ``seed``.
        feeds: Makes a batch of the given size with a generator: the model's input and ``labels``.
        loss: The loss that it is trained with.
        batch: A usual batch size.
    """

    build: Callable[..., onnx.ModelProto]
    feeds: Callable[[np.random.Generator, int], dict[str, np.ndarray]]
    loss: str
    batch: int


def _images(rng: np.random.Generator, batch: int, *, size: int, channels: int = 3) -> np.ndarray:
    return rng.normal(size=(batch, channels, size, size)).astype(np.float32)


def _classes(rng: np.random.Generator, *shape: int, count: int = 10) -> np.ndarray:
    return rng.integers(0, count, shape)


def _digits(rng: np.random.Generator, batch: int) -> dict[str, np.ndarray]:
    return {"x": _images(rng, batch, size=8, channels=1), "labels": _classes(rng, batch)}


def _image_feeds(rng: np.random.Generator, batch: int, *, size: int) -> dict[str, np.ndarray]:
    return {"x": _images(rng, batch, size=size), "labels": _classes(rng, batch)}


def _rows(rng: np.random.Generator, batch: int, *, loss: str) -> dict[str, np.ndarray]:
    x = rng.normal(size=(batch, 32)).astype(np.float32)
    if loss == "cross_entropy":
        return {"x": x, "labels": _classes(rng, batch)}
    values = rng.random((batch, 10)) if loss == "bce_with_logits" else rng.normal(size=(batch, 10))
    return {"x": x, "labels": values.astype(np.float32)}


def _tokens(rng: np.random.Generator, batch: int, *, next_token: bool) -> dict[str, np.ndarray]:
    text = rng.integers(0, transformer.VOCABULARY, (batch, transformer.LENGTH + 1))
    labels = text[:, 1:] if next_token else _classes(rng, batch)
    return {"tokens": text[:, :-1], "labels": labels}


def _sequences(rng: np.random.Generator, batch: int) -> dict[str, np.ndarray]:
    x = rng.normal(size=(recurrent.LENGTH, batch, recurrent.INPUTS)).astype(np.float32)
    return {"x": x, "labels": _classes(rng, batch, count=recurrent.OUTPUTS)}


def _mlp(loss: str) -> ZooModel:
    return ZooModel(mlp.build, partial(_rows, loss=loss), loss, 64)


ZOO = {
    "mlp": _mlp("cross_entropy"),
    "mlp_mse": _mlp("mse"),
    "mlp_l1": _mlp("l1"),
    "mlp_bce": _mlp("bce_with_logits"),
    "digits_cnn": ZooModel(digits_cnn.build, _digits, "cross_entropy", 32),
    "resnet": ZooModel(resnet.build, partial(_image_feeds, size=32), "cross_entropy", 16),
    "mobilenet_v3": ZooModel(
        mobilenet_v3.build, partial(_image_feeds, size=64), "cross_entropy", 16
    ),
    "transformer": ZooModel(
        transformer.build_encoder, partial(_tokens, next_token=False), "cross_entropy", 16
    ),
    "language_model": ZooModel(
        transformer.build_language_model, partial(_tokens, next_token=True), "cross_entropy", 16
    ),
    "lstm": ZooModel(partial(recurrent.build, cell="LSTM"), _sequences, "cross_entropy", 32),
    "gru": ZooModel(partial(recurrent.build, cell="GRU"), _sequences, "cross_entropy", 32),
}
"""Every network by name; the perceptron with each loss."""
