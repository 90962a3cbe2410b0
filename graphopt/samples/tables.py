"""Samples in tables: Parquet files, and data sets of Hugging Face."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.feeds import Feed
from graphopt.limits import asked_for_by, check_memory
from graphopt.samples.pictures import PictureOptions, frame_of, stacked
from graphopt.samples.source import Arrays, Batch, Rows, Samples, check_lengths

_PREFIX = "hf:"
_SAVED = ("dataset_info.json", "dataset_dict.json")  # what save_to_disk writes


def open_parquet(path: Path, feeds: Sequence[Feed], columns: Mapping[str, str]) -> Arrays:
    """The columns of a Parquet file, or of those in a folder, read whole.

    A column has numbers, or lists of one length of them, in any depth.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: A column is missing, has gaps or another content; or a file is damaged.
    """
    with asked_for_by(path):
        return _read_parquet(path, feeds, columns)


def _read_parquet(path: Path, feeds: Sequence[Feed], columns: Mapping[str, str]) -> Arrays:
    arrow, parquet = _pyarrow()
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    try:
        opened = [parquet.ParquetFile(file) for file in files]
        there = opened[0].schema_arrow.names
        chosen = {feed.name: _column(path, feed.name, columns, there) for feed in feeds}
        check_memory(sum(_size(file, chosen.values()) for file in opened), f"'{path}', unpacked,")
        tables = [file.read(columns=[*dict.fromkeys(chosen.values())]) for file in opened]
    except MemoryError:  # of Arrow too
        raise
    except (arrow.ArrowException, ArithmeticError, LookupError, OSError, RuntimeError) as error:
        raise ValueError(f"cannot read '{path}': {error}") from None
    arrays: dict[str, Rows] = {}
    for feed in feeds:
        name = chosen[feed.name]
        parts = [_values(f"'{path}': column '{name}'", table.column(name)) for table in tables]
        arrays[feed.name] = fitted(feed, np.concatenate(parts), f"'{path}': column '{name}'")
    check_lengths(str(path), arrays)
    return Arrays(arrays, files)


def is_hugging_face(data: str) -> bool:
    """Whether this names a data set of Hugging Face: ``hf:NAME``, or a folder of one."""
    return data.startswith(_PREFIX) or any(Path(data, name).is_file() for name in _SAVED)


class HuggingFace(Samples):
    """A data set of Hugging Face, of which rows are read when they are needed.

    Args:
        data: A folder of ``save_to_disk``, or ``hf:NAME``, a folder or what ``load_dataset`` takes,
            both with ``:SPLIT`` where there are several.
        feeds: What the graph takes.
        columns: The column of a feed that has another name.
        options: What the user says about pictures.

    Raises:
        ImportError: datasets is not installed.
        ValueError: There is no such data set, split or column.
    """

    def __init__(
        self,
        data: str,
        feeds: Sequence[Feed],
        columns: Mapping[str, str],
        options: PictureOptions,
    ) -> None:
        """See the class."""
        self._name, self._feeds = data, feeds
        self._rows = _loaded(data)
        features = self._rows.features
        self._columns = {f.name: _column(data, f.name, columns, list(features)) for f in feeds}
        if not len(self._rows):
            raise ValueError(f"'{data}' has no samples")
        self._frames = {
            feed.name: frame_of(feed, options)
            for feed in feeds
            if type(features[self._columns[feed.name]]).__name__ == "Image"
        }

    @property
    def names(self) -> tuple[str, ...]:
        """The feeds."""
        return tuple(self._columns)

    @property
    def classes(self) -> Sequence[str] | None:
        """The names of the one column of classes, if there is one."""
        lists = [
            getattr(self._rows.features[name], "names", None) for name in self._columns.values()
        ]
        found = [names for names in lists if names]
        return list(found[0]) if len(found) == 1 else None

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self._rows)

    def take(self, rows: np.ndarray) -> Batch:
        """Some of them.

        Raises:
            ValueError: They are damaged, or take more memory than there is.
        """
        try:
            found = self._rows[[int(row) for row in rows]]
        except Exception as error:  # noqa: BLE001 - whatever it raises, or what decodes pictures
            raise ValueError(f"cannot read '{self._name}': {error or 'no memory'}") from None
        return {
            feed.name: self._values(feed, found[self._columns[feed.name]]) for feed in self._feeds
        }

    def digest(self) -> str:
        """What Hugging Face knows it by, and what it is made to."""
        frames = [frame.described() for frame in self._frames.values()]
        return json.dumps([self._rows._fingerprint, len(self), self._columns, frames])  # noqa: SLF001

    def _values(self, feed: Feed, values: list[Any]) -> np.ndarray:
        frame = self._frames.get(feed.name)
        where = f"'{self._name}': column '{self._columns[feed.name]}'"
        if frame is not None:
            arrays = [frame.values(picture) for picture in values]
            return stacked(arrays, [f"{where}, picture {n}" for n in range(len(arrays))])
        try:
            array = np.array(values)
        except ValueError:
            raise ValueError(f"{where} has lists of several lengths") from None
        return fitted(feed, array, where)


def fitted(feed: Feed, array: np.ndarray, where: str) -> np.ndarray:
    """Numbers of a table in the dtype of a feed: integers may become floats, and not back.

    Raises:
        TypeError: They are no numbers, or would lose their fractions.
    """
    dtype = np.dtype(feed.dtype)
    if array.dtype.kind not in "biuf" or not np.can_cast(array.dtype, dtype, "same_kind"):
        raise TypeError(
            f"{where} has {array.dtype.name}, but feed '{feed.name}' takes {feed.dtype}"
        )
    return array.astype(dtype, copy=False)


def _column(where: object, feed: str, columns: Mapping[str, str], there: Sequence[str]) -> str:
    name = columns.get(feed, feed)
    if name not in there:
        raise ValueError(
            f"'{where}' has no column '{name}'; it has {', '.join(there)}; say which one is "
            f"'{feed}' with --feed {feed}=COLUMN"
        )
    return name


def _size(file: Any, columns: Any) -> int:
    """The bytes of some columns, unpacked."""
    wanted, total = set(columns), 0
    for index in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(index)
        for column in map(group.column, range(group.num_columns)):
            if column.path_in_schema.partition(".")[0] in wanted:
                total += column.total_uncompressed_size
    return int(total)


def _values(where: str, column: Any) -> np.ndarray:
    """A column as an array; lists of one length are further axes."""
    array, shape = column.combine_chunks(), [len(column)]
    if hasattr(array, "chunks"):  # of a column without rows, or of several chunks still
        array = array.chunk(0) if array.num_chunks else array
    while "list" in str(array.type).partition("<")[0]:
        _check_whole(where, array)
        lengths = np.unique(array.value_lengths().to_numpy(zero_copy_only=False))
        if len(lengths) > 1:
            raise ValueError(f"{where} has lists of several lengths, {lengths[0]} and others")
        shape.append(int(lengths[0]) if len(lengths) else 0)
        array = array.flatten()
    _check_whole(where, array)
    values = array.to_numpy(zero_copy_only=False) if shape[0] else np.empty(0)
    if values.dtype.kind not in "biuf":
        raise TypeError(f"{where} is {column.type}, expected numbers or lists of numbers")
    return np.asarray(values).reshape(shape)


def _check_whole(where: str, array: Any) -> None:
    if array.null_count:
        raise ValueError(f"{where} has {array.null_count} values that are missing")


def _loaded(data: str) -> Any:
    """The rows of a data set."""
    try:
        import datasets
    except ImportError:
        raise ImportError(
            "data sets of Hugging Face need datasets, which is not installed: "
            "pip install 'graphopt[datasets]'"
        ) from None
    name, split = data.removeprefix(_PREFIX), None
    if not Path(name).exists() and ":" in name:
        name, _, split = name.rpartition(":")
    try:
        found = (
            datasets.load_from_disk(name)
            if any(Path(name, file).is_file() for file in _SAVED)
            else datasets.load_dataset(name, split=split)
        )
    except Exception as error:  # noqa: BLE001 - whatever it raises, of which there is much
        raise ValueError(f"cannot read '{data}': {' '.join(str(error).split())}") from None
    if isinstance(found, dict):
        if split not in found:
            raise ValueError(
                f"'{data}': expected one of its splits, {', '.join(found)}: "
                f"{_PREFIX}{name}:{next(iter(found), 'train')}"
            )
        return found[split]
    return found


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise ImportError(
            "Parquet files need pyarrow, which is not installed: pip install 'graphopt[parquet]'"
        ) from None
    return pa, parquet
