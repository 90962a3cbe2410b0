"""Checkpoints of ONNX Runtime's on-device training: ours, ONNX Runtime's, and damaged ones.

The oracles are the Python modules that the FlatBuffers compiler made of ONNX Runtime's schema, and
ONNX Runtime Training itself where it is installed.
"""

import dataclasses
import importlib
import json
import struct
import sys
import tracemalloc
from contextlib import suppress
from pathlib import Path

import flatbuffers
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from graphopt.on_device import checkpoint as on_device, read_state
from graphopt.on_device.checkpoint import (
    OnDeviceCheckpoint,
    OptimizerState,
    has_digest,
    read,
    write,
)
from graphopt.on_device.session_state import to_state
from tests.helpers.environments import needs_training_package
from tests.helpers.faults import flips_that_are_found
from tests.helpers.on_device import forward_model

INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
LOADABLE = ["float32", "float64", "bool", *INTEGERS]
ONLY_READ = ["float16", "complex64", "complex128", "bfloat16", "float8_e4m3fn", "float8_e5m2"]


def dtype(name):
    ml_dtypes = importlib.import_module("ml_dtypes")
    return np.dtype(getattr(ml_dtypes, name, None) or name)


def tensors(seed, **shapes):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def trained(seed=0):
    """A checkpoint with everything in it."""
    trainable = tensors(seed, w=(3, 4), b=(4,))
    momentums = {
        name: {f"momentum{i}": np.full_like(array, i + 0.5) for i in range(2)}
        for name, array in trainable.items()
    }
    return OnDeviceCheckpoint(
        trainable=trainable,
        frozen=tensors(seed + 1, scale=(4,)) | {"shape": np.array([-1, 4])},
        optimizer=OptimizerState(step=3, learning_rate=0.125, momentums=momentums),
        properties={"epoch": 7, "loss": 0.25, "data": "digits"},
    )


def assert_same_tensors(one, other):
    assert list(one) == list(other)
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        assert one[name].shape == other[name].shape, name
        assert one[name].tobytes() == other[name].tobytes(), name


def assert_same(one, other):
    assert one.nominal == other.nominal
    assert dict(one.properties) == dict(other.properties)
    for name, value in one.properties.items():
        assert type(value) is type(other.properties[name]), name
    assert_same_tensors(one.trainable, other.trainable)
    assert_same_tensors(one.frozen, other.frozen)
    assert (one.optimizer is None) == (other.optimizer is None)
    if one.optimizer is not None and other.optimizer is not None:
        assert one.optimizer.step == other.optimizer.step
        assert one.optimizer.learning_rate == other.optimizer.learning_rate
        assert list(one.optimizer.momentums) == list(other.optimizer.momentums)
        for name, state in one.optimizer.momentums.items():
            assert_same_tensors(state, other.optimizer.momentums[name])


# --- what the compiler made of the schema ------------------------------------------------------


def schema(name):
    folder = Path(onnxruntime.__file__).parent / "tools" / "ort_format_model"
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    return importlib.import_module(f"ort_flatbuffers_py.fbs.{name}")


class SchemaWriter:
    """Writes a checkpoint from its leaves to its root, as ONNX Runtime does."""

    def __init__(self, version=2, identifier=b"ODTC"):
        self.builder = flatbuffers.Builder(1024)
        self.version = version
        self.identifier = identifier

    def table(self, name, **fields):
        """A table of which None fields are left out."""
        module = schema(name)
        module.Start(self.builder)
        for field, value in fields.items():
            if value is not None:
                getattr(module, f"Add{field}")(self.builder, value)
        return module.End(self.builder)

    def offsets(self, offsets):
        self.builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self.builder.PrependUOffsetTRelative(offset)
        return self.builder.EndVector()

    def longs(self, values):
        self.builder.StartVector(8, len(values), 8)
        for value in reversed(values):
            self.builder.PrependInt64(value)
        return self.builder.EndVector()

    def data(self, content):
        return self.builder.CreateByteVector(content)

    def tensor(self, name, array, **changes):
        code = helper.np_dtype_to_tensor_dtype(array.dtype)
        fields = {"dims": array.shape, "code": code, "data": array.tobytes(), "offset": None}
        fields |= changes
        data, dims = fields["data"], fields["dims"]
        return self.table(
            "Tensor",
            Name=None if name is None else self.text(name),
            Dims=None if dims is None else self.longs(dims),
            DataType=fields["code"],
            RawData=self.data(data) if isinstance(data, bytes) else data,
            ExternalDataOffset=fields["offset"],
        )

    def text(self, text):
        return self.data(text) if isinstance(text, bytes) else self.builder.CreateString(text)

    def tensors(self, arrays):
        return self.offsets([self.tensor(name, array) for name, array in arrays.items()])

    def group(self, state, name="group0"):
        entries = [
            self.table(
                "ParameterOptimizerState",
                ParamName=self.text(parameter),
                Momentums=self.tensors(momentums),
            )
            for parameter, momentums in state.momentums.items()
        ]
        return self.table(
            "OptimizerGroup",
            GroupName=self.text(name),
            Step=state.step,
            InitialLearningRate=state.learning_rate,
            OptimizerStates=self.offsets(entries),
        )

    def bag(self, properties):
        kinds = {"Int": int, "Float": float, "String": str}
        vectors = {
            f"{kind}s": self.offsets(
                [
                    self.table(
                        f"{kind}Property",
                        Name=self.text(name),
                        Value=self.text(value) if kind == "String" else value,
                    )
                    for name, value in properties
                    if type(value) is python
                ]
            )
            for kind, python in kinds.items()
        }
        return self.table("PropertyBag", **vectors)

    def module(self, trainable, frozen, *, nominal=None, external=None):
        return self.table(
            "ModuleState",
            RequiresGradParams=self.offsets(trainable),
            FrozenParams=self.offsets(frozen),
            IsNominalState=nominal,
            HasExternalData=external,
        )

    def finish(self, module, groups=(), bag=None):
        root = self.table(
            "Checkpoint",
            Version=self.version,
            ModuleState=module,
            OptimizerGroups=self.offsets(groups) if groups else None,
            PropertyBag=bag,
        )
        self.builder.Finish(root, file_identifier=self.identifier)
        return bytes(self.builder.Output())


