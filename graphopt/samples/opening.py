"""Samples of any kind, by what the path of them is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from graphopt._files import existing_file
from graphopt.feeds import Feed
from graphopt.graph import TrainingGraph
from graphopt.samples.batch_size import fixed_size, size_of_batch
from graphopt.samples.class_folders import ClassFolders
from graphopt.samples.npy_folder import is_npy_folder, open_npy_folder
from graphopt.samples.npz import read_samples
from graphopt.samples.pictures import PictureOptions
from graphopt.samples.source import Arrays, Batch, Samples
from graphopt.samples.tables import HuggingFace, is_hugging_face, open_parquet


@dataclass(frozen=True)
class SampleOptions:
    """What a user says about samples.

    Attributes:
        columns: What the array, or the column, of a feed is called, where it has another name.
        pictures: What is said about pictures.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    pictures: PictureOptions = field(default_factory=PictureOptions)


def open_samples(
    data: str, feeds: Sequence[Feed], options: SampleOptions = SampleOptions()
) -> Samples:
    """Open samples.

    Args:
        data: An ``.npz`` file; a folder of ``.npy`` files; a Parquet file, or a folder of them; a
            data set of Hugging Face, ``hf:NAME`` or a folder; or a folder of pictures for each
            class.
        feeds: What the graph takes.
        options: What the user says about them.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: A package is not installed that this kind needs.
        TypeError: Numbers do not fit the dtype of a feed.
        ValueError: They are damaged, or do not fit each other or the feeds.
    """
    unknown = [name for name in options.columns if name not in {feed.name for feed in feeds}]
    if unknown:
        raise ValueError(
            f"--feed: got '{unknown[0]}', expected one of {', '.join(f.name for f in feeds)}"
        )
    path = Path(data)
    if is_hugging_face(data):
        return HuggingFace(data, feeds, options.columns, options.pictures)
    if path.is_dir() and is_npy_folder(path):
        return _renamed(data, open_npy_folder(path), options.columns)
    if path.suffix == ".parquet" or (path.is_dir() and any(path.glob("*.parquet"))):
        file = path if path.is_dir() else existing_file(path)
        return open_parquet(file, feeds, options.columns)
    if path.is_dir():
        return ClassFolders(path, feeds, options.pictures)
    return _renamed(data, Arrays(read_samples(path), [path]), options.columns)


def first_batch(graph: TrainingGraph, data: Path, wanted: int | None) -> Batch:
    """A batch of some samples.

    Raises:
        ValueError: There are fewer than it takes; or as `open_samples`.
    """
    samples = open_samples(str(data), graph.inputs)
    inputs = samples.among(graph.inputs)
    size, count = size_of_batch(inputs, wanted), len(samples)
    if size > count and (wanted is not None or fixed_size(inputs) is not None):
        raise ValueError(f"'{data}' has {count} samples, and a step takes {size}")
    return samples.take(np.arange(min(size, count)))


def _renamed(data: str, samples: Arrays, columns: Mapping[str, str]) -> Arrays:
    """The same, where arrays have the names of feeds."""
    for feed, name in columns.items():
        if name not in samples.arrays:
            raise ValueError(
                f"'{data}' has no array '{name}'; it has {', '.join(samples.names)}; say which "
                f"one is '{feed}' with --feed {feed}=ARRAY"
            )
    names = {array: feed for feed, array in columns.items()}
    arrays = {names.get(name, name): array for name, array in samples.arrays.items()}
    return samples.with_arrays(arrays)
