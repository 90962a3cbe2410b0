"""Writes what graphopt makes of many configurations, and compares two such folders byte by byte.

``python -m tools.snapshot make DIR`` writes graphs, files for devices, and what some steps give;
``facts SNAPSHOT DIR`` what an inspection of each of them finds; ``compare BEFORE AFTER`` says what
is different. A change that leaves behaviour as it is leaves every file as it is.
"""

import io
import json
import sys
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import graphopt
from graphopt import Parameter, RMSProp
from graphopt.graph import TrainingGraph
from graphopt.inspection import inspect_checkpoint
from graphopt.schedules import (
    CosineDecayLR,
    FromCaller,
    SequentialLR,
    WarmUpLR,
    cosine_decay_lr,
)
from models.zoo import ZOO

_STEPS = 3
_VARIED = ("mlp", "digits_cnn", "lstm")
_PARAMETERS = [
    Parameter("conv.weight", (16, 3, 3, 3), op_type="Conv"),
    Parameter("conv.bias", (16,)),
    Parameter("half", (7, 5), "float16"),
    Parameter("norm.gamma", (16,)),
    Parameter("large.weight", (600, 512), op_type="Gemm"),
    Parameter("scalar", ()),
]


def optimizers(parameters: Iterable[Parameter]) -> dict[str, RMSProp]:
    """Configurations that differ in what they compute, by name."""
    parameters = list(parameters)
    half = max(1, len(parameters) // 2)
    rest: dict[str, Any] = {"params": parameters[half:], "lr": 0.01}
    groups = [
        {"params": parameters[:half], "weight_decay": 0.01, "grad_centralization": True},
        rest if parameters[half:] else {"order_params": parameters},
    ]
    warm = SequentialLR([WarmUpLR(0.01, 3), CosineDecayLR(0.0, 0.01, 9)], milestones=[3])
    variants: dict[str, dict[str, Any]] = {
        "plain": {},
        "momentum": {"momentum": 0.9},
        "centered": {"centered": True},
        "centered_momentum": {"centered": True, "momentum": 0.9},
        "nesterov": {"momentum": 0.9, "nesterov": True},
        "outside": {"epsilon_inside_root": False, "initial_mean_square": 0.0, "epsilon": 1e-8},
        "rate_outside": {"momentum": 0.5, "learning_rate_inside_moment": False},
        "decoupled": {"weight_decay": 0.05, "decoupled_weight_decay": True, "momentum": 0.9},
        "decay": {"weight_decay": 0.05},
        "decay_schedule": {"weight_decay": WarmUpLR(0.01, 5)},
        "loss_scale": {"loss_scale": 1024.0, "weight_decay": 0.01, "momentum": 0.9},
        "cosine": {"learning_rate": CosineDecayLR(0.0, 0.01, 9)},
        "warm": {"learning_rate": warm, "centered": True},
        "list": {"learning_rate": cosine_decay_lr(0.0, 0.01, 20, 10, 2)},
        "caller": {"learning_rate": FromCaller("rate"), "momentum": 0.9},
    }
    return {
        name: RMSProp(parameters, **({"learning_rate": 0.01} | settings))
        for name, settings in variants.items()
    } | {
        "groups": RMSProp(groups, learning_rate=0.002, momentum=0.9),
        "groups_decay": RMSProp(groups, learning_rate=warm, weight_decay=0.1, use_locking=True),
    }


def make(
    folder: Path,
    networks: Iterable[str] = ZOO,
    configurations: Iterable[str] = optimizers(_PARAMETERS),
) -> None:
    """Write a snapshot.

    Args:
        folder: For the files; created if need be.
        networks: Names of the zoo.
        configurations: Names of `optimizers`.
    """
    (folder / "device").mkdir(parents=True, exist_ok=True)
    _updates(folder, configurations)
    for name in networks:
        _network(folder, name)
        if name in _VARIED:
            _variants(folder, name, configurations)


def _updates(folder: Path, configurations: Iterable[str]) -> None:
    """Configurations alone: update graphs, and the state after some steps."""
    rng = np.random.default_rng(2)
    initial = {p.name: rng.normal(size=p.shape).astype(p.dtype) for p in _PARAMETERS}
    feeds = [
        {f"{p.name}_grad": rng.normal(size=p.shape).astype(p.dtype) for p in _PARAMETERS}
        for _ in range(_STEPS)
    ]
    for name in configurations:
        optimizer = optimizers(_PARAMETERS)[name]
        for layout in ("auto", "buckets", "separate"):
            for mask in (False, True):
                graph = graphopt.update_graph(optimizer, layout=layout, group_mask=mask)
                _save(folder / f"update/{name}_{layout}{'_mask' * mask}.onnx", graph)
        for kernels in (False, True):
            session = graphopt.Session(
                graphopt.update_graph(optimizer), parameters=initial, kernels=kernels
            )
            for feed in feeds:
                session.step(feed | ({"rate": 0.01} if name == "caller" else {}))
            _save_arrays(folder / f"update_steps/{name}{'_kernels' * kernels}.npz", session.state)


def _network(folder: Path, name: str) -> None:
    """A network: training graphs, some of their steps, and the files for devices."""
    network = ZOO[name]
    for kind, batch in (("static", network.batch), ("dynamic", None)):
        forward = network.build(batch=batch, seed=0)
        optimizer = RMSProp(graphopt.parameters(forward), learning_rate=0.002, momentum=0.9)
        for provider in ("CPUExecutionProvider", "CUDAExecutionProvider"):
            graph = graphopt.training_graph(forward, network.loss, optimizer, provider=provider)
            _save(folder / f"zoo/{name}_{kind}_{provider[:4].lower()}.onnx", graph)
        graph = graphopt.training_graph(forward, network.loss, optimizer)
        session = graphopt.Session(graph, kernels=False)
        feeds = network.feeds(np.random.default_rng(1), network.batch)
        losses = np.array([session.step(feeds)["loss"] for _ in range(_STEPS)])
        _save_arrays(folder / f"steps/{name}_{kind}.npz", {**session.state, "losses": losses})
    for native in (False, True):
        target = folder / f"device/{name}{'_native' * native}"
        try:
            graphopt.export_on_device(
                forward, network.loss, optimizer, target, optimizer_model=native
            )
        except ValueError as error:
            target.mkdir(parents=True, exist_ok=True)
            (target / "error.txt").write_text(str(error), encoding="utf-8")


def _variants(folder: Path, name: str, configurations: Iterable[str]) -> None:
    """A network in several configurations."""
    forward, loss = ZOO[name].build(batch=None, seed=0), ZOO[name].loss
    for variant in configurations:
        optimizer = optimizers(graphopt.parameters(forward))[variant]
        mask = variant.startswith("groups")
        for layout in ("auto", "separate"):
            graph = graphopt.training_graph(
                forward, loss, optimizer, layout=layout, group_mask=mask
            )
            _save(folder / f"variants/{name}_{variant}_{layout}.onnx", graph)
        target = folder / f"device/{name}_{variant}"
        graphopt.export_on_device(forward, loss, optimizer, target, gradient_accumulation=True)


def _save(path: Path, graph: TrainingGraph) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(graph.model.SerializeToString())


def _save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write what `numpy.savez` does, but for the time of the day."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for name, array in sorted(arrays.items()):
            buffer = io.BytesIO()
            np.save(buffer, np.asarray(array))
            file.writestr(zipfile.ZipInfo(f"{name.replace('/', '_')}.npy"), buffer.getvalue())


def facts(snapshot: Path, folder: Path) -> None:
    """Write what an inspection finds in each graph and checkpoint of a snapshot."""
    for name in _files(snapshot):
        path = snapshot / name
        if path.suffix == ".onnx":
            found = graphopt.inspect(path, steps=30).to_dict()
        elif path.name == "checkpoint":
            found = inspect_checkpoint(path).to_dict()
        else:
            continue
        target = folder / f"{name}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(found, indent=1, sort_keys=True).replace(str(snapshot), "")
        target.write_text(text, encoding="utf-8")


def compare(before: Path, after: Path) -> dict[str, list[str]]:
    """The files that differ, by how they do."""
    old, new = set(_files(before)), set(_files(after))
    found: dict[str, list[str]] = defaultdict(list)
    for name in sorted(old | new):
        if name not in new:
            found["only before"].append(name)
        elif name not in old:
            found["only after"].append(name)
        else:
            contents = (before / name).read_bytes(), (after / name).read_bytes()
            if contents[0] != contents[1]:
                is_model = name.endswith(".onnx")
                how = _difference(*contents) if is_model else "other content"
                found[how].append(name)
    return dict(found)


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _difference(before: bytes, after: bytes) -> str:
    """How two models differ."""
    old, new = onnx.load_model_from_string(before), onnx.load_model_from_string(after)
    said = [{entry.key: entry.value for entry in model.metadata_props} for model in (old, new)]
    keys = sorted(
        key for key in said[0].keys() | said[1].keys() if said[0].get(key) != said[1].get(key)
    )
    parts = [f"metadata: {', '.join(keys)}"] if keys else []
    if _computed(old, str) == _computed(new, str):
        parts.append("the same nodes")
    elif _computed(old, _numbers()) == _computed(new, _numbers()):
        parts.append("the same nodes with other names")
    else:
        counts = [Counter(node.op_type for node in model.graph.node) for model in (old, new)]
        gone, come = counts[0] - counts[1], counts[1] - counts[0]
        changed = [
            f"{sign}{n} {op}" for sign, c in (("-", gone), ("+", come)) for op, n in c.items()
        ]
        parts.append(f"OTHER NODES: {', '.join(changed) or 'of the same operators'}")
    return "; ".join(parts)


def _numbers() -> Callable[[str], str]:
    """Gives each name a number, in the order in which they are met."""
    numbers: dict[str, str] = {"": ""}
    return lambda name: numbers.setdefault(name, str(len(numbers)))


def _computed(model: onnx.ModelProto, called: Callable[[str], str]) -> list[Any]:
    """What a model computes: all of it but metadata, documentation and declarations."""

    def graph(proto: onnx.GraphProto) -> list[Any]:
        inputs = [value(info) for info in proto.input]
        inner = [node(one) for one in proto.node]
        constants = sorted(
            (called(tensor.name), tensor.data_type, list(tensor.dims), tensor.raw_data)
            for tensor in map(_raw, proto.initializer)
        )
        return [inputs, inner, constants, [value(info) for info in proto.output]]

    def node(proto: onnx.NodeProto) -> list[Any]:
        attributes = [
            (a.name, graph(a.g) if a.HasField("g") else a.SerializeToString())
            for a in sorted(proto.attribute, key=lambda attribute: attribute.name)
        ]
        inputs, outputs = (
            [called(name) for name in names] for names in (proto.input, proto.output)
        )
        return [proto.op_type, proto.domain, attributes, inputs, outputs]

    def value(info: onnx.ValueInfoProto) -> list[Any]:
        return [called(info.name), info.type.SerializeToString()]

    functions = sorted(one.SerializeToString(deterministic=True) for one in model.functions)
    opsets = sorted((one.domain, one.version) for one in model.opset_import)
    return [graph(model.graph), functions, opsets, model.ir_version]


def _raw(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """The same values, wherever the tensor has them."""
    return onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name)


def main() -> int:
    """Do what the command line says; 1 if what is compared differs."""
    command, *folders = sys.argv[1:]
    first, *second = (Path(folder) for folder in folders)
    if command == "make":
        make(first)
        return 0
    if command == "facts":
        facts(first, *second)
        return 0
    found = compare(first, *second)
    for how, names in sorted(found.items(), key=lambda item: -len(item[1])):
        print(f"{len(names):5}  {how}: {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}")
    print(f"{sum(map(len, found.values()))} files differ")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
