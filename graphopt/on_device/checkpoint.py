"""The checkpoints of ONNX Runtime's on-device training, read and written without it.

Such a file is one FlatBuffer of the schema ``ort_training_checkpoint.fbs``, whose tables are
written and read here, slot by slot. After it graphopt writes the digest of all before; ONNX Runtime
does not look there, and what it writes itself ends with the FlatBuffer.
"""

import hashlib
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphopt._files import PathLike, about, existing_file, write_atomically
from graphopt.limits import asked_for_by
from graphopt.on_device._flatbuffer import Buffer, DamagedError, Numbers, Table, Written, laid_out

Tensors = Mapping[str, np.ndarray]

_IDENTIFIER = b"ODTC"
_MARK = b"graphopt.sha256."  # before and after the digest
_END = len(_MARK) + hashlib.sha256().digest_size + len(_MARK)
_VERSION = 2
_GROUP = "group0"  # the only one that ONNX Runtime's optimizer uses
_LARGEST_RANK = 64  # NumPy's limit
_NO_EXTERNAL_DATA = -1

# ONNX Runtime writes these element types, whose numbers are those of ONNX, but loads fewer.
_ELEMENT_TYPES = frozenset(range(1, 21)) - {ir.DataType.STRING}
_LOADABLE = _ELEMENT_TYPES.intersection(range(14)) - {ir.DataType.FLOAT16}


@dataclass(frozen=True)
class OptimizerState:
    """What ONNX Runtime keeps of its optimizer: the group ``group0``.

    Attributes:
        step: Number of steps taken.
        learning_rate: The initial learning rate; the file keeps it in float32.
        momentums: The state of each parameter, ``{"momentum0": array, ...}``; may be empty.
    """

    step: int
    learning_rate: float
    momentums: Mapping[str, Tensors] = field(default_factory=dict)


@dataclass(frozen=True)
class OnDeviceCheckpoint:
    """The content of a checkpoint of ONNX Runtime's on-device training.

    Attributes:
        trainable: The parameters that are trained.
        frozen: The parameters that are not.
        optimizer: The optimizer's state, if the checkpoint has one.
        properties: Values that the user added; int64, float32 or text in the file.
        nominal: The parameters have names and dtypes, but no values: a reader gets an empty array
            for each, and a writer ignores the values. Before training, ONNX Runtime then needs the
            values of all parameters, frozen ones too, and takes float32 alone.
    """

    trainable: Tensors
    frozen: Tensors = field(default_factory=dict)
    optimizer: OptimizerState | None = None
    properties: Mapping[str, int | float | str] = field(default_factory=dict)
    nominal: bool = False


def is_on_device(path: PathLike) -> bool:
    """Whether a file says that it is a checkpoint of on-device training.

    Raises:
        FileNotFoundError: There is no such file.
    """
    with existing_file(path).open("rb") as file:
        return file.read(8)[4:] == _IDENTIFIER


def read(path: PathLike) -> OnDeviceCheckpoint:
    """Read a checkpoint of on-device training.

    Args:
        path: The file. If its tensors are in a file of their own, as those of ONNX Runtime above
            about 1.8 GB are, that file is ``path`` with ``.data`` appended.

    Returns:
        The checkpoint; its arrays are copies that belong to the caller.

    Raises:
        FileNotFoundError: There is no such file, or its ``.data`` file is missing.
        ValueError: The file is not a checkpoint of on-device training, is damaged, asks for more
            memory than there is, or has what ONNX Runtime 1.19 does not write.

    Example:
        >>> write("checkpoint", OnDeviceCheckpoint(trainable={"w": np.zeros(3, np.float32)}))
        >>> read("checkpoint").trainable["w"]
        array([0., 0., 0.], dtype=float32)
    """
    path = existing_file(path)
    if not is_on_device(path):
        raise ValueError(
            f"'{path}' is not a checkpoint of ONNX Runtime's on-device training: bytes 4 to 7 are "
            f"not '{_IDENTIFIER.decode()}'"
        )
    try:
        with asked_for_by(path):
            return _read_checkpoint(path)
    except DamagedError as error:
        raise ValueError(
            f"'{path}' is not a readable checkpoint of on-device training: {error}; "
            "write it again or take another copy"
        ) from None


def write(path: PathLike, checkpoint: OnDeviceCheckpoint) -> None:
    """Write a checkpoint that ONNX Runtime's on-device training loads, atomically.

    Tensors keep their order, and the same checkpoint always gives the same bytes.

    Args:
        path: The file.
        checkpoint: Its content. Arrays are float32, float64, of an integer dtype, or bool: ONNX
            Runtime 1.19 loads no others, float16 among them. Momentums belong to all trainable
            parameters or to none.

    Raises:
        FileNotFoundError: The folder does not exist.
        TypeError: An array has another dtype, or a property is neither a number nor text.
        ValueError: A value does not fit the format, or the file would exceed 2 GB.

    Example:
        >>> weights = {"w": np.zeros(3, np.float32)}
        >>> state = OptimizerState(step=0, learning_rate=1e-3)
        >>> write("checkpoint", OnDeviceCheckpoint(weights, optimizer=state))
    """
    _check(checkpoint)
    with about(path):
        chunks = laid_out(_IDENTIFIER, _root(checkpoint))

    digest = hashlib.sha256()

    def fill(part: Path) -> None:
        with part.open("wb") as file:
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
            file.write(_MARK + digest.digest() + _MARK)

    write_atomically(path, fill)