def schema_bytes(checkpoint):
    w = SchemaWriter()
    trainable = [w.tensor(name, array) for name, array in checkpoint.trainable.items()]
    frozen = [w.tensor(name, array) for name, array in checkpoint.frozen.items()]
    groups = [] if checkpoint.optimizer is None else [w.group(checkpoint.optimizer)]
    bag = w.bag(checkpoint.properties.items()) if checkpoint.properties else None
    return w.finish(w.module(trainable, frozen), groups, bag)


def schema_tensors(table, field):
    arrays = {}
    for i in range(getattr(table, f"{field}Length")()):
        tensor = getattr(table, field)(i)
        dims = [tensor.Dims(j) for j in range(tensor.DimsLength())]
        raw = bytes(tensor.RawData(j) for j in range(tensor.RawDataLength()))
        code = helper.tensor_dtype_to_np_dtype(tensor.DataType())
        arrays[tensor.Name().decode()] = np.frombuffer(raw, code).reshape(dims)
    return arrays


def schema_read(content):
    """The generated modules' view of a checkpoint that is not nominal."""
    root = schema("Checkpoint").Checkpoint.GetRootAs(content)
    assert root.Version() == 2
    bag, properties = root.PropertyBag(), {}
    for kind in ("Ints", "Floats", "Strings"):
        for i in range(getattr(bag, f"{kind}Length")() if bag else 0):
            entry = getattr(bag, kind)(i)
            value = entry.Value()
            value = value.decode() if isinstance(value, bytes) else value
            properties[entry.Name().decode()] = value
    optimizer = None
    if root.OptimizerGroupsLength():
        group = root.OptimizerGroups(0)
        assert group.GroupName() == b"group0"
        states = [group.OptimizerStates(i) for i in range(group.OptimizerStatesLength())]
        momentums = {s.ParamName().decode(): schema_tensors(s, "Momentums") for s in states}
        optimizer = OptimizerState(group.Step(), group.InitialLearningRate(), momentums)
    module = root.ModuleState()
    assert not module.HasExternalData()
    return OnDeviceCheckpoint(
        schema_tensors(module, "RequiresGradParams"),
        schema_tensors(module, "FrozenParams"),
        optimizer,
        properties,
        module.IsNominalState(),
    )


# --- round trips -------------------------------------------------------------------------------

W = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
CASES = {
    "everything": trained(),
    "nothing": OnDeviceCheckpoint({}),
    "weights alone": OnDeviceCheckpoint(W),
    "step and rate without momentums": OnDeviceCheckpoint(W, optimizer=OptimizerState(5, 0.5)),
    "extreme numbers": OnDeviceCheckpoint(
        W,
        optimizer=OptimizerState(2**63 - 1, 0.0),
        properties={"least": -(2**63), "infinite": float("inf"), "empty": "", "": 0},
    ),
    "a scalar and empty arrays": OnDeviceCheckpoint(
        {"s": np.float32(2).reshape(())},
        {"z": np.empty((0, 3), np.float32), "t": np.empty((3, 0, 2**20), np.int64)},
    ),
    "64 dimensions": OnDeviceCheckpoint({"w": np.ones((1,) * 64, np.float32)}),
    "names beyond ASCII": OnDeviceCheckpoint(
        {"größe/重み": W["w"]}, properties={"ключ": "значение\0 with a zero byte"}
    ),
    "many": OnDeviceCheckpoint({f"w{i}": np.float32([i]) for i in range(1000)}),
}


