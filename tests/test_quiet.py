"""ONNX Runtime's own warnings do not reach the user: what it would remove is not in the graphs."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import graphopt
from graphopt.profiling import profile
from tests.helpers import exporter
from tests.helpers.environments import HAS_TRAINING_PACKAGE

if HAS_TRAINING_PACKAGE:
    from tests.helpers.device import Device

WORDS, LENGTH, SIZE = 7, 5, 4


class LanguageModel(nn.Module):
    """A layer of a transformer between tied weights; some parameters and buffers are not used."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, SIZE)
        self.position = nn.Parameter(torch.randn(LENGTH, SIZE))
        self.qkv, self.norm = nn.Linear(SIZE, 3 * SIZE), nn.LayerNorm(SIZE)
        self.dense, self.unused = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)
        self.register_buffer("mask", torch.ones(LENGTH, LENGTH).triu(1).bool())
        self.register_buffer("other", torch.ones(3))

    def forward(self, tokens):
        x = self.embedding(tokens) + self.position
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        scores = (q @ k.transpose(1, 2)).masked_fill(self.mask, -1e9)
        y = torch.dropout(self.dense(scores.softmax(-1) @ v), 0.1, self.training)
        return torch.mean((x + y) @ self.embedding.weight.T, 1)


def exported(way, path):
    """A model of PyTorch's exporters, with initializers besides that nothing reads."""
    torch.manual_seed(0)
    module, tokens = LanguageModel(), (torch.zeros(2, LENGTH, dtype=torch.int64),)
    options = {"input_names": ["tokens"], "output_names": ["logits"]}
    if way == "graphopt.torch":
        return graphopt.torch.export(module, tokens, **options)
    if way == "legacy":
        exporter.legacy(module, tokens, path, **options)
        model = onnx.load(path)
    else:
        model = exporter.dynamo(module, tokens, optimize=False, opset_version=18, **options)
    for name, shape in {"unread": (3, 3), "unread.number": ()}.items():
        array = np.ones(shape, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def plain(path):
    """As other programs run a file, which do not know what graphopt tells the runtime."""
    onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.usefixtures("one_registry")
@pytest.mark.parametrize(
    "way", ["legacy", "dynamo", pytest.param("graphopt.torch", marks=pytest.mark.any_runtime)]
)
def test_the_runtime_has_nothing_to_say(way, tmp_path, capfd):
    model = exported(way, tmp_path / "net.onnx")
    trained = [p for p in graphopt.parameters(model) if "un" not in p.name]
    optimizer = graphopt.RMSProp(trained, learning_rate=0.01, centered=True)
    capfd.readouterr()
    rng = np.random.default_rng(0)
    feeds = {"tokens": rng.integers(0, WORDS, (2, LENGTH)), "labels": rng.integers(0, WORDS, 2)}

    graph = graphopt.training_graph(model, "cross_entropy", optimizer)
    graph.save(tmp_path / "train.onnx")
    plain(tmp_path / "train.onnx")
    for session in (
        graphopt.Session(graph),
        graphopt.Session(graph, kernels=False),
        graphopt.Session(graph, session_options=onnxruntime.SessionOptions()),
    ):
        session.step(feeds)
    session.export(tmp_path / "trained.onnx")
    plain(tmp_path / "trained.onnx")

    graphopt.inspect(graph)
    assert graphopt.verify(graph, steps=1).verified
    assert profile(graph, feeds, steps=1, warm_up=0)
    for native in (False, True):
        files = graphopt.export_on_device(
            model, "cross_entropy", optimizer, tmp_path / "device", optimizer_model=native
        )
        plain(files.eval_model)
        if HAS_TRAINING_PACKAGE:
            assert np.isfinite(Device(files).step(feeds)["loss"])
    assert capfd.readouterr() == ("", "")


def test_what_the_runtime_warns_of_is_seen(tmp_path, capfd):
    """The control of the test above."""
    onnx.save(exported("legacy", tmp_path / "net.onnx"), tmp_path / "net.onnx")
    capfd.readouterr()
    plain(tmp_path / "net.onnx")
    assert "Removing initializer 'unread'" in capfd.readouterr().err