def has_digest(path: PathLike) -> bool:
    """Whether graphopt wrote a checkpoint, so that damage to it is found when it is read.

    Raises:
        FileNotFoundError: There is no such file.
    """
    size = existing_file(path).stat().st_size
    with existing_file(path).open("rb") as file:
        file.seek(max(0, size - _END))
        return _is_marked(file.read())


# Writing


def _check(checkpoint: OnDeviceCheckpoint) -> None:
    both = sorted(checkpoint.trainable.keys() & checkpoint.frozen.keys())
    if both:
        raise ValueError(f"'{both[0]}' is both trainable and frozen; a parameter is one of the two")
    if checkpoint.optimizer is not None:
        named = checkpoint.optimizer.momentums.keys()
        unmatched = sorted(named ^ checkpoint.trainable.keys()) if named else []
        if unmatched:
            raise ValueError(
                f"the optimizer's momentums do not match the trainable parameters at "
                f"'{unmatched[0]}'; give momentums to all of them or to none"
            )


def _number(name: str, form: str, value: float) -> bytes:
    """One number as the file has it."""
    try:
        return struct.pack(form, value)
    except (struct.error, OverflowError):
        kind = {"<q": "int64", "<f": "float32"}[form]
        raise ValueError(f"'{name}' is {value!r}, expected a value that fits {kind}") from None


def _root(checkpoint: OnDeviceCheckpoint) -> Written:
    """The tables of a checkpoint, with their fields in the order of the schema."""
    state, nominal = checkpoint.optimizer, checkpoint.nominal
    parameters = (
        _tensors(checkpoint.trainable, nominal=nominal),
        _tensors(checkpoint.frozen, nominal=nominal),
        struct.pack("<?", True) if nominal else None,
    )
    return (
        struct.pack("<i", _VERSION),
        parameters,
        None if state is None else [_group(state)],
        _properties(checkpoint.properties) if checkpoint.properties else None,
    )


def _group(state: OptimizerState) -> Written:
    return (
        _GROUP,
        _number("step", "<q", state.step),
        _number("learning_rate", "<f", state.learning_rate),
        [(name, _tensors(momentums)) for name, momentums in state.momentums.items()],
    )


def _properties(properties: Mapping[str, int | float | str]) -> Written:
    vectors: dict[type, list[Written]] = {int: [], float: [], str: []}
    for name, value in properties.items():
        match value:
            case int() | np.integer() if not isinstance(value, bool):
                vectors[int].append((name, _number(name, "<q", int(value))))
            case float() | np.floating():
                vectors[float].append((name, _number(name, "<f", float(value))))
            case str():
                vectors[str].append((name, value))
            case _:
                raise TypeError(
                    f"property '{name}' is a {type(value).__name__}, expected int, float or str"
                )
    return tuple(entries or None for entries in vectors.values())


def _tensors(tensors: Tensors, *, nominal: bool = False) -> Written:
    return [_tensor(name, array, nominal=nominal) for name, array in tensors.items()]


def _tensor(name: str, array: np.ndarray, *, nominal: bool) -> Written:
    array = np.asarray(array)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    code = _code(name, array.dtype)
    dims = () if nominal else array.shape
    # The bytes of the array; not a copy if it is contiguous.
    content = np.ascontiguousarray([] if nominal else array).reshape(-1).view(np.uint8)
    return (
        name,
        None,
        Numbers(len(dims), struct.pack(f"<{len(dims)}q", *dims)),
        struct.pack("<i", code),
        Numbers(content.size, content.data),
    )


def _code(name: str, dtype: np.dtype) -> int:
    try:
        code = ir.DataType.from_numpy(dtype)
    except TypeError:
        code = ir.DataType.UNDEFINED
    if code not in _LOADABLE:
        raise TypeError(
            f"'{name}' has dtype {dtype}, which ONNX Runtime does not load from a checkpoint; "
            "convert it to float32 or float64, to an integer dtype or to bool"
        )
    return int(code)


# Reading


def _is_marked(end: bytes) -> bool:
    """Whether what a file ends with is a digest; also if a part of it is damaged."""
    return _MARK in end


def _without_digest(content: np.ndarray) -> np.ndarray:
    """The FlatBuffer of a file, compared with the digest after it, if there is one."""
    end = content[-_END:].tobytes()
    if not _is_marked(end):
        return content
    content = content[:-_END]
    if end != _MARK + hashlib.sha256(content.data).digest() + _MARK:
        raise DamagedError("it is not what graphopt wrote")
    return content