@pytest.mark.parametrize("checkpoint", CASES.values(), ids=CASES)
def test_reading_returns_what_was_written(tmp_path, checkpoint):
    path = tmp_path / "checkpoint"
    write(path, checkpoint)
    assert on_device.is_on_device(path)
    assert_same(read(path), checkpoint)


@pytest.mark.parametrize("checkpoint", CASES.values(), ids=CASES)
def test_the_schema_of_onnx_runtime_understands_what_was_written(tmp_path, checkpoint):
    path = tmp_path / "checkpoint"
    write(path, checkpoint)
    content = path.read_bytes()
    assert schema("Checkpoint").Checkpoint.CheckpointBufferHasIdentifier(content, 0)
    assert_same(schema_read(content), checkpoint)


@pytest.mark.parametrize("checkpoint", CASES.values(), ids=CASES)
def test_files_laid_out_by_the_flatbuffers_library_are_read(tmp_path, checkpoint):
    path = tmp_path / "checkpoint"
    path.write_bytes(schema_bytes(checkpoint))
    assert_same(read(path), checkpoint)


@pytest.mark.quick
@pytest.mark.parametrize("name", LOADABLE)
def test_dtypes_that_are_kept(tmp_path, name):
    array = np.array([[0, 1, 1], [1, 0, 1]], dtype(name))
    write(tmp_path / "checkpoint", OnDeviceCheckpoint({"w": array}, {"f": array}))
    assert_same_tensors(read(tmp_path / "checkpoint").trainable, {"w": array})
    assert_same_tensors(schema_read((tmp_path / "checkpoint").read_bytes()).frozen, {"f": array})


@pytest.mark.parametrize("name", ONLY_READ)
def test_dtypes_that_are_only_read(tmp_path, name):
    array = np.array([0, 1, 1], dtype(name))
    (tmp_path / "checkpoint").write_bytes(schema_bytes(OnDeviceCheckpoint({"w": array})))
    assert_same_tensors(read(tmp_path / "checkpoint").trainable, {"w": array})


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.float32).reshape(4, 6)[::2, ::-1],
        np.asfortranarray(np.arange(24, dtype=np.float32).reshape(4, 6)),
        np.arange(24, dtype=">f4").reshape(4, 6),
        np.broadcast_to(np.float32(3), (4, 6)),
    ],
    ids=["strided", "Fortran order", "big-endian", "broadcast"],
)
def test_any_memory_layout_is_written_by_value(tmp_path, array):
    write(tmp_path / "checkpoint", OnDeviceCheckpoint({"w": array}))
    result = read(tmp_path / "checkpoint").trainable["w"]
    assert result.dtype == np.float32
    assert np.array_equal(result, array)


def test_arrays_read_belong_to_the_caller(tmp_path):
    write(tmp_path / "checkpoint", trained())
    arrays = read(tmp_path / "checkpoint").trainable
    for array in arrays.values():
        assert type(array) is np.ndarray
        assert array.flags.writeable
        assert array.flags.aligned
    write(tmp_path / "checkpoint", OnDeviceCheckpoint(arrays))
    assert_same_tensors(read(tmp_path / "checkpoint").trainable, arrays)


def test_the_bytes_depend_on_the_content_alone(tmp_path):
    write(tmp_path / "one", trained())
    write(tmp_path / "other", trained())
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_a_nominal_checkpoint_has_names_and_dtypes_alone(tmp_path):
    path = tmp_path / "checkpoint"
    write(path, dataclasses.replace(trained(), nominal=True))
    result = read(path)
    assert result.nominal
    assert {
        n: (a.dtype, a.shape) for n, a in (*result.trainable.items(), *result.frozen.items())
    } == {
        "w": (np.float32, (0,)),
        "b": (np.float32, (0,)),
        "scale": (np.float32, (0,)),
        "shape": (np.int64, (0,)),
    }
    module = schema("Checkpoint").Checkpoint.GetRootAs(path.read_bytes()).ModuleState()
    assert module.IsNominalState()
    tensor = module.RequiresGradParams(0)
    assert not tensor.DimsIsNone()
    assert not tensor.RawDataIsNone()
    assert (tensor.DimsLength(), tensor.RawDataLength()) == (0, 0)
    assert result.optimizer is not None
    assert result.optimizer.step == 3


def test_large_arrays_are_written_without_a_copy_and_read_with_one(tmp_path):
    big = np.ones(4 * 2**20, np.float32)
    path = tmp_path / "checkpoint"
    tracemalloc.start()
    try:
        write(path, OnDeviceCheckpoint({"w": big}))
        assert tracemalloc.get_traced_memory()[1] < big.nbytes // 4
        tracemalloc.reset_peak()
        result = read(path)
        assert tracemalloc.get_traced_memory()[1] < 2.25 * big.nbytes
    finally:
        tracemalloc.stop()
    assert np.array_equal(result.trainable["w"], big)


# --- what cannot be written --------------------------------------------------------------------


