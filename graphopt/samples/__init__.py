"""Samples in batches, of files and folders of many kinds: what the command line trains on."""

from graphopt.samples.batch_size import DEFAULT_BATCH_SIZE, fixed_size, size_of_batch
from graphopt.samples.npz import read_samples
from graphopt.samples.opening import SampleOptions, first_batch, open_samples
from graphopt.samples.pictures import PictureOptions
from graphopt.samples.source import Arrays, Batch, Samples

__all__ = [
    "DEFAULT_BATCH_SIZE",
    "Arrays",
    "Batch",
    "PictureOptions",
    "SampleOptions",
    "Samples",
    "first_batch",
    "fixed_size",
    "open_samples",
    "read_samples",
    "size_of_batch",
]