def _read_checkpoint(path: Path) -> OnDeviceCheckpoint:
    buffer = Buffer(_without_digest(np.fromfile(path, np.uint8)))
    root = Table(buffer, buffer.number("<I", 0))
    version = root.number(0, "<i")
    if version != _VERSION:
        raise DamagedError(f"its version is {version}, expected {_VERSION}")
    module = root.table(1)
    if module is None:
        raise DamagedError("it has no parameters")
    nominal = module.number(2, "<B") != 0
    external = None
    if module.number(3, "<B"):
        data = existing_file(f"{path}.data")
        empty = data.stat().st_size == 0
        external = Buffer(np.empty(0, np.uint8) if empty else np.memmap(data, np.uint8, mode="r"))
    parameters = partial(_read_tensors, nominal=nominal, external=external)
    trainable = parameters(module.tables(0))
    frozen = parameters(module.tables(1))
    both = sorted(trainable.keys() & frozen.keys())
    if both:
        raise DamagedError(f"'{both[0]}' is both trainable and frozen")
    return OnDeviceCheckpoint(
        trainable=trainable,
        frozen=frozen,
        optimizer=_read_optimizer(root.tables(2), external),
        properties=_read_properties(root.table(3)),
        nominal=nominal,
    )


def _read_optimizer(groups: Iterable[Table], external: Buffer | None) -> OptimizerState | None:
    state = None
    for group in groups:
        name = group.text(0, "the name of an optimizer group")
        if name != _GROUP or state is not None:
            raise DamagedError(f"it has an optimizer group '{name}', expected '{_GROUP}' alone")
        momentums = {
            parameter: _read_tensors(entry.tables(1), external=external)
            for parameter, entry in _named("parameter", group.tables(3), twice="momentums of ")
        }
        step, learning_rate = int(group.number(1, "<q")), float(group.number(2, "<f"))
        state = OptimizerState(step, learning_rate, momentums)
    return state


def _read_properties(bag: Table | None) -> dict[str, int | float | str]:
    properties: dict[str, int | float | str] = {}
    if bag is None:
        return properties
    readers: tuple[Callable[[Table], int | float | str], ...] = (
        lambda entry: int(entry.number(1, "<q")),
        lambda entry: float(entry.number(1, "<f")),
        lambda entry: entry.text(1, "the value of a property"),
    )
    for slot, value in enumerate(readers):
        for entry in bag.tables(slot):
            name = entry.text(0, "the name of a property")
            if name in properties:
                raise DamagedError(f"it has property '{name}' twice")
            properties[name] = value(entry)
    return properties


def _read_tensors(
    tables: Iterable[Table], *, nominal: bool = False, external: Buffer | None
) -> dict[str, np.ndarray]:
    named = _named("tensor", tables)
    return {name: _read_tensor(name, table, nominal, external) for name, table in named}


def _named(kind: str, tables: Iterable[Table], twice: str = "") -> Iterator[tuple[str, Table]]:
    """The tables, each with its name, which no other has."""
    found: set[str] = set()
    for table in tables:
        name = table.text(0, f"the name of a {kind}")
        if name in found:
            raise DamagedError(f"it has {twice}'{name}' twice")
        found.add(name)
        yield name, table


def _read_tensor(name: str, table: Table, nominal: bool, external: Buffer | None) -> np.ndarray:
    code = table.number(3, "<i")
    if code not in _ELEMENT_TYPES:
        raise DamagedError(f"'{name}' has element type {code}, which is unknown or not numeric")
    dtype = ir.DataType(code).numpy()
    if nominal:
        return np.empty(0, dtype)
    shape = _read_shape(name, table, dtype.itemsize)
    expected = math.prod(shape) * dtype.itemsize
    content = _read_content(name, table, expected, external)
    if dtype == np.bool_ and content.size and content.max() > 1:
        raise DamagedError(f"'{name}' is bool, but has values other than 0 and 1")
    return content.view(dtype).reshape(shape)


def _read_shape(name: str, table: Table, item_size: int) -> tuple[int, ...]:
    at, rank = table.vector(2, 8)
    if rank > _LARGEST_RANK:
        raise DamagedError(f"'{name}' has {rank} dimensions, expected {_LARGEST_RANK} at most")
    dims = tuple(table.buffer.number("<q", at + 8 * i) for i in range(rank))
    # Without its zeros too, the shape must be one that NumPy can address.
    extent = math.prod(d for d in dims if d) * item_size
    if any(d < 0 for d in dims) or extent >= 2**62:
        raise DamagedError(f"'{name}' has the impossible shape {list(dims)}")
    return dims


def _read_content(name: str, table: Table, expected: int, external: Buffer | None) -> np.ndarray:
    source, at, size = table.buffer, *table.vector(4, 1)
    offset = table.number(6, "<q", _NO_EXTERNAL_DATA)
    if offset != _NO_EXTERNAL_DATA:
        if external is None:
            raise DamagedError(f"'{name}' is in another file, but the checkpoint has none")
        source, at, size = external, offset, expected
    elif not table.has(4):
        raise DamagedError(f"'{name}' has no data")
    if size != expected:
        raise DamagedError(f"'{name}' has {size} bytes of data, expected {expected}")
    return source.copy(at, size)
