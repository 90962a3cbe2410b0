"""Options that say what a graph is fed with."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from graphopt._outputs import Named, check_outputs
from graphopt.command_line.options import OptionTable, meaning
from graphopt.feeds import Feed
from graphopt.samples import PictureOptions, SampleOptions, Samples

Data = Annotated[
    str,
    typer.Option(
        metavar="DATA",
        help="An .npz file, a folder of .npy files, a Parquet file, a data set of Hugging Face "
        "(hf:NAME:SPLIT), or a folder of pictures for each class. Arrays and columns have the "
        "names of the graph's feeds; the first axis counts samples.",
        show_default=False,
    ),
]

_MANY = 100  # files, which are not compared with outputs by what links lead to

SAMPLES: OptionTable = {
    "feed": (
        Annotated[
            list[str] | None,
            typer.Option(
                metavar="FEED=NAME",
                help=meaning("train", "feed", "repeatable"),
            ),
        ],
        None,
    ),
    "image_size": (
        Annotated[
            str | None,
            typer.Option(metavar="HEIGHTxWIDTH", help=meaning("train", "image_size")),
        ],
        None,
    ),
    "image_mean": (
        Annotated[
            str | None,
            typer.Option(
                metavar="NUMBERS",
                help=meaning("train", "image_mean", "e.g. 0.485,0.456,0.406"),
            ),
        ],
        None,
    ),
    "image_std": (
        Annotated[str | None, typer.Option(metavar="NUMBERS", help=meaning("train", "image_std"))],
        None,
    ),
}
CONSTANT = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FEED=VALUE",
        help=meaning(
            "train",
            "constant",
            "as JSON, e.g. learning_rate=0.01 or group_mask=[true,false]; repeatable",
        ),
    ),
]


def sample_options(options: Mapping[str, Any]) -> SampleOptions:
    """What the options of `SAMPLES` say.

    Raises:
        ValueError: One of them is not written as it should be.
    """
    columns = dict(_pair("--feed", text) for text in options["feed"] or ())
    pictures = PictureOptions(
        size=_image_size(options["image_size"]),
        mean=_numbers("--image-mean", options["image_mean"]),
        std=_numbers("--image-std", options["image_std"]),
    )
    return SampleOptions(columns, pictures)


def constants_of(texts: Sequence[str] | None, feeds: Sequence[Feed]) -> dict[str, np.ndarray]:
    """What `CONSTANT` says, as arrays.

    Raises:
        ValueError: A name is no feed, or a value does not fit it.
    """
    by_name, found = {feed.name: feed for feed in feeds}, {}
    for text in texts or ():
        name, value = _pair("--constant", text)
        if name not in by_name:
            raise ValueError(f"--constant: got '{name}', expected one of {', '.join(by_name)}")
        feed = by_name[name]
        try:
            array = np.array(json.loads(value))
            if not np.can_cast(array.dtype, feed.dtype, "same_kind"):
                raise TypeError
            found[name] = array.astype(feed.dtype)
        except (TypeError, ValueError):
            raise ValueError(
                f"--constant: got {text!r}, expected {feed.dtype}{list(feed.shape or ())} in JSON"
            ) from None
    return found


def check_not_read(outputs: Sequence[Named], data: Sequence[tuple[str, str, Samples]]) -> None:
    """Refuse to write over data.

    Raises:
        ValueError: An output is a file of them.
    """
    names = {Path(os.path.realpath(path)).name for _, path in outputs if path is not None}
    for option, path, samples in data:
        files = [
            file for file in samples.files if len(samples.files) <= _MANY or file.name in names
        ]
        for output in outputs:
            check_outputs([output], [(option, path), *((option, file) for file in files)])


def _pair(option: str, text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not name or not value:
        raise ValueError(f"{option}: got '{text}', expected NAME=VALUE")
    return name, value


def _image_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    sizes = text.lower().split("x")
    if len(sizes) > 2 or not all(size.isdecimal() and int(size) for size in sizes):
        raise ValueError(f"--image-size: got '{text}', expected HEIGHTxWIDTH, such as 32x32")
    return int(sizes[0]), int(sizes[-1])


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
        if not np.isfinite(numbers).all() or (option == "--image-std" and 0 in numbers):
            raise ValueError
    except ValueError:
        raise ValueError(
            f"{option}: got '{text}', expected numbers such as 0.5 or 0.485,0.456,0.406"
        ) from None
    return numbers