@pytest.mark.any_runtime
@pytest.mark.parametrize(
    ("checkpoint", "error", "message"),
    [
        (OnDeviceCheckpoint(W, W), ValueError, "'w' is both trainable and frozen"),
        (
            OnDeviceCheckpoint(W, optimizer=OptimizerState(0, 0.1, {"v": W})),
            ValueError,
            "momentums do not match the trainable parameters at 'v'",
        ),
        (
            OnDeviceCheckpoint(W | {"b": W["w"]}, optimizer=OptimizerState(0, 0.1, {"w": W})),
            ValueError,
            "momentums do not match the trainable parameters at 'b'",
        ),
        (
            OnDeviceCheckpoint(W, optimizer=OptimizerState(2**63, 0.1)),
            ValueError,
            "'step' is 9223372036854775808, expected a value that fits int64",
        ),
        (
            OnDeviceCheckpoint(W, optimizer=OptimizerState(1.5, 0.1)),
            ValueError,
            "'step' is 1.5, expected a value that fits int64",
        ),
        (
            OnDeviceCheckpoint(W, optimizer=OptimizerState(0, 1e39)),
            ValueError,
            r"'learning_rate' is 1e\+39, expected a value that fits float32",
        ),
        (OnDeviceCheckpoint(W, properties={"n": 2**63}), ValueError, "'n' is .* fits int64"),
        (OnDeviceCheckpoint(W, properties={"n": True}), TypeError, "'n' is a bool, expected"),
        (OnDeviceCheckpoint(W, properties={"n": [1]}), TypeError, "'n' is a list, expected"),
    ],
    ids=str,
)
def test_what_the_format_cannot_hold_is_refused(tmp_path, checkpoint, error, message):
    path = tmp_path / "checkpoint"
    path.write_text("old")
    with pytest.raises(error, match=message):
        write(path, checkpoint)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", [*ONLY_READ, "int4", "str", "object"])
def test_dtypes_that_onnx_runtime_does_not_load_are_refused(tmp_path, name):
    array = np.array([1, 1]).astype(dtype(name))
    with pytest.raises(TypeError, match=r"'w' has dtype .* convert it to float32"):
        write(tmp_path / "checkpoint", OnDeviceCheckpoint({"w": array}))


def test_files_above_the_limit_of_flatbuffers_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("graphopt.on_device._flatbuffer._LARGEST_FILE", 1000)
    write(tmp_path / "checkpoint", OnDeviceCheckpoint({"w": np.ones(200, np.float32)}))
    with pytest.raises(ValueError, match="takes more than 1000 bytes"):
        write(tmp_path / "checkpoint", OnDeviceCheckpoint({"w": np.ones(250, np.float32)}))


def test_a_missing_folder_or_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist; create it first"):
        write(tmp_path / "none" / "checkpoint", trained())
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read(tmp_path / "checkpoint")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        on_device.is_on_device(tmp_path / "checkpoint")


# --- tensors in a file of their own ------------------------------------------------------------


def external_bytes(offset=8, **changes):
    w = SchemaWriter()
    apart = w.tensor("w", W["w"], data=None, offset=offset, **changes)
    within = w.tensor("b", np.float32([5, 6]))
    return w.finish(w.module([apart, within], [], external=True))


def test_tensors_in_a_file_of_their_own_are_read(tmp_path):
    path = tmp_path / "checkpoint"
    path.write_bytes(external_bytes())
    (tmp_path / "checkpoint.data").write_bytes(bytes(8) + W["w"].tobytes())
    result = read(path)
    assert_same_tensors(result.trainable, W | {"b": np.float32([5, 6])})
    assert type(result.trainable["w"]) is np.ndarray


@pytest.mark.parametrize(
    ("offset", "data"),
    [(8, b""), (8, bytes(31)), (2**62, bytes(32)), (-8, bytes(32)), (9, bytes(32))],
)
def test_data_outside_that_file_is_an_error(tmp_path, offset, data):
    path = tmp_path / "checkpoint"
    path.write_bytes(external_bytes(offset))
    (tmp_path / "checkpoint.data").write_bytes(data)
    with pytest.raises(ValueError, match=rf"{path.name}.*lie outside its {len(data)} bytes"):
        read(path)


def test_a_missing_file_of_tensors_is_named(tmp_path):
    (tmp_path / "checkpoint").write_bytes(external_bytes())
    with pytest.raises(FileNotFoundError, match=r"checkpoint\.data"):
        read(tmp_path / "checkpoint")


# --- damaged files -----------------------------------------------------------------------------


def broken_tensor(**changes):
    def build():
        w = SchemaWriter()
        name = changes.get("name", "w")
        rest = {key: value for key, value in changes.items() if key != "name"}
        return w.finish(w.module([w.tensor(name, W["w"], **rest)], []))

    return build


def broken_module(build_module):
    def build():
        w = SchemaWriter()
        return w.finish(build_module(w))

    return build


