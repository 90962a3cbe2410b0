"""Pictures as a graph takes them: of its size, with its channels, in its layout and dtype."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.feeds import Feed

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # of Pillow, by the number of channels


@dataclass(frozen=True)
class PictureOptions:
    """What a user says about pictures.

    Attributes:
        size: Height and width, where the graph leaves them open.
        mean: What is subtracted of each channel, of values from 0 to 1.
        std: What it is divided by then.
    """

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Frame:
    """What a graph takes.

    Attributes:
        feed: Its name.
        dtype: Of the values: uint8 is from 0 to 255, a floating-point one from 0 to 1.
        channels: 1 (grey), 3 or 4.
        size: Height and width; None where each picture keeps its own.
        channels_last: Whether the layout is [N, H, W, C] rather than [N, C, H, W].
        options: What the user says.
    """

    feed: str
    dtype: np.dtype
    channels: int
    size: tuple[int, int] | None
    channels_last: bool
    options: PictureOptions

    def values(self, picture: Any) -> np.ndarray:
        """A picture of Pillow as the graph takes it, without the axis of samples.

        Raises:
            ValueError: Its values are not from 0 to 255; Pillow would cut them off there.
        """
        if picture.mode[0] in "IF":
            raise ValueError(
                f"its values have more than 8 bits (mode {picture.mode}); save it with 8 bits, or "
                "give arrays: .npz, .npy or Parquet"
            )
        converted = picture.convert(_MODES[self.channels])
        if self.size is not None and converted.size != self.size[::-1]:
            converted = converted.resize(self.size[::-1], resample=_bilinear())
        array = np.asarray(converted).reshape(converted.height, converted.width, self.channels)
        if self.dtype != np.uint8:
            array = array.astype(np.float32) / 255
            if self.options.mean is not None:
                array = array - np.asarray(self.options.mean, np.float32)
            if self.options.std is not None:
                array = array / np.asarray(self.options.std, np.float32)
            array = array.astype(self.dtype)
        return array if self.channels_last else np.moveaxis(array, -1, 0)

    def described(self) -> str:
        """What changes the values, for a digest."""
        return f"{self.dtype.name} {self.channels} {self.size} {self.channels_last} {self.options}"


def frame_of(feed: Feed, options: PictureOptions) -> Frame:
    """What a feed takes, from its shape.

    Raises:
        ValueError: It takes no pictures, or what the user says does not fit.
    """
    shape, dtype = feed.shape, np.dtype(feed.dtype)
    if shape is None or len(shape) != 4 or not (dtype.kind == "f" or dtype == np.uint8):
        raise ValueError(
            f"feed '{feed.name}' is {feed.dtype}{list(shape or [])}, which takes no pictures: "
            "expected floats or uint8 of shape [N, C, H, W] or [N, H, W, C]"
        )
    order = [(size, axis) for size in (1, 3, 4) for axis in (1, 3) if shape[axis] == size]
    channels_last = bool(order) and order[0][1] == 3  # a size of 4 may be a height, or a width
    channels = shape[3] if channels_last else shape[1]
    if isinstance(channels, int) and channels not in _MODES:
        raise ValueError(f"feed '{feed.name}' has {channels} channels, expected 1, 3 or 4")
    count = channels if isinstance(channels, int) else 3
    height, width = shape[1:3] if channels_last else shape[2:4]
    size = options.size
    if isinstance(height, int) and isinstance(width, int):
        if size not in (None, (height, width)):
            raise ValueError(
                f"--image-size: got {size}, but feed '{feed.name}' takes {height} by {width}"
            )
        size = height, width
    for name, values in (("mean", options.mean), ("std", options.std)):
        if values is not None and len(values) not in (1, count):
            raise ValueError(
                f"--image-{name}: got {len(values)} numbers for {count} channels, expected one, "
                "or one for each"
            )
        if values is not None and dtype == np.uint8:
            raise ValueError(f"--image-{name}: feed '{feed.name}' takes uint8, from 0 to 255")
    return Frame(feed.name, dtype, count, size, channels_last, options)


def stacked(arrays: Sequence[np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Pictures as one array.

    Raises:
        ValueError: They have several sizes.
    """
    for array, name in zip(arrays, names, strict=True):
        if array.shape != arrays[0].shape:
            raise ValueError(
                f"{name} is {list(array.shape)}, but {names[0]} is {list(arrays[0].shape)}; give "
                "the size that all shall have: --image-size HEIGHTxWIDTH"
            )
    return np.stack(arrays)


def pillow() -> Any:
    """The module that reads pictures.

    Raises:
        ImportError: It is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise ImportError(
            "pictures need Pillow, which is not installed: pip install 'graphopt[images]'"
        ) from None
    return Image


def _bilinear() -> Any:
    return pillow().Resampling.BILINEAR
