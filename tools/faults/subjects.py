"""What is damaged, and what reads it: files of each kind, and calls and commands."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from typer.testing import CliRunner

import graphopt
from graphopt import RMSProp, inspection
from graphopt.cli import app
from graphopt.examples import digits_cnn
from graphopt.schedules import CosineDecayLR, SequentialLR, WarmUpLR
from models import recurrent

Calls = Mapping[str, Callable[[Path], object]]


@dataclass(frozen=True)
class Subject:
    """A file that is sound.

    Attributes:
        path: The file.
        calls: What reads it, by name.
        slow: Those that are made for one in some only.
    """

    path: Path
    calls: Calls
    slow: Calls


class CommandError(Exception):
    """A command that has ended with another exception than those that it reports."""


def subjects(folder: Path) -> list[Subject]:
    """Make sound files of every kind in a folder."""
    cnn, network = folder / "cnn.onnx", folder / "recurrent.onnx"
    onnx.save(digits_cnn.build(), cnn)
    onnx.save(recurrent.build(), network)
    external = folder / "external.onnx"
    onnx.save(
        digits_cnn.build(), external, save_as_external_data=True, location="w.bin", size_threshold=0
    )
    params = graphopt.parameters(cnn)
    rate = SequentialLR([WarmUpLR(0.01, 10), CosineDecayLR(0.0, 0.01, 90)], [10])
    groups = [{"params": params[:2], "weight_decay": 0.01}, {"params": params[2:], "lr": rate}]
    optimizer = RMSProp(groups, momentum=0.9, centered=True)
    train, separate = folder / "train.onnx", folder / "separate.onnx"
    graph = graphopt.training_graph(cnn, "cross_entropy", optimizer, group_mask=True)
    onnx.save(graph.model, train)  # without the digest, by which all damage is found at once
    graph = graphopt.training_graph(cnn, "cross_entropy", optimizer, layout="separate")
    onnx.save(graph.model, separate)
    checkpoint = folder / "state.safetensors"
    graphopt.Session(train).save_checkpoint(checkpoint)
    device = graphopt.export_on_device(cnn, "cross_entropy", optimizer, folder / "device")
    samples = folder / "samples.npz"
    rng = np.random.default_rng(0)
    np.savez(samples, x=rng.normal(size=(8, 1, 8, 8)).astype("f"), labels=rng.integers(0, 10, 8))
    compressed = folder / "compressed.npz"
    with np.load(samples) as arrays:
        np.savez_compressed(compressed, **arrays)
    of_network = Subject(network, *_forward_calls(folder, graphopt.parameters(network), network))
    of_forward = Subject(cnn, *_forward_calls(folder, params, cnn))
    of_graph, of_graph_slow = _graph_calls(folder, samples, train)
    of_state = _state_calls(folder, train, checkpoint, cnn, optimizer)
    of_samples = {
        "command train": _command(
            "train", train, "--epochs", 1, "--export", folder / "o.onnx", "--data"
        ),
        "command profile": _command("profile", train, "--steps", 1, "--data"),
        "command verify": _command("verify", train, "--steps", 1, "--data"),
    }
    return [
        of_forward,
        of_network,
        Subject(external, of_forward.calls, of_forward.slow),
        Subject(train, of_graph, of_graph_slow),
        Subject(separate, of_graph, of_graph_slow),
        Subject(checkpoint, of_state, {}),
        Subject(device.checkpoint, of_state, {}),
        Subject(device.training_model, *_forward_calls(folder, params, cnn)),
        Subject(samples, of_samples, {}),
        Subject(compressed, of_samples, {}),
    ]


def _command(*arguments: object) -> Callable[[Path], object]:
    """A command whose last argument is the file."""

    def run(path: Path) -> None:
        result = CliRunner().invoke(app, [*map(str, arguments), str(path)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise CommandError(repr(result.exception)) from result.exception
        if result.exit_code == 1 and "error: " in result.output:
            raise ValueError(result.output)

    return run


def _forward_calls(folder: Path, params: Any, sound: Path) -> tuple[Calls, Calls]:
    out = folder / "out"
    calls: dict[str, Callable[[Path], object]] = {
        "parameters": graphopt.parameters,
        "training_graph": lambda path: graphopt.training_graph(
            path, "cross_entropy", RMSProp(params)
        ).save(folder / "o.onnx"),
        "export_on_device": lambda path: graphopt.export_on_device(
            path, "cross_entropy", RMSProp(params), out
        ),
        "inspect": lambda path: json.dumps(graphopt.inspect(path).to_dict()),
    }
    slow = {
        "command build": _command(
            "build", "--loss", "cross_entropy", "-o", folder / "o.onnx", "--layout", "auto"
        ),
        "command inspect": _command("inspect", "--html", folder / "o.html"),
        "command diff": _command("diff", sound),
    }
    return calls, slow


def _graph_calls(folder: Path, samples: Path, sound: Path) -> tuple[Calls, Calls]:
    with np.load(samples) as arrays:
        feeds = dict(arrays)

    def session(path: Path) -> None:
        made = graphopt.Session(path)
        try:
            made.step(feeds)
        except (RuntimeError, TypeError, ValueError):  # of a step, which names no file
            return
        made.save_checkpoint(folder / "o.safetensors", force=True)
        made.export(folder / "exported.onnx", force=True)

    calls: dict[str, Callable[[Path], object]] = {
        "load": lambda path: repr(graphopt.load(path)),
        "Session": session,
        "parameters": graphopt.parameters,
        "inspect": lambda path: json.dumps(graphopt.inspect(path).to_dict()),
    }
    slow = {
        "verify": lambda path: graphopt.verify(path, steps=1),
        "profile": lambda path: graphopt.profile(path, steps=1, warm_up=0),
        "diff": lambda path: inspection.diff(
            graphopt.inspect(path), graphopt.inspect(sound)
        ).to_dict(),
        "command inspect": _command("inspect"),
        "command train": _command(
            *("train", "--data", samples, "--epochs", 1, "--export", folder / "o.onnx")
        ),
    }
    return calls, slow


def _state_calls(
    folder: Path, train: Path, sound: Path, forward: Path, optimizer: RMSProp
) -> Calls:
    session = graphopt.Session(train)
    found = graphopt.inspect(train)
    return {
        "load_checkpoint": session.load_checkpoint,
        "inspect_checkpoint": lambda path: inspection.inspect_checkpoint(path, found).to_dict(),
        "diff_checkpoints": lambda path: inspection.diff_checkpoints(path, sound).to_dict(),
        "export_on_device": lambda path: graphopt.export_on_device(
            forward, "cross_entropy", optimizer, folder / "out", state=path
        ),
        "command inspect": _command("inspect"),
        "command export": _command("export", train, "-o", folder / "o.onnx", "--checkpoint"),
    }
