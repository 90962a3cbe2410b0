"""Files that ask for 512 MiB, given to all that reads such, in a process that may not take it.

``python -m tests.helpers.little_memory`` writes them into the current folder and prints what came
of each, as JSON: the kind of the error, and its message.
"""

import json
import resource
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
from onnx import parser
from PIL import Image
from pyarrow import parquet

import graphopt
from graphopt import RMSProp, conversion, inspection
from graphopt.samples import open_samples

ROOM = 2**26
"""Bytes beyond what the process has when it begins."""

MANY = 2**27  # float32 numbers


NAMES = [
    "pooled.onnx: training_graph",
    "beside.onnx: Session",
    "beside.onnx: export_on_device",
    "beside.onnx: model",
    "large.safetensors: checkpoint.read",
    "large.safetensors: average_checkpoints",
    "large.safetensors: load_state",
    "large.safetensors: export_on_device",
    "on_device: load_checkpoint",
    "on_device: inspect_checkpoint",
    "mindspore.ckpt: load_state",
    "torch.pt: load_state",
    "samples.npz: open_samples",
    "table.parquet: open_samples",
    "large.png: take",
]
"""Each file, and what reads it."""


def small():
    """A training graph of a small model."""
    model = parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        m (float[N,2] x) => (float[N,1] y) <float[2,1] w = {1, 2}> { y = MatMul (x, w) }""")
    onnx.save(model, "small.onnx")
    return graphopt.training_graph(model, "mse", optimizer())


def optimizer():
    return RMSProp([graphopt.Parameter("w", (2, 1))])


def pooled():
    """A model whose rule makes a table of its sizes."""
    model = parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
        m (float[1,1,{MANY // 2}] x) => (float[1,1,S] y) <float[1] w = {{1}}> {{
            z = Mul (x, w)
            y = AveragePool <kernel_shape = [2], pads = [1, 1]> (z)
        }}""")
    onnx.save(model, "pooled.onnx")
    graphopt.training_graph("pooled.onnx", "mse", RMSProp([graphopt.Parameter("w", (1,))]))


def beside():
    """The training graph of a model with its values in a file beside it."""
    model = parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
        m (float[N,{MANY}] x) => (float[N,1] y) {{ y = MatMul (x, w) }}""")
    tensor = model.graph.initializer.add(name="w", data_type=1, dims=[MANY, 1])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="beside.bin")
    sparse("beside.bin", b"", 4 * MANY)
    onnx.save(model, "beside.onnx")
    parameters = graphopt.parameters("beside.onnx")
    return graphopt.training_graph("beside.onnx", "mse", RMSProp(parameters))


def sparse(name, begin, length):
    """A file with zeros behind its beginning, which take no place."""
    with Path(name).open("wb") as file:
        file.write(begin)
        file.truncate(len(begin) + length)


def safetensors(name):
    header = json.dumps(
        {
            "__metadata__": {"format": "graphopt", "version": "1"},
            "w": {"dtype": "F32", "shape": [MANY, 1], "data_offsets": [0, 4 * MANY]},
        }
    ).encode()
    sparse(name, struct.pack("<Q", len(header)) + header, 4 * MANY)


def on_device(name):
    graphopt.export_on_device("small.onnx", "mse", optimizer(), "device")
    sparse(name, Path("device/checkpoint").read_bytes(), 4 * MANY)


def mindspore(name):
    begin = b"\x08" + varint(MANY) + b"\x12\x07Float32\x1a" + varint(4 * MANY)
    value = b"\x0a\x01w\x12" + varint(len(begin) + 4 * MANY) + begin
    sparse(name, b"\x0a" + varint(len(value) + 4 * MANY) + value, 4 * MANY)


def varint(value):
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def torch_file(name):
    """Written by hand, because pickle looks names up."""
    put = b"".join
    data = put(
        [
            b"\x80\x02}(X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((",
            b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu",
            b"K\x01tQK\x00(J" + struct.pack("<i", MANY) + b"t(K\x00t\x89}tRu.",
        ]
    )
    with zipfile.ZipFile(name, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", bytes(4))


def packed(name):
    np.savez_compressed(name, x=np.zeros((MANY // 8, 2), np.float32), labels=np.zeros(1))


def table(name):
    column = pa.array(np.zeros(MANY // 8, np.float64))
    lists = pa.FixedSizeListArray.from_arrays(column, 2)
    parquet.write_table(pa.table({"x": lists}), name)


def pictures(name):
    Path(name, "a").mkdir(parents=True)
    Image.new("RGB", (7000, 7000)).save(Path(name, "a", "large.png"))
    for number in range(4):
        Image.new("RGB", (2, 2)).save(Path(name, "a", f"small-{number}.png"))


def main():
    """Write all of them, then ask for them."""
    graph = small()
    graph.save("train.onnx")
    session = graphopt.Session(graph)
    session.save_checkpoint("small.safetensors")
    large = beside()
    packed("samples.npz")
    table("table.parquet")
    pictures("pictures")
    for make, name in (
        (safetensors, "large.safetensors"),
        (on_device, "on_device"),
        (mindspore, "mindspore.ckpt"),
        (torch_file, "torch.pt"),
    ):
        make(name)
    feeds = [feed for feed in session.inputs if feed.name == "x"]
    frames = [graphopt.feeds.Feed("x", (None, 3, None, None), "float32")]
    frames.append(graphopt.feeds.Feed("labels", (None,), "int64"))
    folder = open_samples("pictures", frames)
    folder.take(np.arange(1, 5))  # starts its threads
    calls = [
        pooled,
        lambda: graphopt.Session(large),
        lambda: graphopt.export_on_device(
            "beside.onnx", "mse", RMSProp([graphopt.Parameter("w", (MANY, 1))]), "out"
        ),
        lambda: large.model,
        lambda: graphopt.checkpoint.read("large.safetensors"),
        lambda: graphopt.average_checkpoints(
            ["large.safetensors", "small.safetensors"], "out.safetensors"
        ),
        lambda: conversion.load_state(session, "large.safetensors"),
        lambda: graphopt.export_on_device(
            "small.onnx", "mse", optimizer(), "out", state="large.safetensors"
        ),
        lambda: session.load_checkpoint("on_device"),
        lambda: inspection.inspect_checkpoint("on_device"),
        lambda: conversion.load_state(session, "mindspore.ckpt"),
        lambda: conversion.load_state(session, "torch.pt"),
        lambda: open_samples("samples.npz", feeds),
        lambda: open_samples("table.parquet", feeds),
        lambda: folder.take(np.zeros(1, np.int64)),
    ]
    status = Path("/proc/self/status").read_text()
    held = 1024 * int(status.partition("VmData:")[2].split()[0])
    resource.setrlimit(resource.RLIMIT_DATA, (held + ROOM, held + ROOM))
    found = {}
    for name, call in zip(NAMES, calls, strict=True):
        try:
            call()
        except Exception as error:  # noqa: BLE001 - that is what is looked at
            found[name] = type(error).__name__, str(error)
        else:
            found[name] = "none", ""
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
