"""Pictures in folders, one for each class: ``<folder>/<class>/<picture>``."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from graphopt.feeds import Feed
from graphopt.limits import asked_for_by
from graphopt.samples.pictures import Frame, PictureOptions, frame_of, pillow, stacked
from graphopt.samples.source import Batch, Samples, written_at

_ENDINGS = {
    *(".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
}
_READERS = 4


class ClassFolders(Samples):
    """Pictures, read when they are needed, and the numbers of their classes.

    Classes are numbered by the names of their folders, in alphabetical order. Hidden folders and
    files that are no pictures are left out.

    Args:
        folder: The folder.
        feeds: What the graph takes: pictures, and an integer for each.
        options: What the user says about pictures.

    Raises:
        ImportError: Pillow is not installed.
        ValueError: There are no pictures, or the feeds are others.
    """

    def __init__(self, folder: Path, feeds: Sequence[Feed], options: PictureOptions) -> None:
        """See the class."""
        self._image, self._folder = pillow(), folder
        self._frame, self._labels = _feeds_of(feeds, options)
        folders = [p for p in folder.iterdir() if p.is_dir() and p.name[0] != "."]
        classes = sorted(folders, key=lambda path: path.name)  # paths of Windows ignore case
        self._classes = [path.name for path in classes]
        self._paths: list[Path] = []
        numbers = []
        for number, path in enumerate(classes):
            pictures = [file for file in path.rglob("*") if file.suffix.lower() in _ENDINGS]
            found = sorted(pictures, key=lambda file: file.relative_to(path).as_posix())
            self._paths += found
            numbers += [number] * len(found)
        if not self._paths:
            raise ValueError(
                f"'{folder}' has no samples: expected <name>.npy, *.parquet, a data set of Hugging "
                f"Face, or a folder of pictures ({', '.join(sorted(_ENDINGS))}) for each class"
            )
        self._numbers = np.array(numbers, self._labels.dtype)
        self._readers = ThreadPoolExecutor(_READERS)

    @property
    def classes(self) -> Sequence[str]:
        """The names of the folders."""
        return self._classes

    @property
    def names(self) -> tuple[str, ...]:
        """The feeds of pictures and of classes."""
        return self._frame.feed, self._labels.name

    def __len__(self) -> int:
        """How many pictures there are."""
        return len(self._paths)

    def take(self, rows: np.ndarray) -> Batch:
        """Some of them, read now."""
        paths = [self._paths[row] for row in rows]
        pictures = stacked(
            list(self._readers.map(self._read, paths)), [f"'{path}'" for path in paths]
        )
        return {self._frame.feed: pictures, self._labels.name: self._numbers[rows]}

    def digest(self) -> str:
        """Of names and sizes of files, and of what they are made to."""
        digest = hashlib.sha256(self._frame.described().encode())
        for path in self._paths:
            relative = path.relative_to(self._folder).as_posix()
            digest.update(f"\n{relative} {path.stat().st_size}".encode())
        return digest.hexdigest()

    @property
    def written(self) -> str:
        """When the pictures were last written to, of which only the sizes are looked at."""
        return written_at(self._paths)

    @property
    def files(self) -> Sequence[Path]:
        """The pictures."""
        return self._paths

    def _read(self, path: Path) -> np.ndarray:
        with asked_for_by(path):
            return self._decoded(path)

    def _decoded(self, path: Path) -> np.ndarray:
        try:
            with self._image.open(path) as picture:
                return self._frame.values(picture)
        except (OSError, SyntaxError, ValueError, self._image.DecompressionBombError) as error:
            raise ValueError(f"cannot read '{path}': {error}") from None


def _feeds_of(feeds: Sequence[Feed], options: PictureOptions) -> tuple[Frame, Feed]:
    """The feed of pictures, and that of classes."""
    pictures = [feed for feed in feeds if feed.shape is not None and len(feed.shape) == 4]
    labels = [f for f in feeds if np.dtype(f.dtype).kind == "i" and len(f.shape or ()) == 1]
    others = [feed.name for feed in feeds if feed not in (*pictures, *labels)]
    if len(pictures) != 1 or len(labels) != 1 or others:
        named = ", ".join(f"'{f.name}' {f.dtype}{list(f.shape or [])}" for f in feeds)
        raise ValueError(
            "folders of pictures are for graphs that take pictures [N, C, H, W] and their classes "
            f"[N]; this one takes {named}"
        )
    return frame_of(pictures[0], options), labels[0]
