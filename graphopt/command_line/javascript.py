"""What the programs and pages in JavaScript train: ``graphopt demo --javascript``."""

import json
from pathlib import Path

import onnx
from onnx import helper

import graphopt
from graphopt.examples import digits, digits_cnn

EPOCHS = 10
BATCH_SIZE = 32


def main(folder: Path) -> None:
    """Writes the graphs and the digits into a folder.

    ``train.onnx`` is the training graph, ``train_webgpu.onnx`` that for GPUs, ``forward.onnx`` the
    network with its parameters as inputs, for testing between steps, ``on_device/`` the files of
    on-device training, and
    ``digits.json`` the data: pixels from 0 to 16, 64 each digit, and labels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = digits.load()
    steps = EPOCHS * -(-len(data.train.labels) // BATCH_SIZE)
    model = digits_cnn.build()
    optimizer = graphopt.RMSProp(
        graphopt.parameters(model),
        learning_rate=graphopt.schedules.CosineDecayLR(0.0, 0.0005, steps),
        momentum=0.9,
    )
    graphopt.training_graph(model, loss="cross_entropy", optimizer=optimizer).save(
        folder / "train.onnx"
    )
    graphopt.training_graph(
        model, loss="cross_entropy", optimizer=optimizer, provider="WebGpuExecutionProvider"
    ).save(folder / "train_webgpu.onnx")
    onnx.save(with_parameters_as_inputs(model), folder / "forward.onnx")
    graphopt.export_on_device(
        model, "cross_entropy", optimizer, folder / "on_device", outputs=["logits"]
    )
    (folder / "digits.json").write_text(
        json.dumps({part: _samples(samples) for part, samples in data._asdict().items()}),
        encoding="utf-8",
    )


def with_parameters_as_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model that is fed its initializers."""
    fed = onnx.ModelProto()
    fed.CopyFrom(model)
    for tensor in fed.graph.initializer:
        fed.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    del fed.graph.initializer[:]
    return fed


def _samples(samples: digits.Samples) -> dict[str, list[int]]:
    return {
        "pixels": (samples.x.ravel() * 16).astype(int).tolist(),
        "labels": samples.labels.tolist(),
    }