def broken_root(version=2, groups=(), properties=None):
    def build():
        w = SchemaWriter(version)
        made = [w.group(OptimizerState(0, 0.1), name) for name in groups]
        bag = None if properties is None else w.bag(properties)
        return w.finish(w.module([w.tensor("w", W["w"])], []), made, bag)

    return build


def shared_data(count):
    """Many tensors whose data is one vector: a small file that would fill the memory."""

    def build():
        w = SchemaWriter()
        data = w.data(bytes(40_000))
        array = np.zeros(10_000, np.float32)
        return w.finish(w.module([w.tensor(f"w{i}", array, data=data) for i in range(count)], []))

    return build


def shared_momentums():
    """Many parameters whose momentums are one vector of tensors: endless work."""
    w = SchemaWriter()
    momentums = w.tensors({f"m{i}": np.float32([i]) for i in range(1000)})
    entries = [
        w.table("ParameterOptimizerState", ParamName=w.text(f"w{i}"), Momentums=momentums)
        for i in range(1000)
    ]
    states = w.offsets(entries)
    group = w.table("OptimizerGroup", GroupName=w.text("group0"), OptimizerStates=states)
    return w.finish(w.module([], []), [group])


BROKEN = {
    "no identifier": (lambda: b"12345678", "bytes 4 to 7 are not 'ODTC'"),
    "another identifier": (
        lambda: SchemaWriter(identifier=b"ORTM").finish(None),
        "bytes 4 to 7 are not 'ODTC'",
    ),
    "an empty file": (lambda: b"", "bytes 4 to 7 are not 'ODTC'"),
    "a header alone": (lambda: b"\x08\0\0\0ODTC", "cut off or damaged"),
    "another version": (broken_root(version=3), "its version is 3, expected 2"),
    "no parameters": (lambda: SchemaWriter().finish(None), "it has no parameters"),
    "another group": (broken_root(groups=["mine"]), "optimizer group 'mine', expected 'group0'"),
    "a group twice": (broken_root(groups=["group0"] * 2), "optimizer group 'group0', expected"),
    "a property twice": (
        broken_root(properties=[("n", 1), ("n", "1")]),
        "it has property 'n' twice",
    ),
    "too little data": (broken_tensor(data=bytes(23)), "'w' has 23 bytes of data, expected 24"),
    "too much data": (broken_tensor(data=bytes(28)), "'w' has 28 bytes of data, expected 24"),
    "no data": (broken_tensor(data=None), "'w' has no data"),
    "data elsewhere": (broken_tensor(data=None, offset=0), "but the checkpoint has none"),
    "negative dimensions": (broken_tensor(dims=(-2, -3)), r"impossible shape \[-2, -3\]"),
    "an endless shape": (broken_tensor(dims=(2**62, 0), data=b""), "impossible shape"),
    "an overflowing shape": (broken_tensor(dims=(2**32, 2**32, 6)), "impossible shape"),
    "65 dimensions": (broken_tensor(dims=(1,) * 65), "65 dimensions, expected 64 at most"),
    "no element type": (broken_tensor(code=0), "element type 0"),
    "strings": (broken_tensor(code=8), "element type 8"),
    "an unknown element type": (broken_tensor(code=99), "element type 99"),
    "no name": (broken_tensor(name=None), "the name of a tensor is missing"),
    "a name that is no text": (broken_tensor(name=b"\xff\xfe"), "is not UTF-8"),
    "bool of 2": (broken_tensor(code=9, dims=(24,), data=bytes([2] * 24)), "other than 0 and 1"),
    "a tensor twice": (
        broken_module(lambda w: w.module([w.tensor("w", W["w"]) for _ in range(2)], [])),
        "it has 'w' twice",
    ),
    "trainable and frozen": (
        broken_module(lambda w: w.module([w.tensor("w", W["w"])], [w.tensor("w", W["w"])])),
        "'w' is both trainable and frozen",
    ),
    "shared data": (shared_data(200), "its parts overlap"),
    "shared momentums": (shared_momentums, "its parts overlap"),
}


