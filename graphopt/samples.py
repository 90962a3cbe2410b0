"""The samples of a file, in batches: what the command line trains on."""

import errno
import math
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from graphopt._files import existing_file
from graphopt.feeds import Feed, feed_of
from graphopt.graph import TrainingGraph
from graphopt.limits import check_memory

DEFAULT_BATCH_SIZE = 32
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}

Batch = dict[str, np.ndarray]


def read_samples(path: Path) -> Batch:
    """The arrays of an ``.npz`` file, all of the same length."""
    path = existing_file(path)
    if not zipfile.is_zipfile(path):
        raise ValueError(f"'{path}' is not an .npz file (numpy.savez writes them)")
    try:
        _check_sizes(path)
        with np.load(path, allow_pickle=False) as archive:
            samples = {name: archive[name] for name in archive.files}
    except MemoryError as error:
        raise MemoryError(f"cannot read '{path}': {error}") from None
    except OSError as error:
        if error.errno != errno.EINVAL:  # which seeking to where a damaged file says gives
            raise type(error)(error.errno, error.strerror, str(path)) from None
        raise ValueError(f"cannot read '{path}', it is damaged") from None
    except Exception as error:  # noqa: BLE001 - zipfile's, zlib's and NumPy's have no common base
        raise ValueError(f"cannot read '{path}', it is damaged: {error}") from None
    scalars = [name for name, array in samples.items() if array.ndim == 0]
    if scalars:
        raise ValueError(f"'{path}': '{scalars[0]}' is a scalar, expected an axis of samples")
    lengths = {name: len(array) for name, array in samples.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"'{path}': expected the same number of samples, got {lengths}")
    return samples


def _check_sizes(path: Path) -> None:
    """Refuse arrays that take more memory than the file can hold, or than is allowed.

    Raises:
        ValueError: There are such.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        check_memory(sum(member.file_size for member in members), f"'{path}', unpacked,")
        for member in members:
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read = _HEADERS.get(version)
                if read is None:
                    raise ValueError(f"'{member.filename}' is no array of NumPy")
                shape, _, dtype = read(file)
                there = member.file_size - file.tell()
            if math.prod(shape) * dtype.itemsize > there:
                raise ValueError(
                    f"'{member.filename}' is to have the shape {list(shape)}, but has {there} bytes"
                )


def fixed_size(inputs: Iterable[Feed]) -> int | None:
    """The batch size that is part of the graph, if one is."""
    sizes = (feed.shape[0] for feed in inputs if feed.shape)
    return next((size for size in sizes if isinstance(size, int)), None)


def size_of_batch(inputs: Iterable[Feed], wanted: int | None) -> int:
    """What the graph fixes, what is wanted, or `DEFAULT_BATCH_SIZE`."""
    fixed = fixed_size(inputs)
    if fixed is None:
        return wanted or DEFAULT_BATCH_SIZE
    if wanted not in (None, fixed):
        raise ValueError(f"--batch-size {wanted}: the batch size of the graph is fixed to {fixed}")
    return fixed


def first_batch(graph: TrainingGraph, data: Path, wanted: int | None) -> Batch:
    """A batch of the samples of a file."""
    samples = read_samples(data)
    inputs = [feed_of(value) for value in graph.model.graph.input if value.name in samples]
    size = size_of_batch(inputs, wanted)
    count = len(next(iter(samples.values())))
    if size > count and (wanted is not None or fixed_size(inputs) is not None):
        raise ValueError(f"'{data}' has {count} samples, and a step takes {size}")
    return {name: array[:size] for name, array in samples.items()}
