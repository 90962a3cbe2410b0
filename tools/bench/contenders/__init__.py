"""Who is measured.

The modules of this package import on NumPy alone: each contender imports what it needs when it
gets ready for a case.
"""

from functools import partial

from tools.bench.contenders import copy, graphopt, keras, mindspore, optax, pytorch
from tools.bench.contenders.contender import Contender, Run, UnavailableError

__all__ = ["CONTENDERS", "Contender", "Run", "UnavailableError"]

_STOCK, _TRAINING, _PEERS = ".venv", ".venv-training", ".venv-peers"

CONTENDERS = {
    "graphopt": Contender(
        _STOCK, update=graphopt.update, step=graphopt.step, packages=("onnxruntime",)
    ),
    "graphopt without kernels": Contender(
        _STOCK,
        update=partial(graphopt.update, kernels=False),
        packages=("onnxruntime",),
        note="standard ONNX alone",
    ),
    "graphopt, onnxruntime 1.19": Contender(
        _TRAINING, step=graphopt.step, packages=("onnxruntime-training-cpu",)
    ),
    "onnxruntime-training": Contender(
        _TRAINING,
        step=partial(graphopt.step, portable=False),
        packages=("onnxruntime-training-cpu",),
        note="gradients built by that package",
    ),
    "pytorch": Contender(_STOCK, update=pytorch.update, step=pytorch.step, packages=("torch",)),
    "pytorch foreach": Contender(
        _STOCK, update=partial(pytorch.update, foreach=True), packages=("torch",)
    ),
    "pytorch compile": Contender(
        _STOCK, step=partial(pytorch.step, compiled=True), packages=("torch",)
    ),
    "optax": Contender(f"{_PEERS}/optax", update=optax.update, packages=("optax", "jax")),
    "keras": Contender(
        f"{_PEERS}/keras",
        update=keras.update,
        packages=("keras", "jax"),
        departures={"decay_groups": "its weight decay is decoupled from the gradient"},
    ),
    "mindspore": Contender(f"{_PEERS}/mindspore", update=mindspore.update, packages=("mindspore",)),
    "copy": Contender(
        _STOCK,
        update=copy.update,
        note="moves the bytes that an update must read and write, and computes nothing else",
    ),
}
"""By name; the first is the one that the others are compared with."""