@pytest.mark.any_runtime
@pytest.mark.parametrize(("build", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_files_are_refused_with_their_path(tmp_path, build, message):
    path = tmp_path / "checkpoint"
    path.write_bytes(build())
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


def damaged(content, rng):
    """One of several kinds of damage."""
    content = bytearray(content)
    kind = rng.integers(4)
    if kind == 0:
        return bytes(content[: rng.integers(8, len(content))])
    if kind == 1:
        for at in rng.integers(0, 8 * len(content), rng.integers(1, 4)):
            content[at // 8] ^= 1 << (at % 8)
    elif kind == 2:
        hostile = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32 - 4, len(content), len(content) - 4]
        at = 4 * int(rng.integers(0, len(content) // 4))
        struct.pack_into("<I", content, at, hostile[rng.integers(len(hostile))])
    else:
        at, size = rng.integers(0, len(content)), rng.integers(1, 64)
        content[at : at + size] = rng.bytes(len(content[at : at + size]))
    content[4:8] = b"ODTC"
    return bytes(content)


@pytest.mark.any_runtime
@pytest.mark.parametrize("layout", ["ours", "library"])
def test_damage_gives_an_error_or_a_checkpoint_within_bounded_memory(tmp_path, layout):
    path = tmp_path / "checkpoint"
    if layout == "ours":
        write(path, trained())
        content = path.read_bytes()
    else:
        content = schema_bytes(trained())
    rng, refusals = np.random.default_rng(7), []
    for _ in range(800):
        path.write_bytes(damaged(content, rng))
        tracemalloc.start()
        try:
            read(path)
        except (ValueError, FileNotFoundError) as error:
            refusals.append(error)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**20
    for error in refusals:
        # With one bit changed, a file says that its tensors are in another one.
        missing = isinstance(error, FileNotFoundError)
        wanted = f"there is no file '{path}.data'" if missing else f"'{path}' is not a readable"
        assert str(error).startswith(wanted)
    assert 200 < len(refusals) < 800


@pytest.mark.any_runtime
def test_every_prefix_of_a_file_is_refused(tmp_path):
    path = tmp_path / "checkpoint"
    write(path, OnDeviceCheckpoint(W, optimizer=OptimizerState(1, 0.5)))
    content = path.read_bytes()
    whole = content.index(b"graphopt.sha256.")  # what ONNX Runtime writes ends here
    for size in range(len(content)):
        path.write_bytes(content[:size])
        if size < whole:
            with pytest.raises(ValueError, match=r"is not a (readable )?checkpoint of"):
                read(path)
        else:
            with suppress(ValueError):
                np.testing.assert_array_equal(read(path).trainable["w"], W["w"])


def test_every_flipped_bit_is_found(tmp_path):
    path = tmp_path / "checkpoint"
    write(path, with_state(mean_square=np.ones(64, np.float32)))
    assert has_digest(path)
    flips_that_are_found(path, read)


# --- the state of a session --------------------------------------------------------------------


def with_state(step=(3, 0), text='{"version": 1}', **frozen):
    """A checkpoint as `export_on_device` writes it, with this step and property."""
    frozen = {"global_step": np.array(step, np.float32)} | frozen
    return OnDeviceCheckpoint(W, frozen, properties={"graphopt": text})


def native_state(optimizer, **arrangement):
    """The same with ONNX Runtime's optimizer, which keeps the states."""
    text = json.dumps({"version": 1, "momentums": {"mean_square": "momentum1"}} | arrangement)
    return OnDeviceCheckpoint(W, optimizer=optimizer, properties={"graphopt": text})


def test_the_state_of_a_session():
    flat = np.arange(6, dtype=np.float32)
    state = to_state(with_state((5, 2), **{"moment.w": flat, "other": flat}))
    assert state["global_step"] == 2 * 2**24 + 5
    assert_same_tensors({"moment.w": flat.reshape(2, 3)}, {"moment.w": state["moment.w"]})
    assert state["other"].shape == (6,)
    first = to_state(native_state(OptimizerState(0, 0.1), initial_mean_square=3.4e38))
    assert np.array_equal(first["mean_square.w"], np.full((2, 3), 3.4e38, np.float32))


STATES_THAT_CANNOT_BE = {
    "an infinite step": (with_state((np.inf, 1)), "global_step .* got .inf, 1"),
    "a step of NaN": (with_state((0, np.nan)), "global_step .* got .0.0, nan"),
    "a step beyond int64": (with_state((0, 3e38)), "global_step .* fits int64"),
    "a scalar step": (with_state(3), r"global_step .* got float32\[\], expected float32\[2\]"),
    "three numbers": (with_state((1, 2, 3)), r"got float32\[3\], expected float32\[2\]"),
    "a step of int64": (with_state(global_step=np.array([3, 0])), r"got int64\[2\], expected"),
    "a parameter as step": (
        OnDeviceCheckpoint({"global_step": W["w"]}, properties={"graphopt": '{"version": 1}'}),
        "global_step is a parameter",
    ),
    "a state of another size": (
        with_state(**{"moment.w": np.zeros(5, np.float32)}),
        "'moment.w' is damaged: got 5 elements, expected the 6 of 'w'",
    ),
    "no property": (OnDeviceCheckpoint(W), "no property 'graphopt'"),
    "no JSON": (with_state(text="{"), "property 'graphopt' is damaged"),
    "deep JSON": (with_state(text="[" * 100_000), "property 'graphopt' is damaged"),
    "no object": (with_state(text="7"), "expected an object with a version"),
    "no version": (with_state(text="{}"), "expected an object with a version"),
    "another version": (with_state(text='{"version": 2}'), "version 2, expected 1; a newer"),
    "an unknown entry": (with_state(text='{"version": 1, "x": 0}'), "got an unknown 'x'"),
    "momentums as a list": (native_state(None, momentums=["mean_square"]), "momentums: expected"),
    "a state of no name": (native_state(None, momentums={"m": "momentum0"}), "some of mean_square"),
    "a momentum of no name": (native_state(None, momentums={"moment": []}), "one of momentum0"),
    "a missing momentum": (native_state(OptimizerState(1, 0.1)), "lacks 'momentum1' of"),
    "beyond float32": (native_state(None, initial_mean_square=1e300), r"got 1e\+300 .* float32"),
    "beyond float64": (native_state(None, initial_mean_square=10**400), "no float can hold"),
    "not a number": (native_state(None, initial_mean_square=np.nan), "got nan .* finite number"),
    "below zero": (native_state(None, initial_mean_square=-1.0), "expected a finite number >= 0"),
    "text": (native_state(None, initial_mean_square="1"), "expected an int or a float"),
    "nominal": (dataclasses.replace(with_state(), nominal=True), "a nominal checkpoint"),
}


@pytest.mark.any_runtime
@pytest.mark.parametrize(
    ("checkpoint", "message"), STATES_THAT_CANNOT_BE.values(), ids=STATES_THAT_CANNOT_BE
)
def test_states_that_cannot_be_are_refused_with_their_path(tmp_path, checkpoint, message):
    path = tmp_path / "checkpoint"
    write(path, checkpoint)
    with pytest.raises(ValueError, match=message) as caught:
        read_state(path)
    assert str(path) in str(caught.value)


# --- ONNX Runtime Training ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """Folders of what onnxruntime-training makes of the model, with and without values."""
    module = importlib.import_module("onnxruntime.training.artifacts")
    folder = tmp_path_factory.mktemp("artifacts")
    module.generate_artifacts(
        forward_model(),
        requires_grad=["w", "b"],
        frozen_params=["scale"],
        loss=module.LossType.MSELoss,
        optimizer=module.OptimType.AdamW,
        artifact_directory=folder,
        nominal_checkpoint=True,
    )
    for path in folder.glob("*.onnx"):
        model = onnx.load(path)
        model.ir_version = 8  # the onnx package may be newer than this runtime
        onnx.save(model, path)
    return folder


def api():
    return importlib.import_module("onnxruntime.training.api")


def load(path):
    return api().CheckpointState.load_checkpoint(str(path))


class Training:
    """A Module and an Optimizer of ONNX Runtime on a checkpoint."""

    def __init__(self, artifacts, path, parameters=None):
        self.state = load(path)
        self.module = api().Module(
            str(artifacts / "training_model.onnx"), self.state, str(artifacts / "eval_model.onnx")
        )
        if parameters is not None:
            self.module.copy_buffer_to_parameters(parameters, trainable_only=False)
        self.optimizer = api().Optimizer(str(artifacts / "optimizer_model.onnx"), self.module)

    def train(self, steps, seed):
        rng, losses = np.random.default_rng(seed), []
        for _ in range(steps):
            x, y = (rng.standard_normal((5, n)).astype(np.float32) for n in (3, 4))
            self.module.train()
            losses.append(float(self.module(x, y)))
            self.optimizer.step()
            self.module.lazy_reset_grad()
        return losses

    def save(self, path):
        api().CheckpointState.save_checkpoint(self.state, str(path), include_optimizer_state=True)
        return path


@needs_training_package
def test_what_onnx_runtime_wrote_is_read(artifacts, tmp_path):
    training = Training(artifacts, artifacts / "checkpoint")
    training.train(3, seed=1)
    training.state.properties["epoch"] = 7
    training.state.properties["loss"] = 0.25
    training.state.properties["data"] = "digits"
    result = read(training.save(tmp_path / "checkpoint"))
    assert not result.nominal
    assert result.properties == {"epoch": 7, "loss": 0.25, "data": "digits"}
    parameters = dict(training.state.parameters)
    for given, requires_grad in ((result.trainable, True), (result.frozen, False)):
        wanted = {n: p.data for n, p in parameters.items() if p.requires_grad == requires_grad}
        assert_same_tensors(given, wanted)
    assert result.optimizer is not None
    assert result.optimizer.step == 3
    assert result.optimizer.learning_rate == np.float32(0.001)
    assert {n: list(s) for n, s in result.optimizer.momentums.items()} == {
        "b": ["momentum0", "momentum1"],
        "w": ["momentum0", "momentum1"],
    }


@needs_training_package
def test_training_continues_alike_from_onnx_runtimes_file_and_ours(artifacts, tmp_path):
    training = Training(artifacts, artifacts / "checkpoint")
    training.train(3, seed=1)
    theirs, ours = training.save(tmp_path / "theirs"), tmp_path / "ours"
    write(ours, read(theirs))
    one, other = Training(artifacts, theirs), Training(artifacts, ours)
    assert one.train(3, seed=2) == other.train(3, seed=2)
    after = one.save(tmp_path / "after")
    assert after.read_bytes() == other.save(tmp_path / "also").read_bytes()
    assert read(after).optimizer.step == 6


@needs_training_package
def test_onnx_runtime_keeps_everything_of_our_file(tmp_path):
    before = trained()
    write(tmp_path / "ours", before)
    state = load(tmp_path / "ours")
    api().CheckpointState.save_checkpoint(
        state, str(tmp_path / "theirs"), include_optimizer_state=True
    )
    after = read(tmp_path / "theirs")
    assert dict(after.properties) == dict(before.properties)
    for one, other in ((after.trainable, before.trainable), (after.frozen, before.frozen)):
        assert_same_tensors(one, dict(sorted(other.items())))
    assert (after.optimizer.step, after.optimizer.learning_rate) == (3, 0.125)
    for name, momentums in before.optimizer.momentums.items():
        assert_same_tensors(after.optimizer.momentums[name], momentums)


@needs_training_package
@pytest.mark.parametrize("case", [c for c in CASES if c != "64 dimensions"])
def test_onnx_runtime_loads_every_kind_of_file(tmp_path, case):
    write(tmp_path / "ours", CASES[case])
    state = load(tmp_path / "ours")
    assert len(state.parameters) == len(CASES[case].trainable) + len(CASES[case].frozen)
    for name, parameter in state.parameters:
        wanted = (CASES[case].trainable | CASES[case].frozen)[name]
        assert parameter.data.tobytes() == wanted.tobytes()
        assert parameter.data.shape == wanted.shape


@needs_training_package
def test_step_and_rate_without_momentums_are_enough_to_train(artifacts, tmp_path):
    start = read(artifacts / "checkpoint")
    write(tmp_path / "ours", dataclasses.replace(start, optimizer=OptimizerState(5, 0.25)))
    training = Training(artifacts, tmp_path / "ours")
    training.train(3, seed=1)
    after = read(training.save(tmp_path / "after")).optimizer
    assert after is not None
    assert (after.step, after.learning_rate) == (8, 0.25)


@needs_training_package
def test_nominal_files_train_alike_once_all_parameters_are_loaded(artifacts, tmp_path):
    theirs, ours = artifacts / "nominal_checkpoint", tmp_path / "ours"
    complete = read(artifacts / "checkpoint")
    write(ours, dataclasses.replace(complete, nominal=True))
    assert_same(read(ours), read(theirs))
    full = Training(artifacts, artifacts / "checkpoint")
    parameters = full.module.get_contiguous_parameters(trainable_only=False)
    wanted = Training(artifacts, artifacts / "checkpoint").train(3, seed=1)
    for path in (theirs, ours):
        assert Training(artifacts, path, parameters).train(3, seed=1) == wanted
        with pytest.raises(RuntimeError, match="nominal state"):
            Training(artifacts, path).train(1, seed=1)


@needs_training_package
@pytest.mark.parametrize("name", LOADABLE)
def test_onnx_runtime_loads_the_dtypes_that_are_written(tmp_path, name):
    array = np.array([[0, 1, 1], [1, 0, 1]], dtype(name))
    write(tmp_path / "ours", OnDeviceCheckpoint({"w": array}))
    assert_same_tensors({"w": load(tmp_path / "ours").parameters["w"].data}, {"w": array})


@needs_training_package
@pytest.mark.parametrize("name", ONLY_READ)
def test_onnx_runtime_loads_none_of_the_others(tmp_path, name):
    array = np.array([0, 1, 1], dtype(name))
    (tmp_path / "theirs").write_bytes(schema_bytes(OnDeviceCheckpoint({"w": array})))
    with pytest.raises(Exception, match=r"Unsupported data type|is not supported"):
        load(tmp_path / "theirs").parameters["w"].data.tobytes()


@needs_training_package
def test_onnx_runtime_loads_no_other_version(tmp_path):
    for version, loads in ((1, False), (2, True), (3, False)):
        path = tmp_path / str(version)
        path.write_bytes(broken_root(version)())
        if loads:
            assert len(load(path).parameters) == 1
        else:
            with pytest.raises(RuntimeError, match=f"version {version} is not supported"):
                load(path)


@needs_training_package
def test_the_file_of_tensors_that_onnx_runtime_writes_is_read(tmp_path):
    big = {"w": np.arange(6000, dtype=np.float32).reshape(2, 3000)}
    w = SchemaWriter()
    apart = w.tensor("w", big["w"], data=None, offset=8)
    (tmp_path / "ours").write_bytes(w.finish(w.module([apart], [], external=True)))
    (tmp_path / "ours.data").write_bytes(bytes(8) + big["w"].tobytes())
    state = load(tmp_path / "ours")
    api().CheckpointState.save_checkpoint(state, str(tmp_path / "theirs"))
    assert (tmp_path / "theirs.data").stat().st_size >= big["w"].nbytes
    assert (tmp_path / "theirs").stat().st_size < 1000
    assert_same_tensors(read(tmp_path / "theirs").trainable, big)
