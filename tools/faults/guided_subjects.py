"""What `guided` damages: files of each kind, as small as they can be, and what reads them."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from safetensors.numpy import save_file

import graphopt
from graphopt import RMSProp, Session, conversion, inspection
from graphopt.schedules import CosineDecayLR, SequentialLR, WarmUpLR
from graphopt.schedules.parse import learning_rate
from tools.faults.subjects import Calls, Subject

_MODEL = """<ir_version: 8, opset_import: ["": 17]>
small (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}, float[2] b = {0, 1}> {
    h = MatMul (x, w)
    d = Dropout (h)
    z = Add (d, b)
    y = Relu (z)
}"""
_FEEDS = {"x": np.ones((2, 2), np.float32), "labels": np.zeros((2, 2), np.float32)}


def guided_subjects(folder: Path) -> list[Subject]:
    """Make the files in a folder."""
    model = onnx.parser.parse_model(_MODEL)
    forward, train, plain = (folder / f"{name}.onnx" for name in ("forward", "train", "plain"))
    onnx.save(model, forward)
    params = graphopt.parameters(model)
    rate = SequentialLR([WarmUpLR(0.01, 10), CosineDecayLR(0.0, 0.01, 90)], [10])
    optimizer = RMSProp([{"params": params[:1], "lr": rate}, {"params": params[1:]}], momentum=0.9)
    onnx.save(graphopt.training_graph(model, "mse", optimizer).model, train)  # without its digest
    like_torch = RMSProp(
        params,
        learning_rate=0.01,
        decay=0.99,
        epsilon=1e-8,
        epsilon_inside_root=False,
        initial_mean_square=0.0,
        learning_rate_inside_moment=False,
        momentum=0.5,
    )
    onnx.save(graphopt.training_graph(model, "mse", like_torch).model, plain)
    theirs = Session(plain)
    theirs.step(_FEEDS)
    names = [parameter.name for parameter in params]
    state, old, torch_state, mindspore_state = (
        folder / name for name in ("state.safetensors", "old.safetensors", "state.pt", "state.ckpt")
    )
    session = Session(train)
    session.save_checkpoint(state, note={"position": 1})
    save_file(dict(session.state), old, {"format": "graphopt", "version": "1"})
    conversion.save_state(theirs, torch_state, "torch", names=names)
    conversion.save_state(session, mindspore_state, "mindspore", fed={})
    rate_file = folder / "rate.json"
    rate_file.write_text("[0.1, 0.01, 1e-3]")
    found = graphopt.inspect(train)
    of_state = {
        "load_checkpoint": session.load_checkpoint,
        "loosely": lambda path: session.load_checkpoint(path, strict=False),
        "inspect_checkpoint": lambda path: inspection.inspect_checkpoint(path, found).to_dict(),
    }

    of_forward = {
        "parameters": graphopt.parameters,
        "training_graph": lambda path: graphopt.training_graph(path, "mse", RMSProp(params)),
        "inspect": lambda path: graphopt.inspect(path).to_dict(),
    }
    of_graph = {
        "load": lambda path: repr(graphopt.load(path)),
        "inspect": lambda path: graphopt.inspect(path).to_dict(),
        "verify": lambda path: graphopt.verify(path, steps=1),
    }
    return [
        Subject(forward, of_forward, {}),
        Subject(train, of_graph, {}),
        Subject(state, of_state, {}),
        Subject(old, of_state, {}),
        Subject(torch_state, _loading(theirs, names), {}),
        Subject(mindspore_state, _loading(session, names), {}),
        Subject(rate_file, {"rate": _rate}, {}),
    ]


def seeds(subjects: list[Subject]) -> Mapping[str, bytes]:
    """What is damaged first: each file, behind a byte that says which it is."""
    return {
        subject.path.name: bytes([index]) + subject.path.read_bytes()
        for index, subject in enumerate(subjects)
    }


def _loading(session: Session, names: list[str]) -> Calls:
    return {"load_state": lambda path: conversion.load_state(session, path, names=names)}


def _rate(path: Path) -> None:
    """Take a rate from JSON, as a caller might."""
    name = str(path)
    try:
        value = json.loads(path.read_text())
    except (ValueError, RecursionError):
        return
    try:
        learning_rate(name, value)
    except TypeError:
        return
