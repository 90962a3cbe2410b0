"""Samples in an ``.npz`` file, which are read whole."""

import errno
import math
import zipfile
from pathlib import Path

import numpy as np

from graphopt._files import existing_file
from graphopt.limits import asked_for_by, check_memory
from graphopt.samples.source import Batch, check_lengths

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_samples(path: Path) -> Batch:
    """The arrays of an ``.npz`` file, all of the same length."""
    path = existing_file(path)
    if not zipfile.is_zipfile(path):
        raise ValueError(f"'{path}' is not an .npz file (numpy.savez writes them)")
    with asked_for_by(path):
        samples = _read(path)
    check_lengths(str(path), samples)
    return samples


def _read(path: Path) -> Batch:
    try:
        _check_sizes(path)
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except MemoryError:
        raise
    except OSError as error:
        if error.errno != errno.EINVAL:  # which seeking to where a damaged file says gives
            raise type(error)(error.errno, error.strerror, str(path)) from None
        raise ValueError(f"cannot read '{path}', it is damaged") from None
    except Exception as error:  # noqa: BLE001 - zipfile's, zlib's and NumPy's have no common base
        raise ValueError(f"cannot read '{path}', it is damaged: {error}") from None


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
